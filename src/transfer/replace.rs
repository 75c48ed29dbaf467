//! How a checkpoint in several files takes the place of another, so that its name stands for the old one or the new, never for
//! none or for parts of both: the new files have names that the old ones have not, and the index, which takes the old one's
//! place in one step, is what makes them the checkpoint.

use std::path::{Path, PathBuf};

use super::journal::{Journal, Naming};
use crate::error::{Error, Result};
use crate::format::{CheckpointWriter, shards_of};
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
        let paths = self.free_paths(writers.len())?;
        let index = AtomicFile::create(self.index, self.options)?;
        index.write_at(0, document(&paths).as_bytes())?;
        index.sync()?;
        let old: Vec<PathBuf> = before.into_iter().chain([self.whole.to_owned()]).collect();
        journal.write(&Naming::new(&paths, &old), self.options)?;
        if let Err(error) = self.name(writers, &paths, index) {
            paths.iter().for_each(|path| drop(std::fs::remove_file(path)));
            return Err(error);
        }
        // A failure from here on is no failure of the new checkpoint, which is there; but it must be told. One file of all would
        // be taken for the checkpoint still.
        remove_all(old.iter().map(PathBuf::as_path))?;
        drop(journal);
        sync_directory(self.index, self.options)
    }

    /// Names that no file has.
    fn free_paths(&self, count: usize) -> Result<Vec<PathBuf>> {
        let mut digits = DIGITS;
        loop {
            let name = |n: usize| format!("{}-{n:0digits$}-of-{count:0digits$}{ENDING}", self.stem);
            let paths: Vec<PathBuf> = (1..=count).map(|n| self.index.with_file_name(name(n))).collect();
            if !paths.iter().map(|path| is_there(path)).collect::<Result<Vec<_>>>()?.contains(&true) {
                return Ok(paths);
            }
            digits += 1;
        }
    }

    fn name(&self, writers: Vec<CheckpointWriter>, paths: &[PathBuf], index: AtomicFile) -> Result<()> {
        for (writer, path) in writers.into_iter().zip(paths) {
            writer.take_name(path)?;
        }
        sync_directory(self.index, self.options)?;
        index.take_name()
    }
}

/// Whether there is something of this name.
fn is_there(path: &Path) -> Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("look at", path, error)),
    }
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
