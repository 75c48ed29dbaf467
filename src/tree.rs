//! Pytrees: their structure, the paths to their leaves, and the key map between those paths and the names
//! in a file.
//!
//! A leaf's name on disk is its key path joined with `.`, as Python safejax writes it. What a name cannot
//! say (lists and tuples, keys with dots in them, empty nodes) is in the structure record of the file's
//! metadata, which `docs/tree-record.md` specifies; a file without one is read by convention.

#![forbid(unsafe_code)]

pub(crate) mod convention;
pub(crate) mod def;
mod draw;
mod glob;
pub(crate) mod key_map;
pub(crate) mod key_path;
pub(crate) mod pytreedef;
pub mod record;

pub(crate) use convention::{Framework, respell, split_path};
pub use def::{LeafKind, MAX_DEPTH};
pub(crate) use def::{Tree, TreeDef};
pub use draw::{Node, NodeSummary};
pub use glob::matches_glob;
pub use key_map::Leaf;
pub(crate) use key_map::{KeyMap, Placed};
pub(crate) use key_path::KeyPath;
pub use key_path::{DictKey, Key};
