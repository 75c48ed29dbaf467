//! From one checkpoint to another, whatever their formats: files to a file, without a device. Memory is bounded by the
//! largest tensor.

#![forbid(unsafe_code)]

mod source;
mod target;

pub use source::{LeafBytes, Source, open};
pub use target::{ConvertOptions, ConvertReport, TargetFormat, convert};
