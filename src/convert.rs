//! Other forms on disk, read and written tensor by tensor: Flax msgpack, NumPy's npz and npy, the tree alone as JSON; and
//! pickles, which are only read.
//!
//! A file is opened as a [`Source`], whatever its format, which its content tells; [`convert`] writes a source
//! in the format that the target's name asks for. Memory is bounded by the largest tensor.

#![forbid(unsafe_code)]

mod complex;
mod compressed;
mod json;
mod msgpack;
pub mod npy;
mod npz;
mod pickle;
mod safetensors;
mod source;
mod target;

use complex::complex_scalar;
pub use source::{LeafBytes, LeftOut, Source, SourceFormat, open, read_lent, sniff, to_host};
pub use target::{ConvertOptions, ConvertReport, TargetFormat, convert};
