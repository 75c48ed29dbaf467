//! Safetensors files as a source.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::source::{Source, SourceFormat};
use crate::array::ArraySpec;
use crate::checkpoint::{Checkpoint, read_digests};
use crate::error::Result;
use crate::load::{LoadOptions, Outline, outline};
use crate::tree::{Framework, KeyMap, record};

/// A safetensors file, with the tensors chosen and named by load options.
pub struct SafetensorsSource {
    checkpoint: Checkpoint,
    outline: Outline,
    /// By the keys of the file.
    digests: BTreeMap<String, String>,
}

impl SafetensorsSource {
    pub fn new(checkpoint: Checkpoint, options: &LoadOptions) -> Result<SafetensorsSource> {
        let outline = outline(&checkpoint, options)?;
        let digests = read_digests(checkpoint.metadata())?;
        Ok(SafetensorsSource { checkpoint, outline, digests })
    }
}

impl Source for SafetensorsSource {
    fn origin(&self) -> &str {
        self.checkpoint.origin()
    }

    fn format(&self) -> SourceFormat {
        SourceFormat::Safetensors
    }

    fn keys(&self) -> &KeyMap {
        &self.outline.keys
    }

    fn specs(&self) -> &[ArraySpec] {
        &self.outline.specs
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        record::strip(self.checkpoint.metadata())
    }

    fn framework(&self) -> Framework {
        self.outline.framework
    }

    fn has_parts(&self) -> bool {
        true
    }

    fn read_part(&self, index: usize, start: usize, bytes: &mut [u8]) -> Result<()> {
        self.checkpoint.read_into(self.outline.ranges[index].start + start, bytes)
    }

    fn warn_if_changed(&self) {
        self.checkpoint.warn_if_changed();
    }

    fn recorded_digest(&self, index: usize) -> Option<&str> {
        self.digests.get(&self.outline.file_keys[index]).map(String::as_str)
    }

    fn read(&self, index: usize) -> Result<Bytes> {
        self.checkpoint.read(&self.outline.file_keys[index])
    }
}
