//! Flax's msgpack: what `flax.serialization.to_bytes` writes, and the hub's `flax_model.msgpack` holds.
//!
//! A tree of maps. Arrays are extension type 1: an inner message of shape, type's name and bytes; complex
//! scalars are type 2, NumPy scalars type 3, which is as 1. Arrays over a size are maps of chunks.

mod read;
mod write;

use std::collections::BTreeMap;
use std::ops::Range;

pub(crate) use write::write;

use super::checkpoint::{Checkpoint, Extent, Extents, Format, RecordedStructure, Tensor};
use super::encoding::Encoding;
use super::pool::Pool;
use crate::array::ArraySpec;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::store::SharedBlob;
use crate::tree::{Framework, KeyMap, TreeDef};

/// Extension types, as `flax.serialization._MsgpackExtType` numbers them.
const EXT_NDARRAY: i8 = 1;
const EXT_COMPLEX: i8 = 2;
const EXT_NUMPY_SCALAR: i8 = 3;

/// The key of a map that stands for an array in chunks.
const CHUNKED: &str = "__msgpack_chunked_array__";

/// What a file is, for errors.
const FORMAT: &str = "Flax msgpack file";

/// Where a leaf's bytes are.
#[derive(Debug, Clone)]
enum LeafContent {
    /// A scalar that msgpack itself holds.
    Scalar(Vec<u8>),
    /// Parts of a file, one after another.
    Ranges(usize, Vec<Range<usize>>),
}

/// One leaf of a file.
#[derive(Debug, Clone)]
struct FlaxLeaf {
    spec: ArraySpec,
    content: LeafContent,
}

/// The tree of these files, which are joined.
///
/// # Errors
/// [`Error::Malformed`].
pub(super) fn open(origin: &str, blobs: Vec<SharedBlob>, limits: Limits) -> Result<Checkpoint> {
    let malformed = |problem| Error::Malformed { origin: origin.to_owned(), format: FORMAT, problem };
    let mut joined: Option<TreeDef> = None;
    let mut by_path = BTreeMap::new();
    for (file, blob) in blobs.iter().enumerate() {
        let read = read::read(SharedBlob::clone(blob), file, limits);
        let (def, leaves) = read.map_err(|problem| problem.into_error(origin, FORMAT))?;
        by_path.extend(def.paths().into_iter().zip(leaves));
        joined = Some(match joined {
            None => def,
            Some(before) => before.merge(&def).map_err(|error| malformed(error.to_string()))?,
        });
    }
    let def = joined.unwrap_or(TreeDef::Dict(Vec::new()));
    let keys = KeyMap::new(def).map_err(|error| malformed(error.to_string()))?;
    let mut pool = Pool::new(origin, blobs);
    let tensors = keys.leaves().iter().map(|place| {
        let FlaxLeaf { spec, content } = by_path[&place.path].clone();
        let extents = match content {
            LeafContent::Scalar(bytes) => pool.add(&bytes.into()),
            LeafContent::Ranges(file, ranges) => {
                Extents::from(ranges.into_iter().map(|range| Extent { file, range }).collect::<Vec<_>>())
            }
        };
        let encoding = Encoding { is_unpacked: spec.dtype.is_sub_byte(), ..Encoding::default() };
        Tensor { name: place.name.clone(), spec, extents, encoding, checksum: None }
    });
    let tensors = tensors.collect();
    let mut checkpoint = Checkpoint::new(origin, Format::Msgpack, pool.into_blobs(), tensors);
    checkpoint.structure = RecordedStructure::Tree(keys.def().clone(), Framework::Flax);
    Ok(checkpoint)
}
