//! NumPy's `.npz` files: a zip archive of `.npy` files, stored or deflated.

use std::io::{Cursor, Read, Write};
use std::path::Path;

use bytes::Bytes;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::npy;
use super::source::{Source, SourceFormat};
use super::target::Conversion;
use crate::array::{ArraySpec, HostArray};
use crate::checkpoint::{WriteOptions, write_atomically};
use crate::error::{Context, Error, Result};
use crate::sub_byte;
use crate::tree::{Framework, Key, KeyMap, KeyPath, TreeDef};

/// The ending of an array's name in the archive.
const ENDING: &str = ".npy";

/// Arrays that are deflated to less than this share of their size, and larger than the next constant, are
/// refused: a file that was made to fill the memory looks like this, and hardly any other does.
const SUSPICIOUS_EXPANSION: u64 = 200;

/// See [`SUSPICIOUS_EXPANSION`]; in bytes.
const SUSPICIOUS_BYTES: u64 = 1 << 30;

/// The header of an `.npy` file is within its first bytes; NumPy itself reads no more than 10,000.
const HEADER_BYTES: u64 = 65_536 + 16;

/// An archive of arrays.
pub struct NpzSource {
    origin: String,
    data: Bytes,
    keys: KeyMap,
    specs: Vec<ArraySpec>,
    /// The entry of each leaf in the archive.
    entries: Vec<usize>,
}

impl NpzSource {
    pub fn new(origin: String, data: Bytes) -> Result<NpzSource, String> {
        let mut archive = open(&data)?;
        let mut found = Vec::new();
        for index in 0..archive.len() {
            let entry =
                archive.by_index(index).map_err(|error| format!("entry {index} cannot be read: {error}"))?;
            let name =
                entry.name().map_err(|error| format!("the name of entry {index} cannot be read: {error}"))?;
            let name = name.into_owned();
            let Some(key) = name.strip_suffix(ENDING) else {
                return Err(format!("its entry `{}` is no .npy file", name));
            };
            let (size, compressed) = (entry.size(), entry.compressed_size());
            if size > SUSPICIOUS_BYTES && size / SUSPICIOUS_EXPANSION > compressed {
                return Err(format!(
                    "`{key}` would expand from {compressed} to {size} bytes, as archives do that are made to fill \
                     the memory; if it is real, unpack it with NumPy"
                ));
            }
            let mut head = Vec::new();
            let read = entry.take(HEADER_BYTES).read_to_end(&mut head);
            read.map_err(|error| format!("`{key}` cannot be read: {error}"))?;
            let (spec, header_bytes) =
                npy::read_spec(&head).map_err(|problem| format!("`{key}`: {problem}"))?;
            let expected = spec.host_bytes().map_err(|error| format!("`{key}`: {error}"))?;
            if header_bytes as u64 + expected as u64 != size {
                return Err(format!(
                    "`{key}` is {spec}, {expected} bytes, but {} follow its header",
                    size - (header_bytes as u64).min(size)
                ));
            }
            found.push((key.to_owned(), spec, index));
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        let names: Vec<&str> = found.iter().map(|(name, ..)| name.as_str()).collect();
        let (keys, order) = keys_of(&names).map_err(|error| error.to_string())?;
        let specs = order.iter().map(|&position| found[position].1.clone()).collect();
        let entries = order.iter().map(|&position| found[position].2).collect();
        Ok(NpzSource { origin, data, keys, specs, entries })
    }
}

/// The tree of an archive's names: nested dictionaries where the names have dots in them, or one where that clashes.
fn keys_of(names: &[&str]) -> Result<(KeyMap, Vec<usize>)> {
    KeyMap::place_names(Framework::Plain, names).or_else(|_| {
        let paths: Vec<KeyPath> = names.iter().map(|name| KeyPath::from(vec![Key::dict(*name)])).collect();
        KeyMap::place_record(TreeDef::from_paths(&paths)?, Framework::Plain, names)
    })
}

fn open(data: &Bytes) -> Result<ZipArchive<Cursor<Bytes>>, String> {
    ZipArchive::new(Cursor::new(data.clone())).map_err(|error| format!("its archive cannot be read: {error}"))
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

    fn read(&self, index: usize) -> Result<Bytes> {
        let malformed =
            |problem: String| Error::Malformed { origin: self.origin.clone(), format: "npz file", problem };
        let mut archive = open(&self.data).map_err(malformed)?;
        let mut entry =
            archive.by_index(self.entries[index]).map_err(|error| malformed(error.to_string()))?;
        let size = usize::try_from(entry.size()).unwrap_or(usize::MAX);
        let mut file = Vec::new();
        file.try_reserve_exact(size)
            .map_err(|error| malformed(format!("{size} bytes do not fit: {error}")))?;
        let read = entry.by_ref().take(size as u64).read_to_end(&mut file);
        read.map_err(|error| malformed(error.to_string()))?;
        let array = npy::parse(&file, Some(self.specs[index].dtype)).map_err(malformed)?;
        let dtype = array.spec().dtype;
        let bytes = array.bytes().clone();
        Ok(if dtype.is_sub_byte() { sub_byte::pack(&bytes, dtype).into() } else { bytes })
    }
}

/// Writes the arrays, stored, by their names on disk. The tree itself is only in the names.
pub fn write(conversion: &mut Conversion<'_>, target: &Path, options: WriteOptions) -> Result<()> {
    let names = conversion.source.keys().leaves().iter().map(|leaf| leaf.name.as_str());
    let (read_back, _) = keys_of(&names.collect::<Vec<_>>())?;
    if let Some(difference) = conversion.source.keys().def().difference(read_back.def()) {
        conversion
            .report
            .notes
            .push(format!("npz files hold names only, so that the tree is lost: {difference}"));
    }
    let mut failed = None;
    write_atomically(target, options, |file| {
        let mut archive = ZipWriter::new(file);
        for index in 0..conversion.specs.len() {
            let name = conversion.name(index);
            let array = conversion
                .unpacked(index)
                .and_then(|bytes| HostArray::from_bytes(conversion.specs[index].clone(), bytes))
                .for_tensor(name);
            let array = match array {
                Ok(array) => array,
                Err(error) => {
                    failed = Some(error);
                    return Err(std::io::Error::other("a tensor could not be read"));
                }
            };
            // Entries over 4 GB need the larger form of the archive.
            let large = array.bytes().len() as u64 >= u64::from(u32::MAX) - HEADER_BYTES;
            let entry =
                SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(large);
            archive.start_file(format!("{name}{ENDING}"), entry).map_err(std::io::Error::other)?;
            archive.write_all(&npy::header_of(array.spec())?)?;
            archive.write_all(array.bytes())?;
        }
        archive.finish().map_err(std::io::Error::other)?;
        Ok(())
    })
    .map_err(|error| failed.take().unwrap_or(error))
}
