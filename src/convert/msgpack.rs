//! Flax's msgpack: what `flax.serialization.to_bytes` writes, and the hub's `flax_model.msgpack` holds.
//!
//! A tree of maps. Arrays are extension type 1: an inner message of shape, type's name and bytes; complex
//! scalars are type 2, NumPy scalars type 3, which is as 1. Arrays over a size are maps of chunks.

mod read;
mod write;

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;

pub use write::write;

use super::source::{Source, SourceFormat};
use crate::array::ArraySpec;
use crate::checkpoint::{FileBytes, read_file};
use crate::error::{Context, Error, Result};
use crate::limits::Limits;
use crate::sub_byte;
use crate::tree::{Framework, KeyMap, TreeDef};

/// Extension types, as `flax.serialization._MsgpackExtType` numbers them.
const EXT_NDARRAY: i8 = 1;
const EXT_COMPLEX: i8 = 2;
const EXT_NUMPY_SCALAR: i8 = 3;

/// The key of a map that stands for an array in chunks.
const CHUNKED: &str = "__msgpack_chunked_array__";

/// Where a leaf's bytes are.
#[derive(Debug, Clone)]
enum Content {
    /// A scalar that msgpack itself holds.
    Scalar(Vec<u8>),
    /// Parts of a file, one after another.
    Ranges(usize, Vec<std::ops::Range<usize>>),
}

/// One leaf of a file.
#[derive(Debug, Clone)]
struct Leaf {
    spec: ArraySpec,
    content: Content,
}

/// A tree in one file or several.
pub struct MsgpackSource {
    origin: String,
    files: Vec<FileBytes>,
    keys: KeyMap,
    specs: Vec<ArraySpec>,
    leaves: Vec<Leaf>,
}

impl MsgpackSource {
    /// Reads the trees of these files, which are joined.
    pub fn new(origin: String, files: Vec<FileBytes>, limits: Limits) -> Result<MsgpackSource, String> {
        let mut joined: Option<TreeDef> = None;
        let mut by_path = BTreeMap::new();
        for (file, data) in files.iter().enumerate() {
            let (def, leaves) = read::read(data.bytes(), file, limits)?;
            by_path.extend(def.paths().into_iter().zip(leaves));
            joined = Some(match joined {
                None => def,
                Some(before) => before.merge(&def).map_err(|error| error.to_string())?,
            });
        }
        let keys =
            KeyMap::new(joined.unwrap_or(TreeDef::Dict(Vec::new()))).map_err(|error| error.to_string())?;
        let leaves: Vec<Leaf> = keys.leaves().iter().map(|leaf| by_path[&leaf.path].clone()).collect();
        let specs = leaves.iter().map(|leaf| leaf.spec.clone()).collect();
        Ok(MsgpackSource { origin, files, keys, specs, leaves })
    }
}

impl Source for MsgpackSource {
    fn origin(&self) -> &str {
        &self.origin
    }

    fn format(&self) -> SourceFormat {
        SourceFormat::Msgpack
    }

    fn keys(&self) -> &KeyMap {
        &self.keys
    }

    fn specs(&self) -> &[ArraySpec] {
        &self.specs
    }

    fn framework(&self) -> Framework {
        Framework::Flax
    }

    fn warn_if_changed(&self) {
        self.files.iter().for_each(FileBytes::warn_if_changed);
    }

    fn read(&self, index: usize) -> Result<Bytes> {
        let leaf = &self.leaves[index];
        let bytes = match &leaf.content {
            Content::Scalar(bytes) => Bytes::copy_from_slice(bytes),
            Content::Ranges(file, ranges) => match &ranges[..] {
                [range] => self.files[*file].read(range.clone())?,
                ranges => {
                    let mut bytes = Vec::with_capacity(ranges.iter().map(ExactSizeIterator::len).sum());
                    for range in ranges {
                        bytes.extend_from_slice(&self.files[*file].read(range.clone())?);
                    }
                    bytes.into()
                }
            },
        };
        let dtype = leaf.spec.dtype;
        Ok(if dtype.is_sub_byte() { sub_byte::pack(&bytes, dtype).into() } else { bytes })
    }
}

/// Whether bytes begin with a map, as every Flax file does.
pub fn begins_with_map(data: &[u8]) -> bool {
    // fixmap, map 16, map 32
    data.first().is_some_and(|&byte| (0x80..=0x8f).contains(&byte) || byte == 0xde || byte == 0xdf)
}

/// Whether bytes are the hub's index of a tree in several files.
pub fn is_index(data: &[u8]) -> bool {
    let has = |text: &str| data.windows(text.len()).take(1 << 16).any(|window| window == text.as_bytes());
    data.first() == Some(&b'{')
        && data.get(4..8).is_none_or(|high| high != [0; 4])
        && has(MAP_KEY)
        && has(".msgpack\"")
}

/// The key of an index that says which tensor is in which file.
const MAP_KEY: &str = "\"weight_map\"";

/// Opens the files that an index lists.
pub fn open_index(path: &Path, data: &[u8], limits: Limits) -> Result<Box<dyn Source>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let origin = path.display().to_string();
    let malformed =
        |problem: String| Error::Malformed { origin: origin.clone(), format: "index of Flax files", problem };
    let index: Index = serde_json::from_slice(data).map_err(|error| malformed(error.to_string()))?;
    let names: std::collections::BTreeSet<&String> = index.weight_map.values().collect();
    let mut files = Vec::new();
    for name in names {
        // The files are beside the index, and nowhere else.
        if Path::new(name).components().count() != 1 || !name.ends_with(".msgpack") {
            return Err(malformed(format!("`{}` is not the name of a .msgpack file", name)));
        }
        files.push(read_file(&path.with_file_name(name))?);
    }
    let source = MsgpackSource::new(origin.clone(), files, limits).map_err(malformed)?;
    for name in index.weight_map.keys() {
        let name = name.replace('/', ".");
        source.keys.index(&name).for_tensor(&name)?;
    }
    Ok(Box::new(source))
}
