//! Carrying a plan out: threads that take its blocks one after another, and give each to what knows the device.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::block_reader::{BlockReader, ThreadTimes};
use super::options::{Prefetch, TransferOptions};
use super::ring::Staging;
use super::sink::Sink;
use crate::array::ArraySpec;
use crate::error::{Context, Error, Result};
use crate::format::{Checkpoint, Extent, Tensor, TensorReader};
use crate::plan::{Block, LoadPlan, Route, Step, jobs};
use crate::store::Digest;

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
    pub tensor: &'a Tensor,
    /// What it is held against, if it is to be checked.
    pub digest: Option<Digest>,
}

/// What the threads of a load did, together.
#[derive(Debug, Default)]
pub struct Done {
    pub threads: usize,
    pub spent: ThreadTimes,
    pub is_registered: bool,
    /// Tensors that the plugin copied although it was told that it need not, and their bytes in the file.
    pub not_in_place: (usize, u64),
    /// Finite elements that a cast made infinite, by step.
    overflows: BTreeMap<usize, usize>,
}

impl Done {
    /// Logs which tensors a cast made infinite.
    pub fn warn_of_overflows(&self, plan: &LoadPlan) {
        for (&step, elements) in &self.overflows {
            let tensor = &plan.steps[step].name;
            tracing::warn!(tensor, elements, "elements became infinite in a cast");
        }
    }
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
    fn empty(&self, spec: &ArraySpec) -> Result<Self::Buffer>;

    /// Whether memory of the host's was registered with the device.
    fn is_registered(&self) -> bool {
        false
    }
}

/// What the threads of a load share.
struct Work<'a, D: Destination> {
    destination: D,
    sink: &'a Sink<'a, D::Buffer>,
    reader: TensorReader,
    sources: &'a [TensorSource<'a>],
    jobs: Vec<Range<usize>>,
    next_job: AtomicUsize,
    /// Whether a thread has failed, so that the others stop.
    has_failed: AtomicBool,
    outcome: Mutex<(Done, Option<Error>)>,
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
) -> Result<Done> {
    let plan = sink.plan;
    prefetch(plan, checkpoint, options.prefetch)?;
    let checks = sources.iter().any(|source| source.digest.is_some());
    let jobs = jobs(&plan.blocks, checks);
    let threads = options.threads.unwrap_or_else(|| worthwhile_threads(plan, checks, options.staging));
    let threads = threads.clamp(1, jobs.len().max(1));
    let work = Work {
        destination,
        sink,
        reader: TensorReader::by(checkpoint, plan.io)?,
        sources,
        jobs,
        next_job: AtomicUsize::new(0),
        has_failed: AtomicBool::new(false),
        outcome: Mutex::default(),
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| work.run());
        }
        for step in plan.on_route(Route::Empty) {
            work.note(work.empty(step));
        }
        work.run();
    });
    let (mut done, error) = std::mem::take(&mut *work.outcome.lock().unwrap_or_else(PoisonError::into_inner));
    done.threads = threads;
    done.is_registered = work.destination.is_registered();
    match error {
        None => Ok(done),
        Some(error) => Err(error),
    }
}

/// How many threads are worth starting: for bytes that are read, and for tensors, each of which is passed to the plugin.
fn worthwhile_threads(plan: &LoadPlan, checks: bool, staging: Staging) -> usize {
    // Tensors in place need no reading, unless their digests are checked.
    let is_read = |block: &&Block| checks || block.route != Route::Alias;
    let bytes: usize = plan.blocks.iter().filter(is_read).map(|block| block.bytes).sum();
    let worth = bytes.div_ceil(BYTES_PER_THREAD).max(plan.steps.len() / TENSORS_PER_THREAD);
    let processors = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
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
    for extent in plan.on_route(Route::Alias).flat_map(|position| &plan.steps[position].extents) {
        match extents.last_mut() {
            Some(last) if (last.file, last.range.end) == (extent.file, extent.range.start) => {
                last.range.end = extent.range.end;
            }
            _ => extents.push(extent.clone()),
        }
    }
    for Extent { file, range } in extents {
        match prefetch {
            Prefetch::Populate => checkpoint.blobs[file].populate(range)?,
            _ => checkpoint.blobs[file].will_need(range)?,
        }
    }
    Ok(())
}

impl<D: Destination> Work<'_, D> {
    /// Takes jobs until there are none, or somebody failed.
    fn run(&self) {
        let mut reader = BlockReader::new(self.sink.plan, self.sources, &self.reader, self.sink.tracker);
        while !self.has_failed.load(Ordering::Relaxed) {
            let Some(job) = self.jobs.get(self.next_job.fetch_add(1, Ordering::Relaxed)) else { break };
            let mut blocks = job.clone();
            if !self.note(blocks.try_for_each(|index| self.destination.carry(self.sink, index, &mut reader)))
            {
                break;
            }
        }
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        outcome.0.spent.add(reader.spent);
        outcome.0.not_in_place.0 += reader.not_in_place.0;
        outcome.0.not_in_place.1 += reader.not_in_place.1;
        for (step, elements) in reader.overflows {
            *outcome.0.overflows.entry(step).or_default() += elements;
        }
    }

    /// Keeps the first failure; returns whether there was none.
    fn note(&self, result: Result<()>) -> bool {
        let Err(error) = result else { return true };
        self.has_failed.store(true, Ordering::Relaxed);
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        outcome.1.get_or_insert(error);
        false
    }

    fn empty(&self, step: usize) -> Result<()> {
        let Step { name, spec, .. } = &self.sink.plan.steps[step];
        self.sink.deliver(step, self.destination.empty(spec).for_tensor(name)?);
        Ok(())
    }
}
