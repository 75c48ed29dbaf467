//! Key paths: the way from a tree's root to one of its leaves.

use std::fmt;

/// One step of a key path, as in `jax.tree_util`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Key {
    /// An entry of a dictionary (`DictKey`).
    Dict(String),
    /// An element of a list or tuple (`SequenceKey`).
    Index(usize),
    /// A field of a named tuple or of an object (`GetAttrKey`).
    Attribute(String),
}

impl fmt::Display for Key {
    /// As `jax.tree_util.keystr` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Dict(key) => write!(f, "['{key}']"),
            Key::Index(index) => write!(f, "[{index}]"),
            Key::Attribute(name) => write!(f, ".{name}"),
        }
    }
}

/// The way from a tree's root to a leaf or node; empty for the root. Ordered as JAX orders leaves: key by
/// key, dictionary keys by code point.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct KeyPath(Vec<Key>);

impl KeyPath {
    /// The path through nested dictionaries that a name on disk stands for: it is split at every `.`.
    pub fn from_name(name: &str) -> KeyPath {
        KeyPath(name.split('.').map(|key| Key::Dict(key.to_owned())).collect())
    }

    /// The name on disk: the keys joined with `.`.
    pub fn to_name(&self) -> String {
        let keys: Vec<String> = self
            .0
            .iter()
            .map(|key| match key {
                Key::Dict(key) | Key::Attribute(key) => key.clone(),
                Key::Index(index) => index.to_string(),
            })
            .collect();
        keys.join(".")
    }

    /// The keys, from the root.
    pub fn keys(&self) -> &[Key] {
        &self.0
    }

    /// Whether this path leads to `other` or to a node above it.
    pub fn is_prefix_of(&self, other: &KeyPath) -> bool {
        other.0.starts_with(&self.0)
    }

    /// The path without its first `count` keys.
    pub fn without_first(&self, count: usize) -> KeyPath {
        KeyPath(self.0[count.min(self.0.len())..].to_vec())
    }
}

impl From<Vec<Key>> for KeyPath {
    fn from(keys: Vec<Key>) -> KeyPath {
        KeyPath(keys)
    }
}

impl fmt::Display for KeyPath {
    /// As `jax.tree_util.keystr` prints it: `['params']['Dense_0']['kernel']`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|key| key.fmt(f))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_its_path_are_two_forms_of_one_thing() {
        let path = KeyPath::from_name("params.Dense_0.kernel");
        assert_eq!(path.to_string(), "['params']['Dense_0']['kernel']");
        assert_eq!(path.to_name(), "params.Dense_0.kernel");
        let mixed = KeyPath::from(vec![Key::Attribute("mu".into()), Key::Index(3)]);
        assert_eq!(mixed.to_string(), ".mu[3]");
        assert_eq!(mixed.to_name(), "mu.3");
    }

    #[test]
    fn paths_sort_key_by_key_and_not_as_strings() {
        // As strings "a-b" would come before "a.z", since '-' sorts before '.'.
        assert!(KeyPath::from_name("a.z") < KeyPath::from_name("a-b"));
        assert!(KeyPath::from_name("Z") < KeyPath::from_name("a"));
        assert!(KeyPath::from_name("a").is_prefix_of(&KeyPath::from_name("a.b")));
        assert!(!KeyPath::from_name("a").is_prefix_of(&KeyPath::from_name("ab")));
    }
}
