//! Directories that take their name when all that is in them is written: it stands for the whole, or for nothing.

use std::fs::{DirBuilder, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::atomic::{BUFFER_BYTES, WriteOptions, not_created, sync_directory};
use super::temporary::{PREFIX, directory_of};
use crate::error::{Error, Result};

/// A new directory beside its target, whose name it takes when it is finished. Dropping it unfinished removes it.
pub struct NewDirectory {
    temporary: TempDir,
    target: PathBuf,
    options: WriteOptions,
}

impl NewDirectory {
    /// Starts a directory, whose temporary name has this ending.
    ///
    /// # Errors
    /// [`Error::Io`] when there is something of that name, other than an empty directory; when the directory that it is to be
    /// in does not exist or cannot be written.
    pub fn create(target: &Path, ending: &str, options: WriteOptions) -> Result<NewDirectory> {
        // Without the slash that it may end with.
        let target: PathBuf = target.components().collect();
        check_free(&target)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(PREFIX).suffix(ending).permissions(PermissionsExt::from_mode(0o777));
        let temporary = builder.tempdir_in(directory_of(&target));
        let temporary = temporary.map_err(|error| not_created(&target, error))?;
        Ok(NewDirectory { temporary, target, options })
    }

    /// Makes a directory in it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn add_directory(&self, name: &str) -> Result<()> {
        let made = DirBuilder::new().mode(0o777).create(self.temporary.path().join(name));
        made.map_err(|error| Error::io("write", self.target.join(name), error))
    }

    /// Starts a file in it, by its path there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn add_file(&self, path: &str) -> Result<NewFile> {
        let whole = self.target.join(path);
        let file = File::create_new(self.temporary.path().join(path))
            .map_err(|error| Error::io("write", &whole, error))?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(NewFile { file, path: whole, written: 0, options: self.options })
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(self) -> Result<()> {
        let NewDirectory { temporary, target, options } = self;
        sync_all(temporary.path(), options)?;
        // Over an empty directory, and over nothing else: somebody may have been faster.
        std::fs::rename(temporary.path(), &target).map_err(|error| Error::io("create", &target, error))?;
        drop(temporary.keep());
        sync_directory(&target, options)
    }
}

/// Refuses a name that something has.
fn check_free(target: &Path) -> Result<()> {
    let is_empty_directory = |found: std::fs::Metadata| {
        found.is_dir() && std::fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_none())
    };
    if target.symlink_metadata().is_ok_and(|found| !is_empty_directory(found)) {
        let problem = "it exists; remove it first, or give another name: a directory is not replaced";
        return Err(Error::io("create", target, std::io::Error::other(problem)));
    }
    Ok(())
}

/// Puts the names in a directory, and in those in it, on the disk, if that is wanted.
fn sync_all(directory: &Path, options: WriteOptions) -> Result<()> {
    if !options.sync {
        return Ok(());
    }
    let failed = |error| Error::io("sync", directory, error);
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            sync_all(&entry.path(), options)?;
        }
    }
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

/// A new file in a new directory.
pub struct NewFile {
    file: BufWriter<File>,
    path: PathBuf,
    written: u64,
    options: WriteOptions,
}

impl NewFile {
    /// The bytes that were written so far.
    pub fn position(&self) -> u64 {
        self.written
    }

    /// Writes bytes behind those that are there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| Error::io("write", &self.path, error))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Writes zeros up to a multiple of so many bytes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn align(&mut self, alignment: u64) -> Result<()> {
        let missing = self.written.next_multiple_of(alignment) - self.written;
        self.write(&vec![0; missing as usize])
    }

    /// Puts what was written on the disk, if that is wanted.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(mut self) -> Result<()> {
        let written = self.file.flush().and_then(|()| match self.options.sync {
            true => self.file.get_ref().sync_all(),
            false => Ok(()),
        });
        written.map_err(|error| Error::io("write", &self.path, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_there_as_a_whole_or_not_at_all() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("new");
        let names = || std::fs::read_dir(parent.path()).unwrap().count();
        let start = || {
            let new = NewDirectory::create(&target, ".unfinished", WriteOptions::default()).unwrap();
            new.add_directory("d").unwrap();
            let mut file = new.add_file("d/x").unwrap();
            file.write(b"abc").unwrap();
            file.align(8).unwrap();
            assert_eq!(file.position(), 8);
            file.finish().unwrap();
            new
        };
        drop(start());
        assert_eq!(names(), 0);
        start().finish().unwrap();
        assert_eq!(std::fs::read(target.join("d/x")).unwrap(), b"abc\0\0\0\0\0");
        assert_eq!(names(), 1);
        let problem = |target: &Path| {
            let error = NewDirectory::create(target, ".unfinished", WriteOptions::default()).err().unwrap();
            std::error::Error::source(&error).unwrap().to_string()
        };
        assert!(problem(&target).contains("remove it first"));
        assert!(problem(&target.join("a/b")).contains("there is no directory"));
    }

    #[test]
    fn one_that_another_made_meanwhile_stays() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("new");
        std::fs::create_dir(&target).unwrap();
        let new = NewDirectory::create(&target, ".unfinished", WriteOptions::default()).unwrap();
        std::fs::write(target.join("theirs"), b"").unwrap();
        assert!(new.finish().is_err());
        assert!(target.join("theirs").exists());
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 1);
    }
}
