//! Where in a directory of Orbax's the arrays are: it can be that of all steps, of one step, or of one item of a step.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{DATA, METADATA, PROCESS, flax};
use crate::error::{Error, Result};
use crate::format::{ocdbt, zarr};

/// The files that only Orbax's directories have.
const MARKS: [&str; 3] = ["_CHECKPOINT_METADATA", "commit_success.txt", "orbax.checkpoint"];

/// What items are called where nobody gave them names.
const ITEMS: [&str; 3] = ["default", "state", "pytree"];

/// What an item that has no arrays has.
const JSON: &str = "metadata";

/// Files of an item or a step, which stand for the directory that they are in.
const FILES: [&str; 6] =
    [METADATA, ocdbt::MANIFEST, "_CHECKPOINT_METADATA", "_sharding", "_strings.json", "commit_success.txt"];

/// The directory that a file of an item or a step stands for.
pub fn directory_of(file: &Path) -> Option<&Path> {
    let name = file.file_name()?.to_str()?;
    let is_one = FILES.contains(&name) && file.is_file();
    file.parent().filter(|_| is_one)
}

/// What is in the names of directories that are not finished.
const UNFINISHED: &str = ".orbax-checkpoint-tmp";

/// The directory of the arrays in a directory that Orbax wrote: of the newest step, where it has several. `None` for another directory.
///
/// # Errors
/// [`Error::Malformed`] where there are several that can be meant, or none; [`Error::Io`].
pub fn item_of(directory: &Path) -> Result<Option<PathBuf>> {
    if is_unfinished(directory) {
        return Err(malformed(directory, "it is a checkpoint of Orbax that was never finished".into()));
    }
    if is_item(directory) {
        return Ok(Some(directory.to_owned()));
    }
    let names = directories(directory)?;
    if let Some(item) = only_item(directory, &names)? {
        return Ok(Some(item));
    }
    if let Some((step, name)) = newest(&names) {
        let path = directory.join(name);
        let item = if is_item(&path) { Some(path.clone()) } else { only_item(&path, &directories(&path)?)? };
        if let Some(item) = item {
            tracing::debug!(step, item = %item.display(), "the newest step");
            return Ok(Some(item));
        }
        if is_marked(&path) {
            return Err(malformed(&path, "it is a step of a checkpoint of Orbax without arrays".into()));
        }
    }
    if directory.join(JSON).is_file() && is_marked(directory) {
        return Err(malformed(directory, format!("it has JSON, in `{JSON}`, and there are no arrays in it")));
    }
    if is_marked(directory) {
        return Err(malformed(
            directory,
            "it is a directory that Orbax wrote, and there are no arrays in it".into(),
        ));
    }
    if let Some(whole) = directory.parent().filter(|_| is_part(directory)).filter(|parent| is_item(parent)) {
        return Err(malformed(
            directory,
            format!("it is a part of the checkpoint {}; give that", whole.display()),
        ));
    }
    if has_unfinished(directory) {
        return Err(malformed(
            directory,
            "it has a checkpoint of Orbax that was never finished, and no other".into(),
        ));
    }
    Ok(None)
}

/// The directory of the arrays of a step, or of an item, of a checkpoint of Orbax: for [`crate::Checkpoint::open`]. What is not said is
/// the newest finished step, and the item that has a usual name (`default`, `state`) or is the only one with arrays.
///
/// # Errors
/// [`Error::NotFound`] for a step or item that is not there, with those that are; [`Error::Malformed`] for another directory, and where
/// several items can be meant; [`Error::Io`].
pub fn orbax_item(directory: impl AsRef<Path>, step: Option<u64>, item: Option<&str>) -> Result<PathBuf> {
    let mut directory = directory.as_ref().to_owned();
    if let Some(step) = step {
        let names = directories(&directory)?;
        let name = names.iter().find(|name| step_of(name) == Some(step)).ok_or_else(|| {
            let steps: BTreeSet<u64> = names.iter().filter_map(|name| step_of(name)).collect();
            let steps: Vec<String> = steps.iter().map(u64::to_string).collect();
            Error::not_found("step", &step.to_string(), steps.iter().map(String::as_str))
        })?;
        directory.push(name);
    }
    if let Some(item) = item {
        // Of the newest step, where it is a directory of steps.
        let names = directories(&directory)?;
        let is_here = names.iter().any(|name| name == item);
        if !is_here && let Some((_, step)) = newest(&names) {
            directory.push(step);
        }
        let names = directories(&directory)?;
        if !names.iter().any(|name| name == item) {
            return Err(Error::not_found("item", item, names.iter().map(String::as_str)));
        }
        directory.push(item);
    }
    let problem = || malformed(&directory, "it is no directory of Orbax's with arrays".into());
    item_of(&directory)?.ok_or_else(problem)
}

/// The step with the largest number.
fn newest(names: &[String]) -> Option<(u64, &String)> {
    names.iter().filter_map(|name| Some((step_of(name)?, name))).max()
}

fn malformed(directory: &Path, problem: String) -> Error {
    Error::Malformed { origin: directory.display().to_string(), format: super::FORMAT, problem }
}

fn is_marked(directory: &Path) -> bool {
    MARKS.iter().any(|mark| directory.join(mark).is_file())
}

/// Whether the arrays themselves are in a directory.
fn is_item(directory: &Path) -> bool {
    let has = |name: &str| directory.join(name).is_file();
    if is_flax_tree(&directory.join(flax::FILE)) {
        return true;
    }
    if has(METADATA) || has(ocdbt::MANIFEST) || has(zarr::V2_KEY) || has(zarr::V3_KEY) {
        return true;
    }
    let is_array = |name: &String| {
        let has = |file: &str| directory.join(name).join(file).is_file();
        has(zarr::V2_KEY) || has(zarr::V3_KEY) || (name.starts_with(PROCESS) && has(ocdbt::MANIFEST))
    };
    directories(directory).is_ok_and(|names| names.iter().any(is_array))
}

/// Whether a file is the tree that older versions wrote. TensorFlow has text under the same name.
fn is_flax_tree(path: &Path) -> bool {
    use std::io::Read;
    let mut head = [0];
    std::fs::File::open(path).is_ok_and(|mut file| file.read_exact(&mut head).is_ok()) && flax::begins(&head)
}

/// Whether a directory, or one that it is in as it was given, was never finished.
fn is_unfinished(directory: &Path) -> bool {
    directory.components().any(|part| part.as_os_str().to_string_lossy().contains(UNFINISHED))
}

fn has_unfinished(directory: &Path) -> bool {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| path.is_dir() && is_unfinished(&path))
}

/// Whether a directory has a name of those within an item.
fn is_part(directory: &Path) -> bool {
    let name = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    DATA.contains(&name) || name == "array_metadatas" || name.starts_with(PROCESS)
}

/// The item of a step that has arrays.
fn only_item(step: &Path, names: &[String]) -> Result<Option<PathBuf>> {
    let has_arrays = |name: &&String| step_of(name).is_none() && is_item(&step.join(name));
    let items: Vec<&String> = names.iter().filter(has_arrays).collect();
    let usual = ITEMS.iter().find(|usual| items.iter().any(|item| item == *usual));
    match (&items[..], usual) {
        ([], _) => Ok(None),
        (_, Some(usual)) => Ok(Some(step.join(usual))),
        ([item], None) => Ok(Some(step.join(item))),
        ([first, ..], None) => {
            let likely = items.iter().find(|item| item.as_str() == "params").unwrap_or(first);
            let all: Vec<&str> = items.iter().map(|item| item.as_str()).collect();
            Err(Error::InvalidArgument(format!(
                "{} has several directories with arrays: {}; give one of them, such as {}",
                step.display(),
                all.join(", "),
                step.join(likely).display()
            )))
        }
    }
}

/// The number of a step's directory: `100`, `000100` or `NAME_100`.
fn step_of(name: &str) -> Option<u64> {
    let number = name.rsplit_once('_').map_or(name, |(_, number)| number);
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| number.parse().ok()).flatten()
}

/// The names of the finished directories in a directory, in order.
fn directories(directory: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(directory).map_err(|error| Error::io("open", directory, error))?;
    let names = entries.flatten().filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| !name.contains(UNFINISHED));
    names.sort();
    Ok(names)
}
