//! What every format that is read has in common: a tree of arrays whose bytes are read one at a time.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::path::Path;

use bytes::Bytes;

use super::{compressed, msgpack, npy, npz, pickle, safetensors};
use crate::array::{ArraySpec, HostArray};
use crate::checkpoint::{Checkpoint, FileBytes, check_digest, foreign, read_file, sha256};
use crate::error::{Context, Error, Result};
use crate::load::LoadOptions;
use crate::printable::{Line, Name};
use crate::sub_byte::unpack;
use crate::tree::{Framework, KeyMap, Tree};

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

    /// What of the file is no array and has no place in the tree.
    fn left_out(&self) -> &[LeftOut] {
        &[]
    }

    /// Whether any part of a leaf can be read by itself.
    fn has_parts(&self) -> bool {
        false
    }

    /// Reads a part of the leaf at this position, from `start` of its bytes on.
    ///
    /// # Errors
    /// As for [`Source::read`].
    fn read_part(&self, index: usize, start: usize, bytes: &mut [u8]) -> Result<()> {
        bytes.copy_from_slice(&self.read(index)?[start..start + bytes.len()]);
        Ok(())
    }

    /// Logs a warning if the file was written to since it was opened.
    fn warn_if_changed(&self) {}

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

/// Part of a file that is no array, and could not be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeftOut {
    /// Its name in the file.
    pub name: String,
    /// Why it could not be kept, as a sentence without its end.
    pub why: String,
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

/// The bytes of a leaf, where they are.
pub enum LeafBytes<'a> {
    /// In memory of their own.
    Owned(Bytes),
    /// In memory that was lent for them. To read into the same memory again and again saves the system a good part of the
    /// work of reading: it need not make new pages each time.
    Lent(&'a [u8]),
}

impl Deref for LeafBytes<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            LeafBytes::Owned(bytes) => bytes,
            LeafBytes::Lent(bytes) => bytes,
        }
    }
}

/// What is read at once, in bytes.
pub(super) const PART_BYTES: usize = 8 << 20;

/// Reads a leaf, into this memory if the source has it in parts. After each part, `progress` is told its bytes, and may end
/// the work.
///
/// # Errors
/// As for [`Source::read`]; [`Error::InvalidArgument`] when the memory is not to be had; those of `progress`.
pub fn read_lent<'a>(
    source: &dyn Source,
    index: usize,
    memory: &'a mut Vec<u8>,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<LeafBytes<'a>> {
    progress(0)?;
    if !source.has_parts() {
        let bytes = source.read(index)?;
        progress(bytes.len() as u64)?;
        return Ok(LeafBytes::Owned(bytes));
    }
    let size = source.specs()[index].packed_bytes()?;
    if memory.len() < size {
        memory.clear();
        memory.try_reserve_exact(size).map_err(|error| {
            Error::InvalidArgument(format!("{size} bytes do not fit into memory: {error}"))
        })?;
        memory.resize(size, 0);
    }
    let memory = &mut memory[..size];
    for start in (0..size).step_by(PART_BYTES) {
        let end = size.min(start + PART_BYTES);
        source.read_part(index, start, &mut memory[start..end])?;
        progress((end - start) as u64)?;
    }
    Ok(LeafBytes::Lent(memory))
}

/// All arrays of a source, on the host: sub-byte elements take a byte each there.
///
/// # Errors
/// As for [`Source::read`], naming the leaf.
pub fn to_host(source: &dyn Source) -> Result<Tree<HostArray>> {
    let leaves = source.keys().leaves().iter().zip(source.specs()).enumerate();
    let array = |(index, (leaf, spec)): (usize, (&crate::tree::Leaf, &ArraySpec))| {
        let bytes = read_checked(source, index).for_tensor(&leaf.name)?;
        let bytes = if spec.dtype.is_sub_byte() { unpack(&bytes, spec.dtype).into() } else { bytes };
        HostArray::from_bytes(spec.clone(), bytes).for_tensor(&leaf.name)
    };
    let arrays = leaves.map(array).collect::<Result<Vec<_>>>()?;
    source.warn_if_changed();
    Tree::unflatten(source.keys().def().clone(), arrays)
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

/// Opens a file of any format that is read; its content says which, and its name where the content does not.
///
/// Of the options, those that choose and rename tensors apply, and the limits; those that say how names make a tree
/// (framework, structure, template) apply to safetensors files, since the other formats have their tree. What is no array
/// is kept in the tree where it is text or bytes, and else left out with a warning, or refused if the options say so.
///
/// # Errors
/// [`Error::Io`]; [`Error::Malformed`] naming the format that the content looks like, and what is wrong with it.
pub fn open(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Box<dyn Source>> {
    let path = path.as_ref();
    let data = read_file(path)?;
    let format = detect(data.bytes()).or_else(|| of_name(path, data.bytes()));
    let Some(format) = format.filter(|format| *format != SourceFormat::Safetensors) else {
        return Ok(Box::new(safetensors::SafetensorsSource::new(Checkpoint::open(path)?, options)?));
    };
    Selection::of(open_as(format, path, data, options)?, options)
}

/// Opens a file of another format than safetensors.
fn open_as(
    format: SourceFormat,
    path: &Path,
    data: FileBytes,
    options: &LoadOptions,
) -> Result<Box<dyn Source>> {
    let origin = path.display().to_string();
    let malformed = |format: &'static str| {
        let origin = origin.clone();
        move |problem: String| Error::Malformed { origin: origin.clone(), format, problem }
    };
    Ok(match format {
        SourceFormat::Npy => {
            let malformed = malformed("npy file");
            Box::new(npy::NpySource::new(origin, data.bytes()).map_err(malformed)?)
        }
        SourceFormat::Npz => {
            let malformed = malformed("npz file");
            Box::new(npz::NpzSource::new(origin, data, options).map_err(malformed)?)
        }
        SourceFormat::Msgpack if msgpack::is_index(data.bytes()) => {
            msgpack::open_index(path, data.bytes(), options.limits)?
        }
        SourceFormat::Msgpack => {
            let malformed = malformed("Flax msgpack file");
            Box::new(msgpack::MsgpackSource::new(origin, vec![data], options.limits).map_err(malformed)?)
        }
        SourceFormat::Pickle => {
            let malformed = malformed("pickled tree of arrays");
            let unpacked = match compressed::expand(data.bytes(), options.limits) {
                Some(unpacked) => data.unpacked(unpacked.map_err(&malformed)?),
                None => data,
            };
            Box::new(pickle::PickleSource::new(origin, unpacked, options).map_err(malformed)?)
        }
        SourceFormat::Safetensors => {
            Box::new(safetensors::SafetensorsSource::new(Checkpoint::open(path)?, options)?)
        }
    })
}

/// The format of a file, without reading more of it than is needed; `None` for none that holds arrays.
///
/// # Errors
/// [`Error::Io`] when it cannot be opened; [`Error::Malformed`] when it is of a known kind that is not read.
pub fn sniff(path: impl AsRef<Path>) -> Result<Option<SourceFormat>> {
    let path = path.as_ref();
    let file = read_file(path)?;
    let data = file.bytes();
    match detect(data).or_else(|| of_name(path, data)) {
        Some(format) => Ok(Some(format)),
        None => match foreign::file(data).or_else(|| foreign::file_name(path)) {
            Some(problem) => {
                Err(Error::Malformed { origin: path.display().to_string(), format: "checkpoint", problem })
            }
            None => Ok(None),
        },
    }
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
    // A safetensors file begins with a length below 100 MB, so that bytes 4 to 7 are zero and byte 8 is `{`.
    let is_safetensors = data.get(4..8).is_some_and(|high| high == [0; 4]) && data.get(8) == Some(&b'{');
    if is_safetensors {
        return Some(SourceFormat::Safetensors);
    }
    if msgpack::is_index(data) || msgpack::begins_with_map(data) {
        // A pickle of protocol 2 and later begins like an empty map of msgpack, which would end there.
        let is_pickle = pickle::begins_with_pickle(data);
        return Some(if is_pickle { SourceFormat::Pickle } else { SourceFormat::Msgpack });
    }
    let is_pickle = pickle::begins_with_pickle(data)
        || compressed::start(data).is_some_and(|start| pickle::begins_with_pickle(&start));
    is_pickle.then_some(SourceFormat::Pickle)
}

/// The format that a file's name ends like, of one whose content says nothing.
fn of_name(path: &Path, data: &[u8]) -> Option<SourceFormat> {
    if foreign::file(data).is_some() {
        return None;
    }
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "npy" => Some(SourceFormat::Npy),
        "npz" => Some(SourceFormat::Npz),
        "msgpack" => Some(SourceFormat::Msgpack),
        "pkl" | "pickle" | "joblib" => Some(SourceFormat::Pickle),
        _ => None,
    }
}

/// Warns of what was wanted and is left out, or refuses the file for it.
fn report_left_out(source: &dyn Source, options: &LoadOptions) -> Result<()> {
    for LeftOut { name, why } in source.left_out().iter().filter(|part| options.is_wanted(&part.name)) {
        if options.strict {
            return Err(Error::InvalidArgument(format!(
                "`{name}` of {} cannot be kept, since {why}; leave it out (`--exclude`)",
                source.origin()
            )));
        }
        let (name, file, why) = (Name(name), Line(source.origin()), Line(why));
        tracing::warn!("`{name}` of {file} is left out, since {why}");
    }
    Ok(())
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
        let left_out = inner.left_out().iter();
        let names =
            leaves.iter().map(|leaf| leaf.name.as_str()).chain(left_out.map(|part| part.name.as_str()));
        options.check_patterns(&names.collect::<Vec<_>>())?;
        report_left_out(&*inner, options)?;
        let keep: Vec<bool> = leaves.iter().map(|leaf| options.is_wanted(&leaf.name)).collect();
        let positions: Vec<usize> = (0..keep.len()).filter(|&index| keep[index]).collect();
        let given = options.framework.unwrap_or_default();
        let is_split = !options.split.is_empty() || given.after_split() != given;
        if options.renames.is_empty() && !is_split {
            if keep.iter().all(|keep| *keep) {
                return Ok(inner);
            }
            return Ok(Selection::boxed(inner.keys().filter(&keep)?, positions, inner));
        }
        // New names make new dictionaries.
        let renamed: Vec<_> =
            positions.iter().map(|&position| options.renamed(&leaves[position].name)).collect();
        let names: Vec<&str> = renamed.iter().map(|name| &**name).collect();
        let (keys, order) = options.place(if is_split { given } else { Framework::Plain }, &names)?;
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

    fn has_parts(&self) -> bool {
        self.inner.has_parts()
    }

    fn read_part(&self, index: usize, start: usize, bytes: &mut [u8]) -> Result<()> {
        self.inner.read_part(self.positions[index], start, bytes)
    }

    fn warn_if_changed(&self) {
        self.inner.warn_if_changed();
    }

    fn recorded_digest(&self, index: usize) -> Option<&str> {
        self.inner.recorded_digest(self.positions[index])
    }

    fn read(&self, index: usize) -> Result<Bytes> {
        self.inner.read(self.positions[index])
    }
}
