//! From a checkpoint to a device: a plan is made first, then carried out, then reported.

pub(crate) mod options;
pub(crate) mod report;

use std::path::Path;
use std::time::{Duration, Instant};

pub use crate::plan::{Change, LoadPlan, Rename, Route, Selection, Step, Strictness, Structure, Template};
pub use crate::transfer::{Delivery, Prefetch, Registration, Sharing, Staging, TransferOptions};
pub(crate) use options::LoadOptions;
pub use options::Verification;
pub(crate) use report::LoadReport;
pub use report::LoadSeconds;

use crate::device_array::{Array, DeviceArray};
use crate::error::{Error, Result};
use crate::format::{Checkpoint, Format, Tensor};
use crate::monitor::Tracker;
use crate::params::{ParamTree, Params};
use crate::pjrt::{Client, Placement};
use crate::plan::{Abilities, Selected, Wanted, select};
use crate::store::{Digest, Io, SharedBlob};
use crate::transfer::{self, ClientDestination, Destination, Sink, TensorSource};
use crate::tree::{Framework, KeyMap, record};

/// A load that is about to be carried out.
pub(crate) struct PlannedLoad<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a LoadOptions,
    start: Instant,
    planned: Duration,
    plan: LoadPlan,
    sources: Vec<TensorSource<'a>>,
    keys: KeyMap,
    framework: Framework,
    has_record: bool,
}

/// What a load of this checkpoint with these options would do.
///
/// # Errors
/// As for [`Params::load_with`], as far as they can be known before.
pub fn plan(client: &Client, checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadPlan> {
    let to = placement(client, options)?;
    PlannedLoad::new(checkpoint, options, || transfer::target(client, &to, options.transfer))
        .map(|planned| planned.plan)
}

/// Whether the device that a plan is for has room for it now, as far as the plugin says how much memory it has.
///
/// # Errors
/// [`Error::DeviceMemory`], naming the first tensor that does not fit.
pub fn check_room(client: &Client, plan: &LoadPlan, options: &LoadOptions) -> Result<()> {
    transfer::check_room(&placement(client, options)?, plan, Duration::ZERO)
}

/// Where the options put the buffers.
fn placement(client: &Client, options: &LoadOptions) -> Result<Placement> {
    match &options.to {
        Some(placement) => Ok(placement.clone()),
        None => Ok(Placement::from(&client.device(0)?)),
    }
}

impl Params {
    /// Loads a file onto the client's first device. The transfers may still be under way on return;
    /// whatever uses a buffer waits for it, and so does [`Params::wait`].
    ///
    /// Where the platform can, buffers use the file's memory map in place: do not overwrite or truncate the file
    /// while they live (replacing it by another of its name is fine), or load it with [`Sharing::Never`].
    ///
    /// # Errors
    /// [`Error::Malformed`] when the file is not valid; an error naming the tensor when the plugin refuses one.
    pub fn load(client: &Client, path: impl AsRef<Path>) -> Result<Params> {
        Ok(Params::load_with(client, path, &LoadOptions::default())?.0)
    }

    /// Loads a file, and reports how. As [`Params::load`].
    ///
    /// # Errors
    /// As for [`Params::load`].
    pub fn load_with(
        client: &Client,
        path: impl AsRef<Path>,
        options: &LoadOptions,
    ) -> Result<(Params, LoadReport)> {
        Params::load_checkpoint(client, &Checkpoint::open_within(path, options.selection.limits)?, options)
    }

    /// Loads a checkpoint that is open already, and reports how. As [`Params::load`].
    ///
    /// # Errors
    /// As for [`Params::load`].
    pub fn load_checkpoint(
        client: &Client,
        checkpoint: &Checkpoint,
        options: &LoadOptions,
    ) -> Result<(Params, LoadReport)> {
        let to = placement(client, options)?;
        let planned =
            PlannedLoad::new(checkpoint, options, || transfer::target(client, &to, options.transfer))?;
        let (params, report) = planned
            .carry_out(|plan| ClientDestination::new(client, &to, checkpoint, plan, options.transfer))?;
        Ok((params.try_convert(|buffer| Ok(Array::from(buffer)))?, report))
    }
}

impl<A: DeviceArray> ParamTree<A> {
    /// The structure, types and shapes of these parameters, for a tree that must be the same.
    pub fn template(&self) -> Template {
        Template::new(
            self.keys().def().clone(),
            self.arrays().iter().map(|array| array.spec().clone()).collect(),
        )
    }
}

impl<'a> PlannedLoad<'a> {
    /// Chooses what is loaded, and plans how it gets to a device that can do what `target` finds out.
    ///
    /// # Errors
    /// [`Error::Tree`], [`Error::Template`], [`Error::NotFound`] for a pattern that matches nothing;
    /// [`Error::Malformed`] for a digest that is not recorded; an error naming the tensor where its type cannot be loaded
    /// or cast.
    pub fn new(
        checkpoint: &'a Checkpoint,
        options: &'a LoadOptions,
        target: impl FnOnce() -> Abilities,
    ) -> Result<PlannedLoad<'a>> {
        let start = Instant::now();
        let target = target();
        let selected = select(checkpoint, &options.selection, &options.dtypes)?;
        let digests = match options.verification {
            Verification::Digests => digests_of(&selected, checkpoint)?,
            Verification::None => vec![None; selected.tensors.len()],
        };
        let plan = plan_of(checkpoint, &selected, options, target)?;
        let Selected { keys, framework, has_record, tensors } = selected;
        let sources = tensors.into_iter().zip(digests);
        let sources = sources.map(|(tensor, digest)| TensorSource { tensor, digest }).collect();
        let planned = start.elapsed();
        Ok(PlannedLoad { checkpoint, options, start, planned, plan, sources, keys, framework, has_record })
    }

    /// Loads what was planned, and reports how.
    ///
    /// # Errors
    /// The first failure of any thread; nothing of the load is left then.
    pub fn carry_out<D: Destination>(
        self,
        destination: impl FnOnce(&LoadPlan) -> Result<D>,
    ) -> Result<(ParamTree<D::Buffer>, LoadReport)> {
        let PlannedLoad { checkpoint, options, plan, framework, has_record, .. } = self;
        let total_bytes = plan.steps.iter().map(|step| step.bytes as u64).sum();
        let tracker = Tracker::new(&options.monitor, total_bytes);
        let sink = Sink::new(&plan, &tracker);
        let stats =
            transfer::carry_out(destination(&plan)?, &sink, checkpoint, &self.sources, options.transfer)
                .map_err(|error| error.with_memory_note(|| sink.so_far()))?;
        stats.read.warn_of_overflows(&plan);
        let buffers = sink.into_buffers()?;
        let mut report = LoadReport {
            framework,
            has_record,
            checked_tensors: match options.verification {
                Verification::Digests => plan.steps.len(),
                Verification::None => 0,
            },
            threads: stats.threads,
            is_registered: stats.is_registered,
            ..LoadReport::new(&plan, stats.read.not_in_place)
        };
        report.add_times(self.planned, self.start.elapsed(), stats.read.spent);
        checkpoint.warn_if_changed();
        tracing::debug!(origin = checkpoint.origin(), ?report, "loaded");
        let metadata = record::strip(checkpoint.metadata());
        Ok((ParamTree::from_parts(self.keys, buffers).with_metadata(metadata, framework), report))
    }
}

/// How these tensors get to a device that can do so much.
fn plan_of(
    checkpoint: &Checkpoint,
    selected: &Selected<'_>,
    options: &LoadOptions,
    target: Abilities,
) -> Result<LoadPlan> {
    let blobs = &checkpoint.blobs;
    let io = match options.transfer.io {
        _ if blobs.iter().all(|blob| blob.is_memory()) => Io::Mapped,
        Io::Auto if blobs.iter().any(|blob| blob.is_remote()) => Io::Positional,
        io => io,
    };
    let target = Abilities { use_map: target.use_map && matches!(io, Io::Auto | Io::Mapped), ..target };
    // A file that nothing is used of in place is not mapped.
    let is_in_place = target.use_map && target.alias_alignment.is_some();
    let address = |blob: &SharedBlob| if is_in_place { Some(blob.map()?.as_ptr().addr()) } else { None };
    let addresses: Vec<Option<usize>> = blobs.iter().map(address).collect();
    let wanted = selected.named_tensors().map(|(name, tensor)| {
        let address = match tensor.extents() {
            [extent] => addresses[extent.file].map(|start| start.wrapping_add(extent.range.start)),
            _ => None,
        };
        Wanted { name, tensor, address }
    });
    let mut plan = LoadPlan::new(wanted, io, target, &options.dtypes)?;
    // What must be copied is read by position, where nothing else is wanted: that leaves the file in the page cache for the
    // next load.
    let wanted = if io == Io::Auto { Io::Positional } else { io };
    let copied: Vec<_> = (0..blobs.len()).map(|file| plan.copied_ranges(file)).collect();
    plan.is_waited_for = match wanted {
        Io::Direct => true,
        Io::Mapped => false,
        _ => blobs.iter().zip(&copied).any(|(blob, ranges)| !ranges.is_empty() && blob.is_waited_for(ranges)),
    };
    let copies_nothing = copied.iter().all(Vec::is_empty);
    let takes_map = io == Io::Auto
        && (copies_nothing || (target.copies_map && !plan.is_waited_for))
        && blobs.iter().all(|blob| blob.map().is_some());
    plan.io = if takes_map { Io::Mapped } else { wanted };
    Ok(plan)
}

/// The recorded digests of what is loaded, in its order; `None` for what is always checked.
///
/// # Errors
/// [`Error::Malformed`] when one is missing: who asks for a check is not told that all is well without one.
fn digests_of(selected: &Selected<'_>, checkpoint: &Checkpoint) -> Result<Vec<Option<Box<Digest>>>> {
    let recorded = checkpoint.digests()?;
    let missing = |problem: String| Error::Malformed {
        origin: checkpoint.origin().to_owned(),
        format: "file to check",
        problem: format!(
            "{problem}; write it again with `safejax convert --digests`, or load it without the check"
        ),
    };
    // What is compressed has its checksum with it, and so has the pickle that values of PyTorch's stand in.
    let is_in_pickle = |tensor: &Tensor| {
        let mut extents = tensor.extents().iter();
        checkpoint.format() == Format::PyTorch
            && extents.all(|extent| checkpoint.blobs[extent.file].is_memory())
    };
    let is_always_checked = |tensor: &Tensor| tensor.encoding.deflated.is_some() || is_in_pickle(tensor);
    if recorded.is_empty() && !selected.tensors.iter().all(|tensor| is_always_checked(tensor)) {
        return Err(missing("it records no digests".into()));
    }
    let digest = |tensor: &&Tensor| {
        let digest = recorded.get(&tensor.name).cloned().map(Box::new);
        if digest.is_none() && is_always_checked(tensor) {
            return Ok(None);
        }
        digest
            .map(Some)
            .ok_or_else(|| missing(format!("it records no digest of the tensor `{}`", tensor.name)))
    };
    selected.tensors.iter().map(digest).collect()
}
