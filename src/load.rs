//! From a checkpoint to a device: a plan is made first, then carried out, then reported.

mod arena;
mod blocks;
mod carry;
mod fill;
mod names;
mod options;
mod plan;
mod report;
mod ring;
mod sink;
mod stream;

use std::collections::BTreeMap;
use std::time::Instant;

pub use options::{
    Delivery, LoadOptions, Prefetch, Rename, Sharing, Strictness, Structure, Template, Verification,
};
pub use plan::{Change, LoadPlan, Route, Step};
pub use report::{LoadReport, LoadSeconds};
pub use ring::Staging;

use crate::array::ArraySpec;
use crate::checkpoint::{Checkpoint, Io, TensorInfo, read_digests};
use crate::error::{Error, Result};
use crate::monitor::Tracker;
use crate::params::Params;
use crate::pjrt::{Client, Placement};
use crate::tree::{Framework, KeyMap, Node, record};
use plan::Target;
use sink::Sink;

/// XLA:CPU uses host memory in place only at this alignment, in bytes (`cpu_function_runtime::MinAlign`).
const CPU_ALIAS_ALIGNMENT: usize = 64;

/// Bytes that are read into an arena at once: large enough that the calls do not count, small enough that
/// threads end together.
const ARENA_BLOCK_BYTES: usize = 4 << 20;

/// The most threads that a load starts by itself.
const MAX_THREADS: usize = 16;

/// Threads that read from a disk or a network, however many processors there are: so many reads are under way at once.
/// Of 1 to 16, the fewest that a virtual disk gave its bandwidth to.
const WAITING_THREADS: usize = 8;

/// Bytes that are worth a further thread.
const BYTES_PER_THREAD: usize = 4 << 20;

/// Tensors that are worth a further thread: about a millisecond of the plugin's time.
const TENSORS_PER_THREAD: usize = 1000;

/// A load that is about to be carried out.
struct Prepared {
    plan: LoadPlan,
    keys: KeyMap,
    report: LoadReport,
    digests: BTreeMap<String, String>,
    to: Placement,
}

/// What a load of this checkpoint with these options would do.
///
/// # Errors
/// As for [`Params::load_with`], as far as they can be known before.
pub fn plan(client: &Client, checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadPlan> {
    prepare(client, checkpoint, options).map(|prepared| prepared.plan)
}

fn prepare(client: &Client, checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Prepared> {
    let to = match &options.to {
        Some(placement) => placement.clone(),
        None => Placement::from(&client.device(0)?),
    };
    let selection =
        names::select(checkpoint, options).map_err(|error| in_file(error, checkpoint.origin()))?;
    let digests = match options.verification {
        Verification::Digests => read_digests(checkpoint.metadata())?,
        Verification::None => BTreeMap::new(),
    };
    let (io, target) = (checkpoint.resolve(options.io), target(client, &to, options));
    let target = Target { use_map: target.use_map && matches!(io, Io::Auto | Io::Mapped), ..target };
    let address = checkpoint.data().as_ptr() as usize;
    let mut plan = LoadPlan::new(selection.named_tensors(), address, io, target, &options.dtypes)?;
    if io == Io::Auto {
        plan.io = checkpoint.preferred_reads();
    }
    plan.is_waited_for = checkpoint.is_waited_for(plan.io, &plan.copied_ranges());
    let report = LoadReport {
        framework: selection.framework,
        has_record: selection.has_record,
        ..LoadReport::default()
    };
    Ok(Prepared { plan, keys: selection.keys, report, digests, to })
}

/// What the device can do, and what of it is wanted.
fn target(client: &Client, to: &Placement, options: &LoadOptions) -> Target {
    let alias_alignment = match options.delivery {
        Delivery::Auto => alias_alignment(client),
        Delivery::Stream | Delivery::Whole => None,
    };
    let streams = alias_alignment.is_none() && options.delivery != Delivery::Whole;
    Target {
        alias_alignment,
        use_map: options.sharing == Sharing::Allowed,
        has_pieces: streams && stream::has_pieces(client, stream::memory_of(to).as_ref()),
        block_bytes: if alias_alignment.is_some() { ARENA_BLOCK_BYTES } else { options.staging.chunk_bytes },
    }
}

/// Loads a checkpoint, and reports how.
pub(crate) fn load(
    client: &Client,
    checkpoint: &Checkpoint,
    options: &LoadOptions,
) -> Result<(Params, LoadReport)> {
    let start = Instant::now();
    let Prepared { plan, keys, report: named, digests, to } = prepare(client, checkpoint, options)?;
    let planned = start.elapsed();
    let total_bytes = plan.steps.iter().map(|step| step.range.len() as u64).sum();
    let tracker = Tracker::new(&options.monitor, total_bytes);
    let sink = Sink::new(client, &plan, &to, &tracker);
    let done = carry::carry_out(&sink, checkpoint, options, &digests)?;
    done.warn_of_overflows(&plan);
    let buffers = sink.into_buffers();
    let mut report = LoadReport {
        framework: named.framework,
        has_record: named.has_record,
        threads: done.threads,
        is_registered: done.is_registered,
        ..LoadReport::new(&plan, done.not_in_place)
    };
    report.add_times(planned, start.elapsed(), done.spent);
    tracing::debug!(origin = checkpoint.origin(), ?report, "loaded");
    let params = Params::from_parts(keys, buffers);
    Ok((params.with_metadata(record::strip(checkpoint.metadata()), report.framework), report))
}

/// A checkpoint's tree, without its bytes.
#[derive(Debug, Clone)]
pub struct Outline {
    /// The structure and the leaves.
    pub keys: KeyMap,
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
    let specs = selection.tensors.iter().map(|tensor| tensor.spec.clone()).collect();
    let ranges = selection.tensors.iter().map(|tensor| tensor.range.clone()).collect();
    Ok(Outline {
        specs,
        ranges,
        framework: selection.framework,
        has_record: selection.has_record,
        keys: selection.keys,
    })
}

/// What host memory must be aligned to for the client to use it in place; `None` where it never does.
fn alias_alignment(client: &Client) -> Option<usize> {
    (client.platform_name() == "cpu").then_some(CPU_ALIAS_ALIGNMENT)
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
