//! From a device to a checkpoint: a layout is made first, then the tensors are fetched and written in its
//! order, the next one on its way from the device while one is written.

use std::collections::BTreeMap;
use std::path::Path;

use crate::checkpoint::{CheckpointWriter, DEFAULT_ALIGNMENT, Layout, WriteOptions};
use crate::error::{Context, Result};
use crate::params::Params;
use crate::pjrt::{Buffer, HostTransfer};
use crate::sub_byte;

/// How parameters are saved.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SaveOptions {
    /// What tensors are aligned to in the file where they can be, in bytes: a power of two, 8 to 4096.
    pub alignment: usize,
    /// Strings for the header; those that the parameters were loaded with if `None`.
    pub metadata: Option<BTreeMap<String, String>>,
    /// How the file is written.
    pub write: WriteOptions,
}

impl Default for SaveOptions {
    fn default() -> SaveOptions {
        SaveOptions { alignment: DEFAULT_ALIGNMENT, metadata: None, write: WriteOptions::default() }
    }
}

impl SaveOptions {
    fn layout(&self, params: &Params) -> Result<Layout> {
        Layout::new(&params.specs(), self.metadata.as_ref().unwrap_or(params.metadata()), self.alignment)
    }
}

/// Saves to a file.
pub(crate) fn save(params: &Params, path: &Path, options: &SaveOptions) -> Result<()> {
    let layout = options.layout(params)?;
    let mut writer = CheckpointWriter::create(path, layout.clone(), options.write)?;
    fetch(params, &layout, &mut |bytes| writer.write_next(bytes))?;
    writer.finish()
}

/// Saves to memory.
pub(crate) fn to_bytes(params: &Params, options: &SaveOptions) -> Result<Vec<u8>> {
    let layout = options.layout(params)?;
    let mut file = Vec::with_capacity(layout.file_bytes);
    file.extend_from_slice(&layout.head);
    fetch(params, &layout, &mut |bytes| {
        file.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(file)
}

/// Fetches the tensors in the order of the layout and hands each to `sink`, in its form on disk. At most
/// two tensors are on the host at a time.
fn fetch(params: &Params, layout: &Layout, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let leaf = |index: usize| (&params.keys().leaves()[index].name, &params.buffers()[index]);
    let start = |index: usize| -> Result<HostTransfer> {
        let (name, buffer) = leaf(index);
        buffer.start_to_host().for_tensor(name)
    };
    let mut order = layout.tensors.iter().map(|placed| placed.index).peekable();
    let mut ahead = order.peek().map(|&index| start(index)).transpose()?;
    while let Some(index) = order.next() {
        let Some(current) = ahead.take() else { break };
        ahead = order.peek().map(|&next| start(next)).transpose()?;
        let (name, buffer) = leaf(index);
        let bytes = current.wait().for_tensor(name)?;
        sink(&on_disk(bytes, buffer)).for_tensor(name)?;
    }
    Ok(())
}

/// The bytes of a host transfer as they are in a file.
fn on_disk(bytes: Vec<u8>, buffer: &Buffer) -> Vec<u8> {
    if buffer.dtype().is_sub_byte() { sub_byte::pack(&bytes, buffer.dtype()) } else { bytes }
}
