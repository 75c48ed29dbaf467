//! Nodes of the tree of keys, and the manifest that says where its root is.

use std::borrow::Cow;
use std::sync::Arc;

use super::envelope::{Fields, Magic, Shared, open};

/// The path of a data file: what it is relative to, for the files that it refers to, and the rest.
#[derive(Debug, Clone, PartialEq)]
pub struct FilePath {
    pub base: Vec<u8>,
    pub path: Vec<u8>,
}

/// Some bytes of a data file.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    pub file: Arc<FilePath>,
    pub offset: u64,
    pub length: u64,
}

/// What a manifest says.
#[derive(Debug, PartialEq)]
pub enum Manifest {
    /// The root of the newest version, and its height; `None` of a database without keys.
    Root(Option<(Place, u8)>),
    /// It is in the file of this name with the largest number after it.
    Numbered,
}

/// An entry of a node.
#[derive(Debug, PartialEq)]
pub enum Entry<'a> {
    /// The node of all keys that begin with the key, of which the node's own begin after so many bytes.
    Child {
        common: usize,
        place: Place,
    },
    Inline(&'a [u8]),
    Stored(Place),
}

/// The offset and length of a root that is not there.
const MISSING: u64 = u64::MAX;

/// The most entries of a node, and files that it names.
const MAX_ENTRIES: usize = 1 << 20;

/// The files that entries are in.
struct DataFiles(Vec<Arc<FilePath>>);

impl DataFiles {
    fn read(fields: &mut Fields<'_>, transitive: &[u8]) -> Result<DataFiles, String> {
        let count = fields.count()?;
        if count > MAX_ENTRIES {
            return Err(format!("it names {count} files, and {MAX_ENTRIES} are the most"));
        }
        let lengths = Shared::lengths(fields, count)?;
        let bases = fields.column(count)?;
        let paths = lengths.texts(fields)?;
        let file = |(path, base): (Vec<u8>, u64)| {
            let base = usize::try_from(base).ok().and_then(|base| path.get(..base));
            let base = base.ok_or("the base of a path in it is longer than the path")?;
            let (base, path) = ([transitive, base].concat(), [transitive, &path[..]].concat());
            Ok(Arc::new(FilePath { base, path }))
        };
        paths.into_iter().zip(bases).map(file).collect::<Result<_, String>>().map(DataFiles)
    }

    fn place(&self, file: u64, offset: u64, length: u64) -> Result<Place, String> {
        let file = usize::try_from(file).ok().and_then(|file| self.0.get(file));
        let file = file.ok_or("it refers to a file that is not in its table")?.clone();
        Ok(Place { file, offset, length })
    }
}

/// What a manifest says.
///
/// # Errors
/// What is wrong with it.
pub fn manifest(bytes: &[u8]) -> Result<Manifest, String> {
    let body = open(bytes, Magic::Manifest)?;
    let mut fields = Fields::new(&body);
    let _uuid: [u8; 16] = fields.array()?;
    let kind = fields.u8()?;
    let _most_inline = fields.varint()?;
    let _most_decoded = fields.varint()?;
    let _arity = fields.u8()?;
    match fields.varint()? {
        0 => {}
        // With its level.
        1 => drop(fields.array::<4>()?),
        other => {
            return Err(format!("its nodes are compressed in a way of number {other}, which is not known"));
        }
    }
    match kind {
        0 => {}
        1 => return fields.end().map(|()| Manifest::Numbered),
        other => return Err(format!("it is of a kind of number {other}, which is not known")),
    }
    let files = DataFiles::read(&mut fields, b"")?;
    let root = newest_root(&mut fields, &files)?;
    older_versions(&mut fields)?;
    fields.end()?;
    Ok(Manifest::Root(root))
}

/// The root of the last version, which is the newest.
fn newest_root(fields: &mut Fields<'_>, files: &DataFiles) -> Result<Option<(Place, u8)>, String> {
    let count = fields.count()?;
    let generations = fields.column(count)?;
    if generations.is_empty() || !generations.is_sorted_by(|a, b| a < b) {
        return Err("its versions are not in order".into());
    }
    let heights = fields.take(count as u64)?;
    let (file, offset, length) = (fields.column(count)?, fields.column(count)?, fields.column(count)?);
    for _ in ["keys", "tree bytes", "indirect value bytes"] {
        fields.column(count)?;
    }
    fields.take(count as u64 * 8)?;
    let last = count - 1;
    if (offset[last], length[last]) == (MISSING, MISSING) {
        return Ok(None);
    }
    Ok(Some((files.place(file[last], offset[last], length[last])?, heights[last])))
}

/// Reads over where older versions are.
fn older_versions(fields: &mut Fields<'_>) -> Result<(), String> {
    let count = fields.count()?;
    for _ in ["generation", "file", "offset", "length", "generations"] {
        fields.column(count)?;
    }
    fields.take(count as u64 * 8)?;
    fields.take(count as u64).map(drop)
}

/// The body of a node.
///
/// # Errors
/// What is wrong with it.
pub fn body(bytes: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    open(bytes, Magic::Node)
}

/// Passes on the entries of a node of this height, each with its key, which is relative to the node's.
///
/// # Errors
/// What is wrong with it; those of `take`.
pub fn read<E: From<String>>(
    body: &[u8],
    height: u8,
    transitive: &[u8],
    mut take: impl FnMut(&[u8], Entry<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut fields = Fields::new(body);
    let found = fields.u8()?;
    if found != height {
        return Err(
            format!("it is a node of height {found}, and one of height {height} was looked for").into()
        );
    }
    let files = DataFiles::read(&mut fields, transitive)?;
    let count = fields.count()?;
    if !(1..=MAX_ENTRIES).contains(&count) {
        return Err(format!("it has {count} entries, and a node has 1 to {MAX_ENTRIES}").into());
    }
    let lengths = Shared::lengths(&mut fields, count)?;
    let common = if height > 0 { fields.column(count)? } else { Vec::new() };
    let keys = lengths.texts(&mut fields)?;
    if !keys.is_sorted_by(|a, b| a < b) {
        return Err(E::from("its keys are not in order".into()));
    }
    let entries = if height > 0 {
        children(&mut fields, &files, &keys, &common)?
    } else {
        values(&mut fields, &files, count)?
    };
    fields.end()?;
    keys.iter().zip(entries).try_for_each(|(key, entry)| take(key, entry))
}

fn children<'a>(
    fields: &mut Fields<'a>,
    files: &DataFiles,
    keys: &[Vec<u8>],
    common: &[u64],
) -> Result<Vec<Entry<'a>>, String> {
    let count = keys.len();
    let (file, offset, length) = (fields.column(count)?, fields.column(count)?, fields.column(count)?);
    for _ in ["keys", "tree bytes", "indirect value bytes"] {
        fields.column(count)?;
    }
    let child = |index: usize| {
        let common = usize::try_from(common[index]).ok().filter(|common| *common <= keys[index].len());
        let common = common.ok_or("a child of it has more in common than its key has")?;
        Ok(Entry::Child { common, place: files.place(file[index], offset[index], length[index])? })
    };
    (0..count).map(child).collect()
}

fn values<'a>(fields: &mut Fields<'a>, files: &DataFiles, count: usize) -> Result<Vec<Entry<'a>>, String> {
    let lengths = fields.column(count)?;
    let kinds = fields.take(count as u64)?;
    if let Some(kind) = kinds.iter().find(|kind| **kind > 1) {
        return Err(format!("a value of it is of a kind of number {kind}, which is not known"));
    }
    let stored = kinds.iter().filter(|kind| **kind == 1).count();
    let (file, offset) = (fields.column(stored)?, fields.column(stored)?);
    let mut places = file.iter().zip(&offset);
    let entry = |(&length, kind): (&u64, &u8)| {
        if *kind == 0 {
            return Ok(Entry::Inline(fields.take(length)?));
        }
        let (file, offset) = places.next().ok_or("it ends too early")?;
        Ok(Entry::Stored(files.place(*file, *offset, length)?))
    };
    lengths.iter().zip(kinds).map(entry).collect()
}
