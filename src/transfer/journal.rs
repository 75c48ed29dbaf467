//! The journal of a checkpoint that replaces another: while files take their names, a file beside them says which. What a killed
//! process leaves is so known to the next one that saves there.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::replace::remove_all;
use crate::error::{Error, Result};
use crate::format::{index_of, index_of_name, shards_of};
use crate::printable::Line;
use crate::store::WriteOptions;

/// The journal of the checkpoint of an index: `.safejax-STEM.safetensors.index.json.saving`. Whoever has it is the only one that
/// replaces the checkpoint. It goes when it is dropped, and stays when the process is killed.
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Whether it tells of a killed process still.
    is_of_another: bool,
}

impl Journal {
    /// Starts one, for which nobody else may be at it, and removes what a killed process left.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InvalidArgument`] when another process is at it.
    pub fn begin(index: &Path) -> Result<Journal> {
        let name = index.file_name().unwrap_or_default().to_string_lossy();
        let path = index.with_file_name(format!(".safejax-{name}.saving"));
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let file = file.map_err(|error| Error::io("write", &path, error))?;
        // Where there are no locks, nobody can say.
        if flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(rustix::io::Errno::WOULDBLOCK) {
            let index = index.display().to_string();
            return Err(Error::InvalidArgument(format!("another process is saving {}", Line(&index))));
        }
        let mut journal = Journal { path, file, is_of_another: false };
        journal.clean_up(index)?;
        Ok(journal)
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::io("write", &self.path, error)
    }

    fn clean_up(&mut self, index: &Path) -> Result<()> {
        self.is_of_another = self.file.metadata().is_ok_and(|metadata| metadata.len() > 0);
        let mut left = Vec::new();
        (&self.file).read_to_end(&mut left).map_err(|error| self.failed(error))?;
        // One that was not written to its end is of files none of which has its name yet.
        if let Ok(left) = serde_json::from_slice::<Naming>(&left) {
            left.clean_up(index)?;
        }
        self.is_of_another = false;
        Ok(())
    }

    /// Says what takes its name, and what goes then.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, naming: &Naming, options: WriteOptions) -> Result<()> {
        let list = serde_json::to_vec(naming).unwrap_or_default();
        let write = || {
            self.file.set_len(0)?;
            self.file.write_all_at(&list, 0)?;
            if options.sync { self.file.sync_all() } else { Ok(()) }
        };
        write().map_err(|error| self.failed(error))
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if self.is_of_another {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "the journal of a save could not be removed");
        }
    }
}

/// What a journal says: names of files beside the index.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct Naming {
    /// Those that take their names.
    new: Vec<String>,
    /// Those that go when the new ones are the checkpoint.
    old: Vec<String>,
}

impl Naming {
    /// Of these files.
    pub fn new(new: &[PathBuf], old: &[PathBuf]) -> Naming {
        let names = |paths: &[PathBuf]| -> Vec<String> {
            paths
                .iter()
                .map(|path| path.file_name().unwrap_or_default().to_string_lossy().into_owned())
                .collect()
        };
        Naming { new: names(new), old: names(old) }
    }

    /// Removes what a killed process left, of either checkpoint.
    fn clean_up(&self, index: &Path) -> Result<()> {
        let kept = shards_of(index)?;
        let paths = |names: &[String]| -> Vec<PathBuf> {
            // A journal has names alone, of this checkpoint's files.
            let is_name = |name: &&String| !name.contains('/');
            let paths = names.iter().filter(is_name).map(|name| index.with_file_name(name));
            paths.filter(|path| is_of(path, index) && !kept.contains(path)).collect()
        };
        let has_new = self.new.iter().any(|name| kept.contains(&index.with_file_name(name)));
        let left = paths(if has_new { &self.old } else { &self.new });
        for path in &left {
            tracing::info!(path = %path.display(), "removing what a killed process left");
        }
        remove_all(left.iter().map(PathBuf::as_path))
    }
}

/// Whether a file is named as one of the checkpoint's of this index, or as the one that would have all of it.
fn is_of(path: &Path, index: &Path) -> bool {
    index_of_name(path).as_deref() == Some(index) || index_of(path).as_deref() == Some(index)
}
