//! The tree of a checkpoint, as `_METADATA` describes it: the way to each leaf, and what it was in Python.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::rich::Rich;
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::format::checkpoint::LeftOut;
use crate::printable::Name;
use crate::tree::{DictKey, Framework, Key, LeafKind, MAX_DEPTH, TreeDef};

/// What `_METADATA` says.
pub struct Described {
    /// The leaves and empty nodes.
    pub leaves: Vec<Leaf>,
    /// Whether every chunk is stored, so that one that is not there is missing.
    pub has_every_chunk: bool,
    /// The user's strings, among them a record of the tree if this crate wrote it.
    pub metadata: BTreeMap<String, String>,
    /// The tree with its types, where that was asked for.
    rich: Option<serde_json::Value>,
}

/// A leaf, or an empty node.
pub struct Leaf {
    pub path: Vec<Step>,
    /// What it was in Python.
    pub kind: String,
}

/// A step on the way to a leaf.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step {
    pub key: String,
    /// 1 for a place in a sequence, 2 for a key or a field.
    key_type: u8,
}

/// The number of a step to a place in a sequence, and of one to a key or a field.
const SEQUENCE: u8 = 1;
const DICT: u8 = 2;

/// What Orbax calls what leaves were in Python.
pub const NUMPY_ARRAY: &str = "np.ndarray";
pub const SCALAR: &str = "scalar";
pub const STRING: &str = "string";
const JAX_ARRAY: &str = "jax.Array";

/// What it calls empty nodes.
const NONE: &str = "None";
const DICT_NODE: &str = "Dict";
const LIST: &str = "List";
const TUPLE: &str = "Tuple";
const NAMED_TUPLE: &str = "NamedTuple";

/// The last level of an NNX state, by which each of its variables has its array.
const VARIABLE: &str = "value";

/// The way to a leaf or an empty node of a tree of this framework.
pub fn steps(path: &[Key], def: &TreeDef, framework: Framework) -> Vec<Step> {
    let step = |key: &Key| match key {
        Key::Dict(DictKey::Str(key)) | Key::Attribute(key) => Step { key: key.clone(), key_type: DICT },
        Key::Dict(DictKey::Int(key)) => Step { key: key.to_string(), key_type: DICT },
        Key::Index(index) => Step { key: index.to_string(), key_type: SEQUENCE },
    };
    let mut steps: Vec<Step> = path.iter().map(step).collect();
    if framework == Framework::Nnx && matches!(def, TreeDef::Leaf(_)) {
        steps.push(Step { key: VARIABLE.into(), key_type: DICT });
    }
    steps
}

/// What the array at the end of this way is called.
pub fn name_of(steps: &[Step]) -> String {
    let keys: Vec<&str> = steps.iter().map(|step| step.key.as_str()).collect();
    keys.join(".")
}

/// What an empty node is called.
pub fn empty_kind(def: &TreeDef) -> &'static str {
    match def {
        TreeDef::Dict(_) | TreeDef::OrderedDict(_) => DICT_NODE,
        TreeDef::List(_) => LIST,
        TreeDef::Tuple(_) => TUPLE,
        // As it writes `optax.EmptyState`, too.
        _ => NONE,
    }
}

/// Whether this is what an empty node is called, which has nothing to be read.
pub fn is_empty_kind(kind: &str) -> bool {
    matches!(kind, NONE | DICT_NODE | LIST | TUPLE | NAMED_TUPLE)
}

/// What there is of a leaf.
pub enum Content {
    Array(ArraySpec),
    Text(String),
    /// Nothing that can be used, and why.
    Refused(String),
}

#[derive(Deserialize)]
struct Metadata {
    tree_metadata: BTreeMap<String, Entry>,
    #[serde(default)]
    store_array_data_equal_to_fill_value: Option<bool>,
    #[serde(default)]
    custom_metadata: serde_json::Value,
    /// JSON, in a string.
    #[serde(default)]
    value_metadata_tree: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    key_metadata: Vec<Step>,
    value_metadata: ValueMetadata,
}

#[derive(Deserialize)]
struct ValueMetadata {
    value_type: String,
}

/// Whether what was this in Python is an array here.
pub fn is_array(kind: &str) -> bool {
    matches!(kind, JAX_ARRAY | NUMPY_ARRAY | SCALAR)
}

impl Described {
    /// Reads `_METADATA`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(json: &[u8]) -> Result<Described, String> {
        let found: Metadata =
            serde_json::from_slice(json).map_err(|error| format!("it cannot be read: {error}"))?;
        let leaf = |entry: Entry| Leaf { path: entry.key_metadata, kind: entry.value_metadata.value_type };
        let mut leaves: Vec<Leaf> = found.tree_metadata.into_values().map(leaf).collect();
        leaves.sort_by(|a, b| a.path.cmp(&b.path));
        // What leads to others was empty once, and is not any more. It comes just before them.
        let is_stale: Vec<bool> =
            leaves.windows(2).map(|pair| pair[1].path.starts_with(&pair[0].path)).collect();
        let mut is_stale = is_stale.into_iter();
        leaves.retain(|_| !is_stale.next().unwrap_or(false));
        if let Some(leaf) = leaves.iter().find(|leaf| leaf.path.len() > MAX_DEPTH) {
            let start: String = leaf.name().chars().take(40).collect();
            return Err(format!("`{}…` is nested deeper than {MAX_DEPTH} levels", Name(&start)));
        }
        let has_every_chunk = found.store_array_data_equal_to_fill_value.unwrap_or(false);
        let metadata = match found.custom_metadata {
            serde_json::Value::Object(entries) => entries.into_iter().filter_map(text).collect(),
            _ => BTreeMap::new(),
        };
        let rich = match found.value_metadata_tree.as_deref().map(serde_json::from_str) {
            None => None,
            Some(Ok(rich)) => Some(rich),
            Some(Err(error)) => {
                tracing::warn!(%error, "the types of the tree cannot be read, and are passed over");
                None
            }
        };
        Ok(Described { leaves, has_every_chunk, metadata, rich })
    }

    /// The names of the leaves that are arrays.
    pub fn arrays(&self) -> impl Iterator<Item = String> + '_ {
        self.leaves.iter().filter(|leaf| is_array(&leaf.kind)).map(Leaf::name)
    }

    /// The tree of those leaves of which there is something; the others are left out.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn tree(&self, content: &dyn Fn(&str, &str) -> Content) -> Result<(TreeDef, Vec<LeftOut>), String> {
        if let Some(found) = self.rich_tree(content) {
            return Ok(found);
        }
        let mut left_out = Vec::new();
        let mut defs: Vec<(&[Step], TreeDef)> = Vec::with_capacity(self.leaves.len());
        for leaf in &self.leaves {
            let (def, left) = leaf.def(content);
            left_out.extend(left);
            defs.extend(def.map(|def| (&leaf.path[..], def)));
        }
        Ok((node(&mut defs, 0)?, left_out))
    }

    /// The tree with its types, if there is one of these leaves.
    fn rich_tree(&self, content: &dyn Fn(&str, &str) -> Content) -> Option<(TreeDef, Vec<LeftOut>)> {
        let mut rich = Rich::new(content);
        let problem = match rich.read(self.rich.clone()?) {
            Ok(def) => {
                let Rich { mut arrays, left_out, .. } = rich;
                arrays.extend(left_out.iter().map(|part| part.name.clone()));
                arrays.sort();
                let mut described: Vec<String> = self
                    .leaves
                    .iter()
                    .filter(|leaf| leaf.empty().is_none() && leaf.kind != STRING)
                    .map(Leaf::name)
                    .collect();
                described.sort();
                if arrays == described {
                    return Some((def.unwrap_or(TreeDef::None), left_out));
                }
                "it is not of the arrays that are described".to_owned()
            }
            Err(problem) => problem,
        };
        tracing::warn!("the types of the tree are passed over: {problem}");
        None
    }
}

/// An entry of the user's metadata as a text: what is none is so in JSON.
fn text((key, value): (String, serde_json::Value)) -> Option<(String, String)> {
    match value {
        serde_json::Value::String(text) => Some((key, text)),
        serde_json::Value::Null => None,
        other => Some((key, other.to_string())),
    }
}

impl Leaf {
    /// What it is in the tree, or why it is left out.
    pub fn def(&self, content: &dyn Fn(&str, &str) -> Content) -> (Option<TreeDef>, Option<LeftOut>) {
        if let Some(def) = self.empty() {
            return (Some(def), None);
        }
        let name = self.name();
        match content(&name, &self.kind) {
            Content::Array(spec) => (Some(TreeDef::Leaf(self.scalar_kind(&spec))), None),
            Content::Text(text) => (Some(TreeDef::Str(text)), None),
            Content::Refused(why) => {
                let refusal = format!("`{}`: {why}", Name(&name));
                (None, Some(LeftOut::refused(&name, &why, refusal)))
            }
        }
    }

    /// What its array is called.
    fn name(&self) -> String {
        name_of(&self.path)
    }

    /// The node that it is, if it is an empty one.
    fn empty(&self) -> Option<TreeDef> {
        Some(match self.kind.as_str() {
            NONE => TreeDef::None,
            DICT_NODE => TreeDef::Dict(Vec::new()),
            LIST => TreeDef::List(Vec::new()),
            TUPLE | NAMED_TUPLE => TreeDef::Tuple(Vec::new()),
            _ => return None,
        })
    }

    fn scalar_kind(&self, spec: &ArraySpec) -> LeafKind {
        match (self.kind.as_str(), spec.dtype, spec.shape.is_empty()) {
            (SCALAR, DType::Bool, true) => LeafKind::Bool,
            (SCALAR, DType::I64, true) => LeafKind::Int,
            (SCALAR, DType::F64, true) => LeafKind::Float,
            _ => LeafKind::Array,
        }
    }
}

/// The node that these are below, all of whose paths begin alike for so many steps. They are in the order of their paths.
fn node(defs: &mut [(&[Step], TreeDef)], depth: usize) -> Result<TreeDef, String> {
    let Some((first, _)) = defs.first() else { return Ok(TreeDef::Dict(Vec::new())) };
    if first.len() == depth {
        let [(path, def)] = defs else {
            let name = name_of(first);
            return Err(format!("its tree has `{}` twice", Name(&name)));
        };
        debug_assert_eq!(path.len(), depth);
        return Ok(std::mem::replace(def, TreeDef::None));
    }
    let is_sequence = first[depth].key_type == SEQUENCE;
    let mut children: Vec<(String, TreeDef)> = Vec::new();
    for below in defs.chunk_by_mut(|a, b| a.0[depth] == b.0[depth]) {
        let step = &below[0].0[depth];
        if (step.key_type == SEQUENCE) != is_sequence {
            return Err(format!(
                "a node of its tree has both keys and places, such as `{}`",
                Name(&step.key)
            ));
        }
        let key = step.key.clone();
        children.push((key, node(below, depth + 1)?));
    }
    match is_sequence {
        true => sequence(children),
        false => {
            let entries = children.into_iter().map(|(key, child)| (DictKey::Str(key), child));
            TreeDef::dict(entries).map_err(|error| error.to_string())
        }
    }
}

/// The tree of an NNX state without the last level, `value`, by which each of its variables has its array; `None` for other trees.
pub fn without_variables(def: &TreeDef) -> Option<TreeDef> {
    fn below(def: &TreeDef) -> Option<TreeDef> {
        match def {
            TreeDef::Dict(entries) => match &entries[..] {
                [(key, leaf @ TreeDef::Leaf(_))] if *key == DictKey::from(VARIABLE) => Some(leaf.clone()),
                _ => {
                    let child = |(key, child): &(DictKey, TreeDef)| Some((key.clone(), below(child)?));
                    entries.iter().map(child).collect::<Option<_>>().map(TreeDef::Dict)
                }
            },
            TreeDef::List(items) => items.iter().map(below).collect::<Option<_>>().map(TreeDef::List),
            TreeDef::Leaf(_) => None,
            other => Some(other.clone()),
        }
    }
    // One array alone has a name of its own.
    below(def).filter(|found| found.leaf_count() > 0 && !matches!(found, TreeDef::Leaf(_)))
}

/// A list of children by their places. Where one is left out, a `None` is there.
fn sequence(children: Vec<(String, TreeDef)>) -> Result<TreeDef, String> {
    /// Places that may be empty: of a list of which most is left out.
    const MAX_GAPS: usize = 1 << 16;
    let mut places: BTreeMap<usize, TreeDef> = BTreeMap::new();
    let most = children.len() + MAX_GAPS;
    for (key, child) in children {
        let place = key.parse::<usize>().ok().filter(|place| *place < most);
        let place = place.ok_or_else(|| format!("`{}` is no place in a list of its tree", Name(&key)))?;
        if places.insert(place, child).is_some() {
            return Err(format!("a list of its tree has the place {place} twice"));
        }
    }
    let end = places.last_key_value().map_or(0, |(place, _)| place + 1);
    Ok(TreeDef::List((0..end).map(|place| places.remove(&place).unwrap_or(TreeDef::None)).collect()))
}
