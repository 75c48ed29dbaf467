//! What every place that bytes can be in has in common, and memory, the simplest of them.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::FileBlob;
use crate::error::{Error, Result};
use crate::printable::Line;

/// Bytes that do not change, read by position from several threads at once.
pub trait Blob: Debug + Send + Sync {
    /// The file, or what else the bytes come from, for messages.
    fn origin(&self) -> &str;

    /// The number of bytes.
    fn size(&self) -> usize;

    /// Fills the parts, one after another, with the bytes from `offset` on. That they lie within the size is for the caller
    /// to see to.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`] when there are fewer bytes by now.
    fn read_at(&self, offset: usize, parts: &mut [&mut [u8]]) -> Result<()>;

    /// All bytes where they can be used without being read: memory, or the map of a file; `None` elsewhere.
    fn map(&self) -> Option<&Bytes>;

    /// Whether something wrote to what the bytes come from since it was opened.
    fn has_changed(&self) -> bool;

    /// Whether reading these bytes will wait for a disk or a network rather than for memory.
    fn is_waited_for(&self, ranges: &[Range<usize>]) -> bool;

    /// Whether they are reached over a network, or served by another process.
    fn is_remote(&self) -> bool;

    /// The file that they are, where they are one of this system.
    fn as_file(&self) -> Option<&FileBlob> {
        None
    }
}

/// A blob that several have.
pub type SharedBlob = Arc<dyn Blob>;

impl dyn Blob + '_ {
    /// Some of the bytes, read now unless they are in memory.
    ///
    /// # Errors
    /// Those of [`Blob::read_at`]; [`Error::Io`] when they do not fit into memory.
    pub fn read(&self, range: Range<usize>) -> Result<Bytes> {
        if self.is_memory()
            && let Some(data) = self.map()
        {
            return Ok(data.slice(range));
        }
        let mut bytes = memory(range.len(), self.origin())?;
        self.read_at(range.start, &mut [&mut bytes])?;
        Ok(bytes.into())
    }

    /// So many bytes from the beginning, or all where there are fewer.
    ///
    /// # Errors
    /// As for [`Blob::read`](<dyn Blob>::read).
    pub fn head(&self, bytes: usize) -> Result<Bytes> {
        self.read(0..bytes.min(self.size()))
    }

    /// Whether it is memory of this process, which nothing else changes.
    pub fn is_memory(&self) -> bool {
        self.as_file().is_none() && self.map().is_some()
    }

    /// Logs a warning if something wrote to it since it was opened: what was read of it may be neither the old nor the
    /// new content.
    pub fn warn_if_changed(&self) {
        if self.has_changed() {
            let origin = Line(self.origin());
            tracing::warn!(
                "{origin} was written to while it was read; what was read of it may be neither the old nor the new. \
                 Replace files by renaming, so that the old content stays whole for those who read it"
            );
        }
    }
}

/// The error for a blob that ends earlier than it did.
pub fn cut_off(origin: &str, end: usize) -> Error {
    Error::Malformed {
        origin: origin.to_owned(),
        format: "file",
        problem: format!("it now ends at byte {end}; something shortened it while it was read"),
    }
}

/// Fills parts, one after another, with bytes from `offset` on.
pub fn copy_out(data: &[u8], mut offset: usize, parts: &mut [&mut [u8]]) {
    for part in parts {
        part.copy_from_slice(&data[offset..offset + part.len()]);
        offset += part.len();
    }
}

/// So many bytes of memory.
///
/// # Errors
/// [`Error::InvalidArgument`] when it is not to be had.
pub fn zeros(bytes: usize) -> Result<Vec<u8>> {
    let mut memory = Vec::new();
    let reserved = memory.try_reserve_exact(bytes);
    reserved
        .map_err(|error| Error::InvalidArgument(format!("{bytes} bytes do not fit into memory: {error}")))?;
    memory.resize(bytes, 0);
    Ok(memory)
}

/// So many bytes of memory for what is read of a blob.
///
/// # Errors
/// [`Error::Io`] when it is not to be had.
pub fn memory(bytes: usize, origin: &str) -> Result<Vec<u8>> {
    zeros(bytes).map_err(|error| Error::io("read", origin, std::io::Error::other(error)))
}

/// Bytes in memory.
#[derive(Debug)]
pub struct MemoryBlob {
    origin: String,
    data: Bytes,
}

impl MemoryBlob {
    /// These bytes, which come from there.
    pub fn shared(origin: &str, data: Bytes) -> SharedBlob {
        Arc::new(MemoryBlob { origin: origin.to_owned(), data })
    }
}

impl Blob for MemoryBlob {
    fn origin(&self) -> &str {
        &self.origin
    }

    fn size(&self) -> usize {
        self.data.len()
    }

    fn read_at(&self, offset: usize, parts: &mut [&mut [u8]]) -> Result<()> {
        copy_out(&self.data, offset, parts);
        Ok(())
    }

    fn map(&self) -> Option<&Bytes> {
        Some(&self.data)
    }

    fn has_changed(&self) -> bool {
        false
    }

    fn is_waited_for(&self, _: &[Range<usize>]) -> bool {
        false
    }

    fn is_remote(&self) -> bool {
        false
    }
}
