//! Writing a checkpoint so that its name stands for the old content or the new, never for half of it.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::layout::Layout;
use crate::error::{Error, Result};
use crate::store::{AtomicFile, WriteOptions};

/// A checkpoint being written to a temporary file beside its target. Dropping it unfinished removes the
/// temporary file and leaves the target as it was.
pub struct CheckpointWriter {
    atomic: AtomicFile,
    layout: Layout,
    next: usize,
    /// Bytes of tensors that were written.
    written: AtomicUsize,
}

impl CheckpointWriter {
    /// Starts a file: reserves its space and writes its header.
    ///
    /// # Errors
    /// [`Error::Io`] when the directory does not exist or cannot be written, the target is something other
    /// than a regular file, or the disk is too full.
    pub fn create(
        target: impl AsRef<Path>,
        layout: Layout,
        options: WriteOptions,
    ) -> Result<CheckpointWriter> {
        CheckpointWriter::create_like(target.as_ref(), None, layout, options)
    }

    /// As [`CheckpointWriter::create`]. Where no file has the name yet, the owner and mode are those of the model.
    pub(crate) fn create_like(
        target: &Path,
        model: Option<&Path>,
        layout: Layout,
        options: WriteOptions,
    ) -> Result<CheckpointWriter> {
        CheckpointWriter::begin(AtomicFile::create_like(target, model, options)?, layout)
    }

    /// As [`CheckpointWriter::create_like`], under a temporary name, by which other processes find it.
    pub(crate) fn create_named(
        target: &Path,
        model: Option<&Path>,
        layout: Layout,
        options: WriteOptions,
    ) -> Result<CheckpointWriter> {
        CheckpointWriter::begin(AtomicFile::create_named(target, model, options)?, layout)
    }

    /// Takes over a complete file that another process has left under a temporary name.
    pub(crate) fn adopt(
        temporary: &Path,
        target: &Path,
        layout: Layout,
        options: WriteOptions,
    ) -> Result<CheckpointWriter> {
        let atomic = AtomicFile::adopt(temporary, target, options)?;
        let writer = CheckpointWriter { atomic, layout, next: 0, written: AtomicUsize::new(0) };
        writer.is_written_by_all();
        Ok(writer)
    }

    fn begin(atomic: AtomicFile, layout: Layout) -> Result<CheckpointWriter> {
        atomic.reserve(layout.file_bytes)?;
        atomic.write_at(0, &layout.head)?;
        Ok(CheckpointWriter { atomic, layout, next: 0, written: AtomicUsize::new(0) })
    }

    /// The position, in the list that the layout was made from, of the tensor that is to be written next;
    /// `None` when all are.
    pub fn next_index(&self) -> Option<usize> {
        self.layout.tensors.get(self.next).map(|placed| placed.index)
    }

    /// Writes the bytes of the tensor that is next, all of them.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when they are not as many as the layout says; [`Error::Io`].
    pub fn write_next(&mut self, bytes: &[u8]) -> Result<()> {
        let expected = self.layout.tensors.get(self.next).map_or(0, |placed| placed.range.len());
        if bytes.len() != expected {
            return Err(Error::InvalidArgument(format!(
                "{} bytes were given for a tensor that takes {expected} in the file",
                bytes.len()
            )));
        }
        self.write_at(self.next, 0, bytes)?;
        self.next += 1;
        Ok(())
    }

    /// Writes a part of a tensor, given by its position in the layout, from `start` of its bytes on. Every byte of
    /// the file is to be written once; several threads may write at the same time.
    pub(crate) fn write_at(&self, placed: usize, start: usize, bytes: &[u8]) -> Result<()> {
        let range = &self.layout.tensors[placed].range;
        if start + bytes.len() > range.len() {
            return Err(Error::InvalidArgument(format!(
                "bytes {start} to {} were given for a tensor that takes {} in the file",
                start + bytes.len(),
                range.len()
            )));
        }
        self.atomic.write_at(range.start + start, bytes)?;
        self.written.fetch_add(bytes.len(), Ordering::Relaxed);
        Ok(())
    }

    /// Says that all of it is written, by other processes too.
    pub(crate) fn is_written_by_all(&self) {
        self.written.store(self.tensor_bytes(), Ordering::Relaxed);
    }

    /// Gives it the mode that it is to have, when all have written to it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn set_final_mode(&self) -> Result<()> {
        self.atomic.set_final_mode()
    }

    /// Reads back what was written at an offset in the file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn read_back(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.atomic.read_at(offset, bytes)
    }

    /// Its temporary name, if it has one.
    pub(crate) fn temporary_name(&self) -> String {
        self.atomic.temporary_name()
    }

    /// Leaves it to another process under its temporary name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn leave(self) -> Result<()> {
        self.atomic.leave()
    }

    /// Replaces the file's beginning by another of the same length, once its content is known.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the length differs; [`Error::Io`].
    pub fn replace_head(&self, head: &[u8]) -> Result<()> {
        if head.len() != self.layout.head.len() {
            return Err(Error::InvalidArgument(format!(
                "a head of {} bytes cannot take the place of one of {}",
                head.len(),
                self.layout.head.len()
            )));
        }
        self.atomic.write_at(0, head)
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when tensors are missing; [`Error::Io`].
    pub fn finish(self) -> Result<()> {
        self.check_complete()?;
        self.atomic.finish()
    }

    /// Puts the content on the disk, if that is wanted.
    ///
    /// # Errors
    /// As for [`CheckpointWriter::finish`].
    pub(crate) fn sync(&self) -> Result<()> {
        self.check_complete()?;
        self.atomic.sync()
    }

    /// What tells the file from others.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn metadata(&self) -> Result<std::fs::Metadata> {
        self.atomic.metadata()
    }

    /// Gives the file this name in its directory.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn take_name(self, target: &Path) -> Result<()> {
        self.atomic.take_other_name(target)
    }

    fn tensor_bytes(&self) -> usize {
        self.layout.tensors.iter().map(|placed| placed.range.len()).sum()
    }

    fn check_complete(&self) -> Result<()> {
        let (written, expected) = (self.written.load(Ordering::Relaxed), self.tensor_bytes());
        if written != expected {
            return Err(Error::InvalidArgument(format!(
                "{written} bytes of tensors were written, and the layout has {expected}"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::ArraySpec;
    use crate::dtype::DType;
    use crate::format::Checkpoint;
    use std::collections::BTreeMap;

    fn layout() -> Layout {
        let tensors = [("x".to_owned(), ArraySpec::new(DType::U8, [3]))];
        Layout::new(&tensors, &BTreeMap::new(), 64).unwrap()
    }

    fn entries(directory: &Path) -> Vec<String> {
        let names =
            std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.collect()
    }

    #[test]
    fn an_unfinished_file_leaves_the_old_one_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("a.safetensors");
        std::fs::write(&target, "old").unwrap();
        let mut writer = CheckpointWriter::create(&target, layout(), WriteOptions::default()).unwrap();
        assert!(writer.write_next(&[1, 2]).is_err());
        drop(writer);
        assert!(
            CheckpointWriter::create(&target, layout(), WriteOptions::default()).unwrap().finish().is_err()
        );
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "old");
        assert_eq!(entries(directory.path()), ["a.safetensors"]);
    }

    #[test]
    fn a_finished_file_is_read_back_through_a_link_that_stays_one() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("a.safetensors");
        let link = directory.path().join("link");
        std::fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let mut writer = CheckpointWriter::create(&link, layout(), WriteOptions::default()).unwrap();
        writer.write_next(&[1, 2, 3]).unwrap();
        writer.finish().unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink());
        let checkpoint = Checkpoint::open(&target).unwrap();
        assert_eq!(&checkpoint.bytes("x").unwrap()[..], [1, 2, 3]);
        // A link to a link to a file that is not there yet.
        std::fs::remove_file(&target).unwrap();
        let second = directory.path().join("second");
        std::os::unix::fs::symlink("link", &second).unwrap();
        let link = second;
        let mut writer = CheckpointWriter::create(&link, layout(), WriteOptions::default()).unwrap();
        writer.write_next(&[4, 5, 6]).unwrap();
        writer.finish().unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink() && target.is_file());
        let long = directory.path().join("x".repeat(250));
        assert!(CheckpointWriter::create(&long, layout(), WriteOptions::default()).is_ok());
    }

    #[test]
    fn a_directory_that_does_not_exist_is_an_error_that_names_the_target() {
        let target = Path::new("/nonexistent/directory/a.safetensors");
        let error = CheckpointWriter::create(target, layout(), WriteOptions::default()).err().unwrap();
        assert_eq!(error.to_string(), "cannot create /nonexistent/directory/a.safetensors");
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(source, "there is no directory /nonexistent/directory");
    }

    #[test]
    fn a_replaced_file_keeps_its_mode() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("a.safetensors");
        // Any umask that people have cuts these.
        for mode in [0o666, 0o660, 0o600, 0o777] {
            std::fs::write(&target, "old").unwrap();
            std::fs::set_permissions(&target, std::fs::Permissions::from_mode(mode)).unwrap();
            let mut writer = CheckpointWriter::create(&target, layout(), WriteOptions::default()).unwrap();
            writer.write_next(&[1, 2, 3]).unwrap();
            writer.finish().unwrap();
            assert_eq!(target.metadata().unwrap().permissions().mode() & 0o777, mode);
        }
    }
}
