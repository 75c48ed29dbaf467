//! The writer of a database: one version, whose values and nodes are in one data file.

use std::collections::BTreeMap;

use super::envelope::{Magic, Sink, close};

/// The longest value that is in the node with its key, in bytes, as Orbax has it.
pub const MAX_INLINE_BYTES: usize = 1024;

/// The most bytes of a node, as Orbax has it: all keys of a checkpoint are in one, mostly.
const MAX_NODE_BYTES: u64 = 100_000_000;

/// The bytes of keys and values after which another node begins: a node is read as a whole.
const NODE_BYTES: usize = 4 << 20;

/// The most entries of a node.
const NODE_ENTRIES: usize = 1 << 16;

/// Of trees of versions, which there is none of.
const ARITY_LOG2: u8 = 4;

/// Nodes are not compressed: they are few, and small.
const UNCOMPRESSED: u64 = 0;

/// A database that has one manifest.
const SINGLE: u8 = 0;

/// The number of the first version.
const GENERATION: u64 = 1;

/// The only data file there is, by its number in a table of them.
const FILE: u64 = 0;

/// The values of a database by their keys.
#[derive(Default)]
pub struct NewDatabase(BTreeMap<String, Value>);

/// A value: its bytes, or where they are in the data file.
#[derive(Clone)]
pub enum Value {
    Inline(Vec<u8>),
    Stored { offset: u64, length: u64 },
}

/// What a database that is finished has besides its values.
pub struct Finished {
    /// What comes next in the data file.
    pub nodes: Vec<u8>,
    /// The file that says where the root is.
    pub manifest: Vec<u8>,
}

/// A node that is written, for the one above it.
struct Child {
    first_key: String,
    offset: u64,
    length: u64,
    sums: Sums,
}

/// What is below a node.
#[derive(Clone, Copy, Default)]
struct Sums {
    keys: u64,
    tree_bytes: u64,
    stored_bytes: u64,
}

impl NewDatabase {
    /// Adds a value.
    ///
    /// # Errors
    /// When there is one of that key.
    pub fn add(&mut self, key: String, value: Value) -> Result<(), String> {
        if self.0.contains_key(&key) {
            return Err(format!("there are two values for the key `{key}`"));
        }
        self.0.insert(key, value);
        Ok(())
    }

    /// The nodes, which begin at this offset of the data file of that path, and the manifest. The time is in nanoseconds since
    /// 1970.
    pub fn finish(self, path: &str, offset: u64, id: [u8; 16], time: u64) -> Finished {
        let mut nodes = Nodes { path, start: offset, bytes: Vec::new() };
        let mut level = nodes.leaves(&self.0);
        let mut height = 0;
        while level.len() > 1 {
            height += 1;
            level = nodes.above(&level, height);
        }
        let manifest = manifest(path, level.first(), height, id, time);
        Finished { nodes: nodes.bytes, manifest }
    }
}

struct Nodes<'a> {
    path: &'a str,
    start: u64,
    bytes: Vec<u8>,
}

impl Nodes<'_> {
    fn leaves(&mut self, values: &BTreeMap<String, Value>) -> Vec<Child> {
        let size = |(key, value): &(&String, &Value)| match value {
            Value::Inline(bytes) => key.len() + bytes.len(),
            Value::Stored { .. } => key.len(),
        };
        let values: Vec<_> = values.iter().collect();
        divide(&values, size).into_iter().map(|entries| self.leaf(entries)).collect()
    }

    fn leaf(&mut self, entries: &[(&String, &Value)]) -> Child {
        let mut body = self.begin(0, entries.iter().map(|(key, _)| key.as_str()), false);
        let mut sums = Sums { keys: entries.len() as u64, ..Sums::default() };
        for (_, value) in entries {
            body.varint(match value {
                Value::Inline(bytes) => bytes.len() as u64,
                Value::Stored { length, .. } => *length,
            });
        }
        for (_, value) in entries {
            body.bytes(&[u8::from(matches!(value, Value::Stored { .. }))]);
        }
        let mut offsets = Sink::default();
        for (_, value) in entries {
            if let Value::Stored { offset, length } = value {
                body.varint(FILE);
                offsets.varint(*offset);
                sums.stored_bytes += length;
            }
        }
        body.bytes(&offsets.into_bytes());
        for (_, value) in entries {
            if let Value::Inline(bytes) = value {
                body.bytes(bytes);
            }
        }
        self.end(entries[0].0, body, sums)
    }

    /// The nodes of this height above others.
    fn above(&mut self, children: &[Child], height: u8) -> Vec<Child> {
        divide(children, |child| child.first_key.len())
            .into_iter()
            .map(|children| {
                let keys = children.iter().map(|child| child.first_key.as_str());
                let mut body = self.begin(height, keys, true);
                let columns: [&dyn Fn(&Child) -> u64; 6] = [
                    &|_| FILE,
                    &|child| child.offset,
                    &|child| child.length,
                    &|child| child.sums.keys,
                    &|child| child.sums.tree_bytes,
                    &|child| child.sums.stored_bytes,
                ];
                for column in columns {
                    children.iter().for_each(|child| body.varint(column(child)));
                }
                let sums = children.iter().fold(Sums::default(), |sums, child| Sums {
                    keys: sums.keys + child.sums.keys,
                    tree_bytes: sums.tree_bytes + child.sums.tree_bytes,
                    stored_bytes: sums.stored_bytes + child.sums.stored_bytes,
                });
                self.end(&children[0].first_key, body, sums)
            })
            .collect()
    }

    /// The beginning of a node: its height, its data files and its keys.
    fn begin<'k>(&self, height: u8, keys: impl ExactSizeIterator<Item = &'k str>, is_interior: bool) -> Sink {
        let mut body = Sink::default();
        body.bytes(&[height]);
        body.data_files(self.path);
        let count = keys.len();
        body.varint(count as u64);
        let (mut shared, mut rests, mut text) = (Sink::default(), Sink::default(), Vec::new());
        let mut before: Option<&str> = None;
        for key in keys {
            let in_common = before.map(|before| {
                before.bytes().zip(key.bytes()).take_while(|(one, other)| one == other).count()
            });
            in_common.into_iter().for_each(|bytes| shared.varint(bytes as u64));
            let rest = &key.as_bytes()[in_common.unwrap_or(0)..];
            rests.varint(rest.len() as u64);
            text.extend_from_slice(rest);
            before = Some(key);
        }
        body.bytes(&shared.into_bytes());
        body.bytes(&rests.into_bytes());
        if is_interior {
            // Of every child, what its keys have in common: they are whole in it.
            (0..count).for_each(|_| body.varint(0));
        }
        body.bytes(&text);
        body
    }

    fn end(&mut self, first_key: &str, body: Sink, sums: Sums) -> Child {
        let node = close(Magic::Node, &body.into_bytes());
        let (offset, length) = (self.start + self.bytes.len() as u64, node.len() as u64);
        self.bytes.extend(node);
        let sums = Sums { tree_bytes: sums.tree_bytes + length, ..sums };
        Child { first_key: first_key.to_owned(), offset, length, sums }
    }
}

/// Divides entries into those of one node each.
fn divide<T>(entries: &[T], size: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let (mut nodes, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (index, entry) in entries.iter().enumerate() {
        // Two or more go into each, so that there are fewer nodes from level to level.
        let is_full = bytes + size(entry) > NODE_BYTES || index - start == NODE_ENTRIES;
        if is_full && index - start >= 2 {
            nodes.push(&entries[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += size(entry);
    }
    if start < entries.len() {
        nodes.push(&entries[start..]);
    }
    nodes
}

fn manifest(path: &str, root: Option<&Child>, height: u8, id: [u8; 16], time: u64) -> Vec<u8> {
    let mut body = Sink::default();
    body.bytes(&id);
    body.bytes(&[SINGLE]);
    body.varint(MAX_INLINE_BYTES as u64);
    body.varint(MAX_NODE_BYTES);
    body.bytes(&[ARITY_LOG2]);
    body.varint(UNCOMPRESSED);
    body.data_files(path);
    let (place, sums) = match root {
        Some(root) => ([root.offset, root.length], root.sums),
        None => ([u64::MAX; 2], Sums::default()),
    };
    // How many versions there are, and then each.
    body.varint(1);
    body.varint(GENERATION);
    body.bytes(&[height]);
    for number in [FILE, place[0], place[1], sums.keys, sums.tree_bytes, sums.stored_bytes] {
        body.varint(number);
    }
    body.bytes(&time.to_le_bytes());
    // Nodes of older versions.
    body.varint(0);
    close(Magic::Manifest, &body.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::folder::Folder;
    use crate::limits::Limits;

    #[test]
    fn a_database_of_several_levels_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let mut new = NewDatabase::default();
        // Values of a thousand bytes, so that there are some eight leaves.
        let value = |number: usize| vec![number as u8; 1000];
        let keys = || (0..30_000).map(|number| (number, format!("layer{number:05}/.zarray")));
        for (number, key) in keys() {
            new.add(key, Value::Inline(value(number))).unwrap();
        }
        new.add("stored".into(), Value::Stored { offset: 3, length: 4 }).unwrap();
        assert!(new.add("stored".into(), Value::Inline(Vec::new())).unwrap_err().contains("two values"));
        let Finished { nodes, manifest } = new.finish("d/0", 7, [1; 16], 1);
        std::fs::create_dir(directory.path().join("d")).unwrap();
        std::fs::write(directory.path().join("d/0"), [&b"0123456"[..], &nodes].concat()).unwrap();
        std::fs::write(directory.path().join("manifest.ocdbt"), manifest).unwrap();
        let mut folder = Folder::new(directory.path(), Limits::default());
        let values = super::super::read(&mut folder, "").unwrap();
        assert_eq!(values.len(), 30_001);
        for (number, key) in keys().step_by(997) {
            assert_eq!(folder.read_at_most("a value", &values[&key], 1000).unwrap()[..], value(number));
        }
        let stored = &values["stored"];
        assert_eq!(folder.read_at_most("a value", stored, 4).unwrap()[..], b"3456"[..], "{stored:?}");
    }

    #[test]
    fn a_database_without_keys_has_no_root() {
        let manifest = NewDatabase::default().finish("d/0", 0, [1; 16], 1).manifest;
        assert_eq!(super::super::node::manifest(&manifest), Ok(super::super::node::Manifest::Root(None)));
    }
}
