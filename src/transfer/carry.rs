//! Carrying a plan out: threads that take its blocks one after another, and give each to what knows the device.

use std::borrow::Cow;

use super::block_reader::{BlockReader, ReadStats};
use super::options::{Prefetch, TransferOptions};
use super::ring::Staging;
use super::sink::Sink;
use crate::error::{Context, Result};
use crate::format::{Checkpoint, Extent, Tensor, TensorReader};
use crate::plan::{Block, LoadPlan, Route, Step, jobs};
use crate::store::Digest;
use crate::workers;

/// The most threads that a load starts by itself.
const MAX_THREADS: usize = 16;

/// Threads that read from a disk or a network, however many processors there are: so many reads are under way at once.
/// Of 2, 4 and 8, the number that got a virtual disk's bandwidth every time.
const WAITING_THREADS: usize = 8;

/// Bytes that are worth a further thread.
const BYTES_PER_THREAD: usize = 4 << 20;

/// Tensors that are worth a further thread: about a millisecond of the plugin's time.
const TENSORS_PER_THREAD: usize = 1000;

/// A tensor of a plan: the step at the same position says what is done with it.
pub struct TensorSource<'a> {
    pub tensor: Cow<'a, Tensor>,
    /// What it is held against, if it is to be checked.
    pub digest: Option<Box<Digest>>,
}

/// What the threads of a load did, together.
#[derive(Debug, Default)]
pub struct TransferStats {
    pub threads: usize,
    pub is_registered: bool,
    pub read: ReadStats,
}

/// Puts on a device what a load reads: the part of a load that every kind of client does in its own way. Several
/// threads ask at once.
pub trait Destination: Sync {
    /// An array on the device.
    type Buffer: Send + Sync;

    /// Reads the block at this position of the plan, and delivers the tensors that are complete with it.
    ///
    /// # Errors
    /// What reading or the device reports, naming the tensor.
    fn carry(&self, sink: &Sink<'_, Self::Buffer>, index: usize, reader: &mut BlockReader<'_>) -> Result<()>;

    /// An array without elements.
    ///
    /// # Errors
    /// What the device reports.
    fn empty(&self, step: &Step) -> Result<Self::Buffer>;

    /// Whether memory of the host's was registered with the device.
    fn is_registered(&self) -> bool {
        false
    }
}

/// Loads every tensor of the sink's plan into the sink.
///
/// # Errors
/// The first failure of any thread; nothing of the load is left then.
pub fn carry_out<D: Destination>(
    destination: D,
    sink: &Sink<'_, D::Buffer>,
    checkpoint: &Checkpoint,
    sources: &[TensorSource<'_>],
    options: TransferOptions,
) -> Result<TransferStats> {
    let plan = sink.plan;
    prefetch(plan, checkpoint, options.prefetch)?;
    let checks = sources.iter().any(|source| source.digest.is_some());
    let jobs = jobs(&plan.blocks, checks);
    let threads = options.threads.unwrap_or_else(|| worthwhile_threads(plan, checks, options.staging));
    let threads = threads.clamp(1, jobs.len().max(1));
    let total = plan.steps.iter().map(|step| step.bytes).sum();
    let tensors = TensorReader::by(checkpoint, plan.io)?.sharing(total).with_threads(options.threads);
    for step in plan.on_route(Route::Empty) {
        let planned = &plan.steps[step];
        sink.deliver(step, destination.empty(planned).for_tensor(&planned.name)?);
    }
    let readers = workers::run(
        threads,
        &jobs,
        || BlockReader::new(plan, sources, &tensors, sink.tracker),
        |reader, blocks| blocks.clone().try_for_each(|index| destination.carry(sink, index, reader)),
    )?;
    let mut read = ReadStats::default();
    readers.into_iter().for_each(|reader| read.add(reader.stats));
    Ok(TransferStats { threads, is_registered: destination.is_registered(), read })
}

/// How many threads are worth starting: for bytes that are read, and for tensors, each of which is passed to the plugin.
fn worthwhile_threads(plan: &LoadPlan, checks: bool, staging: Staging) -> usize {
    // Tensors in place need no reading, unless their digests are checked.
    let is_read = |block: &&Block| checks || block.route != Route::Alias;
    let bytes: usize = plan.blocks.iter().filter(is_read).map(|block| block.bytes).sum();
    let worth = bytes.div_ceil(BYTES_PER_THREAD).max(plan.steps.len() / TENSORS_PER_THREAD);
    let processors = workers::count(MAX_THREADS);
    let most = if plan.is_waited_for { processors.max(WAITING_THREADS) } else { processors };
    // Two chunks of a ring are with the device; a thread more than there are others would only wait.
    let is_staged = |step: &Step| matches!(step.route, Route::Stream | Route::Packed | Route::Whole);
    let most = if plan.steps.iter().any(is_staged) {
        most.min(staging.chunks.saturating_sub(2).max(1))
    } else {
        most
    };
    most.min(worth)
}

/// Has the system read what will be used in place.
fn prefetch(plan: &LoadPlan, checkpoint: &Checkpoint, prefetch: Prefetch) -> Result<()> {
    if prefetch == Prefetch::None {
        return Ok(());
    }
    let mut extents: Vec<Extent> = Vec::new();
    for extent in plan.on_route(Route::Alias).flat_map(|position| plan.steps[position].extents()) {
        match extents.last_mut() {
            Some(last) if (last.file, last.range.end) == (extent.file, extent.range.start) => {
                last.range.end = extent.range.end;
            }
            _ => extents.push(extent.clone()),
        }
    }
    for Extent { file, range } in extents {
        match (checkpoint.blobs[file].as_file(), prefetch) {
            (Some(file), Prefetch::Populate) => file.populate(range)?,
            (Some(file), _) => file.will_need(range)?,
            // It is in memory.
            (None, _) => {}
        }
    }
    Ok(())
}
