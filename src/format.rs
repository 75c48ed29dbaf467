//! What bytes say: checkpoints of every format that is read, opened as tensors by name, with where the bytes of each are
//! and how they are encoded; and the writers of those formats.
//!
//! Which format a file has, its content tells. A format is a file here, or a folder. It knows no device.

#![forbid(unsafe_code)]

mod archive;
mod arrow;
pub(crate) mod checkpoint;
mod chunks;
mod complex;
mod compressed;
pub(crate) mod encoding;
mod equinox;
mod first_failure;
mod folder;
pub(crate) mod foreign;
mod gguf;
mod hdf5;
pub(crate) mod json;
mod keras;
mod leaves;
#[cfg(feature = "msgpack")]
pub(crate) mod msgpack;
#[cfg(not(feature = "msgpack"))]
#[path = "format/no_msgpack.rs"]
pub(crate) mod msgpack;
pub mod npy;
pub(crate) mod npz;
mod ocdbt;
mod onnx;
mod open;
mod orbax;
mod pickle;
mod pool;
mod problem;
mod pytorch;
mod safetensors;
pub(crate) mod sharded;
mod tensor_reader;
mod tensorflow;
mod zarr;

pub(crate) use checkpoint::{Checkpoint, Extents, PART_BYTES, RecordedStructure};
pub use checkpoint::{Extent, Format, LeftOut, Tensor};
pub(crate) use chunks::Chunks;
pub(crate) use leaves::Leaves;
pub(crate) use open::open_blob;
pub use open::sniff;
pub use orbax::{OrbaxContents, orbax_contents, orbax_item};
pub(crate) use orbax::{OrbaxOptions, write as write_orbax};
pub use safetensors::{CheckpointWriter, DEFAULT_ALIGNMENT, DIGEST_KEY, Layout, check_alignment};
pub(crate) use sharded::{
    ENDING as SAFETENSORS_ENDING, SHARD_DIGITS, check_whole, index_of, shard_paths, shards_of,
};
pub(crate) use tensor_reader::TensorReader;
