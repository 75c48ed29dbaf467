//! From a checkpoint to a device: a plan is made first, then carried out, then reported.

mod argument;
pub(crate) mod options;
pub(crate) mod report;
mod sharded;

use std::borrow::Cow;
use std::path::Path;
use std::time::{Duration, Instant};

pub use crate::plan::{
    Change, LoadPlan, Rename, Route, Selection, ShardingRules, Step, Strictness, Structure, Template,
    Unmatched,
};
pub use crate::transfer::{Delivery, Prefetch, Registration, Sharing, Staging, TransferOptions};
pub(crate) use options::LoadOptions;
pub use options::Verification;
pub(crate) use report::LoadReport;
pub use report::LoadSeconds;
pub use sharded::LeafPlacement;
use sharded::{Distributed, Part};

use crate::device_array::{Array, DeviceArray};
use crate::error::{Context, Error, Result};
use crate::format::{Checkpoint, Format, Tensor};
use crate::monitor::Tracker;
use crate::params::{ParamTree, Params};
use crate::pjrt::{Buffer, Client, Placement};
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
    /// The tensors as wholes, in the order of the leaves.
    tensors: Vec<&'a Tensor>,
    /// How they lie on several devices.
    distributed: Option<Distributed>,
    keys: KeyMap,
    framework: Framework,
    has_record: bool,
}

/// What a load of this checkpoint with these options would do.
///
/// # Errors
/// As for [`Params::load_with`], as far as they can be known before.
pub fn plan(client: &Client, checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadPlan> {
    let to = placements(client, options)?;
    PlannedLoad::new(checkpoint, options, || transfer::target(client, &to[0], options.transfer))
        .map(|planned| planned.plan)
}

/// Which slice of which tensor each device of a mesh would get ([`LoadOptions::sharded`]); none where there is no mesh.
///
/// # Errors
/// As for [`plan`].
pub fn placements_of(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Vec<LeafPlacement>> {
    let Some(distribution) = &options.distribution else { return Ok(Vec::new()) };
    let selected = select(checkpoint, &options.selection, &options.dtypes)?;
    Ok(distribution.divide(&selected, options)?.1.placements())
}

/// Whether the device that a plan is for has room for it now, as far as the plugin says how much memory it has.
///
/// # Errors
/// [`Error::DeviceMemory`], naming the first tensor that does not fit.
pub fn check_room(client: &Client, plan: &LoadPlan, options: &LoadOptions) -> Result<()> {
    transfer::check_room(&placements(client, options)?, plan, Duration::ZERO)
}

/// Where the options put the buffers.
fn placements(client: &Client, options: &LoadOptions) -> Result<Vec<Placement>> {
    match (&options.distribution, &options.to) {
        (Some(_), Some(_)) => {
            Err(Error::InvalidArgument("a load is laid over a mesh, or goes to one device, not both".into()))
        }
        (Some(distribution), None) => distribution.placements(client),
        (None, Some(placement)) => Ok(vec![placement.clone()]),
        (None, None) => Ok(vec![Placement::from(&client.device(0)?)]),
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
        let to = placements(client, options)?;
        let mut planned =
            PlannedLoad::new(checkpoint, options, || transfer::target(client, &to[0], options.transfer))?;
        let destination =
            |plan: &LoadPlan| ClientDestination::new(client, &to, checkpoint, plan, options.transfer);
        if let Some(distributed) = planned.distributed.take() {
            return planned.carry_out_over_devices(client, distributed, destination);
        }
        let (params, report) = planned.carry_out(destination)?;
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
        let (parts, distributed) = match &options.distribution {
            Some(distribution) => {
                let (parts, distributed) = distribution.divide(&selected, options)?;
                (parts, Some(distributed))
            }
            None => (wholes(&selected), None),
        };
        let mut digests = match options.verification {
            Verification::Digests => digests_of(&selected, checkpoint)?,
            Verification::None => vec![None; selected.tensors.len()],
        };
        if options.verification == Verification::Digests
            && let Some(name) = distributed.as_ref().and_then(Distributed::divides)
        {
            let problem = "digests are of whole tensors, and this one is read in parts; check the file by itself \
                           (`safejax verify`)";
            return Err(Error::InvalidArgument(problem.into())).for_tensor(name);
        }
        let plan = plan_of(checkpoint, &selected, &parts, options, target)?;
        let Selected { keys, framework, has_record, tensors } = selected;
        let source = |part: Part<'a>| TensorSource { digest: digests[part.leaf].take(), tensor: part.tensor };
        let sources = parts.into_iter().map(source).collect();
        let planned = start.elapsed();
        Ok(PlannedLoad {
            checkpoint,
            options,
            start,
            planned,
            plan,
            sources,
            tensors,
            distributed,
            keys,
            framework,
            has_record,
        })
    }

    /// As [`PlannedLoad::carry_out`], onto several devices.
    ///
    /// # Errors
    /// As for [`PlannedLoad::carry_out`].
    fn carry_out_over_devices<D: Destination<Buffer = Buffer>>(
        self,
        client: &Client,
        distributed: Distributed,
        destination: impl FnOnce(&LoadPlan) -> Result<D>,
    ) -> Result<(Params, LoadReport)> {
        let (buffers, mut report) = self.transfer(destination)?;
        let (arrays, dealt) =
            distributed.arrays(client, self.checkpoint, &self.plan, &self.tensors, &buffers)?;
        report.tensors = arrays.len();
        report.bytes += dealt.bytes;
        report.copied_bytes += dealt.bytes;
        report.copied_tensors += dealt.tensors;
        report.seconds.total = self.start.elapsed().as_secs_f64();
        Ok((self.into_tree(arrays), report))
    }

    /// Loads what was planned, and reports how.
    ///
    /// # Errors
    /// The first failure of any thread; nothing of the load is left then.
    pub fn carry_out<D: Destination>(
        self,
        destination: impl FnOnce(&LoadPlan) -> Result<D>,
    ) -> Result<(ParamTree<D::Buffer>, LoadReport)> {
        let (buffers, report) = self.transfer(destination)?;
        Ok((self.into_tree(buffers), report))
    }

    /// The tree of what was loaded, in the order of the leaves.
    fn into_tree<A>(self, arrays: Vec<A>) -> ParamTree<A> {
        let metadata = record::strip(self.checkpoint.metadata());
        ParamTree::from_parts(self.keys, arrays).with_metadata(metadata, self.framework)
    }

    /// Loads what was planned: a buffer for each step.
    fn transfer<D: Destination>(
        &self,
        destination: impl FnOnce(&LoadPlan) -> Result<D>,
    ) -> Result<(Vec<D::Buffer>, LoadReport)> {
        let PlannedLoad { checkpoint, options, plan, .. } = self;
        let total_bytes = plan.steps.iter().map(|step| step.bytes as u64).sum();
        let tracker = Tracker::new(&options.monitor, total_bytes);
        let sink = Sink::new(plan, &tracker);
        let stats =
            transfer::carry_out(destination(plan)?, &sink, checkpoint, &self.sources, options.transfer)
                .map_err(|error| error.with_memory_note(|| sink.so_far()))?;
        stats.read.warn_of_overflows(plan);
        let buffers = sink.into_buffers()?;
        let mut report = LoadReport {
            framework: self.framework,
            has_record: self.has_record,
            checked_tensors: match options.verification {
                Verification::Digests => plan.steps.len(),
                Verification::None => 0,
            },
            threads: stats.threads,
            is_registered: stats.is_registered,
            ..LoadReport::new(plan, stats.read.not_in_place)
        };
        report.add_times(self.planned, self.start.elapsed(), stats.read.spent);
        checkpoint.warn_if_changed();
        tracing::debug!(origin = checkpoint.origin(), ?report, "loaded");
        Ok((buffers, report))
    }
}

/// What is loaded of a selection onto one device: all of each tensor.
fn wholes<'a>(selected: &Selected<'a>) -> Vec<Part<'a>> {
    let whole = |(leaf, tensor): (usize, &&'a Tensor)| Part {
        leaf,
        tensor: Cow::Borrowed(*tensor),
        place: 0,
        copies: Vec::new(),
    };
    selected.tensors.iter().enumerate().map(whole).collect()
}

/// How these tensors get to a device that can do so much.
fn plan_of(
    checkpoint: &Checkpoint,
    selected: &Selected<'_>,
    parts: &[Part<'_>],
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
    let wanted = parts.iter().map(|part| {
        let address = match part.tensor.extents() {
            [extent] => addresses[extent.file].map(|start| start.wrapping_add(extent.range.start)),
            _ => None,
        };
        let name = &selected.keys.leaves()[part.leaf].name;
        Wanted { name, tensor: &part.tensor, address, place: part.place, copies: &part.copies }
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
    let is_scattered = plan.steps.iter().any(|step| step.extents().len() >= SCATTERED_EXTENTS);
    let takes_map = io == Io::Auto
        && (copies_nothing || ((target.copies_map || is_scattered) && !plan.is_waited_for))
        && blobs.iter().all(|blob| blob.map().is_some());
    plan.io = if takes_map { Io::Mapped } else { wanted };
    Ok(plan)
}

/// A tensor in so many places is better taken from the memory map: a read of each would cost more than its bytes.
const SCATTERED_EXTENTS: usize = 64;

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
            "{problem}; write it as safetensors with digests (`safejax convert --digests`), or load it without the check"
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
