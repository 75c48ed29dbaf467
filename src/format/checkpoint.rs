//! What every format that is read has in common: tensors by name, where the bytes of each are and how they are
//! encoded, and what the file says of their tree.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::encoding::Encoding;
use super::{TensorReader, open, safetensors};
use crate::array::{ArraySpec, HostArray};
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::store::{Digest, DigestCheck, MemoryBlob, SharedBlob};
use crate::tree::{Framework, TreeDef};

/// What of a tensor is read, or written, at once, in bytes.
pub const PART_BYTES: usize = 8 << 20;

/// A checkpoint of any format that is read, in one file or several, or in memory: opened and checked, without its data
/// being read.
///
/// What the files say of their tensors is read when they are opened, and nothing of the data until it is used. What uses
/// it in place uses a map of the file. **Another process that truncates a file meanwhile makes that fault** (`SIGBUS`), as
/// with any memory map; replace files by renaming, as this crate does, and the old content stays whole for those who have
/// it open.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    pub(super) origin: String,
    pub(super) format: Format,
    pub(crate) blobs: Vec<SharedBlob>,
    pub(super) tensors: Vec<Tensor>,
    /// The positions of the tensors in the order of their names.
    pub(super) by_name: Vec<usize>,
    pub(crate) structure: RecordedStructure,
    pub(super) metadata: BTreeMap<String, String>,
    /// What the files record of digests, each a JSON object.
    pub(super) digest_records: Vec<String>,
    pub(super) left_out: Vec<LeftOut>,
}

/// The formats that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// A safetensors file, or several with an index.
    Safetensors,
    /// What `flax.serialization.to_bytes` writes, in one file or in several with an index.
    Msgpack,
    /// NumPy's zip of arrays.
    Npz,
    /// One NumPy array.
    Npy,
    /// A pickled tree of NumPy's or JAX's arrays.
    Pickle,
    /// What `torch.save` writes: a zip archive with a pickle and the storages of its tensors.
    PyTorch,
    /// A directory that Orbax wrote.
    Orbax,
    /// What `equinox.tree_serialise_leaves` writes: arrays without names, a tuple here.
    Equinox,
    /// An HDF5 file, such as Keras or h5py writes.
    Hdf5,
    /// Keras's archive with its weights as HDF5.
    Keras,
    /// A checkpoint of TensorFlow, or a SavedModel's variables.
    TensorFlow,
    /// The weights of an ONNX model.
    Onnx,
    /// A GGUF file.
    Gguf,
    /// A file or stream of Arrow's, or tensors in it.
    Arrow,
}

impl Format {
    /// What a file of it is, for a message.
    pub(crate) fn description(self) -> &'static str {
        match self {
            Format::Safetensors => "safetensors file",
            Format::Msgpack => "Flax msgpack file",
            Format::Npz => "npz file",
            Format::Npy => "npy file",
            Format::Pickle => "pickled tree of arrays",
            Format::PyTorch => "checkpoint of PyTorch",
            Format::Orbax => "checkpoint of Orbax",
            Format::Equinox => "file of Equinox",
            Format::Hdf5 => "HDF5 file",
            Format::Keras => "Keras archive",
            Format::TensorFlow => "checkpoint of TensorFlow",
            Format::Onnx => "ONNX model",
            Format::Gguf => "GGUF file",
            Format::Arrow => "Arrow file",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Format::Safetensors => "safetensors",
            Format::Msgpack => "Flax msgpack",
            Format::Npz => "npz",
            Format::Npy => "npy",
            Format::Pickle => "pickle",
            Format::PyTorch => "PyTorch",
            Format::Orbax => "Orbax",
            Format::Equinox => "Equinox",
            Format::Hdf5 => "HDF5",
            Format::Keras => "Keras",
            Format::TensorFlow => "TensorFlow",
            Format::Onnx => "ONNX",
            Format::Gguf => "GGUF",
            Format::Arrow => "Arrow",
        })
    }
}

/// What a checkpoint says of its tree.
#[derive(Debug, Clone)]
pub(crate) enum RecordedStructure {
    /// The names of its tensors, and what its metadata records.
    Names,
    /// All of it: the format holds trees. The tensors are its leaves, in JAX's order.
    Tree(TreeDef, Framework),
}

/// One tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tensor {
    /// Its name in the file: in formats of trees, its path joined with `.`.
    pub name: String,
    /// Its element type and shape.
    pub spec: ArraySpec,
    /// Where its bytes are, one after another.
    pub(crate) extents: Extents,
    pub(crate) encoding: Encoding,
    /// The checksum that its format records of it.
    pub(crate) checksum: Option<Box<Digest>>,
}

/// Some bytes of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Extent {
    /// The position of the file in the checkpoint.
    pub file: usize,
    /// The bytes, from the beginning of the file.
    pub range: Range<usize>,
}

/// Where a tensor's bytes are: most are in one place, and there may be very many tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Extents {
    One(Extent),
    /// Shared, since a part of a tensor can have one for each of its rows.
    Several(Arc<[Extent]>),
}

impl Extents {
    pub fn as_slice(&self) -> &[Extent] {
        match self {
            Extents::One(extent) => std::slice::from_ref(extent),
            Extents::Several(extents) => extents,
        }
    }
}

impl From<Vec<Extent>> for Extents {
    fn from(mut extents: Vec<Extent>) -> Extents {
        match extents.pop() {
            Some(extent) if extents.is_empty() => Extents::One(extent),
            last => {
                extents.extend(last);
                Extents::Several(extents.into())
            }
        }
    }
}

impl Tensor {
    /// A tensor whose bytes are all in one place, as a host has them.
    pub(crate) fn plain(name: String, spec: ArraySpec, file: usize, range: Range<usize>) -> Tensor {
        let extents = Extents::One(Extent { file, range });
        Tensor { name, spec, extents, encoding: Encoding::default(), checksum: None }
    }

    /// Where its bytes are, one after another.
    pub fn extents(&self) -> &[Extent] {
        self.extents.as_slice()
    }

    /// The bytes that it takes in its files.
    pub fn bytes(&self) -> usize {
        self.extents().iter().map(|extent| extent.range.len()).sum()
    }

    /// Whether its bytes in the file are the elements, row-major and not compressed, so that any part of it can be read by
    /// itself. They may be big-endian.
    pub fn is_plain(&self) -> bool {
        self.encoding.is_plain()
    }
}

/// Part of a file that is no array, and could not be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeftOut {
    /// Its name in the file.
    pub name: String,
    /// Why it could not be kept, as a sentence without its end.
    pub why: String,
    /// What is wrong with the file if this part of it is wanted.
    pub(crate) refusal: Option<String>,
}

impl LeftOut {
    /// A part that others do well without.
    pub(crate) fn new(name: impl Into<String>, why: impl Into<String>) -> LeftOut {
        LeftOut { name: name.into(), why: why.into(), refusal: None }
    }

    /// A part that is to be an array, and why it is none that can be read.
    pub(crate) fn unreadable(name: impl Into<String>, problem: impl Into<String>) -> LeftOut {
        let (name, problem) = (name.into(), problem.into());
        let refusal = format!("`{name}`: {problem}");
        LeftOut::refused(name, problem, refusal)
    }

    /// A part that the file must not have where it is wanted.
    pub(crate) fn refused(name: impl Into<String>, why: impl Into<String>, refusal: String) -> LeftOut {
        LeftOut { refusal: Some(refusal), ..LeftOut::new(name, why) }
    }
}

impl Checkpoint {
    /// Opens a checkpoint of any format that is read; its content says which, and its name where the content does not.
    /// Of one in several files, the index, one of the files, or the directory can be given.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be opened; [`Error::Malformed`] naming the format that the content looks like,
    /// and what is wrong with it.
    pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint> {
        Checkpoint::open_within(path, Limits::default())
    }

    /// As [`Checkpoint::open`], and says what the file may ask for.
    ///
    /// # Errors
    /// As for [`Checkpoint::open`].
    pub fn open_within(path: impl AsRef<Path>, limits: Limits) -> Result<Checkpoint> {
        open::open(path.as_ref(), limits)
    }

    /// Reads the header of a safetensors file that is in memory.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the bytes are not a valid safetensors file.
    pub fn from_bytes(data: impl Into<Bytes>) -> Result<Checkpoint> {
        safetensors::parse(MemoryBlob::shared("the safetensors data in memory", data.into()))
    }

    /// A checkpoint of these tensors.
    pub(super) fn new(
        origin: &str,
        format: Format,
        blobs: Vec<SharedBlob>,
        tensors: Vec<Tensor>,
    ) -> Checkpoint {
        let mut by_name: Vec<usize> = (0..tensors.len()).collect();
        by_name.sort_by(|&a, &b| tensors[a].name.cmp(&tensors[b].name));
        Checkpoint { by_name, ..Checkpoint::without_order(origin, format, blobs, tensors) }
    }

    /// A checkpoint whose tensors are not in the order of their names yet.
    pub(super) fn without_order(
        origin: &str,
        format: Format,
        blobs: Vec<SharedBlob>,
        tensors: Vec<Tensor>,
    ) -> Checkpoint {
        Checkpoint {
            origin: origin.to_owned(),
            format,
            blobs,
            tensors,
            by_name: Vec::new(),
            structure: RecordedStructure::Names,
            metadata: BTreeMap::new(),
            digest_records: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// The file, or what else the data came from, for messages.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The format that its content has.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Its files, by name. Of what a file holds compressed, the content counts as a file of its own.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &str> {
        self.blobs.iter().map(|blob| blob.origin())
    }

    /// The tensors: of safetensors files in the order of their bytes, else in JAX's order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`Error::NotFound`] with the names that look alike.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        let found = self.by_name.binary_search_by(|&index| self.tensors[index].name.as_str().cmp(name));
        match found {
            Ok(place) => Ok(&self.tensors[self.by_name[place]]),
            Err(_) => {
                Err(Error::not_found("tensor", name, self.tensors.iter().map(|tensor| tensor.name.as_str())))
            }
        }
    }

    /// The elements of the tensor of this name, row-major and little-endian, sub-byte ones packed. Where the file has
    /// them so, they are not read until they are used, and hold the file open for as long as they live; else they are
    /// read now.
    ///
    /// # Errors
    /// [`Error::NotFound`] with the names that look alike; those of [`Checkpoint::read`].
    pub fn bytes(&self, name: &str) -> Result<Bytes> {
        let tensor = self.tensor(name)?;
        if let [extent] = tensor.extents()
            && tensor.encoding == Encoding::default()
            && let Some(data) = self.blobs[extent.file].map()
        {
            return Ok(data.slice(extent.range.clone()));
        }
        TensorReader::new(self)?.read(tensor)
    }

    /// The elements of the tensor of this name, read now into memory of their own: as [`Checkpoint::bytes`], but they do
    /// not fault when the file is truncated, nor change when it is written to.
    ///
    /// # Errors
    /// [`Error::NotFound`] with the names that look alike; [`Error::Io`]; [`Error::Malformed`] when the file has become
    /// shorter, or does not hold what it says.
    pub fn read(&self, name: &str) -> Result<Bytes> {
        TensorReader::new(self)?.read(self.tensor(name)?)
    }

    /// The tensor of this name, read now as a host has arrays: sub-byte elements take a byte each.
    ///
    /// # Errors
    /// As for [`Checkpoint::read`].
    pub fn array(&self, name: &str) -> Result<HostArray> {
        TensorReader::new(self)?.read_array(self.tensor(name)?)
    }

    /// Passes the elements of the tensor of this name on, in order, in parts of some megabytes that hold whole elements of
    /// whole bytes. They are read as by [`Checkpoint::read`]. What the file holds of them goes through the check, if there
    /// is one.
    ///
    /// # Errors
    /// As for [`Checkpoint::read`]; those of `take`.
    pub fn read_parts<E: From<Error>>(
        &self,
        name: &str,
        mut check: Option<&mut DigestCheck<'_>>,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let tensor = self.tensor(name)?;
        let reader = TensorReader::new(self)?;
        if !tensor.has_parts() {
            return reader.read_with(tensor, check)?.chunks(PART_BYTES).try_for_each(take);
        }
        let size = tensor.bytes();
        let mut part = vec![0; size.min(PART_BYTES)];
        for start in (0..size).step_by(PART_BYTES) {
            let bytes = (size - start).min(PART_BYTES);
            reader.read_part(tensor, start, &mut part[..bytes], check.as_deref_mut())?;
            take(&part[..bytes])?;
        }
        Ok(())
    }

    /// Logs a warning for each file that was written to since it was opened: what was read of it may be neither the old
    /// nor the new content.
    pub fn warn_if_changed(&self) {
        self.blobs.iter().for_each(|blob| blob.warn_if_changed());
    }

    /// The strings that the file holds beside the tensors (`__metadata__` in safetensors files).
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// What of the file is no array and has no place in the tree.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// The digests that are recorded, by the names of the tensors: of safetensors files a sha256, of what zip archives hold
    /// uncompressed a CRC-32, of TensorFlow's checkpoints a CRC-32C. What is compressed has one that is checked whenever it is read. A tensor of PyTorch's that
    /// shares its storage has none.
    ///
    /// # Errors
    /// [`Error::Tree`] when a record is not a JSON object of strings.
    pub fn digests(&self) -> Result<BTreeMap<String, Digest>> {
        let mut digests = BTreeMap::new();
        for record in &self.digest_records {
            let recorded = safetensors::read_digests(record)?.into_iter();
            digests.extend(recorded.map(|(name, sum)| (name, Digest::Sha256(sum))));
        }
        let checksums = self.tensors.iter().filter_map(|tensor| Some((tensor, tensor.checksum.clone()?)));
        digests.extend(checksums.map(|(tensor, sum)| (tensor.name.clone(), *sum)));
        Ok(digests)
    }

    /// The bytes of all its files together.
    pub fn file_bytes(&self) -> usize {
        self.blobs.iter().map(|blob| blob.size()).sum()
    }

    /// Where the data of its first file starts, in bytes: of a safetensors file, the size of the header and of its length.
    pub fn data_start(&self) -> usize {
        let extents = self.tensors.iter().flat_map(|tensor| tensor.extents());
        let starts = extents.filter(|extent| extent.file == 0).map(|extent| extent.range.start);
        starts.min().unwrap_or_else(|| self.blobs.first().map_or(0, |blob| blob.size()))
    }
}
