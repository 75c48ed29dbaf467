//! Copies from a device to memory of the host's, and their end.

use std::fmt;
use std::pin::Pin;
use std::task::{self, Poll};

use super::event::{End, Event, EventFuture};
use crate::error::Result;

/// A copy to the host under way. Dropping it blocks until the device has stopped writing.
pub struct HostTransfer {
    data: Vec<u8>,
    event: Option<Event>,
}

impl HostTransfer {
    /// A copy into this memory, which this event ends.
    pub(super) fn new(data: Vec<u8>, event: Event) -> HostTransfer {
        HostTransfer { data, event: Some(event) }
    }

    /// Blocks until the copy has ended, and returns its bytes.
    ///
    /// # Errors
    /// The error of the copy, or of the work that fills the buffer.
    pub fn wait(mut self) -> Result<Vec<u8>> {
        self.end()
    }

    /// Blocks until the copy has ended.
    fn end(&mut self) -> Result<Vec<u8>> {
        let data = std::mem::take(&mut self.data);
        match self.event.take() {
            None => Ok(data),
            Some(event) => event.end_with(data),
        }
    }

    /// Whether the copy has ended. Does not block.
    ///
    /// # Errors
    /// When the plugin cannot say.
    pub fn is_ready(&self) -> Result<bool> {
        self.event.as_ref().map_or(Ok(true), Event::is_ready)
    }
}

/// Waits without blocking, on whatever runtime: the plugin wakes the task.
impl IntoFuture for HostTransfer {
    type Output = Result<Vec<u8>>;
    type IntoFuture = HostTransferFuture;

    fn into_future(mut self) -> HostTransferFuture {
        let event = self.event.take().map(Event::into_future);
        HostTransferFuture { data: std::mem::take(&mut self.data), event }
    }
}

/// A [`HostTransfer`] that is awaited. Dropping it before it is ready gives its memory up, since the device may still
/// write there.
pub struct HostTransferFuture {
    data: Vec<u8>,
    event: Option<EventFuture>,
}

impl Future for HostTransferFuture {
    type Output = Result<Vec<u8>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<Result<Vec<u8>>> {
        let mut data = Vec::new();
        if let Some(event) = &self.event {
            let end = std::task::ready!(event.poll_end(context));
            self.event = None;
            data = std::mem::take(&mut self.data);
            give_up_unless_over(end, &mut data)?;
        }
        Poll::Ready(Ok(data))
    }
}

/// The outcome of a copy to this memory. Where the plugin does not say when the copy ends, the memory stays allocated for
/// good, since the device may still write there.
fn give_up_unless_over(end: End, data: &mut Vec<u8>) -> Result<()> {
    match end {
        End::Over(outcome) => outcome,
        End::Unknown(error) => {
            std::mem::forget(std::mem::take(data));
            Err(error)
        }
    }
}

impl Drop for HostTransferFuture {
    fn drop(&mut self) {
        if self.event.is_some() {
            std::mem::forget(std::mem::take(&mut self.data));
        }
    }
}

impl fmt::Debug for HostTransfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostTransfer({} bytes)", self.data.len())
    }
}

impl Drop for HostTransfer {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::debug!(%error, "a copy to the host that nobody waited for failed");
        }
    }
}
