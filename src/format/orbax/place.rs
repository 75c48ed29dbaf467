//! Where in a directory of Orbax's the arrays are: it can be that of all steps, of one step, or of one item of a step.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{DATA, METADATA, PROCESS, flax, serialized};
use crate::error::{Error, Result};
use crate::format::folder::names_in;
use crate::format::open::begins_with_map;
use crate::format::{ocdbt, zarr};

/// What says of a step by which of Orbax's handlers it is restored.
pub const STEP_METADATA: &str = "_CHECKPOINT_METADATA";

/// The files that only Orbax's directories have.
const MARKS: [&str; 3] = [STEP_METADATA, "commit_success.txt", "orbax.checkpoint"];

/// What items are called where nobody gave them names.
const ITEMS: [&str; 3] = ["default", "state", "pytree"];

/// What an item that has no arrays has.
const JSON: &str = "metadata";

/// Files of an item or a step, which stand for the directory that they are in.
const FILES: [&str; 7] = [
    METADATA,
    ocdbt::MANIFEST,
    STEP_METADATA,
    "_sharding",
    "_strings.json",
    "commit_success.txt",
    serialized::FILE,
];

/// Where the arrays are that a path stands for: a directory that Orbax wrote, or a file of one. `None` for another path.
///
/// # Errors
/// As for [`item_of`].
pub fn item_at(path: &Path) -> Result<Option<Item>> {
    let directory = if path.is_dir() { Some(path) } else { directory_of(path) };
    Ok(directory.map(item_of).transpose()?.flatten())
}

/// The directory that a file of an item or a step stands for.
fn directory_of(file: &Path) -> Option<&Path> {
    let name = file.file_name()?.to_str()?;
    let is_one = FILES.contains(&name) && file.is_file();
    file.parent().filter(|_| is_one)
}

/// What is in the names of directories that are not finished.
pub const UNFINISHED: &str = ".orbax-checkpoint-tmp";

/// Where arrays are.
#[derive(Debug, PartialEq)]
pub struct Item {
    pub directory: PathBuf,
    /// Newer steps, in which there are none.
    pub passed_over: Vec<PathBuf>,
}

impl From<PathBuf> for Item {
    fn from(directory: PathBuf) -> Item {
        Item { directory, passed_over: Vec::new() }
    }
}

/// The directory of the arrays in a directory that Orbax wrote: of the newest step, where it has several. `None` for another directory.
///
/// # Errors
/// [`Error::Malformed`] where there are several that can be meant, or none; [`Error::Io`].
fn item_of(directory: &Path) -> Result<Option<Item>> {
    if is_unfinished(directory) {
        return Err(malformed(directory, "it is a checkpoint of Orbax that was never finished".into()));
    }
    if is_item(directory) {
        return Ok(Some(directory.to_owned().into()));
    }
    let names = directories(directory)?;
    // In a step, any name is an item's.
    let is_step = is_marked(directory);
    let steps = if is_step { Vec::new() } else { steps(directory, &names)? };
    let mut passed_over = Vec::new();
    for (_, name) in steps.iter().rev() {
        let path = directory.join(name);
        let item = if is_item(&path) { Some(path.clone()) } else { only_item(&path, directories(&path)?)? };
        match item {
            Some(directory) => return Ok(Some(Item { directory, passed_over })),
            None => passed_over.push(path),
        }
    }
    let is_other = |name: &String| !steps.iter().any(|(_, step)| *step == name);
    if let Some(item) = only_item(directory, names.iter().filter(|name| is_other(name)).cloned())? {
        return Ok(Some(item.into()));
    }
    if is_step {
        return Err(malformed(
            directory,
            match directory.join(JSON).is_file() {
                true => format!("it has JSON, in `{JSON}`, and there are no arrays in it"),
                false => "it is a directory that Orbax wrote, and there are no arrays in it".into(),
            },
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
/// [`Error::InvalidArgument`] for a step or item that is not there, with those that are; [`Error::Malformed`] for another directory, and
/// where several items can be meant; [`Error::Io`].
pub fn orbax_item(directory: impl AsRef<Path>, step: Option<u64>, item: Option<&str>) -> Result<PathBuf> {
    let mut directory = directory.as_ref().to_owned();
    if let Some(step) = step {
        let names = directories(&directory)?;
        let steps = if is_item(&directory) { Vec::new() } else { steps(&directory, &names)? };
        let name = steps.iter().find(|(number, _)| *number == step);
        let name = name.ok_or_else(|| no_step(&directory, step, &steps))?;
        directory.push(name.1);
    }
    if let Some(item) = item {
        // Of the newest step, where it is a directory of steps.
        let names = directories(&directory)?;
        let is_here = names.iter().any(|name| name == item);
        if !is_here
            && !is_item(&directory)
            && let Some((_, step)) = steps(&directory, &names)?.last()
        {
            directory.push(step);
        }
        if !directories(&directory)?.iter().any(|name| name == item) {
            return Err(no_item(&directory, item)?);
        }
        directory.push(item);
    }
    let problem = || malformed(&directory, "it is no directory of Orbax's with arrays".into());
    Ok(item_of(&directory)?.ok_or_else(problem)?.directory)
}

/// Names that are listed in an error, at most.
const MAX_LISTED: usize = 20;

/// Names, of which the last are the newest: the others are left out where there are many.
fn listed(names: &[String]) -> String {
    let (left_out, shown) = names.split_at(names.len().saturating_sub(MAX_LISTED));
    let more = if left_out.is_empty() { "" } else { "…, " };
    format!("{more}{}", shown.join(", "))
}

/// The error for a step that a directory does not have.
fn no_step(directory: &Path, step: u64, steps: &[(u64, &String)]) -> Error {
    let numbers: Vec<String> = steps.iter().map(|(number, _)| number.to_string()).collect();
    let instead = match (&numbers[..], is_item(directory)) {
        ([], true) => "it is a single checkpoint; leave out the step".to_owned(),
        ([], false) => "it is no directory of steps".to_owned(),
        (numbers, _) => format!("it has {}", listed(numbers)),
    };
    Error::InvalidArgument(format!("{} has no step {step}: {instead}", directory.display()))
}

/// The error for an item that a directory does not have.
fn no_item(directory: &Path, item: &str) -> Result<Error> {
    let mut names = directories(directory)?;
    names.retain(|name| is_item(&directory.join(name)));
    let instead = match (&names[..], is_item(directory)) {
        (_, true) => "it is an item itself; leave out the item".to_owned(),
        ([], false) => "it has none with arrays".to_owned(),
        (names, false) => format!("with arrays, it has {}", listed(names)),
    };
    Ok(Error::InvalidArgument(format!("{} has no item `{item}`: {instead}", directory.display())))
}

/// What there is to choose from in a directory that Orbax wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct OrbaxContents {
    /// The numbers of the steps, if it is a directory of steps, in order.
    pub steps: Vec<u64>,
    /// The items with arrays of the step, or of the newest step that has any.
    pub items: Vec<String>,
}

/// The steps and items in a directory that Orbax wrote; neither, in that of an item.
///
/// # Errors
/// [`Error::Io`]; [`Error::InvalidArgument`] where there are steps of several words.
pub fn orbax_contents(directory: impl AsRef<Path>) -> Result<OrbaxContents> {
    let directory = directory.as_ref();
    if !directory.is_dir() || is_item(directory) {
        return Ok(OrbaxContents::default());
    }
    let names = directories(directory)?;
    let steps = if is_marked(directory) { Vec::new() } else { steps(directory, &names)? };
    let items_in = |directory: &Path| -> Result<Vec<String>> {
        let names = directories(directory)?;
        Ok(names.into_iter().filter(|name| is_item(&directory.join(name))).collect())
    };
    let items = match steps.iter().rev().map(|(_, name)| directory.join(name)).find(|step| !is_item(step)) {
        Some(step) => items_in(&step)?,
        None if steps.is_empty() => items_in(directory)?,
        None => Vec::new(),
    };
    Ok(OrbaxContents { steps: steps.into_iter().map(|(number, _)| number).collect(), items })
}

/// The error for a step that is not there, in a directory that has others; `None` for another path that is not.
pub fn missing_step(path: &Path) -> Option<Error> {
    let name = path.file_name()?.to_str()?;
    let (_, number) = step_of(name)?;
    let directory = path.parent().filter(|directory| directory.is_dir())?;
    let names = directories(directory).ok()?;
    let steps = steps(directory, &names).ok().filter(|steps| !steps.is_empty())?;
    Some(no_step(directory, number, &steps))
}

/// The steps in a directory, the newest last: those that are numbers, or else those whose names are one word and a number.
///
/// # Errors
/// [`Error::InvalidArgument`] where there are steps of several words.
fn steps<'n>(directory: &Path, names: &'n [String]) -> Result<Vec<(u64, &'n String)>> {
    // The databases of processes have numbers, too.
    let names = || names.iter().filter(|name| !name.starts_with(PROCESS));
    let all = || names().filter_map(|name| Some((step_of(name)?, name)));
    let mut steps: Vec<(u64, &String)> =
        all().filter(|((prefix, _), _)| prefix.is_empty()).map(|((_, step), name)| (step, name)).collect();
    if steps.is_empty() {
        // Other directories have such names, too.
        let has_arrays = |path: PathBuf| {
            is_item(&path)
                || directories(&path).is_ok_and(|names| names.iter().any(|name| is_item(&path.join(name))))
        };
        let found: Vec<_> = all().filter(|(_, name)| has_arrays(directory.join(name))).collect();
        let prefixes: BTreeSet<&str> = found.iter().map(|((prefix, _), _)| *prefix).collect();
        if prefixes.len() > 1 {
            let prefixes: Vec<&str> = prefixes.into_iter().collect();
            return Err(Error::InvalidArgument(format!(
                "{} has steps of several names: {}; give one of them",
                directory.display(),
                prefixes.join(", ")
            )));
        }
        steps = found.into_iter().map(|((_, step), name)| (step, name)).collect();
    }
    steps.sort();
    Ok(steps)
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
    if has(METADATA)
        || has(serialized::FILE)
        || has(ocdbt::MANIFEST)
        || has(zarr::V2_KEY)
        || has(zarr::V3_KEY)
    {
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
    // A pipe would wait for a writer.
    path.is_file()
        && std::fs::File::open(path).is_ok_and(|mut file| file.read_exact(&mut head).is_ok())
        && begins_with_map(&head)
}

/// Whether a directory, or one that it is in as it was given, was never finished.
pub fn is_unfinished(directory: &Path) -> bool {
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
fn only_item(step: &Path, names: impl IntoIterator<Item = String>) -> Result<Option<PathBuf>> {
    let items: Vec<String> = names.into_iter().filter(|name| is_item(&step.join(name))).collect();
    let usual = ITEMS.iter().find(|usual| items.iter().any(|item| item == *usual));
    match (&items[..], usual) {
        ([], _) => Ok(None),
        (_, Some(usual)) => Ok(Some(step.join(usual))),
        ([item], None) => Ok(Some(step.join(item))),
        ([first, ..], None) => {
            let likely = items.iter().find(|item| item.as_str() == "params").unwrap_or(first);
            Err(Error::InvalidArgument(format!(
                "{} has several directories with arrays: {}; give one of them, such as {} (or `--item {likely}`)",
                step.display(),
                listed(&items),
                step.join(likely).display()
            )))
        }
    }
}

/// What a step is called, and its number: of `100` or `000100` nothing and 100, of `NAME_100` `NAME` and 100.
fn step_of(name: &str) -> Option<(&str, u64)> {
    let (prefix, number) = name.rsplit_once('_').unwrap_or(("", name));
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    Some((prefix, number.parse().ok().filter(|_| is_number)?))
}

/// The names of the finished directories in a directory, in order.
fn directories(directory: &Path) -> Result<Vec<String>> {
    let mut names = names_in(directory)?;
    names.retain(|name| !name.contains(UNFINISHED) && directory.join(name).is_dir());
    Ok(names)
}
