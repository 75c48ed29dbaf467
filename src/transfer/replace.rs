//! How a checkpoint takes the place of one in several files, or the other way round, so that its name stands for the old one or
//! the new, never for none or for parts of both: the new files have names that the old ones have not, and one file, which takes
//! its name in one step, makes them the checkpoint: the index, or the one file that has all of it.

use std::path::{Path, PathBuf};

use super::journal::{Journal, Named, Naming};
use crate::error::{Error, Result};
use crate::format::{CheckpointWriter, SHARD_DIGITS, shard_paths, shards_of};
use crate::store::{AtomicFile, WriteOptions, remove_all, sync_directory};

/// A checkpoint that is about to be replaced, by nobody else at the same time.
pub struct Replacement {
    /// The index of several files, which may be there already.
    index: PathBuf,
    /// The one file that has all of it, which may be there already.
    whole: PathBuf,
    options: WriteOptions,
    journal: Journal,
}

impl Replacement {
    /// Starts one of the checkpoint with this index, or in this one file; and removes what a killed process left.
    ///
    /// # Errors
    /// As for [`Journal::begin`].
    pub fn begin(index: &Path, whole: &Path, options: WriteOptions) -> Result<Replacement> {
        let journal = Journal::begin(index)?;
        Ok(Replacement { index: index.into(), whole: whole.into(), options, journal })
    }

    /// Gives several files their names, and the checkpoint its index, which `document` makes of those names. A link of the index's
    /// name is replaced: the files are beside it, and not beside what it leads to.
    ///
    /// # Errors
    /// [`Error::Io`]: before the new index is there, all is as it was; after it, files of the old checkpoint may be left.
    pub fn with_several(
        &mut self,
        writers: Vec<CheckpointWriter>,
        document: impl FnOnce(&[PathBuf]) -> String,
    ) -> Result<()> {
        // What can fail for want of space or by the disk's fault does so now.
        writers.iter().try_for_each(CheckpointWriter::sync)?;
        let old = self.old(&[&self.whole])?;
        let was_one = Named::there(&self.index)?.is_none();
        let paths = self.free_paths(writers.len())?;
        let model = old.first().and_then(|file| file.beside(&self.index));
        let index = AtomicFile::create_like(&self.index, model.as_deref(), self.options.replacing_links())?;
        index.write_at(0, document(&paths).as_bytes())?;
        index.sync()?;
        let new = writers.iter().zip(&paths).map(|(writer, path)| Ok(Named::new(path, &writer.metadata()?)));
        let switch = Named::new(&self.index, &index.metadata()?);
        let naming = Naming { switch, new: new.collect::<Result<_>>()?, old };
        self.journal.write(&naming, self.options)?;
        // Files without their index are of no checkpoint.
        if let Err(error) = self.name(writers, &paths, index) {
            self.take_back(&naming.new);
            return Err(error);
        }
        if was_one {
            self.remove_marker(&self.whole).inspect_err(|_| self.take_back_all(&naming))?;
        }
        self.end(&naming.old)
    }

    /// Gives the one file its name. `replaces` says whether the files and the index that are there go then.
    ///
    /// # Errors
    /// As for [`Replacement::with_several`].
    pub fn with_one(&mut self, writer: CheckpointWriter, replaces: bool) -> Result<()> {
        writer.sync()?;
        let old = if replaces { self.old(&[&self.index])? } else { Vec::new() };
        let was_several = replaces && Named::there(&self.whole)?.is_none();
        let switch = Named::new(&self.whole, &writer.metadata()?);
        let naming = Naming { switch, new: Vec::new(), old };
        self.journal.write(&naming, self.options)?;
        // It can have its name all the same, and then the old files are to go.
        writer.finish().inspect_err(|_| self.journal.keep())?;
        if was_several {
            self.remove_marker(&self.index).inspect_err(|_| self.take_back_all(&naming))?;
        }
        self.end(&naming.old)
    }

    /// Removes the file that says that the old checkpoint is there, which is another than the new one's.
    fn remove_marker(&self, marker: &Path) -> Result<()> {
        // Before it goes: a system that fails now must not have lost both.
        sync_directory(&self.index, self.options)?;
        remove_all([marker].into_iter())
    }

    /// Removes all of the new checkpoint, where the old one's marker stays: nobody could tell which of the two is meant.
    fn take_back_all(&mut self, naming: &Naming) {
        // What says that it is there goes first: as long as it stays, it is to be whole.
        if self.take_back(std::slice::from_ref(&naming.switch)) {
            self.take_back(&naming.new);
        }
    }

    /// Removes new files, and says whether they are gone; the next one that saves removes those that stay.
    fn take_back(&mut self, new: &[Named]) -> bool {
        let removed =
            Named::paths(new, &self.index).and_then(|named| remove_all(named.iter().map(PathBuf::as_path)));
        if removed.is_err() {
            self.journal.keep();
        }
        removed.is_ok()
    }

    /// The files of the checkpoint that is there, and these.
    fn old(&self, others: &[&Path]) -> Result<Vec<Named>> {
        let shards = shards_of(&self.index)?;
        // What says that they are the checkpoint goes first.
        let paths = others.iter().map(|path| path.to_path_buf()).chain(shards);
        let there = paths.map(|path| Named::there(&path)).collect::<Result<Vec<_>>>()?;
        Ok(there.into_iter().flatten().collect())
    }

    /// Removes what was there of the old checkpoint. A failure is none of the new one, which is there; but it must be told, and the
    /// next one that saves tries again.
    fn end(&mut self, old: &[Named]) -> Result<()> {
        // Before the old files go: a system that fails now must not have lost both.
        let ended = sync_directory(&self.index, self.options)
            .and_then(|()| Named::paths(old, &self.index))
            .and_then(|left| remove_all(left.iter().map(PathBuf::as_path)))
            .and_then(|()| sync_directory(&self.index, self.options));
        ended.map_err(|error| {
            self.journal.keep();
            match error {
                Error::Io { action: "remove", path, source } => {
                    let source = format!(
                        "{source}; the new checkpoint is there, and this file of the old one is left"
                    );
                    Error::io("remove", path, std::io::Error::other(source))
                }
                error => error,
            }
        })
    }

    /// Names that no file has: with more digits where a checkpoint has those.
    fn free_paths(&self, count: usize) -> Result<Vec<PathBuf>> {
        let mut digits = SHARD_DIGITS;
        loop {
            let paths = shard_paths(&self.whole, count, digits).unwrap_or_default();
            let there = paths.iter().map(|path| Named::there(path)).collect::<Result<Vec<_>>>()?;
            if there.iter().all(Option::is_none) {
                return Ok(paths);
            }
            digits += 1;
        }
    }

    fn name(&self, writers: Vec<CheckpointWriter>, paths: &[PathBuf], index: AtomicFile) -> Result<()> {
        for (writer, path) in writers.into_iter().zip(paths) {
            writer.take_name(path)?;
        }
        sync_directory(&self.index, self.options)?;
        index.take_name()
    }
}
