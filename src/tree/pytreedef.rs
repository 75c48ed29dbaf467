//! JAX's own form of a tree: `PyTreeDef` in a FlatBuffer, which is part of what `jax.export` writes (`serialization.fbs` in
//! jax/_src/export), and lies beside arrays that `pytree_serialization` saved.

use super::def::{LeafKind, MAX_DEPTH, TreeDef};
use super::key_path::{DictKey, Key};
use crate::flatbuffer::{Problem, Table};

/// Reads a tree, all of whose leaves are arrays.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn read(table: Table<'_>) -> Result<TreeDef, Problem> {
    node(table, 0, 0)
}

/// Reads a node to which the keys of this many bytes lead.
fn node(table: Table<'_>, depth: usize, path_bytes: usize) -> Result<TreeDef, Problem> {
    if depth > MAX_DEPTH {
        return Err(format!("a tree has more than {MAX_DEPTH} levels"));
    }
    // Every leaf has a path of its own.
    table.budget().charge(size_of::<TreeDef>() + path_bytes)?;
    let names = table.strings(2)?;
    let auxiliary = table.bytes(4)?.unwrap_or_default();
    let mut children = Vec::new();
    for (index, child) in table.tables(1)?.into_iter().enumerate() {
        // A custom node's keys are within these bytes.
        let key_bytes = names.get(index).map_or(auxiliary.len(), |name| name.len());
        children.push(node(child, depth + 1, path_bytes + size_of::<Key>() + key_bytes)?);
    }
    match table.u8(0)?.unwrap_or(0) {
        0 => Ok(TreeDef::Leaf(LeafKind::Array)),
        1 => Ok(TreeDef::None),
        2 => Ok(TreeDef::Tuple(children)),
        3 => Ok(TreeDef::List(children)),
        4 => {
            if names.len() != children.len() {
                return Err(format!("a dictionary has {} keys and {} entries", names.len(), children.len()));
            }
            let entries = names.into_iter().map(DictKey::from).zip(children);
            TreeDef::dict(entries).map_err(|error| error.to_string())
        }
        5 => custom(table, auxiliary, children),
        kind => Err(format!("a node is of kind {kind}, which is not known")),
    }
}

/// A registered type: OrderedDicts and named tuples write their keys as JSON.
fn custom(table: Table<'_>, auxiliary: &[u8], children: Vec<TreeDef>) -> Result<TreeDef, Problem> {
    let name = table.string(3)?.unwrap_or_default().to_owned();
    let keys: Option<Vec<String>> = serde_json::from_slice(auxiliary).ok();
    match keys.filter(|keys| keys.len() == children.len()) {
        Some(keys) if name == "collections.OrderedDict" => {
            let entries = keys.into_iter().map(DictKey::from).zip(children).collect();
            TreeDef::ordered_dict(entries).map_err(|error| error.to_string())
        }
        Some(keys) => Ok(TreeDef::NamedTuple { name, fields: keys.into_iter().zip(children).collect() }),
        None => {
            let text = String::from_utf8_lossy(auxiliary).into_owned();
            let children = children.into_iter().enumerate().map(|(index, child)| (Key::Index(index), child));
            Ok(TreeDef::Custom {
                name,
                auxiliary: serde_json::Value::from(text).to_string(),
                children: children.collect(),
            })
        }
    }
}
