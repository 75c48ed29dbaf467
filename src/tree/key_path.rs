//! Key paths: the way from a tree's root to one of its nodes.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// The key of a dictionary: JAX sorts a dictionary by its keys, which must therefore be all of one kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum DictKey {
    /// An integer.
    Int(i64),
    /// A string.
    Str(String),
}

impl From<&str> for DictKey {
    fn from(key: &str) -> DictKey {
        DictKey::Str(key.to_owned())
    }
}

impl From<String> for DictKey {
    fn from(key: String) -> DictKey {
        DictKey::Str(key)
    }
}

impl From<i64> for DictKey {
    fn from(key: i64) -> DictKey {
        DictKey::Int(key)
    }
}

/// One step of a key path, as in `jax.tree_util`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Key {
    /// An entry of a dictionary (`DictKey`).
    Dict(DictKey),
    /// An element of a list or tuple (`SequenceKey`).
    Index(usize),
    /// A field of a named tuple or of an object (`GetAttrKey`).
    Attribute(String),
}

impl Key {
    /// An entry of a dictionary with string keys.
    pub fn dict(key: impl Into<DictKey>) -> Key {
        Key::Dict(key.into())
    }

    /// Bytes of the key as a part of a name on disk; of a number, at most.
    pub(super) fn name_bytes(&self) -> usize {
        match self {
            Key::Dict(DictKey::Str(key)) | Key::Attribute(key) => key.len(),
            Key::Dict(DictKey::Int(_)) | Key::Index(_) => 20,
        }
    }

    /// The key as a part of a name on disk.
    pub fn to_name(&self) -> String {
        match self {
            Key::Dict(DictKey::Str(key)) | Key::Attribute(key) => key.clone(),
            Key::Dict(DictKey::Int(key)) => key.to_string(),
            Key::Index(index) => index.to_string(),
        }
    }
}

impl fmt::Display for Key {
    /// As `jax.tree_util.keystr` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Dict(DictKey::Str(key)) => write!(f, "[{}]", python_repr(key)),
            Key::Dict(DictKey::Int(key)) => write!(f, "[{key}]"),
            Key::Index(index) => write!(f, "[{index}]"),
            Key::Attribute(name) => write!(f, ".{name}"),
        }
    }
}

/// The way from a tree's root to a leaf or node; empty for the root.
///
/// It prints as `jax.tree_util.keystr` does, `['params']['Dense_0']['kernel']`, and is parsed from that form
/// and from the name on disk, `params.Dense_0.kernel`:
///
/// ```
/// use safejax::KeyPath;
/// let path: KeyPath = "['layers'][0].kernel".parse()?;
/// assert_eq!(path.to_name(), "layers.0.kernel");
/// assert_eq!("params.bias".parse::<KeyPath>()?.to_string(), "['params']['bias']");
/// # Ok::<(), safejax::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct KeyPath(Vec<Key>);

impl KeyPath {
    /// The path through nested dictionaries that a name on disk stands for: it is split at every `.`.
    pub fn from_name(name: &str) -> KeyPath {
        KeyPath(name.split('.').map(Key::dict).collect())
    }

    /// The name on disk: the keys joined with `.`.
    pub fn to_name(&self) -> String {
        let keys: Vec<String> = self.0.iter().map(Key::to_name).collect();
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

    /// The path one step further.
    pub fn join(&self, key: Key) -> KeyPath {
        KeyPath(self.0.iter().cloned().chain([key]).collect())
    }
}

impl From<Vec<Key>> for KeyPath {
    fn from(keys: Vec<Key>) -> KeyPath {
        KeyPath(keys)
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|key| key.fmt(f))
    }
}

impl FromStr for KeyPath {
    type Err = Error;

    /// Parses what `keystr` prints, if the text begins with `[` or `.`, or else a name on disk.
    ///
    /// An integer in brackets is taken for a position in a list or tuple; a dictionary with integer keys
    /// prints the same, and is found by it all the same.
    fn from_str(text: &str) -> Result<KeyPath> {
        if !text.starts_with(['[', '.']) {
            return Ok(if text.is_empty() { KeyPath::default() } else { KeyPath::from_name(text) });
        }
        let mut rest = text;
        let mut keys = Vec::new();
        while !rest.is_empty() {
            let (key, after) = parse_key(rest).ok_or_else(|| {
                Error::InvalidArgument(format!(
                    "`{text}` is not a key path: at `{rest}` a ['key'], an [index] or an .attribute was expected"
                ))
            })?;
            keys.push(key);
            rest = after;
        }
        Ok(KeyPath(keys))
    }
}

/// The first key of what `keystr` printed, and the rest.
fn parse_key(text: &str) -> Option<(Key, &str)> {
    if let Some(attribute) = text.strip_prefix('.') {
        let end = attribute.find(['[', '.']).unwrap_or(attribute.len());
        return (end > 0).then(|| (Key::Attribute(attribute[..end].to_owned()), &attribute[end..]));
    }
    let inner = text.strip_prefix('[')?;
    if inner.starts_with(['\'', '"']) {
        let (key, after) = parse_repr(inner)?;
        return Some((Key::dict(key), after.strip_prefix(']')?));
    }
    let (number, after) = inner.split_once(']')?;
    match number.parse::<usize>() {
        Ok(index) => Some((Key::Index(index), after)),
        Err(_) => Some((Key::Dict(DictKey::Int(number.parse().ok()?)), after)),
    }
}

/// A string as Python's `repr` writes it: in single quotes unless only those are in it.
fn python_repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut repr = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => repr += "\\\\",
            '\n' => repr += "\\n",
            '\r' => repr += "\\r",
            '\t' => repr += "\\t",
            c if c == quote => repr.extend(['\\', c]),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => repr += &format!("\\x{:02x}", c as u32),
            c => repr.push(c),
        }
    }
    repr.push(quote);
    repr
}

/// The string behind a Python literal at the start of `text`, and what follows it.
fn parse_repr(text: &str) -> Option<(String, &str)> {
    let mut chars = text.char_indices();
    let (_, quote) = chars.next()?;
    let mut string = String::new();
    while let Some((position, c)) = chars.next() {
        match c {
            c if c == quote => return Some((string, &text[position + c.len_utf8()..])),
            '\\' => string.push(match chars.next()?.1 {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'x' => {
                    let digits: String = [chars.next()?.1, chars.next()?.1].iter().collect();
                    char::from(u8::from_str_radix(&digits, 16).ok()?)
                }
                c @ ('\\' | '\'' | '"') => c,
                _ => return None,
            }),
            c => string.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_path_has_the_form_of_keystr_and_that_of_a_name() {
        let path = KeyPath::from(vec![
            Key::dict("it's"),
            Key::Index(3),
            Key::Attribute("mu".into()),
            Key::dict(-1),
            Key::dict("a\"'\n"),
        ]);
        assert_eq!(path.to_string(), r#"["it's"][3].mu[-1]['a"\'\n']"#);
        assert_eq!(path.to_string().parse::<KeyPath>().unwrap(), path);
        assert_eq!(path.to_name(), "it's.3.mu.-1.a\"'\n");
    }

    #[test]
    fn what_is_no_path_is_refused_with_the_place() {
        for text in ["['a'", "['a']b", "[]", "[x]", "..a", "['a\\q']", "['a']["] {
            let error = text.parse::<KeyPath>().unwrap_err().to_string();
            assert!(error.contains("is not a key path"), "{text}: {error}");
        }
    }

    #[test]
    fn paths_sort_key_by_key_and_not_as_strings() {
        // As strings "a-b" would come before "a.z", since '-' sorts before '.'.
        assert!(KeyPath::from_name("a.z") < KeyPath::from_name("a-b"));
        assert!(KeyPath::from_name("Z") < KeyPath::from_name("a"));
        assert!(KeyPath::from_name("a").is_prefix_of(&KeyPath::from_name("a.b")));
        assert!(!KeyPath::from_name("a").is_prefix_of(&KeyPath::from_name("ab")));
    }

    proptest! {
        #[test]
        fn every_string_key_survives_printing(keys in proptest::collection::vec("\\PC{0,5}|[\\x00-\\x7f]{0,5}", 1..4)) {
            let path = KeyPath::from(keys.into_iter().map(Key::dict).collect::<Vec<_>>());
            prop_assert_eq!(path.to_string().parse::<KeyPath>().unwrap(), path);
        }
    }
}
