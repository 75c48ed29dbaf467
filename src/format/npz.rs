//! NumPy's `.npz` files: a zip archive of `.npy` files, stored or deflated.

use std::io::{Read, Seek, Write};
use std::path::Path;

use bytes::Bytes;
use zip::CompressionMethod;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::archive::{Archive, Compression, Member};
use super::checkpoint::{Checkpoint, Extent, Extents, Format, LeftOut, RecordedStructure, Tensor};
use super::encoding::Deflated;
use super::first_failure::FirstFailure;
use super::leaves::Leaves;
use super::npy;
use super::problem::Problem;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::store::{Crc32, Digest, SharedBlob, WriteOptions, write_atomically};
use crate::tree::{Framework, Key, KeyMap, KeyPath, TreeDef};

/// The ending of an array's name in the archive.
const ENDING: &str = ".npy";

/// What a member of the archive holds.
enum MemberContent {
    Array(Box<Tensor>),
    /// A string without dimensions: a description of the others, usually.
    Text(String),
    /// Neither, and why.
    Other(String),
}

/// Reads the members' headers.
pub(super) fn open(mut archive: Archive, limits: Limits) -> Result<Checkpoint> {
    let (mut arrays, mut texts, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..archive.len() {
        let member = archive.member(index)?;
        if member.is_directory {
            continue;
        }
        let Some(key) = member.name.strip_suffix(ENDING) else {
            left_out.push(LeftOut::new(&member.name, "it is no .npy file"));
            continue;
        };
        match read_member(&mut archive, index, &member, limits) {
            Ok(MemberContent::Array(tensor)) => arrays.push(Tensor { name: key.to_owned(), ..*tensor }),
            Ok(MemberContent::Text(text)) => texts.push((key.to_owned(), text)),
            Ok(MemberContent::Other(why)) => left_out.push(LeftOut::new(key, why)),
            Err(Problem::Content(problem)) => {
                left_out.push(LeftOut::unreadable(key, problem));
            }
            Err(Problem::Unreadable(error)) => return Err(error),
        }
    }
    let malformed = |problem| archive.malformed("npz file", problem);
    let is_damaged = left_out.iter().any(|part| part.refusal.is_some());
    if let ([], [], [first, ..], false) = (&arrays[..], &texts[..], &left_out[..], is_damaged) {
        return Err(malformed(format!("it holds no arrays: `{}`: {}", first.name, first.why)));
    }
    arrays.sort_by(|a, b| a.name.cmp(&b.name));
    let names: Vec<&str> = arrays.iter().map(|tensor| tensor.name.as_str()).collect();
    let (keys, order) = KeyMap::place_names_or_flat(&names).map_err(|error| malformed(error.to_string()))?;
    let def = with_texts(keys, texts).def().clone();
    let tensors = order.iter().map(|&position| arrays[position].clone()).collect();
    let mut checkpoint =
        Checkpoint::new(archive.origin(), Format::Npz, vec![SharedBlob::clone(archive.blob())], tensors);
    checkpoint.structure = RecordedStructure::Tree(def, Framework::Plain);
    checkpoint.left_out = left_out;
    Ok(checkpoint)
}

/// What a member holds; an error where it is damaged.
fn read_member(
    archive: &mut Archive,
    index: usize,
    member: &Member,
    limits: Limits,
) -> Result<MemberContent, Problem> {
    limits.check_expansion(member.stored.len() as u64, member.bytes as u64)?;
    let mut head = Vec::new();
    let mut read = archive.content(index)?.take(npy::HEADER_BYTES as u64).read_to_end(&mut head);
    if let Some(bytes) = npy::longer_header(&head) {
        head.clear();
        read = archive.content(index)?.take(bytes as u64).read_to_end(&mut head);
    }
    let read = read.map_err(|error| Problem::of_stream(error, "it cannot be read"));
    // At the end of a short member its checksum is held against it. That of an array is a matter for who reads the array.
    if head.len() < member.bytes.min(npy::HEADER_BYTES) {
        read?;
    } else if let Some(text) = npy::text_scalar(&head) {
        return read.map(|_| MemberContent::Text(text));
    }
    let header = match npy::read_header(&head, None) {
        Ok(header) => header,
        Err(npy::HeaderProblem::NoNumbers(why)) => return Ok(MemberContent::Other(why)),
        Err(npy::HeaderProblem::Damaged(problem)) => return Err(problem.into()),
    };
    let npy::Announced { spec, data_start, mut encoding } = header;
    let bytes = spec.host_bytes().map_err(|error| error.to_string())?;
    if data_start.checked_add(bytes) != Some(member.bytes) {
        return Err(format!(
            "it is {spec}, {bytes} bytes, but {} follow its header",
            member.bytes.saturating_sub(data_start)
        )
        .into());
    }
    let (range, checksum) = match member.compression {
        Compression::Stored => {
            let checksum = Crc32 { head: Bytes::copy_from_slice(&head[..data_start]), sum: member.crc32 };
            (member.stored.start + data_start..member.stored.end, Some(Box::new(Digest::Crc32(checksum))))
        }
        Compression::Deflated => {
            let content = (member.bytes, member.crc32);
            encoding.deflated = Some(Box::new(Deflated { skip: data_start, bytes, content }));
            (member.stored.clone(), None)
        }
    };
    let extents = Extents::One(Extent { file: 0, range });
    Ok(MemberContent::Array(Box::new(Tensor { name: String::new(), spec, extents, encoding, checksum })))
}

/// The tree with the texts beside its arrays, where there is a place for them.
fn with_texts(keys: KeyMap, texts: Vec<(String, String)>) -> KeyMap {
    let with = |keys: &KeyMap| -> Result<KeyMap> {
        let mut def = keys.def().clone();
        for (name, text) in &texts {
            let path = KeyPath::from_name(name);
            let alone = path.keys().iter().rev().try_fold(TreeDef::Str(text.clone()), |child, key| {
                let Key::Dict(key) = key else { return Ok(child) };
                TreeDef::dict([(key.clone(), child)])
            })?;
            def = def.merge(&alone)?;
        }
        let names: Vec<&str> = keys.leaves().iter().map(|leaf| leaf.name.as_str()).collect();
        Ok(KeyMap::place_record(def, Framework::Plain, &names)?.0)
    };
    if texts.is_empty() {
        return keys;
    }
    with(&keys).unwrap_or(keys)
}

/// Writes the arrays, stored, by their names on disk. The tree itself is only in the names.
pub(crate) fn write(leaves: &mut dyn Leaves, target: &Path, options: WriteOptions) -> Result<()> {
    let names = leaves.keys().leaves().iter().map(|leaf| leaf.name.as_str());
    let (read_back, _) = KeyMap::place_names_or_flat(&names.collect::<Vec<_>>())?;
    if let Some(difference) = leaves.keys().def().difference(read_back.def()) {
        leaves.note(format!(
            "npz files hold arrays and their names only; something of the tree is lost {difference}"
        ));
    }
    npy::note_types(leaves);
    let mut failed = None;
    write_atomically(target, options, |file| {
        // Told of a failure, the archive would try to end itself when it is dropped, and print that it cannot.
        let mut archive = ZipWriter::new(FirstFailure::new(file));
        (0..leaves.specs().len())
            .try_for_each(|index| write_entry(leaves, index, &mut archive, &mut failed))?;
        archive.finish().map_err(std::io::Error::other)?.finish()
    })
    .map_err(|error| failed.take().unwrap_or(error))
}

/// Writes one array; a failure that is not one of writing goes to `failed`.
fn write_entry<W: Write + Seek>(
    leaves: &mut dyn Leaves,
    index: usize,
    archive: &mut ZipWriter<W>,
    failed: &mut Option<Error>,
) -> std::io::Result<()> {
    let (name, header) = (leaves.name(index).to_owned(), npy::header_of(&leaves.specs()[index])?);
    let mut written = Ok(());
    let read = leaves.with_bytes(index, &mut |bytes| {
        // Entries over 4 GB need the larger form of the archive.
        let large = bytes.len() as u64 >= u64::from(u32::MAX) - npy::HEADER_BYTES as u64;
        let entry =
            SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(large);
        let start = archive.start_file(format!("{name}{ENDING}"), entry).map_err(std::io::Error::other);
        written = start.and_then(|()| archive.write_all(&header)).and_then(|()| archive.write_all(bytes));
        Ok(())
    });
    match read {
        Ok(()) => written,
        Err(error) => {
            *failed = Some(error);
            Err(std::io::Error::other("a tensor could not be read"))
        }
    }
}
