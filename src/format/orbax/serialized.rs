//! What `jax.experimental.array_serialization.pytree_serialization` writes: JAX's own form of the tree in a file, and beside it a
//! directory of arrays, each called by the number of its leaf. Held against jax 0.10.2.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::{Arrays, arrays, framework_of, keys_of, named, values};
use crate::flatbuffer::{Budget, Table};
use crate::format::checkpoint::{LeftOut, RecordedStructure, Tensor};
use crate::format::folder::Folder;
use crate::format::problem::Problem;
use crate::tree::{TreeDef, pytreedef};

/// The file of the tree.
pub const FILE: &str = "pytreedef.json";

/// The directory of the arrays.
const ARRAYS: &str = "array_store/";

#[derive(Deserialize)]
struct Serialized {
    /// A FlatBuffer, in base 64.
    #[serde(rename = "__jax_pytreedef_repr")]
    tree: String,
    /// What each leaf is, for people; nothing for one that is `None`.
    #[serde(rename = "__jax_leaf_ids")]
    leaves: Vec<Option<String>>,
}

/// Reads the tree, and finds its arrays.
///
/// # Errors
/// What is wrong with them.
pub fn read(folder: &mut Folder) -> Result<(Vec<Tensor>, RecordedStructure, Vec<LeftOut>), Problem> {
    let json = folder.read_whole(FILE)?;
    let found: Serialized =
        serde_json::from_slice(&json).map_err(|error| format!("{FILE} cannot be read: {error}"))?;
    folder.count(found.leaves.len())?;
    let values = values(folder, ARRAYS)?;
    // Chunks that are all zeros are not stored.
    let mut arrays = arrays(&values, folder, true)?;
    let mut placing = Placing {
        leaves: found.leaves.iter().enumerate(),
        arrays: &mut arrays,
        tensors: Vec::new(),
        left_out: Vec::new(),
    };
    let def = tree(&found.tree).map_err(|problem| format!("the tree in {FILE}: {problem}"))?;
    if def.leaf_count() != found.leaves.len() {
        let (has, says) = (def.leaf_count(), found.leaves.len());
        return Err(format!("the tree in {FILE} has {has} leaves, and beside it {says} are described").into());
    }
    let def = def.replace_leaves(&mut || placing.place());
    let Placing { tensors, left_out, .. } = placing;
    let keys = keys_of(def)?;
    let structure = RecordedStructure::Tree(keys.def().clone(), framework_of(&keys));
    Ok((named(&keys, tensors), structure, left_out))
}

fn tree(text: &str) -> Result<TreeDef, String> {
    let buffer = STANDARD.decode(text).map_err(|error| format!("it is not in base 64: {error}"))?;
    let budget = Budget::of(&buffer);
    pytreedef::read(Table::root(&buffer, &budget)?)
}

struct Placing<'a> {
    leaves: std::iter::Enumerate<std::slice::Iter<'a, Option<String>>>,
    arrays: &'a mut Arrays,
    tensors: Vec<Tensor>,
    left_out: Vec<LeftOut>,
}

impl Placing<'_> {
    /// What the next leaf is.
    fn place(&mut self) -> TreeDef {
        let Some((number, Some(_))) = self.leaves.next() else { return TreeDef::None };
        let problem = match self.arrays.remove(&number.to_string()) {
            Some(Ok(tensor)) => {
                self.tensors.push(tensor);
                return TreeDef::LEAF;
            }
            Some(Err(problem)) => problem,
            None => "its array is missing".into(),
        };
        let refusal = format!("leaf {number}: {problem}");
        self.left_out.push(LeftOut::refused(number.to_string(), problem, refusal));
        TreeDef::None
    }
}
