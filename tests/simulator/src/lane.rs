//! A lane: work of one kind on one device, which is done one after another by a thread, and takes its time.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::c_api as c;
use crate::calls::{WorkFault, lock, plugin};
use crate::event::{Signal, when_all};
use crate::failure::{Failure, Result};

pub type Work = Box<dyn FnOnce(Result<()>) -> Result<()> + Send>;

/// Work for a lane.
pub struct Job {
    /// What the device takes for it.
    pub takes: Duration,
    /// Does it, at the end of its time; given the first failure of what it waits for, which it must pass on.
    pub run: Work,
    pub fault: Option<WorkFault>,
    /// Ended with it.
    pub done: Arc<Signal>,
}

pub struct Lane {
    queue: Arc<Queue>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Each with the first failure of what it waited for.
    jobs: VecDeque<(Job, Result<()>)>,
    is_closed: bool,
}

/// How far ahead of the clock work may end: a sleep takes longer than it is asked to, and what follows makes up for it.
const LEAST_SLEEP: Duration = Duration::from_micros(50);

impl Lane {
    pub fn new(name: &str) -> Lane {
        let queue = Arc::new(Queue { state: Mutex::default(), changed: Condvar::new() });
        let of_thread = Arc::clone(&queue);
        let thread = std::thread::Builder::new().name(name.to_owned());
        let thread = thread.spawn(move || of_thread.work()).expect("a thread can be started");
        Lane { queue, thread: Mutex::new(Some(thread)) }
    }

    /// Does the job when these have ended.
    pub fn submit(&self, after: Vec<Arc<Signal>>, job: Job) {
        let queue = Arc::clone(&self.queue);
        when_all(after, move |outcome| {
            let mut state = lock(&queue.state);
            if state.is_closed {
                drop(state);
                job.done.end(Err(Failure::lost()));
                return;
            }
            state.jobs.push_back((job, outcome));
            drop(state);
            queue.changed.notify_one();
        });
    }

    /// Ends the lane when its work is done. False on its own thread, which cannot wait for itself.
    pub fn close(&self) -> bool {
        lock(&self.queue.state).is_closed = true;
        self.queue.changed.notify_one();
        let Some(thread) = lock(&self.thread).take() else { return true };
        if thread.thread().id() == std::thread::current().id() {
            return false;
        }
        thread.join().is_ok()
    }
}

/// Runs a job. A mistake of the simulator's own fails the test, and leaves nobody waiting.
fn run(job: Work, after: Result<()>) -> Result<()> {
    catch_unwind(AssertUnwindSafe(|| job(after))).unwrap_or_else(|_| {
        plugin().violation("the simulator panicked in a job");
        Err(Failure::new(c::PJRT_Error_Code_INTERNAL, "the simulator panicked"))
    })
}

impl Queue {
    fn next(&self) -> Option<(Job, Result<()>, bool)> {
        let mut state = lock(&self.state);
        let mut waited = false;
        loop {
            if let Some((job, outcome)) = state.jobs.pop_front() {
                return Some((job, outcome, waited));
            }
            if state.is_closed {
                return None;
            }
            waited = true;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn work(&self) {
        // When the device is done with what it was given so far.
        let mut free = Instant::now();
        while let Some((job, after, waited)) = self.next() {
            let begins = if waited { free.max(Instant::now()) } else { free };
            free = begins + job.takes;
            if let Some(rest) =
                free.checked_duration_since(Instant::now()).filter(|rest| *rest >= LEAST_SLEEP)
            {
                std::thread::sleep(rest);
            }
            let outcome = match job.fault.clone() {
                Some(WorkFault::IsEndless) => {
                    lock(&plugin().endless).push(Job { fault: None, ..job });
                    continue;
                }
                Some(WorkFault::Fails(failure)) => run(job.run, Err(failure)),
                Some(WorkFault::IsLate(by)) => {
                    std::thread::sleep(by);
                    run(job.run, after)
                }
                None => run(job.run, after),
            };
            job.done.end(outcome);
        }
    }
}
