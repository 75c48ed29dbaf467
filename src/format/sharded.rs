//! Checkpoints in several files with an index that says which tensor is in which, as the hub has them: of safetensors
//! files or of Flax's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::checkpoint::{Checkpoint, Extent, Extents, Format, Tensor};
use super::folder::names_in;
use super::open::starts_with_all;
use super::{msgpack, safetensors};
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::printable::{Line, Name};
use crate::store::{Blob, FileBlob, SharedBlob, check_replaceable};
use crate::tree::record;

/// The key of an index that says which tensor is in which file.
const MAP_KEY: &str = "weight_map";

/// The longest index, in bytes: as long as the longest header of one file.
const MAX_INDEX_BYTES: usize = 100_000_000;

/// What the name of a safetensors checkpoint ends with.
pub(crate) const ENDING: &str = ".safetensors";

/// What the name of an index of safetensors files ends with.
const INDEX_ENDING: &str = ".safetensors.index.json";

/// What the name of an index of Flax's files ends with.
const FLAX_INDEX_ENDING: &str = ".msgpack.index.json";

/// An index, as the hub's libraries write it.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
    #[serde(default)]
    metadata: BTreeMap<String, serde_json::Value>,
}

/// Whether bytes are an index.
pub(super) fn is_index(data: &[u8]) -> bool {
    data.first() == Some(&b'{')
        // A safetensors file begins with a length, whose high bytes are zero.
        && data.get(4..8).is_none_or(|high| high != [0; 4])
        && starts_with_all(data, &[b"\"weight_map\""])
}

/// The index of a checkpoint that is a directory; `None` where there is none.
///
/// # Errors
/// [`Error::Malformed`] when there are several, or one file of all as well.
pub(super) fn index_in(directory: &Path) -> Result<Option<PathBuf>> {
    let names = names_in(directory)?;
    let malformed =
        |problem| Error::Malformed { origin: directory.display().to_string(), format: "checkpoint", problem };
    for ending in [INDEX_ENDING, FLAX_INDEX_ENDING] {
        let found: Vec<&String> = names.iter().filter(|name| name.ends_with(ending)).collect();
        match &found[..] {
            [] => {}
            [index] => {
                let whole =
                    index.strip_suffix(".index.json").filter(|whole| names.iter().any(|n| n == whole));
                return match whole {
                    Some(whole) => Err(malformed(format!(
                        "it is a directory with two checkpoints, {whole} and {index}; give one of them"
                    ))),
                    None => Ok(Some(directory.join(index))),
                };
            }
            [first, ..] => {
                return Err(malformed(format!(
                    "it is a directory with {} indices; give one of them, such as {first}",
                    found.len()
                )));
            }
        }
    }
    Ok(None)
}

/// The index of the checkpoint of this name, where there is no one file of it: `STEM.safetensors.index.json` for
/// `STEM.safetensors`.
pub(super) fn index_in_place_of(path: &Path) -> Option<PathBuf> {
    index_of(path).filter(|index| !path.exists() && index.exists())
}

/// What the index of a safetensors checkpoint of this name is called; `None` for another name.
pub(crate) fn index_of(path: &Path) -> Option<PathBuf> {
    Some(path.with_file_name(format!("{}{INDEX_ENDING}", stem_of(path)?)))
}

/// How many digits the numbers in the names of shards have, as the hub has them.
pub(crate) const SHARD_DIGITS: usize = 5;

/// What the files of a safetensors checkpoint of this name are called where there are so many, with numbers of so many digits:
/// `STEM-00001-of-00003.safetensors` for `STEM.safetensors`; `None` for another name.
pub(crate) fn shard_paths(path: &Path, count: usize, digits: usize) -> Option<Vec<PathBuf>> {
    let stem = stem_of(path)?;
    let name = |n: usize| format!("{stem}-{n:0digits$}-of-{count:0digits$}{ENDING}");
    Some((1..=count).map(|n| path.with_file_name(name(n))).collect())
}

/// The name of a safetensors checkpoint without its ending; `None` for another name.
fn stem_of(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()?.strip_suffix(ENDING)
}

/// The index of the checkpoint that a file is one of several of; `None` for a file by itself. The files are named
/// `STEM-00001-of-00003.safetensors`, and the index beside them `STEM.safetensors.index.json`.
pub(super) fn index_of_shard(path: &Path) -> Option<PathBuf> {
    let (index, count) = index_by_name(path)?;
    let name = path.file_name()?.to_str()?;
    let is_listed = files_of(&index).ok().flatten().is_some_and(|files| files.contains(name));
    if !is_listed && count > 1 {
        let index = index.file_name().unwrap_or_default().to_string_lossy();
        tracing::warn!(
            "{} is named as one of {count} files, and no {} beside it lists it: it is read by itself",
            Line(&path.display().to_string()),
            Name(&index)
        );
    }
    is_listed.then_some(index)
}

/// The index that a file's name asks for, and the number of files that it tells.
fn index_by_name(path: &Path) -> Option<(PathBuf, u64)> {
    let name = path.file_name()?.to_str()?;
    let extension = path.extension()?.to_str()?;
    let stem = name.strip_suffix(extension)?.strip_suffix('.')?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(count) || !is_number(number) {
        return None;
    }
    Some((path.with_file_name(format!("{stem}.{extension}.index.json")), count.parse().ok()?))
}

/// The files that an index lists; `None` where what is there is no index.
///
/// # Errors
/// The system's.
fn files_of(index: &Path) -> std::io::Result<Option<BTreeSet<String>>> {
    let mut bytes = Vec::new();
    File::open(index)?.take(MAX_INDEX_BYTES as u64).read_to_end(&mut bytes)?;
    // One that is longer is cut, and so is no index here either.
    let index: Option<Index> = serde_json::from_slice(&bytes).ok();
    Ok(index.map(|index| index.weight_map.into_values().collect()))
}

/// The files beside an index that it lists and that are named after it; none where there is no index.
///
/// # Errors
/// [`Error::Io`] when it cannot be read.
pub(crate) fn shards_of(index: &Path) -> Result<Vec<PathBuf>> {
    // A pipe would be waited for.
    check_replaceable(index)?;
    let files = match files_of(index) {
        Ok(files) => files.unwrap_or_default(),
        Err(error) if is_nothing(&error) => BTreeSet::new(),
        Err(error) => return Err(Error::io("read", index, error)),
    };
    let files = files.into_iter().filter(|file| is_name(file)).map(|file| index.with_file_name(file));
    Ok(files.filter(|file| index_by_name(file).is_some_and(|(of_name, _)| of_name == index)).collect())
}

/// Whether an error is that there is no such file: also where there can be none of such a name.
fn is_nothing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidFilename, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | InvalidFilename | NotADirectory)
}

/// Whether this is the name of a file in the same directory.
fn is_name(file: &str) -> bool {
    let mut components = Path::new(file).components();
    let is_normal = matches!(components.next(), Some(std::path::Component::Normal(_)));
    is_normal && components.next().is_none() && !file.contains('/')
}

/// Opens the files that an index lists.
///
/// # Errors
/// [`Error::Malformed`] for an index that cannot be read, a tensor that is not where the index says, and one that is there
/// twice; [`Error::Io`] for a file that is missing.
pub(super) fn open(path: &Path, blob: &dyn Blob, limits: Limits) -> Result<Checkpoint> {
    let origin = blob.origin().to_owned();
    let malformed = |problem: String| Error::Malformed {
        origin: origin.clone(),
        format: "index of a checkpoint in several files",
        problem,
    };
    if blob.size() > MAX_INDEX_BYTES {
        return Err(malformed(format!("it has {} bytes, over the limit of {MAX_INDEX_BYTES}", blob.size())));
    }
    let index: Index =
        serde_json::from_slice(&blob.read(0..blob.size())?).map_err(|error| malformed(error.to_string()))?;
    let files: BTreeSet<String> = index.weight_map.values().cloned().collect();
    let files: Vec<String> = files.into_iter().collect();
    for file in &files {
        // The files are beside the index, and nowhere else.
        if !is_name(file) {
            return Err(malformed(format!("`{}` is not the name of a file beside it", Name(file))));
        }
    }
    let all_end_with = |ending: &str| files.iter().all(|file| file.ends_with(ending));
    if files.is_empty() {
        return Err(malformed(format!("its `{MAP_KEY}` lists no tensors")));
    }
    let paths: Vec<PathBuf> = files.iter().map(|file| path.with_file_name(file)).collect();
    if all_end_with(".msgpack") {
        let blobs = paths.iter().map(|path| FileBlob::open(path)).collect::<Result<Vec<SharedBlob>>>()?;
        let checkpoint = msgpack::open(&origin, blobs, limits)?;
        for name in index.weight_map.keys() {
            let name = name.replace('/', ".");
            if checkpoint.tensor(&name).is_err() {
                return Err(malformed(format!("the tensor `{}` is in none of its files", Name(&name))));
            }
        }
        return Ok(checkpoint);
    }
    if !all_end_with(ENDING) {
        return Err(malformed(
            "its files are not all .safetensors or all .msgpack; convert those of PyTorch one by one".into(),
        ));
    }
    let shards = open_side_by_side(&paths)?;
    // Names can come back: what was opened is of this index only if that is there still.
    if blob.as_file().is_some_and(|file| !file.is_still_at(path)) {
        return Err(Error::io("open", path, replaced()));
    }
    join(&origin, &files, shards, index).map_err(malformed)
}

/// What a checkpoint that is replaced while it is opened gives.
fn replaced() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::StaleNetworkFileHandle, "it was replaced while it was opened")
}

/// Whether opening a checkpoint failed since it was replaced meanwhile: a file of it is gone, or its index is another.
pub(super) fn was_replaced(path: &Path, error: &Error) -> bool {
    use std::io::ErrorKind::{NotFound, StaleNetworkFileHandle};
    match error {
        Error::Io { source, .. } if source.kind() == StaleNetworkFileHandle => true,
        Error::Io { path: gone, source, .. } => source.kind() == NotFound && gone != path,
        _ => false,
    }
}

/// Refuses to write to a file that is one of several of a checkpoint, or their index: it would be a part of it no more.
///
/// # Errors
/// [`Error::InvalidArgument`], with the name that stands for the whole.
pub(crate) fn check_whole(target: &Path) -> Result<()> {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let index = match index_by_name(target) {
        _ if name.ends_with(".index.json") => Some(target.to_owned()),
        Some((index, _)) => Some(index),
        None => None,
    };
    let Some(index) = index else { return Ok(()) };
    let Ok(Some(files)) = files_of(&index) else { return Ok(()) };
    if index != target && !files.contains(&*name) {
        return Ok(());
    }
    let whole = index.display().to_string();
    let whole = whole.strip_suffix(".index.json").unwrap_or(&whole);
    Err(Error::InvalidArgument(format!(
        "{} is a part of a checkpoint in several files; to replace that, give its name: {}",
        Line(&target.display().to_string()),
        Line(whole)
    )))
}

/// Files that are opened at the same time: on a network, each waits for an answer.
const OPENED_AT_ONCE: usize = 16;

/// Opens safetensors files.
fn open_side_by_side(paths: &[PathBuf]) -> Result<Vec<Checkpoint>> {
    let mut shards = Vec::with_capacity(paths.len());
    for paths in paths.chunks(OPENED_AT_ONCE) {
        let opened: Vec<Result<Checkpoint>> = std::thread::scope(|scope| {
            let open = |path: &PathBuf| FileBlob::open(path).and_then(safetensors::parse);
            let threads: Vec<_> = paths.iter().map(|path| scope.spawn(move || open(path))).collect();
            let results = threads.into_iter().zip(paths);
            results
                .map(|(thread, path)| {
                    thread.join().unwrap_or_else(|_| {
                        Err(Error::io(
                            "open",
                            path,
                            std::io::Error::other("the thread that opened it panicked"),
                        ))
                    })
                })
                .collect()
        });
        for shard in opened {
            shards.push(shard?);
        }
    }
    Ok(shards)
}

/// Joins shards to one checkpoint, and holds them against their index.
fn join(origin: &str, files: &[String], shards: Vec<Checkpoint>, index: Index) -> Result<Checkpoint, String> {
    let mut place: HashMap<String, usize> = HashMap::new();
    let (mut blobs, mut tensors, mut digest_records) = (Vec::new(), Vec::new(), Vec::new());
    // What the index itself records comes before what its files do.
    let strings =
        index.metadata.into_iter().filter_map(|(key, value)| Some((key, value.as_str()?.to_owned())));
    let mut metadata: BTreeMap<String, String> = strings.collect();
    let first = shards.first().and_then(|shard| shard.metadata.get(record::TREE_KEY)).cloned();
    // A file that was written by itself records its own part of the tree.
    let has_one_tree = shards.iter().all(|shard| shard.metadata.get(record::TREE_KEY) == first.as_ref());
    for (file, shard) in shards.into_iter().enumerate() {
        for tensor in shard.tensors {
            if let Some(other) = place.insert(tensor.name.clone(), file) {
                return Err(format!(
                    "the tensor `{}` is there twice, in {} and in {}",
                    Name(&tensor.name),
                    files[other],
                    files[file]
                ));
            }
            let extents = tensor.extents.as_slice().iter();
            let extents =
                extents.map(|extent| Extent { file, range: extent.range.clone() }).collect::<Vec<_>>();
            tensors.push(Tensor { extents: Extents::from(extents), ..tensor });
        }
        blobs.extend(shard.blobs);
        digest_records.extend(shard.digest_records);
        for (key, value) in shard.metadata {
            if !has_one_tree && key == record::TREE_KEY {
                continue;
            }
            let kept = metadata.entry(key.clone()).or_insert_with(|| value.clone());
            if *kept != value && key != safetensors::DIGEST_KEY {
                tracing::warn!(
                    "the files say different things of `{}`; what {} says is left out",
                    Name(&key),
                    files[file]
                );
            }
        }
    }
    metadata.remove(safetensors::DIGEST_KEY);
    for (name, file) in &index.weight_map {
        let problem = match place.get(name) {
            Some(&found) if files[found] == *file => continue,
            Some(&found) => format!("the tensor `{}` is not in {file} but in {}", Name(name), files[found]),
            None => format!("the tensor `{}` is not in {file}, nor in another of its files", Name(name)),
        };
        return Err(problem);
    }
    let unlisted: Vec<&String> = place.keys().filter(|name| !index.weight_map.contains_key(*name)).collect();
    if let Some(first) = unlisted.iter().min() {
        let count = unlisted.len();
        tracing::warn!(
            "{count} tensors, such as `{}`, are in its files and not in the index {origin}",
            Name(first)
        );
    }
    let mut checkpoint = Checkpoint::new(origin, Format::Safetensors, blobs, tensors);
    checkpoint.metadata = metadata;
    checkpoint.digest_records = digest_records;
    Ok(checkpoint)
}
