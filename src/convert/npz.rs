//! NumPy's `.npz` files: a zip archive of `.npy` files, stored or deflated.

use std::io::{Read, Seek, Write};
use std::path::Path;

use bytes::Bytes;
use zip::read::ZipFile;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::npy;
use super::source::{LeftOut, Source, SourceFormat};
use super::target::Conversion;
use crate::array::ArraySpec;
use crate::checkpoint::{FileBytes, FileCursor, WriteOptions, write_atomically};
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::load::LoadOptions;
use crate::sub_byte;
use crate::tree::{Framework, Key, KeyMap, KeyPath, TreeDef};

/// The ending of an array's name in the archive.
const ENDING: &str = ".npy";

/// The header of an `.npy` file is within its first bytes; NumPy itself reads no more than 10,000.
const HEADER_BYTES: u64 = 65_536 + 16;

/// An archive of arrays.
pub struct NpzSource {
    origin: String,
    data: FileBytes,
    keys: KeyMap,
    specs: Vec<ArraySpec>,
    /// The entry of each leaf in the archive.
    entries: Vec<usize>,
    left_out: Vec<LeftOut>,
}

/// What an entry of the archive holds.
enum Entry {
    Array(ArraySpec),
    /// A string without dimensions: a description of the others, usually.
    Text(String),
}

impl NpzSource {
    /// Reads the entries' headers.
    pub fn new(origin: String, data: FileBytes, options: &LoadOptions) -> Result<NpzSource, String> {
        let mut archive = open(&data)?;
        let (mut found, mut texts, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
        for index in 0..archive.len() {
            let unreadable = |error| format!("entry {index} cannot be read: {error}");
            let entry = archive.by_index(index).map_err(unreadable)?;
            let name = entry.name().map_err(unreadable)?.into_owned();
            if entry.is_dir() {
                continue;
            }
            let Some(key) = name.strip_suffix(ENDING) else {
                left_out.push(LeftOut { name, why: "it is no .npy file".into() });
                continue;
            };
            match read_entry(entry, options.limits) {
                Ok(Ok(Entry::Array(spec))) => found.push((key.to_owned(), spec, index)),
                Ok(Ok(Entry::Text(text))) => texts.push((key.to_owned(), text)),
                Ok(Err(why)) => left_out.push(LeftOut { name: key.to_owned(), why }),
                // What is not wanted may be damaged.
                Err(why) if !options.is_wanted(key) => left_out.push(LeftOut { name: key.to_owned(), why }),
                Err(problem) => return Err(format!("`{key}`: {problem}")),
            }
        }
        let is_pytorch = |part: &LeftOut| part.name == "data.pkl" || part.name.ends_with("/data.pkl");
        if found.is_empty() && left_out.iter().any(is_pytorch) {
            return Err(
                "it is a checkpoint of PyTorch; load it in PyTorch, and save its state_dict as safetensors"
                    .into(),
            );
        }
        if found.is_empty() && left_out.iter().any(|part| part.name.ends_with(".weights.h5")) {
            return Err(
                "it is a model of Keras; load it in Keras, and save its weights as safetensors".into()
            );
        }
        if let ([], [], [first, ..]) = (&found[..], &texts[..], &left_out[..]) {
            return Err(format!("it holds no arrays: `{}`: {}", first.name, first.why));
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        let names: Vec<&str> = found.iter().map(|(name, ..)| name.as_str()).collect();
        let (keys, order) = keys_of(&names).map_err(|error| error.to_string())?;
        let keys = with_texts(keys, texts);
        let specs = order.iter().map(|&position| found[position].1.clone()).collect();
        let entries = order.iter().map(|&position| found[position].2).collect();
        Ok(NpzSource { origin, data, keys, specs, entries, left_out })
    }
}

/// What an entry holds, or why it is left out; an error where it is damaged.
fn read_entry<R: Read>(
    mut entry: ZipFile<'_, R>,
    limits: Limits,
) -> Result<std::result::Result<Entry, String>, String> {
    let (size, compressed) = (entry.size(), entry.compressed_size());
    limits.check_expansion(compressed, size)?;
    let mut head = Vec::new();
    let read = entry.by_ref().take(HEADER_BYTES).read_to_end(&mut head);
    read.map_err(|error| format!("it cannot be read: {error}"))?;
    if let Some(text) = npy::text_scalar(&head) {
        return Ok(Ok(Entry::Text(text)));
    }
    let (spec, header_bytes) = match npy::read_spec(&head) {
        Ok(read) => read,
        Err(npy::HeaderProblem::NoNumbers(why)) => return Ok(Err(why)),
        Err(npy::HeaderProblem::Damaged(problem)) => return Err(problem),
    };
    let expected = spec.host_bytes().map_err(|error| error.to_string())?;
    if header_bytes as u64 + expected as u64 != size {
        return Err(format!(
            "it is {spec}, {expected} bytes, but {} follow its header",
            size - (header_bytes as u64).min(size)
        ));
    }
    Ok(Ok(Entry::Array(spec)))
}

/// The tree with the texts beside its arrays, where there is a place for them.
fn with_texts(keys: KeyMap, texts: Vec<(String, String)>) -> KeyMap {
    let with = |keys: &KeyMap| -> Result<KeyMap> {
        let mut def = keys.def().clone();
        for (name, text) in &texts {
            let path = KeyPath::from_name(name);
            let alone = path.keys().iter().rev().try_fold(TreeDef::Str(text.clone()), |child, key| {
                let Key::Dict(key) = key else { return Ok(child) };
                TreeDef::dict([(key.clone(), child)])
            })?;
            def = def.merge(&alone)?;
        }
        let names: Vec<&str> = keys.leaves().iter().map(|leaf| leaf.name.as_str()).collect();
        Ok(KeyMap::place_record(def, Framework::Plain, &names)?.0)
    };
    if texts.is_empty() {
        return keys;
    }
    with(&keys).unwrap_or(keys)
}

/// The tree of an archive's names: nested dictionaries where the names have dots in them, or one where that clashes.
fn keys_of(names: &[&str]) -> Result<(KeyMap, Vec<usize>)> {
    KeyMap::place_names(Framework::Plain, names).or_else(|_| KeyMap::place_names(Framework::Flat, names))
}

fn open(data: &FileBytes) -> Result<ZipArchive<FileCursor>, String> {
    ZipArchive::new(data.cursor()).map_err(|error| format!("its archive cannot be read: {error}"))
}

impl Source for NpzSource {
    fn origin(&self) -> &str {
        &self.origin
    }

    fn format(&self) -> SourceFormat {
        SourceFormat::Npz
    }

    fn keys(&self) -> &KeyMap {
        &self.keys
    }

    fn specs(&self) -> &[ArraySpec] {
        &self.specs
    }

    fn warn_if_changed(&self) {
        self.data.warn_if_changed();
    }

    fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    fn read(&self, index: usize) -> Result<Bytes> {
        let malformed =
            |problem: String| Error::Malformed { origin: self.origin.clone(), format: "npz file", problem };
        let mut archive = open(&self.data).map_err(malformed)?;
        let entry = archive.by_index(self.entries[index]).map_err(|error| malformed(error.to_string()))?;
        let spec = &self.specs[index];
        let bytes = npy::read_stream(entry, spec).map_err(malformed)?;
        Ok(if spec.dtype.is_sub_byte() { sub_byte::pack(&bytes, spec.dtype).into() } else { bytes })
    }
}

/// Writes the arrays, stored, by their names on disk. The tree itself is only in the names.
pub fn write(conversion: &mut Conversion<'_>, target: &Path, options: WriteOptions) -> Result<()> {
    let names = conversion.source.keys().leaves().iter().map(|leaf| leaf.name.as_str());
    let (read_back, _) = keys_of(&names.collect::<Vec<_>>())?;
    if let Some(difference) = conversion.source.keys().def().difference(read_back.def()) {
        conversion.report.notes.push(format!(
            "npz files hold arrays and their names only; something of the tree is lost {difference}"
        ));
    }
    let mut failed = None;
    write_atomically(target, options, |file| {
        let mut archive = ZipWriter::new(file);
        let written = (0..conversion.specs.len())
            .try_for_each(|index| write_entry(conversion, index, &mut archive, &mut failed));
        match written {
            Ok(()) => archive.finish().map(drop).map_err(std::io::Error::other),
            Err(error) => {
                // Dropped, it would try to end the archive, and print that it cannot.
                std::mem::forget(archive);
                Err(error)
            }
        }
    })
    .map_err(|error| failed.take().unwrap_or(error))
}

/// Writes one array; a failure that is not one of writing goes to `failed`.
fn write_entry<W: Write + Seek>(
    conversion: &mut Conversion<'_>,
    index: usize,
    archive: &mut ZipWriter<W>,
    failed: &mut Option<Error>,
) -> std::io::Result<()> {
    let (name, spec) = (conversion.name(index), conversion.specs[index].clone());
    let header = npy::header_of(&spec)?;
    let written = conversion.with_unpacked(index, |bytes| {
        // Entries over 4 GB need the larger form of the archive.
        let large = bytes.len() as u64 >= u64::from(u32::MAX) - HEADER_BYTES;
        let entry =
            SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(large);
        let start = archive.start_file(format!("{name}{ENDING}"), entry).map_err(std::io::Error::other);
        Ok(start.and_then(|()| archive.write_all(&header)).and_then(|()| archive.write_all(bytes)))
    });
    written.unwrap_or_else(|error| {
        *failed = Some(error);
        Err(std::io::Error::other("a tensor could not be read"))
    })
}
