//! One file about to be written: its tensors, its metadata with the digests, its layout.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;

use super::Digests;
use crate::array::ArraySpec;
use crate::checkpoint::{CheckpointWriter, DIGEST_KEY, Layout, WriteOptions, sha256};
use crate::dtype::DType;
use crate::error::{Context, Result};

/// A safetensors file that is about to be written.
pub struct FilePlan {
    specs: Vec<(String, ArraySpec)>,
    metadata: BTreeMap<String, String>,
    layout: Layout,
    alignment: usize,
    digests: Digests,
}

impl FilePlan {
    /// Plans a file of these tensors and metadata.
    pub fn new(
        specs: Vec<(String, ArraySpec)>,
        mut metadata: BTreeMap<String, String>,
        alignment: usize,
        digests: Digests,
    ) -> Result<FilePlan> {
        if digests == Digests::Sha256 {
            // As long as the digests will be, so that the header keeps its size when they are known.
            let blank = "0".repeat(sha256(&[]).len());
            let blanks: BTreeMap<&String, &String> = specs.iter().map(|(name, _)| (name, &blank)).collect();
            metadata.insert(DIGEST_KEY.into(), serde_json::json!(blanks).to_string());
        }
        let layout = Layout::new(&specs, &metadata, alignment)?;
        Ok(FilePlan { specs, metadata, layout, alignment, digests })
    }

    /// The positions of the tensors in the order in which they are written.
    pub fn order(&self) -> Vec<usize> {
        self.layout.tensors.iter().map(|placed| placed.index).collect()
    }

    /// The layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Writes the file, atomically. `next` is asked for the bytes of one tensor after another, by position and
    /// by the type that they must have.
    pub fn write(
        self,
        target: &Path,
        options: WriteOptions,
        next: impl FnMut(usize, DType) -> Result<Bytes>,
    ) -> Result<()> {
        let mut writer = CheckpointWriter::create(target, self.layout.clone(), options)?;
        if let Some(head) = self.emit(next, &mut |bytes| writer.write_next(bytes))? {
            writer.replace_head(&head)?;
        }
        writer.finish()
    }

    /// The file in memory. As [`FilePlan::write`].
    pub fn to_bytes(&self, next: impl FnMut(usize, DType) -> Result<Bytes>) -> Result<Vec<u8>> {
        let mut file = Vec::with_capacity(self.layout.file_bytes);
        file.extend_from_slice(&self.layout.head);
        let head = self.emit(next, &mut |bytes| {
            file.extend_from_slice(bytes);
            Ok(())
        })?;
        if let Some(head) = head {
            file[..head.len()].copy_from_slice(&head);
        }
        Ok(file)
    }

    /// Passes on the tensors in order; returns the file's beginning with the digests, if there are any.
    fn emit(
        &self,
        mut next: impl FnMut(usize, DType) -> Result<Bytes>,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<Option<Vec<u8>>> {
        let mut digests = BTreeMap::new();
        for index in self.order() {
            let (name, spec) = &self.specs[index];
            let bytes = next(index, spec.dtype).for_tensor(name)?;
            if self.digests == Digests::Sha256 {
                digests.insert(name, sha256(&bytes));
            }
            sink(&bytes).for_tensor(name)?;
        }
        if self.digests == Digests::None {
            return Ok(None);
        }
        let mut metadata = self.metadata.clone();
        metadata.insert(DIGEST_KEY.into(), serde_json::json!(digests).to_string());
        Ok(Some(Layout::new(&self.specs, &metadata, self.alignment)?.head))
    }
}
