//! The old file `checkpoint`: a tree as Flax writes it, in which arrays that are elsewhere have names in their place. Orbax wrote it up
//! to 0.5, and T5X before it.

use super::Arrays;
use crate::format::checkpoint::{Extent, Extents, LeftOut, RecordedStructure, Tensor};
use crate::format::folder::Folder;
use crate::format::msgpack;
use crate::format::problem::Problem;
use crate::printable::Name;
use crate::tree::{DictKey, Key, TreeDef};

/// The file of the tree.
pub const FILE: &str = "checkpoint";

/// What stands before the name of an array that is elsewhere.
const PLACEHOLDER: &str = "PLACEHOLDER://";

/// What a map has that stands for an array of T5X's.
const SPEC: [&str; 3] = ["driver", "kvstore", "metadata"];

/// The tree of the file, with the arrays that it names or has, in JAX's order, and what it names that is not there.
pub struct Placed {
    pub def: TreeDef,
    pub tensors: Vec<Tensor>,
    pub left_out: Vec<LeftOut>,
}

/// Reads the file.
///
/// # Errors
/// What is wrong with it.
pub fn read(folder: &mut Folder, arrays: &mut Arrays) -> Result<Placed, Problem> {
    let checkpoint = msgpack::open(&folder.origin(), vec![folder.blob(FILE)?], folder.limits())
        .map_err(|error| Problem::from(error).at(FILE))?;
    let RecordedStructure::Tree(def, _) = checkpoint.structure.clone() else {
        return Err(format!("{FILE} has no tree").into());
    };
    let first = folder.adopt(checkpoint.blobs.clone());
    let mut placing = Placing {
        own: checkpoint.tensors.into_iter(),
        first,
        arrays,
        tensors: Vec::new(),
        left_out: Vec::new(),
    };
    let def = placing.place(def, "").unwrap_or(TreeDef::Dict(Vec::new()));
    Ok(Placed { def, tensors: placing.tensors, left_out: placing.left_out })
}

struct Placing<'a> {
    /// The arrays in the file itself, in its order.
    own: std::vec::IntoIter<Tensor>,
    /// The position of its files in the folder.
    first: usize,
    arrays: &'a mut Arrays,
    tensors: Vec<Tensor>,
    left_out: Vec<LeftOut>,
}

impl Placing<'_> {
    /// The node with arrays in the place of their names; `None` of one that is not there.
    fn place(&mut self, def: TreeDef, path: &str) -> Option<TreeDef> {
        let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        Some(match def {
            TreeDef::Leaf(kind) => {
                let tensor = self.own.next()?;
                self.tensors.push(self.moved(tensor));
                TreeDef::Leaf(kind)
            }
            TreeDef::Str(text) => match text.strip_prefix(PLACEHOLDER) {
                Some(name) => self.array(name, path)?,
                None => TreeDef::Str(text),
            },
            TreeDef::Dict(entries) if is_spec(&entries) => {
                let name = name_of(&entries).unwrap_or_default();
                let spec = TreeDef::Dict(entries);
                // Its numbers are not the tree's.
                self.own.by_ref().take(spec.leaf_count()).for_each(drop);
                self.array(&name, path)?
            }
            TreeDef::Dict(entries) => TreeDef::Dict(
                entries
                    .into_iter()
                    .filter_map(|(key, child)| {
                        let child = self.place(child, &below(&Key::Dict(key.clone()).to_name()))?;
                        Some((key, child))
                    })
                    .collect(),
            ),
            TreeDef::List(items) => {
                let items = items.into_iter().enumerate();
                let place = |(index, item): (usize, TreeDef)| {
                    self.place(item, &below(&index.to_string())).unwrap_or(TreeDef::None)
                };
                TreeDef::List(items.map(place).collect())
            }
            other => other,
        })
    }

    /// The array of this name, which stands there in the tree.
    fn array(&mut self, name: &str, path: &str) -> Option<TreeDef> {
        let why = match self.arrays.get(name) {
            Some(Ok(tensor)) => {
                self.tensors.push(tensor.clone());
                return Some(TreeDef::LEAF);
            }
            Some(Err(problem)) => problem.clone(),
            None => format!("its array `{}` is missing", Name(name)),
        };
        self.left_out.push(LeftOut::refused(path, &why, format!("`{}`: {why}", Name(path))));
        None
    }

    /// A tensor of the file, whose files are the folder's now.
    fn moved(&self, tensor: Tensor) -> Tensor {
        let moved = |extent: &Extent| Extent { file: extent.file + self.first, range: extent.range.clone() };
        let extents: Vec<Extent> = tensor.extents().iter().map(moved).collect();
        Tensor { extents: Extents::from(extents), ..tensor }
    }
}

/// Whether a map stands for an array that TensorStore has.
fn is_spec(entries: &[(DictKey, TreeDef)]) -> bool {
    SPEC.iter().all(|wanted| entries.iter().any(|(key, _)| *key == DictKey::from(*wanted)))
}

/// The directory of the array that a map stands for: the last part of its path.
fn name_of(entries: &[(DictKey, TreeDef)]) -> Option<String> {
    let get = |entries: &[(DictKey, TreeDef)], wanted: &str| {
        entries.iter().find(|(key, _)| *key == DictKey::from(wanted)).map(|(_, child)| child.clone())
    };
    let path = match get(entries, "path") {
        Some(path) => path,
        None => match get(entries, "kvstore")? {
            TreeDef::Dict(store) => get(&store, "path")?,
            _ => return None,
        },
    };
    let TreeDef::Str(path) = path else { return None };
    path.trim_end_matches('/').rsplit('/').next().map(str::to_owned)
}
