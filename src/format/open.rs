//! Which format a file has, by its content, and by its name where the content does not say.

use std::path::Path;

use super::archive::Archive;
use super::checkpoint::{Checkpoint, Format};
use super::{compressed, foreign, msgpack, npy, npz, pickle, pytorch, safetensors, sharded};
use crate::error::{Context, Error, Result};
use crate::limits::Limits;
use crate::store::{FileBlob, MemoryBlob, SharedBlob};

/// Opens a checkpoint of any format.
///
/// # Errors
/// As for [`Checkpoint::open`].
pub(super) fn open(path: &Path, limits: Limits) -> Result<Checkpoint> {
    let checkpoint = open_unchecked(path, limits)?;
    // Tensors may share what is stored, or repeat it.
    let expanded = checkpoint.tensors().iter().try_fold(0u64, |sum, tensor| {
        Ok::<_, Error>(sum.saturating_add(tensor.spec.packed_bytes().for_tensor(&tensor.name)? as u64))
    })?;
    limits.check_expansion(checkpoint.file_bytes() as u64, expanded).map_err(|problem| Error::Malformed {
        origin: checkpoint.origin().to_owned(),
        format: "checkpoint",
        problem,
    })?;
    Ok(checkpoint)
}

fn open_unchecked(path: &Path, limits: Limits) -> Result<Checkpoint> {
    if path.is_dir()
        && let Some(index) = sharded::index_in(path)?
    {
        return open_unchecked(&index, limits);
    }
    if let Some(index) = sharded::index_of_shard(path) {
        tracing::info!(index = %index.display(), "the file is one of several");
        return open_unchecked(&index, limits);
    }
    if let Some(index) = sharded::index_in_place_of(path) {
        return open_unchecked(&index, limits);
    }
    let blob = open_blob(path)?;
    let head = blob.head(SEARCHED_BYTES)?;
    if sharded::is_index(&head) {
        return sharded::open(path, &blob.read(0..blob.size())?, limits);
    }
    let origin = blob.origin().to_owned();
    let malformed =
        |problem: String| Error::Malformed { origin: origin.clone(), format: "checkpoint", problem };
    if let Some(problem) = pytorch::refusal(&head) {
        return Err(malformed(problem.into()));
    }
    match detect(&head).or_else(|| of_name(path, &head)) {
        Some(Format::Npy) => npy::open(blob),
        Some(Format::Npz | Format::PyTorch) => {
            let archive = Archive::open(blob)?;
            match pytorch::root(&archive) {
                Some(root) => pytorch::open(archive, &root, limits),
                None => npz::open(archive, limits),
            }
        }
        Some(Format::Msgpack) => msgpack::open(&origin, vec![blob], limits),
        Some(Format::Pickle) => match compressed::expand(&head, &blob, limits) {
            Some(expanded) => {
                let expanded = expanded.map_err(|problem| problem.into_error(&origin, "checkpoint"))?;
                pickle::open(MemoryBlob::shared(&origin, expanded), limits)
            }
            None => pickle::open(blob, limits),
        },
        Some(Format::Safetensors) | None => safetensors::parse(blob).map_err(|error| match error {
            Error::Malformed { origin, format, problem } => match foreign::file_name(path) {
                Some(problem) => Error::Malformed { origin, format: "checkpoint", problem },
                None => Error::Malformed { origin, format, problem },
            },
            other => other,
        }),
    }
}

/// Opens a file, and says of a directory what it is.
///
/// # Errors
/// [`Error::Io`]; [`Error::Malformed`] for a directory.
pub(crate) fn open_blob(path: &Path) -> Result<SharedBlob> {
    if path.is_dir() {
        let (origin, problem) = (path.display().to_string(), foreign::directory(path));
        return Err(Error::Malformed { origin, format: "checkpoint", problem });
    }
    FileBlob::open(path)
}

/// The format of a file, without reading more of it than is needed; `None` for none that holds arrays.
///
/// # Errors
/// [`Error::Io`] when it cannot be opened; [`Error::Malformed`] when it is of a known kind that is not read.
pub fn sniff(path: impl AsRef<Path>) -> Result<Option<Format>> {
    let path = path.as_ref();
    if path.is_dir()
        && let Some(index) = sharded::index_in(path)?
    {
        return sniff(index);
    }
    if let Some(index) = sharded::index_in_place_of(path) {
        return sniff(index);
    }
    let blob = open_blob(path)?;
    let head = blob.head(SEARCHED_BYTES)?;
    if sharded::is_index(&head) {
        let is_flax = starts_with_all(&head, &[b".msgpack\""]);
        return Ok(Some(if is_flax { Format::Msgpack } else { Format::Safetensors }));
    }
    match detect(&head).or_else(|| of_name(path, &head)) {
        Some(Format::Npz) if Archive::open(blob).is_ok_and(|zip| pytorch::root(&zip).is_some()) => {
            Ok(Some(Format::PyTorch))
        }
        Some(format) => Ok(Some(format)),
        None => match foreign::file(&head).or_else(|| foreign::file_name(path)) {
            Some(problem) => {
                Err(Error::Malformed { origin: path.display().to_string(), format: "checkpoint", problem })
            }
            None => Ok(None),
        },
    }
}

/// The format of a file that begins so; of a zip archive, npz. What begins like nothing can still be a damaged safetensors
/// file.
fn detect(head: &[u8]) -> Option<Format> {
    if head.starts_with(npy::MAGIC) {
        return Some(Format::Npy);
    }
    // A zip archive begins with its first entry, or, when empty, with its end.
    if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
        return Some(Format::Npz);
    }
    // A safetensors file begins with a length below 100 MB, so that bytes 4 to 7 are zero and byte 8 is `{`.
    let is_safetensors = head.get(4..8).is_some_and(|high| high == [0; 4]) && head.get(8) == Some(&b'{');
    if is_safetensors {
        return Some(Format::Safetensors);
    }
    if begins_with_map(head) && !head.starts_with(foreign::HDF5) {
        // A pickle of protocol 2 and later begins like an empty map of msgpack, which would end there.
        let is_pickle = pickle::begins_with_pickle(head);
        return Some(if is_pickle { Format::Pickle } else { Format::Msgpack });
    }
    let is_pickle = pickle::begins_with_pickle(head)
        || compressed::start(head).is_some_and(|start| pickle::begins_with_pickle(&start));
    is_pickle.then_some(Format::Pickle)
}

/// Whether bytes begin with a map of msgpack, as every Flax file does.
fn begins_with_map(head: &[u8]) -> bool {
    // fixmap, map 16, map 32
    head.first().is_some_and(|&byte| (0x80..=0x8f).contains(&byte) || byte == 0xde || byte == 0xdf)
}

/// The format that a file's name ends like, of one whose content says nothing.
fn of_name(path: &Path, head: &[u8]) -> Option<Format> {
    if foreign::file(head).is_some() {
        return None;
    }
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "npy" => Some(Format::Npy),
        "npz" => Some(Format::Npz),
        "msgpack" => Some(Format::Msgpack),
        "pkl" | "pickle" | "joblib" => Some(Format::Pickle),
        _ => None,
    }
}

/// The beginning of a file that tells its format, in bytes.
pub(super) const SEARCHED_BYTES: usize = 1 << 16;

/// Whether all of these texts are in the beginning of a file.
pub(super) fn starts_with_all(head: &[u8], texts: &[&[u8]]) -> bool {
    texts.iter().all(|text| head.windows(text.len()).any(|window| window == *text))
}
