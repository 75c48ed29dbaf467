//! The structure record: a tree's structure as JSON, in a file's metadata.
//!
//! `docs/tree-record.md` is the specification, and `scripts/safejax_tree.py` reads and writes the same from
//! Python.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::convention::Framework;
use super::def::{LeafKind, TreeDef};
use super::key_path::{DictKey, Key};
use crate::error::{Error, Result};
use crate::limits::Limits;

/// The metadata key of the record's version.
pub const FORMAT_KEY: &str = "safejax.format";

/// The metadata key of the record.
pub const TREE_KEY: &str = "safejax.tree";

/// The metadata key of the framework that the names follow, where it was given or recognised.
pub const FRAMEWORK_KEY: &str = "safejax.framework";

/// The version of the record that this crate writes, and the only one that it reads.
pub const FORMAT: &str = "1";

/// The deepest JSON that is written, in nested arrays and objects: what JSON parsers commonly accept.
const MAX_JSON_DEPTH: usize = 120;

/// Commas of a node's record at most: of one in a dictionary of integers, one after the key and one after the node.
const COMMAS_PER_NODE: usize = 2;

/// A leaf that is an array.
const LEAF: &str = "*";

/// The names of what else a leaf can be.
const LEAF_KINDS: [(LeafKind, &str); 4] = [
    (LeafKind::Int, "int"),
    (LeafKind::Float, "float"),
    (LeafKind::Bool, "bool"),
    (LeafKind::Complex, "complex"),
];

/// The record of a structure and of the framework whose names it has, as metadata entries.
///
/// # Errors
/// [`Error::Tree`] when it is nested too deep for JSON parsers.
pub fn write(def: &TreeDef, framework: Framework) -> Result<BTreeMap<String, String>> {
    let value = to_json(def);
    if json_depth(&value) > MAX_JSON_DEPTH {
        return Err(Error::Tree(format!(
            "the structure is nested deeper than a record of it can be ({MAX_JSON_DEPTH} levels of JSON); flatten \
             it, or save it without its structure"
        )));
    }
    let mut entries = BTreeMap::from([
        (FORMAT_KEY.to_owned(), FORMAT.to_owned()),
        (TREE_KEY.to_owned(), value.to_string()),
    ]);
    if framework != Framework::Plain {
        entries.insert(FRAMEWORK_KEY.to_owned(), framework.to_string());
    }
    Ok(entries)
}

/// The structure that is recorded in a file's metadata; `None` if there is no record.
///
/// # Errors
/// [`Error::Tree`] when the record is of another version, or is not what the specification says.
pub fn read(metadata: &BTreeMap<String, String>) -> Result<Option<TreeDef>> {
    read_within(metadata, Limits::default())
}

/// As [`read`], of a record that may have other limits.
pub(crate) fn read_within(metadata: &BTreeMap<String, String>, limits: Limits) -> Result<Option<TreeDef>> {
    let Some(text) = metadata.get(TREE_KEY) else { return Ok(None) };
    // Every node is followed by a comma or an end; commas in names only make this stricter.
    let nodes = text.bytes().filter(|&byte| byte == b',').count();
    limits
        .check_nodes(nodes / COMMAS_PER_NODE)
        .map_err(|problem| Error::Tree(format!("its structure record is too large: {problem}")))?;
    match metadata.get(FORMAT_KEY).map(String::as_str) {
        Some(FORMAT) => {}
        other => {
            return Err(Error::Tree(format!(
                "its structure record is of version {}, and this version of safejax reads version {FORMAT}; use a \
                 newer one, or load the file without its structure",
                other.unwrap_or("none")
            )));
        }
    }
    // Most records are plain dictionaries, and can have tens of thousands of leaves.
    if let Ok(PlainNode(def)) = serde_json::from_str(text) {
        return Ok(Some(def));
    }
    let value: Value = serde_json::from_str(text)
        .map_err(|error| Error::Tree(format!("its structure record is not JSON: {error}")))?;
    from_json(&value)
        .map(Some)
        .map_err(|problem| Error::Tree(format!("its structure record is wrong: {problem}")))
}

/// With what the metadata keys begin that belong to safejax.
const OWN_PREFIX: &str = "safejax.";

/// Metadata without the entries that belong to safejax.
pub fn strip(metadata: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let others = metadata.iter().filter(|(key, _)| !key.starts_with(OWN_PREFIX));
    others.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// As in a record (`docs/tree-record.md`).
impl Serialize for TreeDef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        to_json(self).serialize(serializer)
    }
}

/// As in a record (`docs/tree-record.md`).
impl<'de> Deserialize<'de> for TreeDef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TreeDef, D::Error> {
        from_json(&Value::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// The structure as JSON.
pub(crate) fn to_json(def: &TreeDef) -> Value {
    let nodes = |items: &[TreeDef]| -> Value { items.iter().map(to_json).collect() };
    let entries = |entries: &[(DictKey, TreeDef)]| -> Value {
        entries.iter().map(|(key, child)| json!([dict_key(key), to_json(child)])).collect()
    };
    match def {
        TreeDef::Leaf(LeafKind::Array) => json!(LEAF),
        TreeDef::Leaf(kind) => {
            let name = LEAF_KINDS.iter().find(|(known, _)| known == kind).map_or(LEAF, |(_, name)| name);
            json!({"$leaf": name})
        }
        TreeDef::None => Value::Null,
        TreeDef::Str(text) => json!({"$str": text}),
        TreeDef::Bytes(bytes) => json!({"$bytes": hex(bytes)}),
        TreeDef::Dict(items) => match plain_object(items) {
            Some(object) => Value::Object(object),
            None => json!({"$dict": entries(items)}),
        },
        TreeDef::OrderedDict(items) => json!({"$odict": entries(items)}),
        TreeDef::List(items) => json!({"$list": nodes(items)}),
        TreeDef::Tuple(items) => json!({"$tuple": nodes(items)}),
        TreeDef::NamedTuple { name, fields } => {
            let fields: Value = fields.iter().map(|(name, child)| json!([name, to_json(child)])).collect();
            json!({"$namedtuple": name, "fields": fields})
        }
        TreeDef::Custom { name, auxiliary, children } => {
            let children: Value =
                children.iter().map(|(key, child)| json!([key_json(key), to_json(child)])).collect();
            // What is not JSON, though it should be, is kept as text.
            let auxiliary =
                serde_json::from_str(auxiliary).unwrap_or_else(|_| Value::String(auxiliary.clone()));
            json!({"$custom": name, "auxiliary": auxiliary, "children": children})
        }
    }
}

/// A dictionary as a JSON object, if its keys are strings none of which begins with `$`.
fn plain_object(items: &[(DictKey, TreeDef)]) -> Option<Map<String, Value>> {
    items
        .iter()
        .map(|(key, child)| match key {
            DictKey::Str(key) if !key.starts_with('$') => Some((key.clone(), to_json(child))),
            _ => None,
        })
        .collect()
}

fn dict_key(key: &DictKey) -> Value {
    match key {
        DictKey::Str(key) => json!(key),
        DictKey::Int(key) => json!(key),
    }
}

fn key_json(key: &Key) -> Value {
    match key {
        Key::Dict(key) => json!({"key": dict_key(key)}),
        Key::Index(index) => json!({"index": index}),
        Key::Attribute(name) => json!({"attribute": name}),
    }
}

/// Levels of nested arrays and objects.
fn json_depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(json_depth).max().unwrap_or(0),
        Value::Object(items) => 1 + items.values().map(json_depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// The structure behind JSON, or what is wrong with it. The parser has bounded the nesting.
fn from_json(value: &Value) -> Result<TreeDef, String> {
    match value {
        Value::Null => Ok(TreeDef::None),
        Value::String(text) if text == LEAF => Ok(TreeDef::LEAF),
        Value::Object(object) => match object.keys().find(|key| key.starts_with('$')) {
            None => {
                let items =
                    object.iter().map(|(key, child)| Ok((DictKey::Str(key.clone()), from_json(child)?)));
                TreeDef::dict(items.collect::<Result<Vec<_>, String>>()?).map_err(|error| error.to_string())
            }
            Some(kind) => marked_node(kind, object),
        },
        other => Err(format!("`{}` is no node", shortened(other))),
    }
}

/// A structure of nothing but leaves, `None` and dictionaries of strings, read without the detour over [`Value`]. Whatever
/// else there is, mistakes included, is an error without a meaning, and [`from_json`]'s to read.
struct PlainNode(TreeDef);

impl<'de> Deserialize<'de> for PlainNode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PlainNode, D::Error> {
        struct Node;
        impl<'de> Visitor<'de> for Node {
            type Value = PlainNode;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a plain node")
            }
            fn visit_unit<E: serde::de::Error>(self) -> Result<PlainNode, E> {
                Ok(PlainNode(TreeDef::None))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<PlainNode, E> {
                if text == LEAF { Ok(PlainNode(TreeDef::LEAF)) } else { Err(E::custom("another leaf")) }
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PlainNode, A::Error> {
                let mut entries = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    if key.starts_with('$') {
                        return Err(A::Error::custom("a marked node"));
                    }
                    entries.push((DictKey::Str(key), map.next_value::<PlainNode>()?.0));
                }
                TreeDef::dict(entries).map(PlainNode).map_err(A::Error::custom)
            }
        }
        deserializer.deserialize_any(Node)
    }
}

/// A node that says with a `$` what it is.
fn marked_node(kind: &str, object: &Map<String, Value>) -> Result<TreeDef, String> {
    let content = &object[kind];
    let allowed: &[&str] = match kind {
        "$namedtuple" => &["$namedtuple", "fields"],
        "$custom" => &["$custom", "auxiliary", "children"],
        _ => &[kind],
    };
    if let Some(key) = object.keys().find(|key| !allowed.contains(&key.as_str())) {
        return Err(format!("a {kind} cannot have `{key}`"));
    }
    let nodes = || items(content)?.iter().map(from_json).collect::<Result<Vec<_>, String>>();
    match kind {
        "$leaf" => {
            let kind = LEAF_KINDS.iter().find(|(_, name)| content == name).map(|(kind, _)| *kind);
            kind.map(TreeDef::Leaf)
                .ok_or_else(|| format!("a leaf of kind `{}` is not known", shortened(content)))
        }
        "$str" => string(content).map(TreeDef::Str),
        "$bytes" => from_hex(&string(content)?).map(TreeDef::Bytes),
        "$dict" => TreeDef::dict(dict_entries(content)?).map_err(|error| error.to_string()),
        "$odict" => TreeDef::ordered_dict(dict_entries(content)?).map_err(|error| error.to_string()),
        "$list" => Ok(TreeDef::List(nodes()?)),
        "$tuple" => Ok(TreeDef::Tuple(nodes()?)),
        "$namedtuple" => {
            let fields = pairs(object.get("fields").unwrap_or(&Value::Null))?;
            let fields = fields.map(|(name, child)| Ok((string(name)?, from_json(child)?)));
            Ok(TreeDef::NamedTuple { name: string(content)?, fields: fields.collect::<Result<_, String>>()? })
        }
        "$custom" => {
            let children = pairs(object.get("children").unwrap_or(&Value::Null))?;
            let children = children.map(|(key, child)| Ok((key_from_json(key)?, from_json(child)?)));
            Ok(TreeDef::Custom {
                name: string(content)?,
                auxiliary: object.get("auxiliary").unwrap_or(&Value::Null).to_string(),
                children: children.collect::<Result<_, String>>()?,
            })
        }
        other => Err(format!("a node of kind `{other}` is not known")),
    }
}

fn items(value: &Value) -> Result<&Vec<Value>, String> {
    value.as_array().ok_or_else(|| format!("`{}` is not a list", shortened(value)))
}

/// A list of lists of two.
fn pairs(value: &Value) -> Result<impl Iterator<Item = (&Value, &Value)>, String> {
    let pairs: Vec<(&Value, &Value)> = items(value)?
        .iter()
        .map(|pair| match pair.as_array().map(Vec::as_slice) {
            Some([key, child]) => Ok((key, child)),
            _ => Err(format!("`{}` is not a pair of key and node", shortened(pair))),
        })
        .collect::<Result<_, String>>()?;
    Ok(pairs.into_iter())
}

fn dict_entries(value: &Value) -> Result<Vec<(DictKey, TreeDef)>, String> {
    pairs(value)?.map(|(key, child)| Ok((dict_key_from_json(key)?, from_json(child)?))).collect()
}

fn dict_key_from_json(value: &Value) -> Result<DictKey, String> {
    match value {
        Value::String(key) => Ok(DictKey::Str(key.clone())),
        Value::Number(number) if number.is_i64() => Ok(DictKey::Int(number.as_i64().unwrap_or_default())),
        other => Err(format!("`{}` is not a dictionary's key", shortened(other))),
    }
}

fn key_from_json(value: &Value) -> Result<Key, String> {
    let wrong = || format!("`{}` is not a key", shortened(value));
    let object = value.as_object().filter(|object| object.len() == 1).ok_or_else(wrong)?;
    let (kind, key) = object.iter().next().ok_or_else(wrong)?;
    match kind.as_str() {
        "key" => dict_key_from_json(key).map(Key::Dict),
        "index" => {
            key.as_u64().and_then(|index| usize::try_from(index).ok()).map(Key::Index).ok_or_else(wrong)
        }
        "attribute" => string(key).map(Key::Attribute),
        _ => Err(wrong()),
    }
}

fn string(value: &Value) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| format!("`{}` is not a string", shortened(value)))
}

/// Two digits a byte.
fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = |byte: &u8| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    bytes.iter().flat_map(digits).map(char::from).collect()
}

fn from_hex(text: &str) -> Result<Vec<u8>, String> {
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let byte = |pair: &[u8]| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    };
    let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(byte).collect();
    bytes.ok_or_else(|| "bytes are not written as two hexadecimal digits each".to_owned())
}

/// JSON for a message, cut to a line.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    let mut short: String = text.chars().take(60).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn metadata(format: &str, tree: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(FORMAT_KEY.into(), format.into()), (TREE_KEY.into(), tree.into())])
    }

    #[test]
    fn the_record_of_ordinary_params_is_their_shape() {
        let def = TreeDef::from_paths(&["params.Dense_0.kernel".parse().unwrap()]).unwrap();
        assert_eq!(to_json(&def).to_string(), r#"{"params":{"Dense_0":{"kernel":"*"}}}"#);
    }

    #[test]
    fn a_record_that_cannot_be_read_says_why() {
        let refused = |format: &str, tree: &str| read(&metadata(format, tree)).unwrap_err().to_string();
        assert!(refused("2", "{}").contains("of version 2, and this version of safejax reads version 1"));
        assert!(refused("1", "{").contains("not JSON"));
        assert!(refused("1", "3").contains("`3` is no node"));
        assert!(refused("1", r#"{"$lists":[]}"#).contains("kind `$lists` is not known"));
        assert!(refused("1", r#"{"$list":{}}"#).contains("`{}` is not a list"));
        assert!(refused("1", r#"{"$list":[],"x":1}"#).contains("a $list cannot have `x`"));
        assert!(refused("1", r#"{"$dict":[[1.5,"*"]]}"#).contains("not a dictionary's key"));
        assert!(refused("1", r#"{"$dict":[[1,"*"],["a","*"]]}"#).contains("of two kinds"));
        assert!(refused("1", r#"{"$dict":[["a","*"],["a","*"]]}"#).contains("stands twice"));
        assert!(
            refused("1", r#"{"$custom":"x","children":[[{"key":[]},"*"]]}"#)
                .contains("not a dictionary's key")
        );
        assert!(refused("1", &"[".repeat(100_000)).contains("recursion limit"));
        assert_eq!(read(&BTreeMap::new()).unwrap(), None);
    }

    #[test]
    fn a_structure_that_is_too_deep_is_not_written() {
        let deep = (0..200).fold(TreeDef::LEAF, |child, _| TreeDef::List(vec![child]));
        assert!(write(&deep, Framework::Plain).unwrap_err().to_string().contains("nested deeper"));
        let fits = (0..60).fold(TreeDef::LEAF, |child, _| TreeDef::List(vec![child]));
        assert_eq!(read(&write(&fits, Framework::Plain).unwrap()).unwrap(), Some(fits));
    }

    /// Any structure, of any kinds of nodes and keys.
    fn any_tree() -> impl Strategy<Value = TreeDef> {
        let leaf = prop_oneof![
            Just(TreeDef::LEAF),
            Just(TreeDef::None),
            Just(TreeDef::Leaf(LeafKind::Int)),
            Just(TreeDef::Leaf(LeafKind::Complex)),
            "\\PC{0,5}".prop_map(TreeDef::Str),
            proptest::collection::vec(any::<u8>(), 0..4).prop_map(TreeDef::Bytes),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            let key = "\\PC{0,3}|\\$[a-z]{0,4}|[a-z.]{1,3}";
            let children = || proptest::collection::vec(inner.clone(), 0..4);
            prop_oneof![
                children().prop_map(TreeDef::List),
                children().prop_map(TreeDef::Tuple),
                proptest::collection::btree_map(key, inner.clone(), 0..4)
                    .prop_map(|map| TreeDef::dict(map.into_iter().map(|(k, v)| (k.into(), v))).unwrap()),
                proptest::collection::btree_map(any::<i64>(), inner.clone(), 0..4)
                    .prop_map(|map| TreeDef::dict(map.into_iter().map(|(k, v)| (k.into(), v))).unwrap()),
                proptest::collection::btree_map(key, inner.clone(), 0..4).prop_map(|map| {
                    TreeDef::OrderedDict(map.into_iter().rev().map(|(k, v)| (k.into(), v)).collect())
                }),
                (key, children()).prop_map(|(name, children)| TreeDef::NamedTuple {
                    name,
                    fields: children.into_iter().enumerate().map(|(i, c)| (format!("f{i}"), c)).collect(),
                }),
                (key, children()).prop_map(|(name, children)| TreeDef::Custom {
                    name,
                    auxiliary: json!({"anything": [1, null]}).to_string(),
                    children: children
                        .into_iter()
                        .enumerate()
                        .map(|(i, c)| (
                            if i % 2 == 0 { Key::Index(i) } else { Key::Attribute(format!("a{i}")) },
                            c
                        ))
                        .collect(),
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_structure_survives_its_record(def in any_tree()) {
            let record = write(&def, Framework::Plain).unwrap();
            if let Ok(PlainNode(plain)) = serde_json::from_str(&record[TREE_KEY]) {
                prop_assert_eq!(&plain, &def);
            }
            prop_assert_eq!(read(&record).unwrap(), Some(def));
        }
    }
}
