//! Other forms on disk: casts, re-layouts, and NumPy's array files.

#![forbid(unsafe_code)]

mod cast;
pub mod npy;
mod safetensors;

pub use cast::{Cast, can_cast};
pub use safetensors::{ConvertOptions, ConvertReport, convert};
