//! Checkpoint files: opened without reading the data, handed out as byte ranges, written atomically.
//!
//! Knows the safetensors format and the file system, and no device.

mod digest;
pub(crate) mod foreign;
mod header;
pub mod layout;
mod mapping;
mod reader;
mod temporary;
mod writer;

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use memmap2::Mmap;

pub(crate) use digest::check_digest;
pub use digest::{DIGEST_KEY, DigestState, read_digests, sha256};
pub use layout::{DEFAULT_ALIGNMENT, Layout};
pub(crate) use mapping::{FileBytes, FileCursor, map as read_file};
pub use reader::Io;
pub(crate) use reader::Reader;
pub(crate) use writer::write_atomically;
pub use writer::{CheckpointWriter, WriteOptions};

use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// The parts of [`Checkpoint::read_parts`], in bytes.
const PART_BYTES: usize = 8 << 20;

/// What Linux before 5.14 says of advice that it does not know.
#[cfg(target_os = "linux")]
const EINVAL: i32 = 22;

/// A safetensors file, or its bytes, with the header read and checked.
///
/// The data is a memory map: nothing of it is read until it is used. **Another process that truncates the
/// file while it is open makes this one fault** (`SIGBUS`), as with any memory map; replace files by
/// renaming, as [`CheckpointWriter`] does, and the old content stays whole for those who have it open.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    origin: String,
    path: Option<PathBuf>,
    /// The file that is open, and its map, where the data is that of a file.
    file: Option<Arc<File>>,
    map: Option<Arc<Mmap>>,
    identity: Option<mapping::Identity>,
    data: Bytes,
    data_start: usize,
    tensors: Vec<TensorInfo>,
    /// The positions of the tensors in the order of their names.
    by_name: Vec<usize>,
    metadata: BTreeMap<String, String>,
}

/// One tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name in the file.
    pub name: String,
    /// Its element type and shape.
    pub spec: ArraySpec,
    /// Where its bytes are, from the beginning of the file.
    pub range: Range<usize>,
}

impl TensorInfo {
    /// The bytes that it takes in the file.
    pub fn bytes(&self) -> usize {
        self.range.len()
    }
}

impl Checkpoint {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened; [`Error::Malformed`] when it is not a valid safetensors
    /// file, naming the tensor and the rule that is broken.
    pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint> {
        let path = path.as_ref();
        let opened = mapping::open(path)?;
        let identity = mapping::Identity::of(&opened.file);
        let origin = path.display().to_string();
        let mut checkpoint = Checkpoint::parse(origin, opened.data).map_err(|error| match error {
            Error::Malformed { origin, format, problem } => match foreign::file_name(path) {
                Some(problem) => Error::Malformed { origin, format: "checkpoint", problem },
                None => Error::Malformed { origin, format, problem },
            },
            other => other,
        })?;
        checkpoint.path = Some(path.to_owned());
        checkpoint.identity = identity;
        checkpoint.file = Some(opened.file);
        checkpoint.map = opened.map;
        Ok(checkpoint)
    }

    /// Reads the header of a file that is in memory.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the bytes are not a valid safetensors file.
    pub fn from_bytes(data: impl Into<Bytes>) -> Result<Checkpoint> {
        Checkpoint::parse("the safetensors data in memory".to_owned(), data.into())
    }

    fn parse(origin: String, data: Bytes) -> Result<Checkpoint> {
        let malformed = |problem: String| Error::Malformed {
            origin: origin.clone(),
            format: "safetensors file",
            problem,
        };
        let header = header::read(&data).map_err(|problem| match foreign::file(&data) {
            Some(problem) => Error::Malformed { origin: origin.clone(), format: "checkpoint", problem },
            None => malformed(problem),
        })?;
        let data_start = header.data_start;
        let tensor = |(name, entry): (String, header::Entry)| match DType::from_safetensors(entry.dtype) {
            // That the offsets lie within the file was checked, so they fit.
            Some(dtype) => {
                let (start, end) = (entry.data_offsets.0 as usize, entry.data_offsets.1 as usize);
                let spec = ArraySpec::new(dtype, entry.shape);
                Ok(TensorInfo { name, spec, range: data_start + start..data_start + end })
            }
            None => {
                Err(malformed(format!("tensor `{name}` is of type {}, which is not supported", entry.dtype)))
            }
        };
        let tensors = header.tensors.into_iter().map(tensor).collect::<Result<Vec<_>>>()?;
        Ok(Checkpoint {
            origin,
            path: None,
            file: None,
            map: None,
            identity: None,
            data,
            data_start,
            tensors,
            by_name: header.by_name,
            metadata: header.metadata,
        })
    }

    /// The file, or what else the data came from, for messages.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The file, if it is one.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The tensors, in the order of their bytes.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`Error::NotFound`] with the names that look alike.
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo> {
        let found = self.by_name.binary_search_by(|&index| self.tensors[index].name.as_str().cmp(name));
        match found {
            Ok(place) => Ok(&self.tensors[self.by_name[place]]),
            Err(_) => {
                Err(Error::not_found("tensor", name, self.tensors.iter().map(|tensor| tensor.name.as_str())))
            }
        }
    }

    /// The bytes of the tensor of this name, sub-byte elements packed. They hold the file open for as long as
    /// they live, and are read only when they are used.
    ///
    /// # Errors
    /// [`Error::NotFound`] with the names that look alike.
    pub fn bytes(&self, name: &str) -> Result<Bytes> {
        self.tensor(name).map(|tensor| self.data.slice(tensor.range.clone()))
    }

    /// Some bytes of the file, read now, where it is one: unlike those of [`Checkpoint::bytes`], they do not fault when
    /// the file is truncated, nor change when it is written to.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`] when the file has become shorter.
    pub(crate) fn read_into(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        match &self.file {
            Some(file) => mapping::read_exact_at(file, &self.origin, offset, bytes),
            None => {
                bytes.copy_from_slice(&self.data[offset..offset + bytes.len()]);
                Ok(())
            }
        }
    }

    /// The bytes of the tensor of this name, read now into memory of their own: as [`Checkpoint::bytes`], but they do
    /// not fault when the file is truncated, nor change when it is written to.
    ///
    /// # Errors
    /// [`Error::NotFound`] with the names that look alike; [`Error::Io`]; [`Error::Malformed`] when the file has become
    /// shorter.
    pub fn read(&self, name: &str) -> Result<Bytes> {
        let range = &self.tensor(name)?.range;
        if self.file.is_none() {
            return Ok(self.data.slice(range.clone()));
        }
        let mut bytes = vec![0; range.len()];
        self.read_into(range.start, &mut bytes)?;
        Ok(bytes.into())
    }

    /// Passes the bytes of the tensor of this name on, in order, in parts of some megabytes that hold whole elements of
    /// whole bytes. They are read as by [`Checkpoint::read`].
    ///
    /// # Errors
    /// As for [`Checkpoint::read`]; those of `take`.
    pub fn read_parts<E: From<Error>>(
        &self,
        name: &str,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let range = self.tensor(name)?.range.clone();
        let mut part = vec![0; range.len().min(PART_BYTES)];
        for start in range.clone().step_by(PART_BYTES) {
            let bytes = (range.end - start).min(PART_BYTES);
            self.read_into(start, &mut part[..bytes])?;
            take(&part[..bytes])?;
        }
        Ok(())
    }

    /// Logs a warning if the file was written to since it was opened: what was read of it may be neither the old nor the
    /// new content.
    pub fn warn_if_changed(&self) {
        mapping::warn_if_changed(&self.origin, self.file.as_deref(), self.identity);
    }

    /// The strings that the header holds beside the tensors (`__metadata__`).
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The size of the whole file in bytes.
    pub fn file_bytes(&self) -> usize {
        self.data.len()
    }

    /// Where the tensors' data starts, in bytes: the size of the header and of its length.
    pub fn data_start(&self) -> usize {
        self.data_start
    }

    /// Has the system read these bytes of the file soon, in the background; does nothing where they are in memory.
    pub(crate) fn will_need(&self, range: Range<usize>) -> Result<()> {
        self.advise(range, memmap2::Advice::WillNeed)
    }

    /// Has the system read these bytes of the file, and map them into the process, before this returns; as
    /// [`Checkpoint::will_need`] where it cannot.
    pub(crate) fn populate(&self, range: Range<usize>) -> Result<()> {
        #[cfg(target_os = "linux")]
        match self.advise(range.clone(), memmap2::Advice::PopulateRead) {
            Err(Error::Io { source, .. }) if source.raw_os_error() == Some(EINVAL) => {}
            result => return result,
        }
        self.will_need(range)
    }

    fn advise(&self, range: Range<usize>, advice: memmap2::Advice) -> Result<()> {
        match &self.map {
            Some(map) if !range.is_empty() => map
                .advise_range(advice, range.start, range.len())
                .map_err(|error| Error::io("advise the system about", &self.origin, error)),
            _ => Ok(()),
        }
    }

    /// The whole file's bytes.
    pub(crate) fn data(&self) -> &Bytes {
        &self.data
    }
}
