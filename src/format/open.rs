//! Which format a file has, by its content, and by its name where the content does not say.

use std::path::Path;

use super::archive::Archive;
use super::checkpoint::{Checkpoint, Format};
use super::{
    arrow, compressed, equinox, foreign, gguf, hdf5, keras, msgpack, npy, npz, onnx, orbax, pickle, pytorch,
    safetensors, sharded, tensorflow,
};
use crate::error::{Context, Error, Result};
use crate::limits::Limits;
use crate::store::{FileBlob, MemoryBlob, SharedBlob};

/// Opens a checkpoint of any format.
///
/// # Errors
/// As for [`Checkpoint::open`].
pub(super) fn open(path: &Path, limits: Limits) -> Result<Checkpoint> {
    let checkpoint = open_as_it_is(path, limits)?;
    // Tensors may share what is stored, or repeat it.
    let expanded = checkpoint.tensors().iter().try_fold(0u64, |sum, tensor| {
        Ok::<_, Error>(sum.saturating_add(tensor.decoded_bytes().for_tensor(&tensor.name)? as u64))
    })?;
    limits.check_expansion(checkpoint.file_bytes() as u64, expanded).map_err(|problem| Error::Malformed {
        origin: checkpoint.origin().to_owned(),
        format: "checkpoint",
        problem,
    })?;
    Ok(checkpoint)
}

/// How often a checkpoint in several files is opened whose files go while it is: one that others replace all the time.
const ATTEMPTS: usize = 4;

/// Opens a checkpoint, or the new one that has replaced it meanwhile.
fn open_as_it_is(path: &Path, limits: Limits) -> Result<Checkpoint> {
    for _ in 1..ATTEMPTS {
        match open_unchecked(path, limits) {
            Err(error) if sharded::was_replaced(path, &error) => {
                tracing::debug!(%error, "opening the checkpoint again")
            }
            opened => return opened,
        }
    }
    open_unchecked(path, limits)
}

fn open_unchecked(path: &Path, limits: Limits) -> Result<Checkpoint> {
    if path.is_dir()
        && let Some(index) = sharded::index_in(path)?
    {
        return open_unchecked(&index, limits);
    }
    if let Some(item) = orbax::item_at(path)? {
        return orbax::open(&item, limits);
    }
    if let Some(place) = tensorflow::place_of(path)? {
        return tensorflow::open(&place, limits);
    }
    if let Some(index) = sharded::index_of_shard(path) {
        tracing::info!(index = %index.display(), "the file is one of several");
        return open_unchecked(&index, limits);
    }
    if let Some(index) = sharded::index_in_place_of(path) {
        return open_unchecked(&index, limits);
    }
    open_content(path, open_blob(path)?, limits)
}

/// Opens what a file of this name holds.
fn open_content(path: &Path, blob: SharedBlob, limits: Limits) -> Result<Checkpoint> {
    let head = blob.head(SEARCHED_BYTES)?;
    if sharded::is_index(&head) {
        return sharded::open(path, &*blob, limits);
    }
    let origin = blob.origin().to_owned();
    match format_of(path, &blob, &head)? {
        Some(Format::Npy) => npy::open(blob),
        Some(Format::Equinox) => equinox::open(blob, limits),
        Some(Format::Hdf5) => hdf5::open(blob, limits),
        Some(Format::Gguf) => gguf::open(blob, limits),
        Some(Format::Arrow) => arrow::open(blob, limits),
        Some(Format::Onnx) => onnx::open(path, blob, limits),
        Some(Format::PyTorch) => pytorch::open_legacy(blob, limits),
        Some(Format::Npz | Format::Keras) => {
            let archive = Archive::open(blob)?;
            match (pytorch::root(&archive), keras::is_keras(&archive)) {
                (Some(root), _) => pytorch::open(archive, &root, limits),
                (None, true) => keras::open(archive, limits),
                (None, false) => npz::open(archive, limits),
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
        // A directory is no file.
        Some(Format::Safetensors | Format::Orbax | Format::TensorFlow) | None => safetensors::parse(blob)
            .map_err(|error| match error {
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
    if !path.exists()
        && let Some(error) = orbax::missing_step(path)
    {
        return Err(error);
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
    if orbax::item_at(path)?.is_some() {
        return Ok(Some(Format::Orbax));
    }
    if tensorflow::place_of(path)?.is_some() {
        return Ok(Some(Format::TensorFlow));
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
    match format_of(path, &blob, &head)? {
        Some(Format::Npz) => Ok(Some(match Archive::open(blob) {
            Ok(archive) if pytorch::root(&archive).is_some() => Format::PyTorch,
            Ok(archive) if keras::is_keras(&archive) => Format::Keras,
            _ => Format::Npz,
        })),
        Some(format) => Ok(Some(format)),
        None => match foreign::file(&head).or_else(|| foreign::file_name(path)) {
            Some(problem) => {
                Err(Error::Malformed { origin: path.display().to_string(), format: "checkpoint", problem })
            }
            None => Ok(None),
        },
    }
}

/// The format of a file; of a zip archive, npz.
///
/// # Errors
/// When it cannot be read.
fn format_of(path: &Path, blob: &SharedBlob, head: &[u8]) -> Result<Option<Format>> {
    if equinox::is_equinox(path, &**blob, head)? {
        return Ok(Some(Format::Equinox));
    }
    Ok(detect(head).or_else(|| of_name(path, head)))
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
    if hdf5::begins(head) {
        return Some(Format::Hdf5);
    }
    if head.starts_with(gguf::MAGIC) {
        return Some(Format::Gguf);
    }
    if arrow::begins(head) {
        return Some(Format::Arrow);
    }
    if pytorch::begins_legacy(head) {
        return Some(Format::PyTorch);
    }
    if begins_with_map(head) {
        // A pickle of protocol 2 and later begins like an empty map of msgpack, which would end there.
        let is_pickle = pickle::begins_with_pickle(head);
        return Some(if is_pickle { Format::Pickle } else { Format::Msgpack });
    }
    let is_pickle = pickle::begins_with_pickle(head)
        || compressed::start(head).is_some_and(|start| pickle::begins_with_pickle(&start));
    is_pickle.then_some(Format::Pickle)
}

/// Whether bytes begin with a map of msgpack, as every Flax file does.
pub(super) fn begins_with_map(head: &[u8]) -> bool {
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
        onnx::ENDING => Some(Format::Onnx),
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

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;

    use super::*;
    use crate::error::Blame;
    use crate::store::{Blob, cut_off};

    /// A file that something happens to while it is opened.
    #[derive(Debug)]
    struct Restless {
        content: Vec<u8>,
        /// Where it ends after the first reads.
        end: usize,
        /// Reads that go well.
        reads: usize,
        count: AtomicUsize,
        event: Event,
    }

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Event {
        /// It is cut off at its end.
        Cut,
        /// What comes after its end is written over.
        Overwritten,
        /// Its disk breaks.
        Broken,
    }

    impl Blob for Restless {
        fn origin(&self) -> &str {
            "restless"
        }

        fn size(&self) -> usize {
            self.content.len()
        }

        fn read_at(&self, mut offset: usize, parts: &mut [&mut [u8]]) -> Result<()> {
            let has_happened = self.count.fetch_add(1, Ordering::Relaxed) >= self.reads;
            for part in parts {
                let range = offset..offset + part.len();
                match self.event {
                    Event::Cut if has_happened && range.end > self.end => {
                        return Err(cut_off("restless", self.end));
                    }
                    Event::Broken if has_happened => {
                        return Err(Error::io("read", "restless", std::io::Error::other("broken")));
                    }
                    _ => part.copy_from_slice(&self.content[range]),
                }
                if has_happened && self.event == Event::Overwritten {
                    let kept = self.end.saturating_sub(offset).min(part.len());
                    part[kept..].iter_mut().for_each(|byte| *byte = byte.wrapping_mul(31) ^ 0x5a);
                }
                offset += part.len();
            }
            Ok(())
        }

        fn map(&self) -> Option<&Bytes> {
            None
        }

        fn has_changed(&self) -> bool {
            true
        }

        fn is_waited_for(&self, _: &[Range<usize>]) -> bool {
            true
        }

        fn is_remote(&self) -> bool {
            true
        }
    }

    const FILES: [&str; 8] = [
        "shared.safetensors",
        "orders/stored.npz",
        "orders/deflated.npz",
        "orders/big_fortran.npy",
        "pickles/haiku.pkl",
        "shared.pickle2",
        "pytorch/state_dict.pt",
        "pytorch/deflated.pt",
    ];

    fn open_restless(content: &[u8], end: usize, reads: usize, event: Event) -> Result<Checkpoint> {
        let count = AtomicUsize::new(0);
        let blob = Arc::new(Restless { content: content.to_vec(), end, reads, count, event });
        open_content(Path::new("restless"), blob, Limits::default())
    }

    /// What Flax writes of so many arrays of 4000 bytes.
    fn msgpack_of_arrays(count: u8) -> Vec<u8> {
        let array = [&[0x93, 0x91, 0xcd, 0x03, 0xe8, 0xa7], &b"float32"[..], &[0xc5, 0x0f, 0xa0], &[7; 4000]];
        let array = array.concat();
        let mut file = vec![0xde, 0, count];
        for index in 0..count {
            file.extend(format!("\u{a3}{index:03}").chars().map(|c| c as u8));
            file.extend([0xc8, (array.len() >> 8) as u8, array.len() as u8, 1]);
            file.extend(&array);
        }
        file
    }

    #[test]
    fn what_happens_to_a_file_while_its_header_is_read_is_an_error_or_no_matter() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let files = FILES.map(|name| (name, std::fs::read(directory.join(name)).unwrap()));
        let msgpack = cfg!(feature = "msgpack").then(|| ("msgpack", msgpack_of_arrays(100)));
        for (name, content) in files.into_iter().chain(msgpack) {
            let whole = open_restless(&content, content.len(), usize::MAX, Event::Cut).unwrap();
            let mut failures = [0, 0, 0];
            for (kind, event) in [Event::Cut, Event::Overwritten, Event::Broken].into_iter().enumerate() {
                for reads in 0..8 {
                    for end in (0..content.len()).step_by(content.len().div_ceil(50)) {
                        let Err(error) = open_restless(&content, end, reads, event).map(|opened| {
                            let is_same = opened.tensors() == whole.tensors();
                            assert!(is_same || event == Event::Overwritten, "{name} {event:?} {end} {reads}");
                        }) else {
                            continue;
                        };
                        failures[kind] += 1;
                        let blame = if event == Event::Broken { Blame::System } else { Blame::File };
                        assert_eq!(error.blame(), blame, "{name} {event:?} {end} {reads}: {error}");
                        assert!(error.to_string().contains("restless"), "{name}: {error}");
                    }
                }
            }
            assert!(failures.iter().all(|count| *count > 0), "{name}: {failures:?}");
        }
    }
}
