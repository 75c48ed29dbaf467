//! The key map: a tree's leaves in JAX's order, by path and by name on disk.

use std::collections::{HashMap, HashSet};

use super::key_path::{Key, KeyPath};
use crate::error::{Error, Result};

/// One leaf of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Its name on disk.
    pub name: String,
    /// Its place in the tree.
    pub path: KeyPath,
}

/// The leaves of a tree of nested dictionaries, in the order in which JAX flattens it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyMap {
    leaves: Vec<Leaf>,
    by_name: HashMap<String, usize>,
}

impl KeyMap {
    /// The tree of nested dictionaries that these names stand for, split at `.`.
    ///
    /// # Errors
    /// [`Error::Tree`] when two leaves have one name, or one leaf's name is a node on the way to another;
    /// both are named.
    pub fn from_names(names: impl IntoIterator<Item = impl Into<String>>) -> Result<KeyMap> {
        let mut leaves: Vec<Leaf> = names
            .into_iter()
            .map(|name| {
                let name = name.into();
                Leaf { path: KeyPath::from_name(&name), name }
            })
            .collect();
        leaves.sort_by(|a, b| a.path.cmp(&b.path));
        // In this order a node's leaves follow it at once, so neighbours show every clash.
        for pair in leaves.windows(2) {
            let (first, second) = (&pair[0], &pair[1]);
            if first.path == second.path {
                return Err(Error::Tree(format!("two leaves have the name `{}`", first.name)));
            }
            if first.path.is_prefix_of(&second.path) {
                return Err(Error::Tree(format!(
                    "`{}` is a leaf, and also a node on the way to `{}`; rename one of them",
                    first.name, second.name
                )));
            }
        }
        Ok(KeyMap::of_sorted(leaves))
    }

    fn of_sorted(leaves: Vec<Leaf>) -> KeyMap {
        let by_name = leaves.iter().enumerate().map(|(index, leaf)| (leaf.name.clone(), index)).collect();
        KeyMap { leaves, by_name }
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

    /// The position of the leaf with this name.
    ///
    /// # Errors
    /// [`Error::NotFound`] with names that look alike; for a node's name, its children.
    pub fn index(&self, name: &str) -> Result<usize> {
        self.by_name.get(name).copied().ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> Error {
        if let Ok(range) = self.range(name) {
            let depth = KeyPath::from_name(name).keys().len();
            let children: HashSet<String> = self.leaves[range]
                .iter()
                .filter_map(|leaf| leaf.path.keys().get(depth))
                .map(|key| format!("{name}.{}", KeyPath::from(vec![key.clone()]).to_name()))
                .collect();
            let mut children: Vec<String> = children.into_iter().collect();
            children.sort();
            return Error::NotFound { what: "leaf", name: name.to_owned(), nearest: children };
        }
        Error::not_found("leaf", name, self.leaves.iter().map(|leaf| leaf.name.as_str()))
    }

    /// The positions of the leaves at or below this name.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there are none.
    pub fn range(&self, name: &str) -> Result<std::ops::Range<usize>> {
        let prefix = KeyPath::from_name(name);
        let start = self.leaves.partition_point(|leaf| leaf.path < prefix);
        let count = self.leaves[start..].iter().take_while(|leaf| prefix.is_prefix_of(&leaf.path)).count();
        if count == 0 {
            return Err(Error::not_found("node", name, self.leaves.iter().map(|leaf| leaf.name.as_str())));
        }
        Ok(start..start + count)
    }

    /// The tree below this name, and the positions of its leaves in this one. A leaf's own name gives a
    /// tree of that leaf alone, under its last key.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is nothing there.
    pub fn subtree(&self, name: &str) -> Result<(KeyMap, std::ops::Range<usize>)> {
        let range = self.range(name)?;
        let depth = KeyPath::from_name(name).keys().len();
        let relative = |path: &KeyPath| {
            // A leaf keeps its last key, so that it still has a name.
            let cut = depth.min(path.keys().len() - 1);
            path.without_first(cut)
        };
        let leaves = self.leaves[range.clone()].iter().map(|leaf| {
            let path = relative(&leaf.path);
            Leaf { name: path.to_name(), path }
        });
        Ok((KeyMap::of_sorted(leaves.collect()), range))
    }

    /// The keys at the root, in order.
    pub fn roots(&self) -> Vec<&Key> {
        let mut keys: Vec<&Key> = self.leaves.iter().filter_map(|leaf| leaf.path.keys().first()).collect();
        keys.dedup();
        keys
    }
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
    }

    #[test]
    fn names_that_clash_are_an_error_that_names_both() {
        let error = KeyMap::from_names(["a.b", "a"]).unwrap_err().to_string();
        assert!(error.contains("`a` is a leaf") && error.contains("`a.b`"), "{error}");
        // `a-c` sorts between as a string, but not as a path.
        assert!(KeyMap::from_names(["a.b", "a-c", "a"]).is_err());
        assert!(KeyMap::from_names(["a", "a"]).unwrap_err().to_string().contains("two leaves"));
    }

    #[test]
    fn a_subtree_is_a_range_with_shorter_names() {
        let map = KeyMap::from_names(["params.a.x", "params.a.y", "params.ab", "state.a"]).unwrap();
        let (subtree, range) = map.subtree("params.a").unwrap();
        assert_eq!(range, 0..2);
        assert_eq!(subtree.leaves()[1].name, "y");
        assert_eq!(map.subtree("state.a").unwrap().0.leaves()[0].name, "a");
        let error = map.index("params.a").unwrap_err().to_string();
        assert_eq!(error, "there is no leaf `params.a`; did you mean `params.a.x` or `params.a.y`?");
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
}
