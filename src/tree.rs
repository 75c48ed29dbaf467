//! Pytrees: their structure, the paths to their leaves, and the key map between those paths and the names
//! in a file.
//!
//! A leaf's name on disk is its key path joined with `.`, as Python safejax writes it. What a name cannot
//! say (lists and tuples, keys with dots in them, empty nodes) is in the structure record of the file's
//! metadata, which `docs/tree-record.md` specifies; a file without one is read by convention.

#![forbid(unsafe_code)]

pub mod convention;
mod def;
mod draw;
mod glob;
mod key_map;
mod key_path;
pub mod record;

pub use convention::Framework;
pub(crate) use convention::{respell, split_path};
pub use def::{LeafKind, MAX_DEPTH, Tree, TreeDef};
pub use draw::{Node, NodeSummary};
pub use glob::matches_glob;
pub(crate) use key_map::Placed;
pub use key_map::{KeyMap, Leaf};
pub use key_path::{DictKey, Key, KeyPath};
