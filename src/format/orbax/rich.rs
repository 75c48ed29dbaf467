//! The tree in `value_metadata_tree`, which Orbax writes where it is asked for rich types: there, tuples and named tuples are what
//! they are. Keys of dictionaries are texts there, too, and dataclasses are dictionaries.

use serde::Deserialize;
use serde_json::Value;

use super::tree::{Content, Leaf, name_of, steps};
use crate::format::checkpoint::LeftOut;
use crate::printable::Name;
use crate::tree::{DictKey, Framework, Key, MAX_DEPTH, TreeDef};

/// What stands for a node or a leaf that JSON has no form of.
#[derive(Deserialize)]
#[serde(tag = "category", rename_all = "lowercase")]
enum Special {
    Custom(Custom),
    NamedTuple { clazz: String, entries: Vec<Field> },
}

#[derive(Deserialize)]
#[serde(tag = "clazz")]
enum Custom {
    #[serde(rename = "tuple")]
    Tuple { entries: Vec<Value> },
    #[serde(rename = "ValueMetadataEntry")]
    Leaf { data: Data },
}

#[derive(Deserialize)]
struct Data {
    value_type: String,
}

#[derive(Deserialize)]
struct Field {
    key: String,
    value: Value,
}

/// The member of every special object, which no dictionary of a user's is likely to have.
const CATEGORY: &str = "category";

/// A tree that is read.
pub struct Rich<'a> {
    content: &'a dyn Fn(&str, &str) -> Content,
    path: Vec<Key>,
    /// The names of the arrays, in the order of the tree.
    pub arrays: Vec<String>,
    pub left_out: Vec<LeftOut>,
}

impl<'a> Rich<'a> {
    /// A tree whose leaves have this content, by their names and types.
    pub fn new(content: &'a dyn Fn(&str, &str) -> Content) -> Rich<'a> {
        Rich { content, path: Vec::new(), arrays: Vec::new(), left_out: Vec::new() }
    }

    /// Reads a node; `None` is one that is left out.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(&mut self, value: Value) -> Result<Option<TreeDef>, String> {
        if self.path.len() > MAX_DEPTH {
            return Err(format!("it is nested deeper than {MAX_DEPTH} levels"));
        }
        Ok(Some(match value {
            Value::Array(items) => TreeDef::List(self.sequence(items)?),
            Value::Object(entries) if !entries.contains_key(CATEGORY) => {
                // In JAX's order, in which the arrays come, too.
                let mut children: Vec<(String, Value)> = entries.into_iter().collect();
                children.sort_by(|a, b| a.0.cmp(&b.0));
                let mut kept = Vec::with_capacity(children.len());
                for (key, child) in children {
                    if let Some(def) = self.below(Key::dict(key.as_str()), child)? {
                        kept.push((DictKey::Str(key), def));
                    }
                }
                TreeDef::dict(kept).map_err(|error| error.to_string())?
            }
            Value::Object(_) => {
                let special: Special = serde_json::from_value(value)
                    .map_err(|error| format!("a node of it is not known: {error}"))?;
                match special {
                    Special::Custom(Custom::Tuple { entries }) => TreeDef::Tuple(self.sequence(entries)?),
                    Special::Custom(Custom::Leaf { data }) => return Ok(self.leaf(data.value_type)),
                    Special::NamedTuple { clazz, entries } => {
                        let field = |Field { key, value }: Field| {
                            let def = self.below(Key::Attribute(key.clone()), value)?;
                            Ok((key, def.unwrap_or(TreeDef::None)))
                        };
                        let fields = entries.into_iter().map(field).collect::<Result<_, String>>()?;
                        // Of one that was made within a function, or another class, that comes first.
                        let name = clazz.rsplit('.').next().unwrap_or_default().to_owned();
                        TreeDef::NamedTuple { name, fields }
                    }
                }
            }
            other => return Err(format!("`{}` is no node of a tree", Name(&other.to_string()))),
        }))
    }

    fn below(&mut self, key: Key, value: Value) -> Result<Option<TreeDef>, String> {
        self.path.push(key);
        let def = self.read(value);
        self.path.pop();
        def
    }

    /// The items, with `None` in the place of what is left out.
    fn sequence(&mut self, items: Vec<Value>) -> Result<Vec<TreeDef>, String> {
        let item = |(index, value): (usize, Value)| {
            Ok(self.below(Key::Index(index), value)?.unwrap_or(TreeDef::None))
        };
        items.into_iter().enumerate().map(item).collect()
    }

    fn leaf(&mut self, kind: String) -> Option<TreeDef> {
        let path = steps(&self.path, &TreeDef::LEAF, Framework::Plain);
        let name = name_of(&path);
        let leaf = Leaf { path, kind };
        let (def, left_out) = leaf.def(self.content);
        if matches!(def, Some(TreeDef::Leaf(_))) {
            self.arrays.push(name);
        }
        self.left_out.extend(left_out);
        def
    }
}
