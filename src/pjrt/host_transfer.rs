//! Copies from a device to memory of the host's, and their end.

use std::fmt;
use std::pin::Pin;
use std::task::{self, Poll};

use super::event::{AwaitedWith, Event};
use crate::error::Result;

/// A copy to the host under way. Dropping it blocks until the device has stopped writing, or the client's time limit is over
/// ([`super::ClientBuilder::time_limit`]): then the memory stays until the device has.
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

/// Waits without blocking, on whatever runtime: the plugin wakes the task. As for [`Event`], a time limit is the runtime's.
impl IntoFuture for HostTransfer {
    type Output = Result<Vec<u8>>;
    type IntoFuture = HostTransferFuture;

    fn into_future(mut self) -> HostTransferFuture {
        let data = std::mem::take(&mut self.data);
        HostTransferFuture(match self.event.take() {
            Some(event) => Awaited::Event(event.awaited_with(data)),
            None => Awaited::Over(data),
        })
    }
}

/// A [`HostTransfer`] that is awaited. Its memory is freed once the device has stopped writing, also if this is dropped before.
pub struct HostTransferFuture(Awaited);

enum Awaited {
    Event(AwaitedWith<Vec<u8>>),
    Over(Vec<u8>),
}

impl Future for HostTransferFuture {
    type Output = Result<Vec<u8>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<Result<Vec<u8>>> {
        match &mut self.0 {
            Awaited::Event(event) => event.poll(context),
            Awaited::Over(data) => Poll::Ready(Ok(std::mem::take(data))),
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
