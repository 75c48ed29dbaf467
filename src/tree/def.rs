//! The structure of a pytree, apart from its leaves.

use std::collections::HashSet;
use std::fmt;

use super::key_path::{DictKey, Key, KeyPath};
use crate::error::{Error, Result};
use crate::printable::Count;

/// The deepest nesting that a tree may have: more than anybody's, and what code that recurses over trees can
/// do on any thread's stack.
pub const MAX_DEPTH: usize = 128;

/// The structure of a pytree: what `jax.tree_util.tree_structure` returns, with leaves that say what they
/// were in Python.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TreeDef {
    /// One value.
    Leaf(LeafKind),
    /// Python's `None`: a node without leaves.
    None,
    /// A string. It is no array, so that it is kept here, as a node without leaves.
    Str(String),
    /// Bytes, as [`TreeDef::Str`].
    Bytes(Vec<u8>),
    /// A dictionary, sorted by its keys; made by [`TreeDef::dict`].
    Dict(Vec<(DictKey, TreeDef)>),
    /// A `collections.OrderedDict`, in its own order.
    OrderedDict(Vec<(DictKey, TreeDef)>),
    /// A list.
    List(Vec<TreeDef>),
    /// A tuple.
    Tuple(Vec<TreeDef>),
    /// A named tuple.
    NamedTuple {
        /// Its type, such as `ScaleByAdamState`.
        name: String,
        /// Its fields, in order.
        fields: Vec<(String, TreeDef)>,
    },
    /// A node of a registered type.
    Custom {
        /// Its type, such as `flax.core.frozen_dict.FrozenDict`.
        name: String,
        /// What the type keeps beside its children, in JSON: `null` for nothing.
        auxiliary: String,
        /// Its children, in order.
        children: Vec<(Key, TreeDef)>,
    },
}

/// What a leaf was in Python. Its value is an array here in any case, a scalar for all but the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[non_exhaustive]
pub enum LeafKind {
    /// An array.
    #[default]
    Array,
    /// A Python `int`.
    Int,
    /// A Python `float`.
    Float,
    /// A Python `bool`.
    Bool,
    /// A Python `complex`.
    Complex,
}

impl TreeDef {
    /// An array.
    pub const LEAF: TreeDef = TreeDef::Leaf(LeafKind::Array);

    /// A dictionary of these entries, in any order.
    ///
    /// # Errors
    /// [`Error::Tree`] when a key stands twice, or keys are both strings and integers, which JAX cannot sort.
    pub fn dict(entries: impl IntoIterator<Item = (DictKey, TreeDef)>) -> Result<TreeDef> {
        let mut entries: Vec<(DictKey, TreeDef)> = entries.into_iter().collect();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        check_keys(&entries)?;
        Ok(TreeDef::Dict(entries))
    }

    /// An `OrderedDict` of these entries, in this order.
    ///
    /// # Errors
    /// [`Error::Tree`] when a key stands twice.
    pub fn ordered_dict(entries: Vec<(DictKey, TreeDef)>) -> Result<TreeDef> {
        let mut seen = HashSet::new();
        match entries.iter().find(|(key, _)| !seen.insert(key)) {
            Some((key, _)) => Err(Error::Tree(format!("the key {} stands twice", Key::Dict(key.clone())))),
            None => Ok(TreeDef::OrderedDict(entries)),
        }
    }

    /// The tree of dictionaries (and whatever the keys of the paths ask for) with leaves at these paths:
    /// dictionary keys make dictionaries, positions make lists, attributes make nodes of an unknown type.
    ///
    /// # Errors
    /// [`Error::Tree`] when two paths are equal, one leads through another, they are nested too deep, or the
    /// keys of one node are of several kinds.
    pub fn from_paths(paths: &[KeyPath]) -> Result<TreeDef> {
        let mut sorted: Vec<&KeyPath> = paths.iter().collect();
        sorted.sort();
        TreeDef::from_sorted_paths(&sorted)
    }

    /// As [`TreeDef::from_paths`], of paths in their order.
    pub(super) fn from_sorted_paths(sorted: &[&KeyPath]) -> Result<TreeDef> {
        // In this order what is below a path follows it at once, so neighbours show every clash.
        for pair in sorted.windows(2) {
            let (first, second) = (pair[0], pair[1]);
            if first == second {
                return Err(Error::Tree(format!("two leaves have the name `{}`", first.to_name())));
            }
            if first.is_prefix_of(second) {
                return Err(Error::Tree(format!(
                    "`{}` is a leaf, and also a node on the way to `{}`; rename one of them",
                    first.to_name(),
                    second.to_name()
                )));
            }
        }
        if let Some(path) = sorted.iter().find(|path| path.keys().len() > MAX_DEPTH) {
            let start: String = path.to_name().chars().take(40).collect();
            return Err(Error::Tree(format!("`{start}…` is nested deeper than {MAX_DEPTH} levels")));
        }
        if sorted.is_empty() {
            return Ok(TreeDef::Dict(Vec::new()));
        }
        below(sorted, 0)
    }

    /// The children with their keys, in JAX's order.
    pub fn children(&self) -> Vec<(Key, &TreeDef)> {
        match self {
            TreeDef::Leaf(_) | TreeDef::None | TreeDef::Str(_) | TreeDef::Bytes(_) => Vec::new(),
            TreeDef::Dict(entries) | TreeDef::OrderedDict(entries) => {
                entries.iter().map(|(key, child)| (Key::Dict(key.clone()), child)).collect()
            }
            TreeDef::List(items) | TreeDef::Tuple(items) => {
                items.iter().enumerate().map(|(index, child)| (Key::Index(index), child)).collect()
            }
            TreeDef::NamedTuple { fields, .. } => {
                fields.iter().map(|(name, child)| (Key::Attribute(name.clone()), child)).collect()
            }
            TreeDef::Custom { children, .. } => {
                children.iter().map(|(key, child)| (key.clone(), child)).collect()
            }
        }
    }

    /// The same tree with these in the place of its leaves, in JAX's order.
    pub(crate) fn replace_leaves(&self, next: &mut dyn FnMut() -> TreeDef) -> TreeDef {
        if let TreeDef::Leaf(_) = self {
            return next();
        }
        let children = self.children().into_iter().map(|(_, child)| Some(child.replace_leaves(next)));
        self.with_children(children.collect())
    }

    /// The same node with other children, one for each of its own; `None` drops an entry of a dictionary,
    /// and leaves a Python `None` where a place has to stay.
    fn with_children(&self, new: Vec<Option<TreeDef>>) -> TreeDef {
        let kept = |new: Vec<Option<TreeDef>>| new.into_iter().map(|child| child.unwrap_or(TreeDef::None));
        let entries = |old: &[(DictKey, TreeDef)], new: Vec<Option<TreeDef>>| {
            old.iter().zip(new).filter_map(|((key, _), child)| Some((key.clone(), child?))).collect()
        };
        match self {
            TreeDef::Leaf(_) | TreeDef::None | TreeDef::Str(_) | TreeDef::Bytes(_) => self.clone(),
            TreeDef::Dict(old) => TreeDef::Dict(entries(old, new)),
            TreeDef::OrderedDict(old) => TreeDef::OrderedDict(entries(old, new)),
            TreeDef::List(_) => TreeDef::List(kept(new).collect()),
            TreeDef::Tuple(_) => TreeDef::Tuple(kept(new).collect()),
            TreeDef::NamedTuple { name, fields } => TreeDef::NamedTuple {
                name: name.clone(),
                fields: fields.iter().map(|(name, _)| name.clone()).zip(kept(new)).collect(),
            },
            TreeDef::Custom { name, auxiliary, children } => TreeDef::Custom {
                name: name.clone(),
                auxiliary: auxiliary.clone(),
                children: children.iter().map(|(key, _)| key.clone()).zip(kept(new)).collect(),
            },
        }
    }

    /// Bytes of the names of all leaves together. A key can be long and stand above many leaves.
    pub(super) fn name_bytes(&self) -> usize {
        fn sum(node: &TreeDef, above: usize) -> usize {
            if let TreeDef::Leaf(_) = node {
                return above;
            }
            let below =
                |(key, child): (Key, &TreeDef)| sum(child, above.saturating_add(key.name_bytes() + 1));
            node.children().into_iter().map(below).fold(0, usize::saturating_add)
        }
        sum(self, 0)
    }

    /// The number of leaves.
    pub fn leaf_count(&self) -> usize {
        match self {
            TreeDef::Leaf(_) => 1,
            node => node.children().iter().map(|(_, child)| child.leaf_count()).sum(),
        }
    }

    /// The paths to the leaves, in the order in which JAX flattens the tree.
    pub fn paths(&self) -> Vec<KeyPath> {
        fn collect(node: &TreeDef, path: &mut Vec<Key>, paths: &mut Vec<KeyPath>) {
            if let TreeDef::Leaf(_) = node {
                paths.push(KeyPath::from(path.clone()));
            }
            for (key, child) in node.children() {
                path.push(key);
                collect(child, path, paths);
                path.pop();
            }
        }
        let mut paths = Vec::new();
        collect(self, &mut Vec::new(), &mut paths);
        paths
    }

    /// The node at this path. A position in brackets also finds the entry of a dictionary with that integer
    /// key, since both print the same; a key of a name finds whatever prints so on disk.
    pub fn node(&self, path: &KeyPath) -> Option<&TreeDef> {
        let mut node = self;
        for key in path.keys() {
            node = node.children().into_iter().find(|(child, _)| is_same_key(child, key))?.1;
        }
        Some(node)
    }

    /// The number of levels below the root; 0 for a leaf.
    pub fn depth(&self) -> usize {
        self.children().iter().map(|(_, child)| 1 + child.depth()).max().unwrap_or(0)
    }

    /// The tree of those leaves that are kept, by their position. What becomes empty goes: entries of
    /// dictionaries vanish, and other children become `None`.
    pub(crate) fn filter(&self, keep: &[bool]) -> TreeDef {
        fn filtered(node: &TreeDef, keep: &mut std::slice::Iter<'_, bool>) -> Option<TreeDef> {
            if let TreeDef::Leaf(_) = node {
                return keep.next().copied().unwrap_or(false).then(|| node.clone());
            }
            let children: Vec<Option<TreeDef>> =
                node.children().into_iter().map(|(_, child)| filtered(child, keep)).collect();
            // A node that was empty before stays; one that lost all its leaves goes.
            let lost_all = node.leaf_count() > 0
                && children.iter().all(|child| child.as_ref().is_none_or(|child| child.leaf_count() == 0));
            (!lost_all).then(|| node.with_children(children))
        }
        filtered(self, &mut keep.iter()).unwrap_or(TreeDef::Dict(Vec::new()))
    }

    /// The structure of both: dictionaries are joined entry by entry.
    ///
    /// # Errors
    /// [`Error::Tree`] naming the first path at which both have something else than a dictionary.
    pub(crate) fn merge(&self, other: &TreeDef) -> Result<TreeDef> {
        fn merged(a: &TreeDef, b: &TreeDef, path: &KeyPath) -> Result<TreeDef> {
            let (TreeDef::Dict(ours), TreeDef::Dict(theirs)) = (a, b) else {
                return Err(Error::Tree(format!(
                    "both have {}: {} and {}, which cannot be joined",
                    if path.keys().is_empty() { "a root".to_owned() } else { path.to_string() },
                    a.label(),
                    b.label()
                )));
            };
            let mut entries = ours.clone();
            for (key, child) in theirs {
                match entries.iter_mut().find(|(known, _)| known == key) {
                    Some((_, known)) => *known = merged(known, child, &path.join(Key::Dict(key.clone())))?,
                    None => entries.push((key.clone(), child.clone())),
                }
            }
            TreeDef::dict(entries)
        }
        merged(self, other, &KeyPath::default())
    }

    /// Where this structure and `other` first differ, as a sentence with the path; `None` if they are equal.
    pub fn difference(&self, other: &TreeDef) -> Option<String> {
        fn at(path: &KeyPath) -> String {
            if path.keys().is_empty() { "at the root".into() } else { format!("at {path}") }
        }
        fn compare(a: &TreeDef, b: &TreeDef, path: &KeyPath) -> Option<String> {
            if a.label() != b.label() {
                return Some(format!("{}: {} on one side, {} on the other", at(path), a.label(), b.label()));
            }
            let (ours, theirs) = (a.children(), b.children());
            for (key, child) in &ours {
                match theirs.iter().find(|(other, _)| other == key) {
                    None => return Some(format!("{}: only one side has {key}", at(path))),
                    Some((_, other)) => {
                        let difference = compare(child, other, &path.join(key.clone()));
                        if difference.is_some() {
                            return difference;
                        }
                    }
                }
            }
            let extra = theirs.iter().find(|(key, _)| !ours.iter().any(|(other, _)| other == key));
            extra.map(|(key, _)| format!("{}: only one side has {key}", at(path)))
        }
        compare(self, other, &KeyPath::default())
    }

    /// What kind of node this is, for messages.
    fn label(&self) -> String {
        match self {
            TreeDef::Leaf(LeafKind::Array) => "a leaf".into(),
            TreeDef::Leaf(kind) => format!("a leaf ({kind:?})").to_lowercase(),
            TreeDef::None => "None".into(),
            TreeDef::Str(text) => format!("the string {:?}", start_of(text)),
            TreeDef::Bytes(bytes) => Count(bytes.len(), "byte").to_string(),
            TreeDef::Dict(_) => "a dict".into(),
            TreeDef::OrderedDict(_) => "an OrderedDict".into(),
            TreeDef::List(items) => format!("a list of {}", items.len()),
            TreeDef::Tuple(items) => format!("a tuple of {}", items.len()),
            TreeDef::NamedTuple { name, .. } => format!("a named tuple {name}"),
            TreeDef::Custom { name, .. } => format!("a {name}"),
        }
    }
}

/// The first characters of a text, for a message.
pub(super) fn start_of(text: &str) -> String {
    const SHOWN: usize = 40;
    let mut start: String = text.chars().take(SHOWN).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    start
}

/// Whether a child's key is the one that is asked for, in any of the forms that stand for it.
fn is_same_key(child: &Key, asked: &Key) -> bool {
    match (child, asked) {
        (Key::Dict(DictKey::Int(key)), Key::Index(index)) => i64::try_from(*index) == Ok(*key),
        (child, Key::Dict(DictKey::Str(name))) => child.to_name() == *name,
        (child, asked) => child == asked,
    }
}

fn check_keys(sorted: &[(DictKey, TreeDef)]) -> Result<()> {
    for pair in sorted.windows(2) {
        let (first, second) = (&pair[0].0, &pair[1].0);
        if first == second {
            return Err(Error::Tree(format!("the key {} stands twice", Key::Dict(first.clone()))));
        }
        if std::mem::discriminant(first) != std::mem::discriminant(second) {
            return Err(Error::Tree(format!(
                "the keys {} and {} of one dictionary are of two kinds, which JAX cannot sort",
                Key::Dict(first.clone()),
                Key::Dict(second.clone())
            )));
        }
    }
    Ok(())
}

/// The tree below the first `depth` keys, which these sorted paths share.
fn below(paths: &[&KeyPath], depth: usize) -> Result<TreeDef> {
    if paths[0].keys().len() == depth {
        return Ok(TreeDef::LEAF);
    }
    let mut children: Vec<(Key, TreeDef)> = Vec::new();
    for group in paths.chunk_by(|a, b| a.keys()[depth] == b.keys()[depth]) {
        children.push((group[0].keys()[depth].clone(), below(group, depth + 1)?));
    }
    let is_list = children.iter().enumerate().all(|(index, (key, _))| *key == Key::Index(index));
    if is_list {
        return Ok(TreeDef::List(children.into_iter().map(|(_, child)| child).collect()));
    }
    if children.iter().all(|(key, _)| matches!(key, Key::Dict(_))) {
        return TreeDef::dict(children.into_iter().filter_map(|(key, child)| match key {
            Key::Dict(key) => Some((key, child)),
            _ => None,
        }));
    }
    Ok(TreeDef::Custom { name: "object".into(), auxiliary: "null".into(), children })
}

impl fmt::Display for TreeDef {
    /// As JAX prints a structure: `{'a': *, 'b': [*, None]}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, open: &str, close: &str| -> fmt::Result {
            f.write_str(open)?;
            for (position, (key, child)) in self.children().into_iter().enumerate() {
                let separator = if position == 0 { "" } else { ", " };
                match (&key, self) {
                    (Key::Dict(_), _) => {
                        let key = key.to_string();
                        write!(f, "{separator}{}: {child}", &key[1..key.len() - 1])?;
                    }
                    (Key::Attribute(name), _) => write!(f, "{separator}{name}={child}")?,
                    (_, _) => write!(f, "{separator}{child}")?,
                }
            }
            f.write_str(close)
        };
        match self {
            TreeDef::Leaf(_) => f.write_str("*"),
            TreeDef::None => f.write_str("None"),
            TreeDef::Str(text) => write!(f, "{:?}", start_of(text)),
            TreeDef::Bytes(bytes) => write!(f, "<{}>", Count(bytes.len(), "byte")),
            TreeDef::Dict(_) => list(f, "{", "}"),
            TreeDef::OrderedDict(_) => list(f, "OrderedDict({", "})"),
            TreeDef::List(_) => list(f, "[", "]"),
            TreeDef::Tuple(items) if items.len() == 1 => list(f, "(", ",)"),
            TreeDef::Tuple(_) => list(f, "(", ")"),
            TreeDef::NamedTuple { name, .. } | TreeDef::Custom { name, .. } => {
                list(f, &format!("{name}("), ")")
            }
        }
    }
}

/// A structure with a value for every leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree<T> {
    def: TreeDef,
    leaves: Vec<T>,
}

impl<T> Tree<T> {
    /// The tree of this structure with these leaves, in JAX's order: `jax.tree_util.tree_unflatten`.
    ///
    /// # Errors
    /// [`Error::Tree`] when there are not as many values as leaves.
    pub fn unflatten(def: TreeDef, leaves: impl IntoIterator<Item = T>) -> Result<Tree<T>> {
        let leaves: Vec<T> = leaves.into_iter().collect();
        let expected = def.leaf_count();
        if leaves.len() != expected {
            return Err(Error::Tree(format!(
                "the structure has {expected} leaves, but {} values were given",
                leaves.len()
            )));
        }
        Ok(Tree { def, leaves })
    }

    /// The structure.
    pub fn def(&self) -> &TreeDef {
        &self.def
    }

    /// The leaves, in JAX's order: `jax.tree_util.tree_leaves`.
    pub fn leaves(&self) -> &[T] {
        &self.leaves
    }

    /// The structure and the leaves: `jax.tree_util.tree_flatten`.
    pub fn flatten(self) -> (TreeDef, Vec<T>) {
        (self.def, self.leaves)
    }

    /// The tree of what `map` makes of every leaf: `jax.tree_util.tree_map`.
    pub fn map<U>(self, map: impl FnMut(T) -> U) -> Tree<U> {
        Tree { def: self.def, leaves: self.leaves.into_iter().map(map).collect() }
    }

    /// The tree of pairs of this tree's leaves and `other`'s.
    ///
    /// # Errors
    /// [`Error::Tree`] naming the first path at which the structures differ.
    pub fn zip<U>(self, other: Tree<U>) -> Result<Tree<(T, U)>> {
        if let Some(difference) = self.def.difference(&other.def) {
            return Err(Error::Tree(format!("the structures differ {difference}")));
        }
        Ok(Tree { def: self.def, leaves: self.leaves.into_iter().zip(other.leaves).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf() -> TreeDef {
        TreeDef::LEAF
    }

    /// One of everything.
    fn sample() -> TreeDef {
        let adam = TreeDef::NamedTuple {
            name: "ScaleByAdamState".into(),
            fields: vec![("count".into(), leaf()), ("mu".into(), TreeDef::List(vec![leaf(), TreeDef::None]))],
        };
        let dict = TreeDef::dict([
            ("b".into(), TreeDef::Tuple(vec![leaf()])),
            ("a.x".into(), TreeDef::Leaf(LeafKind::Float)),
            ("empty".into(), TreeDef::Dict(vec![])),
        ]);
        TreeDef::Tuple(vec![
            dict.unwrap(),
            adam,
            TreeDef::dict([(DictKey::Int(10), leaf()), (DictKey::Int(9), leaf())]).unwrap(),
        ])
    }

    #[test]
    fn a_tree_is_flattened_in_jaxs_order() {
        let paths: Vec<String> = sample().paths().iter().map(ToString::to_string).collect();
        assert_eq!(paths, ["[0]['a.x']", "[0]['b'][0]", "[1].count", "[1].mu[0]", "[2][9]", "[2][10]"]);
        assert_eq!(sample().leaf_count(), 6);
        assert_eq!(sample().depth(), 3);
        assert_eq!(
            sample().to_string(),
            "({'a.x': *, 'b': (*,), 'empty': {}}, ScaleByAdamState(count=*, mu=[*, None]), {9: *, 10: *})"
        );
    }

    #[test]
    fn nodes_are_found_by_either_form_of_a_path() {
        let def = sample();
        assert_eq!(def.node(&"[2][10]".parse().unwrap()), Some(&leaf()));
        assert_eq!(def.node(&"1.mu.0".parse().unwrap()), Some(&leaf()));
        assert_eq!(def.node(&"[1].mu[1]".parse().unwrap()), Some(&TreeDef::None));
        assert_eq!(def.node(&"[1].nu".parse().unwrap()), None);
    }

    #[test]
    fn the_first_difference_is_named_by_its_path() {
        let (a, b) = (sample(), TreeDef::List(vec![]));
        assert_eq!(
            a.difference(&b).unwrap(),
            "at the root: a tuple of 3 on one side, a list of 0 on the other"
        );
        let mut c = sample();
        if let TreeDef::Tuple(items) = &mut c {
            items[2] = TreeDef::dict([(DictKey::Int(10), leaf())]).unwrap();
        }
        assert_eq!(a.difference(&c).unwrap(), "at [2]: only one side has [9]");
        assert_eq!(c.difference(&a).unwrap(), "at [2]: only one side has [9]");
        assert_eq!(a.difference(&a), None);
        let ones = Tree::unflatten(a.clone(), vec![1; 6]).unwrap();
        let error = ones.clone().zip(Tree::unflatten(c, vec![1; 5]).unwrap()).unwrap_err().to_string();
        assert!(error.contains("differ at [2]"), "{error}");
        let doubled = ones.map(|one| one * 2);
        assert_eq!(doubled.leaves(), [2; 6]);
        assert!(Tree::unflatten(a, vec![1; 5]).is_err());
    }

    #[test]
    fn keys_that_jax_cannot_sort_are_refused() {
        let error = TreeDef::dict([("a".into(), leaf()), (DictKey::Int(1), leaf())]).unwrap_err().to_string();
        assert!(error.contains("[1] and ['a']"), "{error}");
        assert!(TreeDef::dict([("a".into(), leaf()), ("a".into(), leaf())]).is_err());
        assert!(TreeDef::ordered_dict(vec![("a".into(), leaf()), ("a".into(), leaf())]).is_err());
    }

    #[test]
    fn leaves_that_are_dropped_leave_a_place_only_where_one_is_needed() {
        let kept = sample().filter(&[false, false, false, true, true, false]);
        assert_eq!(kept.to_string(), "(None, ScaleByAdamState(count=None, mu=[*, None]), {9: *})");
        assert_eq!(sample().filter(&[false; 6]), TreeDef::Dict(vec![]));
        assert_eq!(sample().filter(&[true; 6]), sample());
    }

    #[test]
    fn paths_make_the_tree_that_they_came_from() {
        let paths = [KeyPath::from_name("a.b"), KeyPath::from_name("a-c"), "['x'][0]".parse().unwrap()];
        let def = TreeDef::from_paths(&paths).unwrap();
        assert_eq!(def.to_string(), "{'a': {'b': *}, 'a-c': *, 'x': [*]}");
        assert!(TreeDef::from_paths(&[KeyPath::from_name("a"), KeyPath::from_name("a.b")]).is_err());
        let deep = KeyPath::from_name(&vec!["a"; MAX_DEPTH + 1].join("."));
        assert!(TreeDef::from_paths(&[deep]).unwrap_err().to_string().contains("nested deeper than 128"));
        assert_eq!(TreeDef::from_paths(&[]).unwrap(), TreeDef::Dict(vec![]));
    }
}
