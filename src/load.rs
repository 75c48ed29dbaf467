//! From a checkpoint to a device: a plan is made first, then carried out, then reported.

mod arena;
mod blocks;
mod carry;
mod device;
mod fill;
mod names;
mod options;
mod patterns;
mod plan;
mod report;
mod ring;
mod room;
mod sink;
mod stream;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

pub(crate) use carry::Carrier;
#[cfg(feature = "xla")]
pub(crate) use fill::Filler;
pub use options::{
    Delivery, LoadOptions, Prefetch, Rename, Sharing, Strictness, Structure, Template, Verification,
};
pub(crate) use patterns::check_casts;
pub(crate) use plan::Target;
pub use plan::{Change, LoadPlan, Route, Step};
pub use report::{LoadReport, LoadSeconds};
#[cfg(feature = "xla")]
pub(crate) use ring::Ring;
pub use ring::{Registration, Staging};
pub(crate) use sink::Sink;
#[cfg(feature = "xla")]
pub(crate) use stream::{pass_on, read_staged};

use crate::array::ArraySpec;
use crate::checkpoint::{Checkpoint, Io, TensorInfo, read_digests};
use crate::error::{Error, Result};
use crate::monitor::Tracker;
use crate::params::Params;
use crate::pjrt::{Client, Placement};
use crate::tree::{Framework, KeyMap, Node, record};
use device::Device;
use names::Selection;

/// The most threads that a load starts by itself.
const MAX_THREADS: usize = 16;

/// Threads that read from a disk or a network, however many processors there are: so many reads are under way at once.
/// Of 2, 4 and 8, the number that got a virtual disk's bandwidth every time.
const WAITING_THREADS: usize = 8;

/// Bytes that are worth a further thread.
const BYTES_PER_THREAD: usize = 4 << 20;

/// Tensors that are worth a further thread: about a millisecond of the plugin's time.
const TENSORS_PER_THREAD: usize = 1000;

/// A load that is about to be carried out.
pub(crate) struct Prepared<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a LoadOptions,
    start: Instant,
    planned: Duration,
    plan: LoadPlan,
    keys: KeyMap,
    framework: Framework,
    has_record: bool,
    digests: BTreeMap<String, String>,
}

/// What was loaded, onto whatever kind of device.
pub(crate) struct Loaded<B> {
    pub keys: KeyMap,
    /// In the order of the leaves.
    pub buffers: Vec<B>,
    /// The user's strings.
    pub metadata: BTreeMap<String, String>,
    pub framework: Framework,
}

/// What a load of this checkpoint with these options would do.
///
/// # Errors
/// As for [`Params::load_with`], as far as they can be known before.
pub fn plan(client: &Client, checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadPlan> {
    let to = placement(client, options)?;
    Prepared::new(checkpoint, options, || device::target(client, &to, options)).map(|prepared| prepared.plan)
}

/// Where the options put the buffers.
fn placement(client: &Client, options: &LoadOptions) -> Result<Placement> {
    match &options.to {
        Some(placement) => Ok(placement.clone()),
        None => Ok(Placement::from(&client.device(0)?)),
    }
}

/// Loads a checkpoint, and reports how.
pub(crate) fn load(
    client: &Client,
    checkpoint: &Checkpoint,
    options: &LoadOptions,
) -> Result<(Params, LoadReport)> {
    let to = placement(client, options)?;
    let prepared = Prepared::new(checkpoint, options, || device::target(client, &to, options))?;
    let (loaded, report) = prepared.carry_out(|plan| Device::new(client, &to, checkpoint, plan, options))?;
    let Loaded { keys, buffers, metadata, framework } = loaded;
    Ok((Params::from_parts(keys, buffers).with_metadata(metadata, framework), report))
}

impl<'a> Prepared<'a> {
    /// Chooses what is loaded, and plans how it gets to a device that can do what `target` finds out.
    ///
    /// # Errors
    /// [`Error::Tree`], [`Error::Template`], [`Error::NotFound`] for a pattern that matches nothing;
    /// [`Error::Malformed`] for a digest that is not recorded; an error naming the tensor where its type cannot be loaded
    /// or cast.
    pub fn new(
        checkpoint: &'a Checkpoint,
        options: &'a LoadOptions,
        target: impl FnOnce() -> Target,
    ) -> Result<Prepared<'a>> {
        let start = Instant::now();
        let target = target();
        let selection =
            names::select(checkpoint, options).map_err(|error| in_file(error, checkpoint.origin()))?;
        let digests = match options.verification {
            Verification::Digests => digests_of(&selection, checkpoint)?,
            Verification::None => BTreeMap::new(),
        };
        let io = checkpoint.resolve(options.io);
        let target = Target { use_map: target.use_map && matches!(io, Io::Auto | Io::Mapped), ..target };
        let address = checkpoint.data().as_ptr() as usize;
        let mut plan = LoadPlan::new(selection.named_tensors(), address, io, target, &options.dtypes)?;
        let copied = plan.copied_ranges();
        let wanted = if io == Io::Auto { checkpoint.preferred_reads() } else { io };
        plan.is_waited_for = checkpoint.is_waited_for(wanted, &copied);
        let takes_map = io == Io::Auto && (copied.is_empty() || (target.copies_map && !plan.is_waited_for));
        plan.io = if takes_map { Io::Mapped } else { wanted };
        let Selection { keys, framework, has_record, .. } = selection;
        let planned = start.elapsed();
        Ok(Prepared { checkpoint, options, start, planned, plan, keys, framework, has_record, digests })
    }

    /// Loads what was planned, and reports how.
    ///
    /// # Errors
    /// The first failure of any thread; nothing of the load is left then.
    pub fn carry_out<C: Carrier>(
        self,
        carrier: impl FnOnce(&LoadPlan) -> Result<C>,
    ) -> Result<(Loaded<C::Buffer>, LoadReport)> {
        let Prepared { checkpoint, options, plan, framework, has_record, .. } = self;
        let total_bytes = plan.steps.iter().map(|step| step.range.len() as u64).sum();
        let tracker = Tracker::new(&options.monitor, total_bytes);
        let sink = Sink::new(&plan, &tracker);
        let done = carry::carry_out(carrier(&plan)?, &sink, checkpoint, options, &self.digests)?;
        done.warn_of_overflows(&plan);
        let buffers = sink.into_buffers()?;
        let mut report = LoadReport {
            framework,
            has_record,
            checked_tensors: self.digests.len(),
            threads: done.threads,
            is_registered: done.is_registered,
            ..LoadReport::new(&plan, done.not_in_place)
        };
        report.add_times(self.planned, self.start.elapsed(), done.spent);
        checkpoint.warn_if_changed();
        tracing::debug!(origin = checkpoint.origin(), ?report, "loaded");
        let metadata = record::strip(checkpoint.metadata());
        Ok((Loaded { keys: self.keys, buffers, metadata, framework }, report))
    }
}

/// The recorded digests of what is loaded, by the file's keys.
///
/// # Errors
/// [`Error::Malformed`] when one is missing: who asks for a check is not told that all is well without one.
fn digests_of(selection: &Selection<'_>, checkpoint: &Checkpoint) -> Result<BTreeMap<String, String>> {
    let mut recorded = read_digests(checkpoint.metadata())?;
    let missing = |problem: String| Error::Malformed {
        origin: checkpoint.origin().to_owned(),
        format: "file to check",
        problem: format!(
            "{problem}; write it again with `safejax convert --digests`, or load it without the check"
        ),
    };
    if recorded.is_empty() && !selection.tensors.is_empty() {
        return Err(missing("it records no digests".into()));
    }
    let digest = |tensor: &&TensorInfo| {
        let entry = recorded.remove_entry(&tensor.name);
        entry.ok_or_else(|| missing(format!("it records no digest of the tensor `{}`", tensor.name)))
    };
    selection.tensors.iter().map(digest).collect()
}

/// A checkpoint's tree, without its bytes.
#[derive(Debug, Clone)]
pub struct Outline {
    /// The structure and the leaves.
    pub keys: KeyMap,
    /// The keys of the leaves in the file, before renaming, in JAX's order.
    pub file_keys: Vec<String>,
    /// The types and shapes of the leaves in the file, in JAX's order.
    pub specs: Vec<ArraySpec>,
    /// Where the leaves' bytes are, from the beginning of the file.
    pub ranges: Vec<std::ops::Range<usize>>,
    /// The framework whose names these are.
    pub framework: Framework,
    /// Whether the tree came from a structure record.
    pub has_record: bool,
}

impl Outline {
    /// The tree with the sums over its nodes.
    pub fn tree(&self) -> Node {
        Node::build(self.keys.def(), &mut self.specs.iter())
    }
}

/// The tree that [`Params::load_with`] would load with these options, without loading it.
///
/// # Errors
/// [`Error::Tree`] when the names or the structure record do not make a tree; [`Error::Template`].
pub fn outline(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Outline> {
    let selection =
        names::select(checkpoint, options).map_err(|error| in_file(error, checkpoint.origin()))?;
    let file_keys = selection.tensors.iter().map(|tensor| tensor.name.clone()).collect();
    let specs = selection.tensors.iter().map(|tensor| tensor.spec.clone()).collect();
    let ranges = selection.tensors.iter().map(|tensor| tensor.range.clone()).collect();
    Ok(Outline {
        file_keys,
        specs,
        ranges,
        framework: selection.framework,
        has_record: selection.has_record,
        keys: selection.keys,
    })
}

/// Names the file in an error about its names.
fn in_file(error: Error, origin: &str) -> Error {
    match error {
        Error::Tree(problem) => Error::Tree(format!("in {origin}, {problem}")),
        other => other,
    }
}

/// A tensor of the file under the name that it is loaded by.
pub(crate) type Selected<'a> = (&'a str, &'a TensorInfo);
