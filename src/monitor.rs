//! Watching and stopping long work: loads and saves say how far they are, and end early when asked to.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};

/// How far a load or save is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// The tensor that was worked on last.
    pub tensor: &'a str,
    /// Bytes that are done, as they are in the file.
    pub bytes: u64,
    /// Bytes that there are to do.
    pub total_bytes: u64,
}

/// Stops work that it was given to, from any thread. Clones are the same token.
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// A token that nobody has cancelled.
    pub fn new() -> CancelToken {
        CancelToken::default()
    }

    /// Asks the work to end with [`Error::Cancelled`] at its next piece.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Who watches a load or save, and who may stop it.
#[derive(Clone, Default)]
pub struct Monitor {
    on_progress: Option<Arc<OnProgress>>,
    cancel: Option<CancelToken>,
}

type OnProgress = dyn Fn(&Progress<'_>) + Send + Sync;

impl Monitor {
    /// Calls this after every tensor, or part of a large one, one call at a time, from whichever thread did it: it
    /// should be quick.
    pub fn on_progress(mut self, call: impl Fn(&Progress<'_>) + Send + Sync + 'static) -> Monitor {
        self.on_progress = Some(Arc::new(call));
        self
    }

    /// Ends the work when this token says so.
    pub fn cancel(mut self, token: &CancelToken) -> Monitor {
        self.cancel = Some(token.clone());
        self
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor")
            .field("on_progress", &self.on_progress.is_some())
            .field("cancel", &self.cancel)
            .finish()
    }
}

/// One load or save under a monitor.
pub(crate) struct Tracker<'a> {
    monitor: &'a Monitor,
    total_bytes: u64,
    done: Mutex<u64>,
}

impl<'a> Tracker<'a> {
    pub fn new(monitor: &'a Monitor, total_bytes: u64) -> Tracker<'a> {
        Tracker { monitor, total_bytes, done: Mutex::new(0) }
    }

    /// Ends the work if it was cancelled.
    pub fn check(&self) -> Result<()> {
        match &self.monitor.cancel {
            Some(token) if token.is_cancelled() => Err(Error::Cancelled),
            _ => Ok(()),
        }
    }

    /// Says that so many more bytes, of this tensor, are done.
    pub fn progressed(&self, tensor: &str, bytes: u64) {
        let Some(call) = &self.monitor.on_progress else { return };
        // Held across the call, so that the calls come one at a time and count upwards.
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        *done += bytes;
        call(&Progress { tensor, bytes: *done, total_bytes: self.total_bytes });
    }
}
