//! What every format that is read has in common: a tree of arrays whose bytes are read one at a time.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use bytes::Bytes;

use super::{msgpack, npy, npz, pickle, safetensors};
use crate::array::ArraySpec;
use crate::checkpoint::{Checkpoint, check_digest, read_file, sha256};
use crate::error::{Error, Result};
use crate::load::LoadOptions;
use crate::tree::{Framework, KeyMap};

/// A file of arrays, of any format that is read.
pub trait Source: Sync {
    /// The file, for messages.
    fn origin(&self) -> &str;

    /// The format that its content has.
    fn format(&self) -> SourceFormat;

    /// The tree and the names of its leaves.
    fn keys(&self) -> &KeyMap;

    /// The types and shapes of the leaves, in JAX's order.
    fn specs(&self) -> &[ArraySpec];

    /// The user's strings, where the format has any.
    fn metadata(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    /// The framework whose names these are.
    fn framework(&self) -> Framework {
        Framework::Plain
    }

    /// Whether reading a leaf costs nothing, since its bytes are those of the file's memory map.
    fn is_mapped(&self) -> bool {
        false
    }

    /// The sha256 that the file records of the leaf at this position, in hex, if it does.
    fn recorded_digest(&self, _index: usize) -> Option<&str> {
        None
    }

    /// The bytes of the leaf at this position: row-major, little-endian, sub-byte elements packed.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`] when the data does not hold what the file says.
    fn read(&self, index: usize) -> Result<Bytes>;
}

/// The bytes of a leaf, held against the digest that the file records of it.
///
/// # Errors
/// As for [`Source::read`]; [`Error::Malformed`] when they are not what was recorded.
pub(super) fn read_checked(source: &dyn Source, index: usize) -> Result<Bytes> {
    let bytes = source.read(index)?;
    if let Some(expected) = source.recorded_digest(index) {
        check_digest(&sha256(&bytes), expected)?;
    }
    Ok(bytes)
}

/// The formats that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SourceFormat {
    /// A safetensors file.
    Safetensors,
    /// What `flax.serialization.to_bytes` writes, in one file or in several with an index.
    Msgpack,
    /// NumPy's zip of arrays.
    Npz,
    /// One NumPy array.
    Npy,
    /// A pickled dictionary of NumPy arrays.
    Pickle,
}

impl fmt::Display for SourceFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            SourceFormat::Safetensors => "safetensors",
            SourceFormat::Msgpack => "Flax msgpack",
            SourceFormat::Npz => "npz",
            SourceFormat::Npy => "npy",
            SourceFormat::Pickle => "pickle",
        })
    }
}

/// Opens a file of any format that is read; its content says which.
///
/// Of the options, those that choose and rename tensors apply; those that say how names make a tree (framework,
/// structure, template) apply to safetensors files, since the other formats have their tree.
///
/// # Errors
/// [`Error::Io`]; [`Error::Malformed`] naming the format that the content looks like, and what is wrong with it.
pub fn open(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Box<dyn Source>> {
    let path = path.as_ref();
    let origin = path.display().to_string();
    let data = read_file(path)?;
    let select = |source: Box<dyn Source>| Selection::of(source, options);
    let malformed = |format: &'static str| {
        let origin = origin.clone();
        move |problem: String| Error::Malformed { origin, format, problem }
    };
    match detect(&data) {
        Some(SourceFormat::Npy) => {
            select(Box::new(npy::NpySource::new(origin.clone(), data).map_err(malformed("npy file"))?))
        }
        Some(SourceFormat::Npz) => {
            select(Box::new(npz::NpzSource::new(origin.clone(), data).map_err(malformed("npz file"))?))
        }
        Some(SourceFormat::Pickle) => {
            let source = pickle::PickleSource::new(origin.clone(), data);
            select(Box::new(source.map_err(malformed("pickled tree of arrays"))?))
        }
        Some(SourceFormat::Msgpack) => {
            let source = msgpack::MsgpackSource::new(origin.clone(), vec![data]);
            select(Box::new(source.map_err(malformed("Flax msgpack file"))?))
        }
        _ if msgpack::is_index(&data) => select(msgpack::open_index(path, &data)?),
        _ => Ok(Box::new(safetensors::SafetensorsSource::new(Checkpoint::open(path)?, options)?)),
    }
}

/// The format that a file begins like, without reading more of it; `None` for none that holds arrays.
///
/// # Errors
/// [`Error::Io`] when it cannot be opened.
pub fn sniff(path: impl AsRef<Path>) -> Result<Option<SourceFormat>> {
    let data = read_file(path.as_ref())?;
    let is_index = msgpack::is_index(&data);
    Ok(if is_index { Some(SourceFormat::Msgpack) } else { detect(&data) })
}

/// The format that these bytes begin like. What begins like nothing can still be a damaged safetensors file.
fn detect(data: &[u8]) -> Option<SourceFormat> {
    if data.starts_with(npy::MAGIC) {
        return Some(SourceFormat::Npy);
    }
    // A zip archive begins with its first entry, or, when empty, with its end.
    if data.starts_with(b"PK\x03\x04") || data.starts_with(b"PK\x05\x06") {
        return Some(SourceFormat::Npz);
    }
    // Protocol 2 and later say so first: PROTO, then the version.
    if data.len() > 2 && data[0] == 0x80 && (2..=5).contains(&data[1]) {
        return Some(SourceFormat::Pickle);
    }
    // A safetensors file begins with a length below 100 MB, so that bytes 4 to 7 are zero and byte 8 is `{`.
    let is_safetensors = data.get(4..8).is_some_and(|high| high == [0; 4]) && data.get(8) == Some(&b'{');
    if is_safetensors {
        return Some(SourceFormat::Safetensors);
    }
    msgpack::begins_with_map(data).then_some(SourceFormat::Msgpack)
}

/// A part of another source, under other names.
struct Selection {
    inner: Box<dyn Source>,
    keys: KeyMap,
    specs: Vec<ArraySpec>,
    /// The position of each leaf in the other source.
    positions: Vec<usize>,
}

impl Selection {
    /// The leaves that the options choose, renamed; the source itself if they choose all and rename none.
    fn of(inner: Box<dyn Source>, options: &LoadOptions) -> Result<Box<dyn Source>> {
        let leaves = inner.keys().leaves();
        options.check_patterns(&leaves.iter().map(|leaf| leaf.name.as_str()).collect::<Vec<_>>())?;
        let keep: Vec<bool> = leaves.iter().map(|leaf| options.is_wanted(&leaf.name)).collect();
        let positions: Vec<usize> = (0..keep.len()).filter(|&index| keep[index]).collect();
        if options.renames.is_empty() {
            if keep.iter().all(|keep| *keep) {
                return Ok(inner);
            }
            return Ok(Selection::boxed(inner.keys().filter(&keep)?, positions, inner));
        }
        // New names make new dictionaries.
        let renamed: Vec<_> =
            positions.iter().map(|&position| options.renamed(&leaves[position].name)).collect();
        let names: Vec<&str> = renamed.iter().map(|name| &**name).collect();
        let (keys, order) = KeyMap::place_names(Framework::Plain, &names)?;
        let positions = order.iter().map(|&index| positions[index]).collect();
        Ok(Selection::boxed(keys, positions, inner))
    }

    fn boxed(keys: KeyMap, positions: Vec<usize>, inner: Box<dyn Source>) -> Box<dyn Source> {
        let specs = positions.iter().map(|&position| inner.specs()[position].clone()).collect();
        Box::new(Selection { inner, keys, specs, positions })
    }
}

impl Source for Selection {
    fn origin(&self) -> &str {
        self.inner.origin()
    }

    fn format(&self) -> SourceFormat {
        self.inner.format()
    }

    fn keys(&self) -> &KeyMap {
        &self.keys
    }

    fn specs(&self) -> &[ArraySpec] {
        &self.specs
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        self.inner.metadata()
    }

    fn framework(&self) -> Framework {
        self.inner.framework()
    }

    fn is_mapped(&self) -> bool {
        self.inner.is_mapped()
    }

    fn recorded_digest(&self, index: usize) -> Option<&str> {
        self.inner.recorded_digest(self.positions[index])
    }

    fn read(&self, index: usize) -> Result<Bytes> {
        self.inner.read(self.positions[index])
    }
}
