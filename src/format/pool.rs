//! Bytes of tensors that are in no file as they are: scalars of a tree, and what a file holds in letters.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};

use super::checkpoint::{Extent, Extents};
use crate::store::{MemoryBlob, SharedBlob};

/// The largest content that shares memory with others, in bytes.
pub(super) const SHARED_BYTES: usize = 4096;

/// The files of a checkpoint, and memory for what is in none of them.
pub(super) struct Pool<'a> {
    origin: &'a str,
    blobs: Vec<SharedBlob>,
    /// The position of the memory that small contents share: after the files.
    shared_file: usize,
    shared: BytesMut,
    /// Contents with memory of their own, by where they are: a tree may refer to one again and again.
    own: HashMap<(usize, usize), usize>,
}

impl<'a> Pool<'a> {
    pub fn new(origin: &'a str, mut blobs: Vec<SharedBlob>) -> Pool<'a> {
        let shared_file = blobs.len();
        blobs.push(MemoryBlob::shared(origin, Bytes::new()));
        Pool { origin, blobs, shared_file, shared: BytesMut::new(), own: HashMap::new() }
    }

    /// Takes a content; returns where it is now.
    pub fn add(&mut self, content: &Bytes) -> Extents {
        if content.len() <= SHARED_BYTES {
            let start = self.shared.len();
            self.shared.extend_from_slice(content);
            return Extents::One(Extent { file: self.shared_file, range: start..self.shared.len() });
        }
        let Pool { own, blobs, origin, .. } = self;
        let file = *own.entry((content.as_ptr().addr(), content.len())).or_insert_with(|| {
            blobs.push(MemoryBlob::shared(origin, content.clone()));
            blobs.len() - 1
        });
        Extents::One(Extent { file, range: 0..content.len() })
    }

    /// The files, and the memory after them.
    pub fn into_blobs(mut self) -> Vec<SharedBlob> {
        self.blobs[self.shared_file] = MemoryBlob::shared(self.origin, self.shared.freeze());
        self.blobs
    }
}
