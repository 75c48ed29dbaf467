//! Carrying a plan out: threads that take its blocks one after another.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::arena::Arena;
use super::blocks::{self, Block};
use super::fill::{Filler, Spent, timed};
use super::options::{LoadOptions, Prefetch, Verification};
use super::plan::{LoadPlan, Route};
use super::sink::Sink;
use super::stream::Stream;
use super::{BYTES_PER_THREAD, MAX_THREADS, TENSORS_PER_THREAD, WAITING_THREADS};
use crate::checkpoint::{Checkpoint, Reader};
use crate::error::{Context, Error, Result};
use crate::pjrt::HostSemantics;

/// What the threads of a load did, together.
#[derive(Debug, Default)]
pub struct Done {
    pub threads: usize,
    pub spent: Spent,
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

/// What the threads of a load share.
struct Work<'a> {
    sink: &'a Sink<'a>,
    checkpoint: &'a Checkpoint,
    reader: Reader,
    digests: &'a BTreeMap<String, String>,
    arena: Arena,
    stream: Stream,
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
pub fn carry_out(
    sink: &Sink<'_>,
    checkpoint: &Checkpoint,
    options: &LoadOptions,
    digests: &BTreeMap<String, String>,
) -> Result<Done> {
    let plan = sink.plan;
    prefetch(plan, checkpoint, options.prefetch)?;
    let checks = options.verification == Verification::Digests;
    let jobs = blocks::jobs(&plan.blocks, checks);
    let threads = options.threads.unwrap_or_else(|| worthwhile_threads(plan, checks));
    let threads = threads.clamp(1, jobs.len().max(1));
    let work = Work {
        sink,
        checkpoint,
        reader: checkpoint.reader(plan.io)?,
        digests,
        arena: Arena::new(plan)?,
        stream: Stream::new(sink, options.staging),
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
    done.is_registered = work.stream.is_registered();
    match error {
        None => Ok(done),
        Some(error) => Err(error),
    }
}

/// How many threads are worth starting: for bytes that are read, and for tensors, each of which is passed to the plugin.
fn worthwhile_threads(plan: &LoadPlan, checks: bool) -> usize {
    // Tensors in place need no reading, unless their digests are checked.
    let is_read = |block: &&Block| checks || block.route != Route::Alias;
    let bytes: usize = plan.blocks.iter().filter(is_read).map(|block| block.bytes).sum();
    let worth = bytes.div_ceil(BYTES_PER_THREAD).max(plan.steps.len() / TENSORS_PER_THREAD);
    let processors = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let most = if plan.is_waited_for { processors.max(WAITING_THREADS) } else { processors };
    most.min(worth)
}

/// Has the system read what will be used in place.
fn prefetch(plan: &LoadPlan, checkpoint: &Checkpoint, prefetch: Prefetch) -> Result<()> {
    if prefetch == Prefetch::None {
        return Ok(());
    }
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for step in plan.on_route(Route::Alias).map(|position| &plan.steps[position]) {
        match ranges.last_mut() {
            Some(last) if last.end == step.range.start => last.end = step.range.end,
            _ => ranges.push(step.range.clone()),
        }
    }
    for range in ranges {
        match prefetch {
            Prefetch::Populate => checkpoint.populate(range)?,
            _ => checkpoint.will_need(range)?,
        }
    }
    Ok(())
}

impl Work<'_> {
    /// Takes jobs until there are none, or somebody failed.
    fn run(&self) {
        let mut filler = Filler::new(self.sink.plan, &self.reader, self.digests, self.sink.tracker);
        while !self.has_failed.load(Ordering::Relaxed) {
            let Some(job) = self.jobs.get(self.next_job.fetch_add(1, Ordering::Relaxed)) else { break };
            if !self.note(self.carry(job.clone(), &mut filler)) {
                break;
            }
        }
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        outcome.0.spent.add(filler.spent);
        outcome.0.not_in_place.0 += filler.not_in_place.0;
        outcome.0.not_in_place.1 += filler.not_in_place.1;
        for (step, elements) in filler.overflows {
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

    fn carry(&self, job: Range<usize>, filler: &mut Filler<'_>) -> Result<()> {
        for index in job {
            let block = &self.sink.plan.blocks[index];
            match block.route {
                Route::Empty => {}
                Route::Alias => self.alias(block, filler)?,
                Route::Arena => self.arena.carry(self.sink, index, block, filler)?,
                Route::Stream | Route::Whole => self.stream.carry(self.sink, block, filler)?,
            }
        }
        Ok(())
    }

    fn alias(&self, block: &Block, filler: &mut Filler<'_>) -> Result<()> {
        self.sink.tracker.check()?;
        for piece in &block.pieces {
            let step = &self.sink.plan.steps[piece.step];
            let bytes = self.checkpoint.data().slice(step.range.clone());
            if self.digests.contains_key(&step.name) {
                filler.check_in_place(piece, &bytes)?;
            }
            let data = bytes.clone();
            let make =
                || self.sink.client.buffer_from_host(&step.spec, data, self.sink.to, HostSemantics::Alias);
            let buffer = timed(&mut filler.spent.pass, make).for_tensor(&step.name)?;
            if !buffer.is_over(&bytes) {
                filler.not_in_place.0 += 1;
                filler.not_in_place.1 += bytes.len() as u64;
            }
            self.sink.deliver(piece.step, buffer);
        }
        Ok(())
    }

    fn empty(&self, step: usize) -> Result<()> {
        let Sink { client, plan, to, .. } = self.sink;
        let buffer = client.buffer_from_slice(&plan.steps[step].spec, &[], to);
        self.sink.deliver(step, buffer.for_tensor(&plan.steps[step].name)?);
        Ok(())
    }
}
