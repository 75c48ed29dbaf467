//! The threads of a load, a save or a large tensor: each takes one job after another, until there are none or somebody failed.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};

/// What the threads share.
struct JobQueue<'a, J> {
    jobs: &'a [J],
    next: AtomicUsize,
    /// Whether a thread has failed, so that the others stop.
    has_failed: AtomicBool,
    first_error: Mutex<Option<Error>>,
}

/// How many threads do the work, of which so many would have something to do: no more than there are processors.
pub fn count(most: usize) -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(most)
}

/// Has so many threads, this one included, do the jobs, which they take in order. `worker` makes what each of them needs for
/// itself; those are returned, with what they counted.
///
/// # Errors
/// The first failure of any thread.
pub fn run<J: Sync, W: Send>(
    threads: usize,
    jobs: &[J],
    worker: impl Fn() -> W + Sync,
    work: impl Fn(&mut W, &J) -> Result<()> + Sync,
) -> Result<Vec<W>> {
    let queue = JobQueue {
        jobs,
        next: AtomicUsize::new(0),
        has_failed: AtomicBool::new(false),
        first_error: Mutex::default(),
    };
    let take_jobs = || {
        let mut worker = worker();
        queue.take_jobs(|job| work(&mut worker, job));
        worker
    };
    let workers = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(take_jobs)).collect();
        let own = take_jobs();
        let others = others.into_iter().map(|thread| {
            // A panic goes on in the thread that waits, as it would in one thread.
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        others.chain([own]).collect()
    });
    match queue.first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        None => Ok(workers),
        Some(error) => Err(error),
    }
}

impl<J> JobQueue<'_, J> {
    fn take_jobs(&self, mut work: impl FnMut(&J) -> Result<()>) {
        while !self.has_failed.load(Ordering::Relaxed) {
            let Some(job) = self.jobs.get(self.next.fetch_add(1, Ordering::Relaxed)) else { return };
            if let Err(error) = work(job) {
                self.has_failed.store(true, Ordering::Relaxed);
                self.first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_is_done_once_and_after_a_failure_no_further_one_is_taken() {
        let jobs: Vec<usize> = (0..1000).collect();
        for threads in [1, 3] {
            let done = run(threads, &jobs, Vec::new, |done, &job| {
                done.push(job);
                Ok(())
            });
            let mut done = done.unwrap();
            assert_eq!(done.len(), threads);
            let mut done: Vec<usize> = done.drain(..).flatten().collect();
            done.sort_unstable();
            assert_eq!(done, jobs);
        }
        let taken = AtomicUsize::new(0);
        let failed = run(
            1,
            &jobs,
            || (),
            |(), &job| {
                taken.fetch_add(1, Ordering::Relaxed);
                if job == 3 { Err(Error::Cancelled) } else { Ok(()) }
            },
        );
        assert!(matches!(failed, Err(Error::Cancelled)));
        assert_eq!(taken.into_inner(), 4);
    }
}
