//! Pytrees: key paths, and the key map between the names in a file and the places in a tree.
//!
//! A leaf's name on disk is its key path joined with `.`, as Python safejax writes it.

#![forbid(unsafe_code)]

mod draw;
mod key_map;
mod key_path;

pub use draw::{Node, NodeSummary};
pub use key_map::{KeyMap, Leaf};
pub use key_path::{Key, KeyPath};
