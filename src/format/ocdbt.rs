//! OCDBT, the key-value store of TensorStore that Orbax writes arrays into: a tree of keys, whose nodes and values lie in data files.
//! The format was described by its project (google.github.io/tensorstore/kvstore/ocdbt), and held against databases that
//! TensorStore 0.1.86 wrote.

mod envelope;
mod node;
pub mod write;

use std::collections::BTreeMap;

use super::folder::{Folder, Location};
use super::problem::Problem;
use crate::printable::Name;
use envelope::{MAX_BODY_BYTES, MAX_TEXT_BYTES};
use node::{Entry, Manifest, Place};

/// The file that says where the newest root is.
pub const MANIFEST: &str = "manifest.ocdbt";

/// What the names of manifests begin with that are numbered.
const NUMBERED: &str = "manifest.";

/// The values of a database by their keys.
pub type Values = BTreeMap<String, Location>;

/// Reads where the newest version of a database has its values. Its directory is within the folder, and is named with its slash.
///
/// # Errors
/// What is wrong with a file, which is named; that one cannot be read.
pub fn read(folder: &mut Folder, directory: &str) -> Result<Values, Problem> {
    let mut database = Database { folder, directory, values: Values::new() };
    let (name, found) = database.manifest()?;
    if let Some((place, height)) = found {
        database
            .node(&place, height, b"")
            .map_err(|problem| problem.at(format_args!("the tree of {name}")))?;
    }
    Ok(database.values)
}

struct Database<'a> {
    folder: &'a mut Folder,
    directory: &'a str,
    values: Values,
}

impl Database<'_> {
    /// The manifest's name, and the newest root.
    fn manifest(&mut self) -> Result<(String, Option<(Place, u8)>), Problem> {
        let mut name = format!("{}{MANIFEST}", self.directory);
        for _ in 0..2 {
            let bytes = self.folder.read_whole(&name)?;
            match node::manifest(&bytes).map_err(|problem| format!("{name}: {problem}"))? {
                Manifest::Root(root) => return Ok((name, root)),
                Manifest::Numbered => name = format!("{}{}", self.directory, self.newest_manifest()?),
            }
        }
        Err(format!("{name} refers to another manifest once more").into())
    }

    /// The manifest with the largest number.
    fn newest_manifest(&self) -> Result<String, Problem> {
        let is_numbered = |name: &&String| {
            let number = name.strip_prefix(NUMBERED);
            number.is_some_and(|number| number.len() == 16 && u64::from_str_radix(number, 16).is_ok())
        };
        let names = self.folder.names(self.directory)?;
        // All have as many digits.
        let newest = names.iter().filter(is_numbered).max();
        newest.cloned().ok_or_else(|| {
            format!("{MANIFEST} says that there are others with numbers, and there are none").into()
        })
    }

    fn node(&mut self, place: &Place, height: u8, prefix: &[u8]) -> Result<(), Problem> {
        let location = self.locate(place)?;
        let bytes = self.folder.read_at_most("a node", &location, MAX_BODY_BYTES)?;
        let body = node::body(&bytes)?;
        // It may be the child of many.
        self.folder.spend(body.len())?;
        let mut children = Vec::new();
        let take = |key: &[u8], entry: Entry<'_>| {
            let key = [prefix, key].concat();
            match entry {
                Entry::Child { common, place } => {
                    self.folder.spend(prefix.len() + common)?;
                    children.push((key[..prefix.len() + common].to_vec(), place));
                    Ok(())
                }
                Entry::Inline(value) => {
                    let location = self.folder.keep(value)?;
                    self.add(key, location)
                }
                Entry::Stored(place) => {
                    let location = self.locate(&place)?;
                    self.add(key, location)
                }
            }
        };
        node::read(&body, height, &place.file.base, take)?;
        // A child is one lower, so that they end.
        children.iter().try_for_each(|(prefix, place)| self.node(place, height - 1, prefix))
    }

    fn add(&mut self, key: Vec<u8>, location: Location) -> Result<(), Problem> {
        if key.len() > MAX_TEXT_BYTES {
            return Err(format!("a key has {} bytes, and {MAX_TEXT_BYTES} are the most", key.len()).into());
        }
        let key = String::from_utf8(key)
            .map_err(|error| format!("the key {:?} is not in UTF-8", error.as_bytes()))?;
        if self.values.last_key_value().is_some_and(|(last, _)| *last >= key) {
            return Err(format!("the key `{}` does not come after the one before", Name(&key)).into());
        }
        self.folder.count(1)?;
        self.folder.spend(key.len())?;
        self.values.insert(key, location);
        Ok(())
    }

    fn locate(&mut self, place: &Place) -> Result<Location, Problem> {
        let path =
            std::str::from_utf8(&place.file.path).map_err(|_| "the path of a data file is not in UTF-8")?;
        let range = usize::try_from(place.offset)
            .ok()
            .and_then(|start| Some(start..start.checked_add(usize::try_from(place.length).ok()?)?));
        let range = range.ok_or("a place in a data file does not fit into 64 bits")?;
        self.folder.locate(&format!("{}{path}", self.directory), range)
    }
}
