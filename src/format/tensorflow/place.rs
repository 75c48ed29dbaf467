//! Which checkpoint of TensorFlow a path stands for: that of a SavedModel, one of several, or one by any of its files.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::format::folder::names_in;

/// The directory of a SavedModel's variables, and what their files begin with.
const VARIABLES: &str = "variables";

/// The file of a SavedModel's program.
const PROGRAM: &str = "saved_model.pb";

/// The file that names the newest checkpoint of several.
const NEWEST: &str = "checkpoint";

/// What the line of that file begins with that has the name.
const NEWEST_LINE: &str = "model_checkpoint_path:";

const INDEX: &str = ".index";

/// What is in the names of files of data.
const DATA: &str = ".data-";

/// Where a checkpoint is.
#[derive(Debug, PartialEq)]
pub struct Place {
    pub directory: PathBuf,
    /// What the names of its files begin with; it can be empty.
    pub prefix: String,
}

impl Place {
    /// What it is called in messages.
    pub fn origin(&self) -> String {
        self.directory.join(format!("{}{INDEX}", self.prefix)).display().to_string()
    }

    /// The checkpoint in a directory, if it is there.
    fn found(directory: &Path, prefix: &str) -> Option<Place> {
        let place = Place { directory: directory.to_owned(), prefix: prefix.to_owned() };
        directory.join(format!("{prefix}{INDEX}")).is_file().then_some(place)
    }
}

/// Where the checkpoint is that a path stands for; `None` for a path of another kind.
///
/// # Errors
/// [`Error::Malformed`] where several can be meant, or a file is missing; [`Error::Io`].
pub fn place_of(path: &Path) -> Result<Option<Place>> {
    if path.is_dir() {
        return in_directory(path);
    }
    let (Some(name), Some(directory)) = (path.file_name().and_then(|name| name.to_str()), path.parent())
    else {
        return Ok(None);
    };
    if name == PROGRAM || name == NEWEST && newest(path).is_some() {
        return in_directory(directory);
    }
    if path.exists() {
        let prefix = match name.strip_suffix(INDEX) {
            Some(prefix) => Some(prefix).filter(|_| is_table(path)),
            None => name.split_once(DATA).map(|(prefix, _)| prefix),
        };
        return Ok(prefix.and_then(|prefix| Place::found(directory, prefix)));
    }
    // As TensorFlow names checkpoints: by what their files begin with.
    Ok(Place::found(directory, name))
}

fn in_directory(directory: &Path) -> Result<Option<Place>> {
    if directory.join(PROGRAM).is_file() {
        let variables = directory.join(VARIABLES);
        return Place::found(&variables, VARIABLES).map(Some).ok_or_else(|| Error::Malformed {
            origin: directory.display().to_string(),
            format: super::FORMAT,
            problem: format!(
                "it is a SavedModel without {VARIABLES}/{VARIABLES}{INDEX}: it has no variables"
            ),
        });
    }
    if let Some(prefix) = newest(&directory.join(NEWEST)) {
        // A path of the machine that wrote it, or of this directory.
        let name = prefix.rsplit('/').next().unwrap_or_default();
        if let Some(place) = Place::found(directory, name) {
            return Ok(Some(place));
        }
    }
    let mut found: Vec<Place> = Vec::new();
    for name in names_in(directory)? {
        if let Some(prefix) = name.strip_suffix(INDEX)
            && is_table(&directory.join(&name))
        {
            found.extend(Place::found(directory, prefix));
        }
    }
    match found.len() {
        0 | 1 => Ok(found.pop()),
        _ => {
            let names: Vec<&str> = found.iter().map(|place| place.prefix.as_str()).collect();
            let problem =
                format!("it has several checkpoints of TensorFlow: {}; give one of them", names.join(", "));
            Err(Error::Malformed { origin: directory.display().to_string(), format: super::FORMAT, problem })
        }
    }
}

/// The name in the file that has that of the newest checkpoint.
fn newest(path: &Path) -> Option<String> {
    /// More than any has, in bytes: Orbax's files of this name can be large.
    const MOST: u64 = 1 << 20;
    if path.metadata().ok()?.len() > MOST {
        return None;
    }
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix(NEWEST_LINE))?;
    Some(line.trim().trim_matches('"').to_owned())
}

fn is_table(path: &Path) -> bool {
    let tail = || {
        let blob = crate::store::FileBlob::open(path).ok()?;
        blob.read(blob.size().checked_sub(8)?..blob.size()).ok()
    };
    tail().is_some_and(|tail| super::table::ends(&tail))
}
