//! The key map: a tree's leaves in JAX's order, by path and by name on disk.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::ops::Range;

use super::convention::Framework;
use super::def::TreeDef;
use super::glob::matches_glob;
use super::key_path::{Key, KeyPath};
use crate::error::{Error, Result};

/// One leaf of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leaf {
    /// Its name on disk.
    pub name: String,
    /// Its place in the tree.
    pub path: KeyPath,
}

/// A tree's structure, and its leaves in the order in which JAX flattens it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyMap {
    def: TreeDef,
    leaves: Vec<Leaf>,
    /// The positions of the leaves in the order of their names' parts, which is mostly their own.
    by_name: Vec<usize>,
}

/// A key map, and for each of its leaves the position of its name among those that it was made of.
pub(crate) type Placed = (KeyMap, Vec<usize>);

impl Default for KeyMap {
    fn default() -> KeyMap {
        KeyMap { def: TreeDef::Dict(Vec::new()), leaves: Vec::new(), by_name: Vec::new() }
    }
}

impl KeyMap {
    /// The key map of a structure, with every leaf named by its path.
    ///
    /// # Errors
    /// [`Error::Tree`] when two leaves have one name, or one leaf's name is a node on the way to another:
    /// such a file could not be told apart by name. Both are named.
    pub fn new(def: TreeDef) -> Result<KeyMap> {
        check_name_bytes(&def)?;
        let leaves = def.paths().into_iter().map(|path| Leaf { name: path.to_name(), path }).collect();
        KeyMap::with_leaves(def, leaves)
    }

    fn with_leaves(def: TreeDef, leaves: Vec<Leaf>) -> Result<KeyMap> {
        let mut by_name: Vec<usize> = (0..leaves.len()).collect();
        by_name.sort_by(|&a, &b| compare_names(&leaves[a].name, &leaves[b].name));
        check_names(&leaves, &by_name)?;
        Ok(KeyMap { def, leaves, by_name })
    }

    /// The tree that names stand for by a framework's convention. The leaves keep these names.
    ///
    /// # Errors
    /// [`Error::Tree`] when two leaves have one name, or one leaf's name is a node on the way to another;
    /// both are named.
    pub fn from_names_by<'a>(
        framework: Framework,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<KeyMap> {
        let names: Vec<&str> = names.into_iter().collect();
        Ok(KeyMap::place_names(framework, &names)?.0)
    }

    /// As [`KeyMap::from_names_by`].
    pub(crate) fn place_names(framework: Framework, names: &[&str]) -> Result<Placed> {
        let is_split = framework.after_split() != framework;
        KeyMap::place_paths(names, names.iter().map(|name| framework.path(name)).collect(), is_split)
    }

    /// The tree with leaves at these paths, which names stand for. The leaves keep these names, or get new ones by their
    /// paths.
    pub(crate) fn place_paths(
        names: &[&str],
        mut paths: Vec<KeyPath>,
        gets_new_names: bool,
    ) -> Result<Placed> {
        let mut order: Vec<usize> = (0..names.len()).collect();
        order.sort_by(|&a, &b| paths[a].cmp(&paths[b]));
        // A tree that is made of paths has its leaves in their order.
        let sorted: Vec<&KeyPath> = order.iter().map(|&position| &paths[position]).collect();
        let def = TreeDef::from_sorted_paths(&sorted)?;
        let leaf = |&position: &usize| {
            let path = std::mem::take(&mut paths[position]);
            let name = if gets_new_names { path.to_name() } else { names[position].to_owned() };
            Leaf { name, path }
        };
        let leaves = order.iter().map(leaf).collect();
        Ok((KeyMap::with_leaves(def, leaves)?, order))
    }

    /// The tree of nested dictionaries that names stand for, split at `.`; of names that make none, one flat dictionary.
    pub(crate) fn place_names_or_flat(names: &[&str]) -> Result<Placed> {
        KeyMap::place_names(Framework::Plain, names).or_else(|_| KeyMap::place_names(Framework::Flat, names))
    }

    /// The tree with leaves at these paths, which get names by them; of paths that make none, one flat dictionary of the names.
    pub(crate) fn place_paths_or_flat(names: &[&str], paths: Vec<KeyPath>) -> Result<Placed> {
        KeyMap::place_paths(names, paths, true).or_else(|_| KeyMap::place_names(Framework::Flat, names))
    }

    /// The tree of nested dictionaries that names stand for, split at `.`.
    ///
    /// # Errors
    /// As for [`KeyMap::from_names_by`].
    pub fn from_names(names: impl IntoIterator<Item = impl Into<String>>) -> Result<KeyMap> {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        KeyMap::from_names_by(Framework::Plain, names.iter().map(String::as_str))
    }

    /// The key map of a recorded structure over the names in a file, each of which must be a leaf's.
    ///
    /// # Errors
    /// [`Error::Tree`] listing the leaves without a name and the names without a leaf.
    pub fn from_record<'a>(
        def: TreeDef,
        framework: Framework,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<KeyMap> {
        let names: Vec<&str> = names.into_iter().collect();
        Ok(KeyMap::place_record(def, framework, &names)?.0)
    }

    /// As [`KeyMap::from_record`].
    pub(crate) fn place_record<'a>(def: TreeDef, framework: Framework, names: &[&'a str]) -> Result<Placed> {
        check_name_bytes(&def)?;
        let key = |name: &'a str| match framework {
            // The recorded key is the name without the variable's type.
            Framework::Objax => Cow::Owned(framework.path(name).to_name()),
            _ => Cow::Borrowed(name),
        };
        let keys: Vec<Cow<'a, str>> = names.iter().copied().map(key).collect();
        let mut left: HashMap<&str, usize> = HashMap::with_capacity(keys.len());
        for (position, key) in keys.iter().enumerate() {
            if let Some(before) = left.insert(key, position) {
                return Err(Error::Tree(format!(
                    "the tensors `{}` and `{}` are of one variable, `{key}`; rename one of them",
                    names[before], names[position]
                )));
            }
        }
        let mut problems = Vec::new();
        let (mut leaves, mut order) = (Vec::with_capacity(names.len()), Vec::with_capacity(names.len()));
        for path in def.paths() {
            let key = path.to_name();
            match left.remove(key.as_str()) {
                Some(position) => {
                    order.push(position);
                    leaves.push(Leaf { name: names[position].to_owned(), path });
                }
                None => problems.push(format!("the leaf {path} has no tensor `{key}`")),
            }
        }
        let mut unused: Vec<&str> = left.into_values().map(|position| names[position]).collect();
        unused.sort_unstable();
        problems.extend(unused.iter().map(|name| format!("the tensor `{name}` has no leaf")));
        if !problems.is_empty() {
            return Err(Error::Tree(format!(
                "the structure record does not fit the tensors: {}",
                problems.join("; ")
            )));
        }
        Ok((KeyMap::with_leaves(def, leaves)?, order))
    }

    /// The structure.
    pub fn def(&self) -> &TreeDef {
        &self.def
    }

    /// The leaves in JAX's order.
    pub fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }

    /// The number of leaves.
    pub fn len(&self) -> usize {
        self.leaves.len()
    }

    /// Whether the tree has no leaves.
    pub fn is_empty(&self) -> bool {
        self.leaves.is_empty()
    }

    /// The position of a leaf, by its name on disk, by its path joined with `.`, or by its path as `keystr`
    /// prints it.
    ///
    /// # Errors
    /// [`Error::NotFound`] with names that look alike; for a node's name, its children.
    pub fn index(&self, name: &str) -> Result<usize> {
        let named = |&index: &usize| compare_names(&self.leaves[index].name, name);
        if let Ok(place) = self.by_name.binary_search_by(named) {
            return Ok(self.by_name[place]);
        }
        match self.range(name) {
            Ok((range, depth)) if range.len() == 1 && self.leaves[range.start].path.keys().len() == depth => {
                Ok(range.start)
            }
            Ok((range, depth)) => {
                let mut children: Vec<String> = self.leaves[range]
                    .iter()
                    .map(|leaf| KeyPath::from(leaf.path.keys()[..=depth].to_vec()).to_name())
                    .collect();
                children.dedup();
                Err(Error::NotFound { what: "leaf", name: name.to_owned(), nearest: children })
            }
            Err(_) => Err(Error::not_found("leaf", name, self.leaves.iter().map(|leaf| leaf.name.as_str()))),
        }
    }

    /// The leaves at or below a node, by its path joined with `.` or as `keystr` prints it, and the number of
    /// keys in the node's path.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is nothing there.
    pub fn range(&self, name: &str) -> Result<(Range<usize>, usize)> {
        let missing = || Error::not_found("node", name, self.leaves.iter().map(|leaf| leaf.name.as_str()));
        let asked: Option<KeyPath> = name.parse().ok();
        let is_node = |keys: &[Key]| -> bool {
            let printed = KeyPath::from(keys.to_vec());
            printed.to_name() == name
                || asked
                    .as_ref()
                    .is_some_and(|asked| asked == &printed || asked.to_string() == printed.to_string())
        };
        for (start, leaf) in self.leaves.iter().enumerate() {
            let keys = leaf.path.keys();
            if let Some(depth) = (0..=keys.len()).find(|&depth| is_node(&keys[..depth])) {
                let prefix = KeyPath::from(keys[..depth].to_vec());
                // The leaves below one node follow each other.
                let count =
                    self.leaves[start..].iter().take_while(|leaf| prefix.is_prefix_of(&leaf.path)).count();
                return Ok((start..start + count, depth));
            }
        }
        Err(missing())
    }

    /// The tree below a node, and the positions of its leaves in this one. A leaf's own name gives a tree of
    /// that leaf alone, under its last key.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is nothing there.
    pub fn subtree(&self, name: &str) -> Result<(KeyMap, Range<usize>)> {
        let (range, depth) = match self.range(name) {
            Ok(found) => found,
            // A node without leaves is in no leaf's path.
            Err(error) => match name.parse().ok().and_then(|path| self.def.node(&path)) {
                Some(node) if node.leaf_count() == 0 => return Ok((KeyMap::new(node.clone())?, 0..0)),
                _ => return Err(error),
            },
        };
        let first = &self.leaves[range.start].path;
        let is_leaf = first.keys().len() == depth;
        let cut = if is_leaf { depth.saturating_sub(1) } else { depth };
        let node = KeyPath::from(first.keys()[..depth].to_vec());
        let def = self.def.node(&node).cloned().unwrap_or(TreeDef::LEAF);
        let def = match first.keys().get(cut) {
            Some(key) if is_leaf => TreeDef::from_paths(&[KeyPath::from(vec![key.clone()])])?,
            _ => def,
        };
        let relative = |leaf: &Leaf| {
            let path = KeyPath::from(leaf.path.keys()[cut..].to_vec());
            Leaf { name: path.to_name(), path }
        };
        let leaves = self.leaves[range.clone()].iter().map(relative).collect();
        Ok((KeyMap::with_leaves(def, leaves)?, range))
    }

    /// The positions of the leaves whose names match a pattern (see [`matches_glob`]).
    pub fn matching(&self, pattern: &str) -> Vec<usize> {
        let matches = |leaf: &Leaf| matches_glob(pattern, &leaf.name);
        self.leaves.iter().enumerate().filter(|(_, leaf)| matches(leaf)).map(|(index, _)| index).collect()
    }

    /// The tree of those leaves that are kept, by their position.
    pub(crate) fn filter(&self, keep: &[bool]) -> Result<KeyMap> {
        let def = self.def.filter(keep);
        let mut leaves: Vec<Leaf> =
            self.leaves.iter().zip(keep).filter(|(_, keep)| **keep).map(|(leaf, _)| leaf.clone()).collect();
        // A root that was a list may have become a dictionary, but paths do not change otherwise.
        for (leaf, path) in leaves.iter_mut().zip(def.paths()) {
            leaf.path = path;
        }
        KeyMap::with_leaves(def, leaves)
    }
}

/// The most bytes that the names of a tree may have together. A key can be long and stand above many leaves, so that their
/// names would fill the memory.
const MAX_NAME_BYTES: usize = 256 << 20;

fn check_name_bytes(def: &TreeDef) -> Result<()> {
    if def.name_bytes() <= MAX_NAME_BYTES {
        return Ok(());
    }
    Err(Error::Tree(format!(
        "the names of its leaves have more than {MAX_NAME_BYTES} bytes; shorten its keys"
    )))
}

/// The order of names part by part, in which what is below a name follows it at once.
fn compare_names(a: &str, b: &str) -> Ordering {
    a.split('.').cmp(b.split('.'))
}

/// Two leaves of one name, or a name that is both leaf and node, cannot be told apart on disk.
fn check_names(leaves: &[Leaf], by_name: &[usize]) -> Result<()> {
    for pair in by_name.windows(2) {
        let (first, second) = (&leaves[pair[0]], &leaves[pair[1]]);
        let Some(rest) = second.name.strip_prefix(&first.name) else { continue };
        if rest.is_empty() {
            return Err(Error::Tree(format!(
                "the leaves {} and {} have one name on disk, `{}`; rename one of them",
                first.path, second.path, first.name
            )));
        }
        // Objax has one level only, and there `(A).w` may well be a leaf beside `(A).w.x`.
        let is_nested = first.path.keys().len() > 1 || second.path.keys().len() > 1;
        if rest.starts_with('.') && is_nested {
            return Err(Error::Tree(format!(
                "`{}` is a leaf, and also a node on the way to `{}`; rename one of them",
                first.name, second.name
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn leaves_are_in_the_order_of_jax() {
        let map = KeyMap::from_names(["params.b", "params.a.z", "params.a-b", "params.B"]).unwrap();
        let names: Vec<&str> = map.leaves().iter().map(|leaf| leaf.name.as_str()).collect();
        // jax.tree.leaves({'params': {'b': .., 'a': {'z': ..}, 'a-b': .., 'B': ..}})
        assert_eq!(names, ["params.B", "params.a.z", "params.a-b", "params.b"]);
        assert_eq!(map.index("params.b").unwrap(), 3);
        assert_eq!(map.index("['params']['a']['z']").unwrap(), 1);
    }

    #[test]
    fn names_that_clash_are_an_error_that_names_both() {
        let error = KeyMap::from_names(["a.b", "a"]).unwrap_err().to_string();
        assert!(error.contains("`a` is a leaf") && error.contains("`a.b`"), "{error}");
        // `a-c` sorts between as a string, but not as a path.
        assert!(KeyMap::from_names(["a.b", "a-c", "a"]).is_err());
        assert!(KeyMap::from_names(["a", "a"]).unwrap_err().to_string().contains("two leaves"));
        let dotted = TreeDef::dict([
            ("a.b".into(), TreeDef::LEAF),
            ("a".into(), TreeDef::dict([("b".into(), TreeDef::LEAF)]).unwrap()),
        ]);
        let error = KeyMap::new(dotted.unwrap()).unwrap_err().to_string();
        assert!(error.contains("['a']['b'] and ['a.b'] have one name on disk, `a.b`"), "{error}");
        let both =
            TreeDef::dict([("a.b".into(), TreeDef::LEAF), ("a".into(), TreeDef::List(vec![TreeDef::LEAF]))]);
        assert!(KeyMap::new(both.unwrap()).is_ok());
    }

    #[test]
    fn a_subtree_is_a_range_with_shorter_names() {
        let map = KeyMap::from_names(["params.a.x", "params.a.y", "params.ab", "state.a"]).unwrap();
        let (subtree, range) = map.subtree("params.a").unwrap();
        assert_eq!(range, 0..2);
        assert_eq!(subtree.leaves()[1].name, "y");
        assert_eq!(subtree.def().to_string(), "{'x': *, 'y': *}");
        assert_eq!(map.subtree("state.a").unwrap().0.leaves()[0].name, "a");
        let error = map.index("params.a").unwrap_err().to_string();
        assert_eq!(error, "there is no leaf `params.a`; did you mean `params.a.x` or `params.a.y`?");
        assert!(map.range("params.b").is_err());
    }

    #[test]
    fn lists_and_fields_are_found_by_name_and_by_path() {
        let adam = TreeDef::NamedTuple { name: "Adam".into(), fields: vec![("mu".into(), TreeDef::LEAF)] };
        let map = KeyMap::new(TreeDef::dict([("opt".into(), TreeDef::Tuple(vec![adam]))]).unwrap()).unwrap();
        for name in ["opt.0.mu", "['opt'][0].mu"] {
            assert_eq!(map.index(name).unwrap(), 0, "{name}");
        }
        assert_eq!(map.subtree("opt").unwrap().0.def().to_string(), "(Adam(mu=*),)");
        assert_eq!(map.matching("opt.*"), [0]);
    }

    #[test]
    fn a_record_that_does_not_fit_the_tensors_lists_both_sides() {
        let def = TreeDef::List(vec![TreeDef::LEAF, TreeDef::LEAF]);
        let error = KeyMap::from_record(def, Framework::Plain, ["0", "2"]).unwrap_err().to_string();
        assert!(error.contains("the leaf [1] has no tensor `1`; the tensor `2` has no leaf"), "{error}");
    }

    #[test]
    fn objax_names_keep_their_types() {
        let map = KeyMap::from_names_by(Framework::Objax, ["(A).w::TrainVar", "(A).w.x::StateVar"]).unwrap();
        assert_eq!(map.leaves()[0].name, "(A).w::TrainVar");
        assert_eq!(map.index("(A).w").unwrap(), 0);
        let again = KeyMap::from_record(
            map.def().clone(),
            Framework::Objax,
            ["(A).w::TrainVar", "(A).w.x::StateVar"],
        );
        assert_eq!(again.unwrap(), map);
    }

    proptest! {
        #[test]
        fn order_is_that_of_a_recursive_flattening(names in proptest::collection::btree_set("[abA-][.abA-]{0,6}", 0..20)) {
            if let Ok(map) = KeyMap::from_names(names) {
                let paths: Vec<Vec<&str>> =
                    map.leaves().iter().map(|leaf| leaf.name.split('.').collect()).collect();
                let mut sorted = paths.clone();
                sorted.sort();
                prop_assert_eq!(paths, sorted);
            }
        }
    }

    #[test]
    fn a_node_without_leaves_is_a_tree_too() {
        let def = TreeDef::Tuple(vec![TreeDef::LEAF, TreeDef::Tuple(vec![TreeDef::None]), TreeDef::LEAF]);
        let map = KeyMap::new(def).unwrap();
        let (empty, range) = map.subtree("1").unwrap();
        assert_eq!((empty.def(), range), (&TreeDef::Tuple(vec![TreeDef::None]), 0..0));
        assert!(map.subtree("3").is_err());
    }
}
