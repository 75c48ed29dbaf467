//! PyTorch's checkpoints, as `torch.save` writes them since 1.6: a zip archive with a pickle, whose tensors are views of
//! storages, each a member of its own. Before, the storages followed the pickle.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;

use super::archive::{Archive, Compression, Member};
use super::checkpoint::{Checkpoint, Extent, Extents, Format, LeftOut, RecordedStructure, Tensor};
use super::encoding::Deflated;
use super::pickle::{self, Array, Elements, Pickled, legacy, legacy::Legacy};
use super::pool::Pool;
use crate::error::{Context, Error, Result};
use crate::limits::Limits;
use crate::store::{Crc32, Digest, MemoryBlob, SharedBlob};
use crate::tree::{Framework, KeyMap};

/// The name of the pickle, in a directory that is named like the file was.
const PICKLE: &str = "data.pkl";

/// The format, for errors.
const FORMAT: &str = "checkpoint of PyTorch";

/// Whether bytes begin as PyTorch's files did before 1.6.
pub(super) fn begins_legacy(head: &[u8]) -> bool {
    head.starts_with(legacy::MAGIC)
}

/// The directory of the archive's pickle, with its slash, if it is one of PyTorch's.
pub(super) fn root(archive: &Archive) -> Option<String> {
    let mut names = archive.names();
    names.find_map(|name| {
        let root = name.strip_suffix(PICKLE)?;
        (root.is_empty() || root.ends_with('/')).then(|| root.to_owned())
    })
}

/// The members of the archive, by name.
struct Members {
    by_name: HashMap<String, (usize, Member)>,
}

impl Members {
    fn read(archive: &mut Archive) -> Result<Members> {
        let mut by_name = HashMap::new();
        for index in 0..archive.len() {
            let member = archive.member(index)?;
            by_name.insert(member.name.clone(), (index, member));
        }
        Ok(Members { by_name })
    }

    /// The content of a small member.
    fn content(&self, archive: &mut Archive, name: &str, limits: Limits) -> Result<Bytes> {
        let missing = || archive.malformed(FORMAT, format!("it has no member `{name}`"));
        let (index, member) = self.by_name.get(name).ok_or_else(missing)?;
        if let Compression::Stored = member.compression {
            let content = archive.blob().read(member.stored.clone())?;
            let recorded = Digest::Crc32(Crc32 { head: Bytes::new(), sum: member.crc32 });
            let damaged =
                |_| archive.malformed(FORMAT, format!("`{name}`: its checksum differs: it is damaged"));
            return recorded.check(&content).map_err(damaged).map(|()| content);
        }
        let content = archive.expand(*index, member, limits);
        content
            .map(Bytes::from)
            .map_err(|problem| problem.at(format!("`{name}`")).into_error(archive.origin(), FORMAT))
    }
}

/// Reads the tree, and finds the storages of its tensors.
pub(super) fn open(mut archive: Archive, root: &str, limits: Limits) -> Result<Checkpoint> {
    let members = Members::read(&mut archive)?;
    let order = format!("{root}byteorder");
    let is_big_endian = match members.by_name.contains_key(&order) {
        true => match &members.content(&mut archive, &order, limits)?[..] {
            b"little" => false,
            b"big" => true,
            _ => {
                return Err(archive.malformed(FORMAT, format!("`{order}` is neither little nor big")));
            }
        },
        false => false,
    };
    let data = members.content(&mut archive, &format!("{root}{PICKLE}"), limits)?;
    let origin = archive.origin().to_owned();
    let pickle = MemoryBlob::shared(&origin, data);
    let pickled = pickle::read(SharedBlob::clone(&pickle), limits, true);
    let mut pickled = pickled.map_err(|problem| problem.into_error(&origin, FORMAT))?;
    // Of a script: what was frozen, or traced, is there.
    let constants = format!("{root}constants/");
    let constants = members.by_name.keys().filter(|name| name.starts_with(&constants)).count();
    if constants > 0 {
        let why = format!("{constants} constants of the program are not read");
        pickled.left_out.push(LeftOut::new("(constants)", why));
    }
    let files = vec![SharedBlob::clone(archive.blob()), pickle];
    checkpoint(&origin, files, pickled, |tensor, key, range| {
        let name = format!("{root}data/{key}");
        let (_, member) = members.by_name.get(&name).ok_or_else(|| missing(&name))?;
        tensor.encoding.is_big_endian = is_big_endian;
        place(tensor, member, range, limits).map_err(|problem| format!("the storage `{name}`: {problem}"))
    })
}

/// Reads the tree of a file from before 1.6, and finds the storages of its tensors.
pub(super) fn open_legacy(blob: SharedBlob, limits: Limits) -> Result<Checkpoint> {
    let origin = blob.origin().to_owned();
    let read = legacy::read(SharedBlob::clone(&blob), limits);
    let Legacy { pickled, storages } = read.map_err(|problem| problem.into_error(&origin, FORMAT))?;
    checkpoint(&origin, vec![SharedBlob::clone(&blob), blob], pickled, |tensor, key, range| {
        let storage = storages.get(key).ok_or_else(|| missing(key))?;
        check_reach(&range, storage.len()).map_err(|problem| format!("the storage `{key}`: {problem}"))?;
        let range = storage.start + range.start..storage.start + range.end;
        tensor.extents = Extents::One(Extent { file: 0, range });
        Ok(())
    })
}

fn missing(storage: &str) -> String {
    format!("the storage `{storage}` is missing")
}

/// The checkpoint of a tree. Its storages are in the first of these files, and its pickle is the second. `place` is told the
/// key of a storage, and which bytes of it a tensor has.
fn checkpoint(
    origin: &str,
    files: Vec<SharedBlob>,
    Pickled { def, arrays, left_out }: Pickled,
    place: impl Fn(&mut Tensor, &str, Range<usize>) -> Result<(), String>,
) -> Result<Checkpoint> {
    let malformed = |problem| Error::Malformed { origin: origin.to_owned(), format: FORMAT, problem };
    let keys = KeyMap::new(def).map_err(|error| malformed(error.to_string()))?;
    let mut pool = Pool::new(origin, files);
    let mut tensors = Vec::with_capacity(arrays.len());
    for (leaf, array) in keys.leaves().iter().zip(arrays) {
        let Array { spec, elements, encoding } = array;
        let mut tensor =
            Tensor { name: leaf.name.clone(), spec, extents: Vec::new().into(), encoding, checksum: None };
        match elements {
            Elements::Here(content) => tensor.extents = pickle::place(&content, 1, &mut pool),
            Elements::Stored(key, range) => {
                place(&mut tensor, &key, range).map_err(malformed).for_tensor(&leaf.name)?;
            }
        }
        tensors.push(tensor);
    }
    let mut checkpoint = Checkpoint::new(origin, Format::PyTorch, pool.into_blobs(), tensors);
    checkpoint.structure = RecordedStructure::Tree(keys.def().clone(), Framework::Plain);
    checkpoint.left_out = left_out;
    Ok(checkpoint)
}

fn check_reach(range: &Range<usize>, bytes: usize) -> Result<(), String> {
    if range.end <= bytes {
        return Ok(());
    }
    Err(format!("the tensor reaches to byte {}, but there are {bytes}", range.end))
}

/// Says where a tensor is that has these bytes of a storage, which is a member.
fn place(tensor: &mut Tensor, member: &Member, range: Range<usize>, limits: Limits) -> Result<(), String> {
    check_reach(&range, member.bytes)?;
    let is_whole = range.len() == member.bytes;
    let stored = match member.compression {
        Compression::Stored => {
            // A storage that others share is not held against the tensor's own bytes.
            let checksum = Crc32 { head: Bytes::new(), sum: member.crc32 };
            tensor.checksum = is_whole.then(|| Box::new(Digest::Crc32(checksum)));
            member.stored.start + range.start..member.stored.start + range.end
        }
        Compression::Deflated => {
            limits.check_expansion(member.stored.len() as u64, member.bytes as u64)?;
            let content = (member.bytes, member.crc32);
            tensor.encoding.deflated =
                Some(Box::new(Deflated { skip: range.start, bytes: range.len(), content }));
            member.stored.clone()
        }
    };
    tensor.extents = Extents::One(Extent { file: 0, range: stored });
    Ok(())
}
