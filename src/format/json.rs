//! The tree alone, as JSON: the structure record, and the type and shape of every leaf by name.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::leaves::Leaves;
use crate::error::Result;
use crate::store::{WriteOptions, write_atomically};
use crate::tree::{Framework, record};

/// Writes the tree with these strings, as that of this framework.
pub(crate) fn write(
    tree: &dyn Leaves,
    (framework, metadata): (Framework, &BTreeMap<String, String>),
    target: &Path,
    options: WriteOptions,
) -> Result<()> {
    let leaves = tree.keys().leaves().iter().zip(tree.specs());
    let leaves: Map<String, Value> = leaves
        .map(|(leaf, spec)| {
            let described = json!({"path": leaf.path.to_string(), "dtype": spec.dtype, "shape": spec.shape});
            (leaf.name.clone(), described)
        })
        .collect();
    let document = json!({
        "format": record::FORMAT,
        "tree": record::to_json(tree.keys().def()),
        "framework": framework,
        "leaves": leaves,
        "metadata": metadata,
    });
    write_atomically(target, options, |file| writeln!(file, "{document:#}"))
}
