//! Other forms on disk: casts, re-layouts, and NumPy's array files.

#![forbid(unsafe_code)]

pub mod npy;
mod safetensors;

pub use safetensors::{ConvertOptions, ConvertReport, convert};
