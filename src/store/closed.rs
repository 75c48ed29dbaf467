//! A file that is opened whenever it is read: for those of which there are more than a process can hold open.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::blob::{Blob, SharedBlob, cut_off};
use super::file::FileBlob;
use crate::error::Result;

/// A file that is opened whenever it is read.
#[derive(Debug)]
pub struct ClosedBlob {
    origin: String,
    size: usize,
    is_remote: bool,
}

impl ClosedBlob {
    /// The file of a blob that was opened by its path.
    pub fn of(blob: &dyn Blob) -> SharedBlob {
        let (origin, size, is_remote) = (blob.origin().to_owned(), blob.size(), blob.is_remote());
        Arc::new(ClosedBlob { origin, size, is_remote })
    }
}

impl Blob for ClosedBlob {
    fn origin(&self) -> &str {
        &self.origin
    }

    fn size(&self) -> usize {
        self.size
    }

    fn read_at(&self, offset: usize, parts: &mut [&mut [u8]]) -> Result<()> {
        let file = FileBlob::open(Path::new(&self.origin))?;
        if file.size() < self.size {
            return Err(cut_off(&self.origin, file.size()));
        }
        file.read_at(offset, parts)
    }

    fn map(&self) -> Option<&Bytes> {
        None
    }

    fn has_changed(&self) -> bool {
        FileBlob::open(Path::new(&self.origin)).map_or(true, |file| file.size() != self.size)
    }

    fn is_waited_for(&self, _: &[Range<usize>]) -> bool {
        self.is_remote
    }

    fn is_remote(&self) -> bool {
        self.is_remote
    }
}
