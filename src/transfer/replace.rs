//! How a checkpoint in several files takes the place of another, so that its name stands for the old one or the new, never for
//! none or for parts of both: the new files have names that the old ones have not, and the index, which takes the old one's
//! place in one step, is what makes them the checkpoint.
//!
//! While files take their names, a journal beside them says which: what a killed process leaves is known to the next one that
//! saves there.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::format::{CheckpointWriter, index_of_name, shards_of};
use crate::printable::Line;
use crate::store::{AtomicFile, WriteOptions, sync_directory};

/// What the names of shards end with.
const ENDING: &str = ".safetensors";

/// How many digits the numbers in the names have, as the hub has them; one more in a checkpoint that replaces one of those names.
const DIGITS: usize = 5;

/// A checkpoint of several files that is about to be replaced.
pub struct Replacement<'a> {
    /// The name of the whole, without the ending.
    pub stem: &'a str,
    /// The index, which may be there already.
    pub index: &'a Path,
    /// The one file that would have all of it, which may be there already.
    pub whole: &'a Path,
    pub options: WriteOptions,
}

impl Replacement<'_> {
    /// Gives the files their names, and the checkpoint its index, which `document` makes of those names.
    ///
    /// # Errors
    /// [`Error::Io`]: before the new index is there, all is as it was; after it, files of the old checkpoint may be left.
    /// [`Error::InvalidArgument`] when another process is at it.
    pub fn put_in_place(
        &self,
        writers: Vec<CheckpointWriter>,
        document: impl FnOnce(&[PathBuf]) -> String,
    ) -> Result<()> {
        // What can fail for want of space or by the disk's fault does so now.
        writers.iter().try_for_each(CheckpointWriter::sync)?;
        let journal = Journal::begin(self.index)?;
        let before = shards_of(self.index)?;
        let paths = self.free_paths(writers.len());
        let index = AtomicFile::create(self.index, self.options)?;
        index.write_at(0, document(&paths).as_bytes())?;
        index.sync()?;
        journal.write(&paths, self.options)?;
        if let Err(error) = self.name(writers, &paths, index) {
            paths.iter().for_each(|path| drop(std::fs::remove_file(path)));
            return Err(error);
        }
        // A failure from here on is no failure of the new checkpoint, which is there; but it must be told.
        let old = before.iter().filter(|shard| !paths.contains(shard)).map(PathBuf::as_path);
        // One file of all would be taken for the checkpoint still.
        remove_all([self.whole].into_iter().chain(old))?;
        drop(journal);
        sync_directory(self.index, self.options)
    }

    /// Names that no file has.
    fn free_paths(&self, count: usize) -> Vec<PathBuf> {
        let paths = |digits: usize| -> Vec<PathBuf> {
            let name = |n: usize| format!("{}-{n:0digits$}-of-{count:0digits$}{ENDING}", self.stem);
            (1..=count).map(|n| self.index.with_file_name(name(n))).collect()
        };
        let is_free = |paths: &Vec<PathBuf>| paths.iter().all(|path| is_missing(path));
        (DIGITS..).map(paths).find(is_free).unwrap_or_default()
    }

    fn name(&self, writers: Vec<CheckpointWriter>, paths: &[PathBuf], index: AtomicFile) -> Result<()> {
        for (writer, path) in writers.into_iter().zip(paths) {
            writer.take_name(path)?;
        }
        sync_directory(self.index, self.options)?;
        index.take_name()
    }
}

/// Says which files are taking their names. It goes when it is dropped, and stays when the process is killed.
struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Starts one, for which nobody else may be at it, and removes what a killed process left.
    fn begin(index: &Path) -> Result<Journal> {
        let name = index.file_name().unwrap_or_default().to_string_lossy();
        let path = index.with_file_name(format!(".safejax-{name}.saving"));
        let failed = |error| Error::io("write", &path, error);
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Error::InvalidArgument(format!(
                "another process is saving {}",
                Line(&index.display().to_string())
            )));
        }
        let mut left = String::new();
        // A journal that was not written to the end lists files none of which has its name yet.
        if file.read_to_string(&mut left).is_ok() && left.ends_with('\n') {
            remove_left(index, &left)?;
        }
        Ok(Journal { path, file })
    }

    fn write(&self, paths: &[PathBuf], options: WriteOptions) -> Result<()> {
        let names =
            paths.iter().map(|path| format!("{}\n", path.file_name().unwrap_or_default().to_string_lossy()));
        let list: String = names.collect();
        let failed = |error| Error::io("write", &self.path, error);
        self.file.set_len(0).map_err(failed)?;
        std::os::unix::fs::FileExt::write_all_at(&self.file, list.as_bytes(), 0).map_err(failed)?;
        (&self.file).flush().map_err(failed)?;
        if options.sync { self.file.sync_all().map_err(failed) } else { Ok(()) }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "the journal of a save could not be removed");
        }
    }
}

/// Whether there is no file of this name, as far as the system says for certain.
fn is_missing(path: &Path) -> bool {
    path.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// Removes the files of a save that was killed: those that its journal lists, that are named after the index, and that the index
/// does not list.
fn remove_left(index: &Path, journal: &str) -> Result<()> {
    let kept = shards_of(index)?;
    let listed = journal.lines().map(|name| index.with_file_name(name));
    for path in listed.filter(|path| index_of_name(path).as_deref() == Some(index) && !kept.contains(path)) {
        tracing::info!(path = %path.display(), "removing what a killed process left");
        remove(&path)?;
    }
    Ok(())
}

/// Removes every file that is there, and then tells the first failure.
///
/// # Errors
/// As for [`remove`].
pub fn remove_all<'a>(paths: impl Iterator<Item = &'a Path>) -> Result<()> {
    paths.map(remove).fold(Ok(()), |first, removed| first.and(removed))
}

/// Removes a file if it is there.
///
/// # Errors
/// [`Error::Io`].
pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}
