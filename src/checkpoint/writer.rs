//! Writing a checkpoint so that its name stands for the old content or the new, never for half of it.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::layout::Layout;
use super::temporary::TemporaryFile;
use crate::error::{Error, Result};

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriteOptions {
    /// Whether the bytes are on the disk before the file takes its name; without it a crash of the system
    /// soon afterwards can leave an empty file.
    pub sync: bool,
    /// Whether only the user may read and write the new file.
    pub(crate) is_private: bool,
}

impl Default for WriteOptions {
    fn default() -> WriteOptions {
        WriteOptions { sync: true, is_private: false }
    }
}

/// A new file beside its target, which takes the target's name when it is finished. Dropping it unfinished
/// removes it and leaves the target as it was.
struct AtomicFile {
    file: TemporaryFile,
    target: PathBuf,
    options: WriteOptions,
}

impl AtomicFile {
    fn create(target: &Path, options: WriteOptions) -> Result<AtomicFile> {
        let target = destination(target);
        let existing = target.metadata().ok();
        if existing.as_ref().is_some_and(|metadata| !metadata.is_file()) {
            return Err(Error::io(
                "write",
                &target,
                std::io::Error::other("it exists and is not a regular file"),
            ));
        }
        let mode = if options.is_private { 0o600 } else { mode(existing.as_ref()) };
        let directory = directory_of(&target);
        let file = TemporaryFile::create(&directory, mode).map_err(|error| {
            // The directory is what is missing: nobody knows of the temporary file.
            let is_missing = error.kind() == std::io::ErrorKind::NotFound && !directory.exists();
            let missing = || std::io::Error::other(format!("there is no directory {}", directory.display()));
            Error::io("create", &target, if is_missing { missing() } else { error })
        })?;
        if let Some(existing) = existing.filter(|_| !options.is_private) {
            keep_owner_and_mode(file.as_file(), &existing)
                .map_err(|error| Error::io("write", &target, error))?;
        }
        Ok(AtomicFile { file, target, options })
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::io("write", &self.target, error)
    }

    /// Gives the file its name.
    fn finish(self) -> Result<()> {
        if self.options.sync {
            self.file.as_file().sync_all().map_err(|error| self.failed(error))?;
        }
        let target = self.target;
        self.file.persist(&target).map_err(|error| Error::io("replace", &target, error))?;
        if self.options.sync {
            // The rename itself is only durable once the directory is.
            let directory = directory_of(&target);
            std::fs::File::open(&directory)
                .and_then(|directory| directory.sync_all())
                .map_err(|error| Error::io("sync", &directory, error))?;
        }
        Ok(())
    }
}

/// Gives a new file the owner, where that is allowed, and the mode of the one that it replaces, which the umask would cut.
fn keep_owner_and_mode(file: &File, existing: &std::fs::Metadata) -> std::io::Result<()> {
    use std::os::unix::fs::{MetadataExt, fchown};
    // Only a privileged user may give a file away; anybody's own group is tried by itself.
    let _ = fchown(file, Some(existing.uid()), None);
    let _ = fchown(file, None, Some(existing.gid()));
    file.set_permissions(existing.permissions())
}

/// Writes any file so that its name stands for the old content or the new.
pub(crate) fn write_atomically(
    target: &Path,
    options: WriteOptions,
    write: impl FnOnce(&mut BufWriter<&File>) -> std::io::Result<()>,
) -> Result<()> {
    let atomic = AtomicFile::create(target, options)?;
    let mut buffered = BufWriter::with_capacity(BUFFER_BYTES, atomic.file.as_file());
    write(&mut buffered).and_then(|()| buffered.flush()).map_err(|error| atomic.failed(error))?;
    drop(buffered);
    atomic.finish()
}

/// The bytes that are gathered before they are written.
const BUFFER_BYTES: usize = 1 << 20;

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
        let atomic = AtomicFile::create(target.as_ref(), options)?;
        reserve(atomic.file.as_file(), layout.file_bytes)
            .map_err(|error| Error::io("reserve space for", &atomic.target, error))?;
        atomic.file.as_file().write_all(&layout.head).map_err(|error| atomic.failed(error))?;
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
        use std::os::unix::fs::FileExt;
        let range = &self.layout.tensors[placed].range;
        debug_assert!(start + bytes.len() <= range.len());
        let file = self.atomic.file.as_file();
        file.write_all_at(bytes, (range.start + start) as u64).map_err(|error| self.atomic.failed(error))?;
        self.written.fetch_add(bytes.len(), Ordering::Relaxed);
        Ok(())
    }

    /// Replaces the file's beginning by another of the same length, once its content is known.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the length differs; [`Error::Io`].
    pub fn replace_head(&self, head: &[u8]) -> Result<()> {
        use std::os::unix::fs::FileExt;
        if head.len() != self.layout.head.len() {
            return Err(Error::InvalidArgument(format!(
                "a head of {} bytes cannot take the place of one of {}",
                head.len(),
                self.layout.head.len()
            )));
        }
        self.atomic.file.as_file().write_all_at(head, 0).map_err(|error| self.atomic.failed(error))
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when tensors are missing; [`Error::Io`].
    pub fn finish(self) -> Result<()> {
        let (written, expected) =
            (self.written.load(Ordering::Relaxed), self.layout.file_bytes - self.layout.head.len());
        if written != expected {
            return Err(Error::InvalidArgument(format!(
                "{written} bytes of tensors were written, and the layout has {expected}"
            )));
        }
        self.atomic.finish()
    }
}

/// The most links that a name may go through, as the system's own (`MAXSYMLINKS` of Linux).
const MAX_LINKS: usize = 40;

/// What a name stands for: a symbolic link stays one, and it is what the last of them leads to that is replaced, whether
/// it is there already or not.
fn destination(target: &Path) -> PathBuf {
    if let Ok(path) = target.canonicalize() {
        return path;
    }
    let mut path = target.to_owned();
    for _ in 0..MAX_LINKS {
        match path.read_link() {
            Ok(link) => path = directory_of(&path).join(link),
            Err(_) => return path,
        }
    }
    // Links in a circle: the system says so when the file is made.
    path
}

/// The directory that a file is in.
fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// The mode of the file that is replaced, or that which any new file gets.
fn mode(existing: Option<&std::fs::Metadata>) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    existing.map_or(0o666, |existing| existing.permissions().mode() & 0o7777)
}

/// Takes the file's space from the file system now, so that a full disk is an error before the work.
#[cfg(target_os = "linux")]
fn reserve(file: &File, bytes: usize) -> std::io::Result<()> {
    use rustix::fs::FallocateFlags;
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes as u64) {
        // File systems that cannot reserve report a full disk when it comes to it.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
        result => result.map_err(Into::into),
    }
}

/// Elsewhere a full disk shows when the bytes are written.
#[cfg(not(target_os = "linux"))]
fn reserve(_file: &File, _bytes: usize) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::ArraySpec;
    use crate::checkpoint::Checkpoint;
    use crate::dtype::DType;
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
