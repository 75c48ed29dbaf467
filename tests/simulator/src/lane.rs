//! A lane: work of one kind on one device, which is done one after another by a thread, and takes its time.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::calls::{WorkFault, lock, plugin};
use crate::event::{Signal, when_all};
use crate::failure::Result;

/// Work for a lane.
pub struct Job {
    /// What the device takes for it.
    pub takes: Duration,
    /// Does it, at the end of its time; given the first failure of what it waits for, which it must pass on.
    pub run: Box<dyn FnOnce(Result<()>) -> Result<()> + Send>,
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
                job.done.end(Err(crate::failure::Failure::lost()));
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
                Some(WorkFault::Fails(failure)) => (job.run)(Err(failure)),
                Some(WorkFault::IsLate(by)) => {
                    std::thread::sleep(by);
                    (job.run)(after)
                }
                None => (job.run)(after),
            };
            job.done.end(outcome);
        }
    }
}
