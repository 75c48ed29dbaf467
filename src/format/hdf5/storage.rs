//! The bytes of an HDF5 file, which can be part of another one, for the crate that reads its structures.

use std::ops::Range;
use std::sync::Arc;

use hdf5_reader::storage::{DynStorage, Storage, StorageBuffer};

use crate::store::SharedBlob;

/// Some bytes of a file, which are one of HDF5.
#[derive(Clone)]
pub struct Window {
    blob: SharedBlob,
    range: Range<usize>,
}

impl Window {
    pub fn new(blob: SharedBlob, range: Range<usize>) -> Window {
        Window { blob, range }
    }

    /// Where they begin in the file.
    pub fn start(&self) -> usize {
        self.range.start
    }

    /// How many they are.
    pub fn size(&self) -> usize {
        self.range.len()
    }

    pub fn storage(&self) -> DynStorage {
        Arc::new(self.clone())
    }
}

impl Storage for Window {
    fn len(&self) -> u64 {
        self.range.len() as u64
    }

    fn read_range(&self, offset: u64, len: usize) -> hdf5_reader::error::Result<StorageBuffer> {
        let available = (self.range.len() as u64).saturating_sub(offset);
        if len as u64 > available {
            let needed = len as u64;
            return Err(hdf5_reader::error::Error::UnexpectedEof { offset, needed, available });
        }
        let start = self.range.start + offset as usize;
        let bytes = self.blob.read(start..start + len);
        let bytes = bytes.map_err(std::io::Error::other)?;
        StorageBuffer::from_shared_owner(Arc::new(bytes), 0, len)
    }
}
