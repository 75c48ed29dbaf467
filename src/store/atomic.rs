//! Files that are written so that their name stands for the old content or the new, never for half of it.

use std::fs::{File, Permissions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::temporary::{TemporaryFile, directory_of};
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
    /// Whether a link of the name is replaced, rather than what it leads to.
    pub(crate) replaces_links: bool,
}

impl WriteOptions {
    /// For a file of the user's alone, which is soon made again if it is lost.
    pub(crate) fn private() -> WriteOptions {
        WriteOptions { sync: false, is_private: true, replaces_links: false }
    }

    /// The same, where a link of the name is replaced.
    pub(crate) fn replacing_links(self) -> WriteOptions {
        WriteOptions { replaces_links: true, ..self }
    }
}

impl Default for WriteOptions {
    fn default() -> WriteOptions {
        WriteOptions { sync: true, is_private: false, replaces_links: false }
    }
}

/// A new file beside its target, which takes the target's name when it is finished. Dropping it unfinished
/// removes it and leaves the target as it was.
pub struct AtomicFile {
    file: TemporaryFile,
    target: PathBuf,
    options: WriteOptions,
    /// What it gets when all have written to it.
    final_mode: Option<Permissions>,
}

impl AtomicFile {
    /// Starts a file.
    ///
    /// # Errors
    /// [`Error::Io`] when the directory does not exist or cannot be written, or the target is something other than a
    /// regular file.
    pub fn create(target: &Path, options: WriteOptions) -> Result<AtomicFile> {
        AtomicFile::create_like(target, None, options)
    }

    /// As [`AtomicFile::create`]. Where no file has the name yet, the owner and mode are those of the model.
    ///
    /// # Errors
    /// As for [`AtomicFile::create`].
    pub fn create_like(target: &Path, model: Option<&Path>, options: WriteOptions) -> Result<AtomicFile> {
        AtomicFile::create_by(TemporaryFile::create, target, model, options)
    }

    /// As [`AtomicFile::create_like`], with a temporary name, by which other processes find it. They can write to it until
    /// [`AtomicFile::set_final_mode`], whatever the mode of the file that it replaces.
    ///
    /// # Errors
    /// As for [`AtomicFile::create`].
    pub fn create_named(target: &Path, model: Option<&Path>, options: WriteOptions) -> Result<AtomicFile> {
        let mut atomic = AtomicFile::create_by(TemporaryFile::create_named, target, model, options)?;
        let file = atomic.file.as_file();
        let set = || {
            let permissions = file.metadata()?.permissions();
            file.set_permissions(PermissionsExt::from_mode(permissions.mode() | 0o600))?;
            Ok(permissions)
        };
        atomic.final_mode = Some(set().map_err(|error| atomic.failed(error))?);
        Ok(atomic)
    }

    /// Gives it the mode that it is to have.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn set_final_mode(&self) -> Result<()> {
        let Some(permissions) = self.final_mode.clone() else { return Ok(()) };
        self.file.as_file().set_permissions(permissions).map_err(|error| self.failed(error))
    }

    /// Takes over a file with a temporary name that another process has left.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn adopt(temporary: &Path, target: &Path, options: WriteOptions) -> Result<AtomicFile> {
        let file = TemporaryFile::adopt(temporary).map_err(|error| Error::io("open", temporary, error))?;
        Ok(AtomicFile { file, target: resolve(target, options), options, final_mode: None })
    }

    fn create_by(
        create: fn(&Path, u32) -> std::io::Result<TemporaryFile>,
        target: &Path,
        model: Option<&Path>,
        options: WriteOptions,
    ) -> Result<AtomicFile> {
        let target = resolve(target, options);
        check_replaceable(&target)?;
        let existing = target.metadata().ok().or_else(|| model.and_then(|model| model.metadata().ok()));
        let mode = if options.is_private { 0o600 } else { mode(existing.as_ref()) };
        let file = create(directory_of(&target), mode).map_err(|error| not_created(&target, error))?;
        if let Some(existing) = existing.filter(|_| !options.is_private) {
            keep_owner_and_mode(file.as_file(), &existing)
                .map_err(|error| Error::io("write", &target, error))?;
        }
        Ok(AtomicFile { file, target, options, final_mode: None })
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::io("write", &self.target, error)
    }

    /// Takes the file's space from the file system now, so that a full disk is an error before the work.
    ///
    /// # Errors
    /// [`Error::Io`] when the disk is too full.
    pub fn reserve(&self, bytes: usize) -> Result<()> {
        reserve(self.file.as_file(), bytes)
            .map_err(|error| Error::io("reserve space for", &self.target, error))
    }

    /// Writes at an offset. Several threads may write at the same time.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_at(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.file.as_file().write_all_at(bytes, offset as u64).map_err(|error| self.failed(error))
    }

    /// Reads at an offset what was written, by whomever.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn read_at(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let read = self.file.as_file().read_exact_at(bytes, offset as u64);
        read.map_err(|error| Error::io("read back", &self.target, error))
    }

    /// Its temporary name, if it has one.
    pub fn temporary_name(&self) -> String {
        let name = self.file.path().and_then(Path::file_name).unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Leaves it to another process under its temporary name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn leave(self) -> Result<()> {
        let target = self.target;
        self.file.leave().map_err(|error| Error::io("write", target, error))
    }

    /// Puts the content on the disk and gives the file its name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(self) -> Result<()> {
        self.sync()?;
        let (target, options) = (self.target.clone(), self.options);
        self.take_name()?;
        sync_directory(&target, options)
    }

    /// Puts the content on the disk, if that is wanted.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<()> {
        if self.options.sync {
            self.file.as_file().sync_all().map_err(|error| self.failed(error))
        } else {
            Ok(())
        }
    }

    /// What tells the file from others.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn metadata(&self) -> Result<std::fs::Metadata> {
        self.file.as_file().metadata().map_err(|error| self.failed(error))
    }

    /// Gives the file its name, without a word of whether either is on the disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn take_name(self) -> Result<()> {
        let target = self.target.clone();
        self.take_other_name(&target)
    }

    /// As [`AtomicFile::take_name`], with another one in the same directory.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn take_other_name(self, target: &Path) -> Result<()> {
        self.file.persist(target).map_err(|error| Error::io("replace", target, error))
    }
}

/// Puts the names in a file's directory on the disk, if that is wanted: a rename is only durable once they are.
///
/// # Errors
/// [`Error::Io`].
pub fn sync_directory(target: &Path, options: WriteOptions) -> Result<()> {
    if !options.sync {
        return Ok(());
    }
    let directory = directory_of(target);
    let opened = match File::open(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            tracing::warn!(directory = %directory.display(), "the names in a directory that cannot be read are not synced");
            return Ok(());
        }
        opened => opened,
    };
    opened.and_then(|directory| directory.sync_all()).map_err(|error| Error::io("sync", directory, error))
}

/// Removes every file that is there, and then tells the first failure.
///
/// # Errors
/// [`Error::Io`].
pub fn remove_all<'a>(paths: impl Iterator<Item = &'a Path>) -> Result<()> {
    let remove = |path: &Path| match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    };
    let mut first = Ok(());
    for path in paths {
        first = first.and(remove(path));
    }
    first
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
///
/// # Errors
/// [`Error::Io`] when the directory does not exist or cannot be written, or the target is something other than a regular
/// file, and those of `write`.
pub fn write_atomically(
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

/// Why what is to have this name could not be started under a temporary one beside it.
pub fn not_created(target: &Path, error: std::io::Error) -> Error {
    let directory = directory_of(target);
    // The directory is what is missing: nobody knows of the temporary name.
    let is_missing = error.kind() == std::io::ErrorKind::NotFound && !directory.exists();
    let missing = || std::io::Error::other(format!("there is no directory {}", directory.display()));
    Error::io("create", target, if is_missing { missing() } else { error })
}

/// The bytes that are gathered before they are written.
pub const BUFFER_BYTES: usize = 1 << 20;

/// A file of another process's, into which this one writes what it has. Nothing becomes of it when this is dropped.
pub struct SharedFile {
    file: File,
    path: PathBuf,
}

impl SharedFile {
    /// Opens one that is there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path) -> Result<SharedFile> {
        let opened = File::options().write(true).open(path);
        let file = opened.map_err(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                let problem = "another process is writing it, but it is not to be seen here: processes that save together need \
                               a file system that all of them reach";
                return Error::io("open", path, std::io::Error::other(problem));
            }
            Error::io("open", path, error)
        })?;
        Ok(SharedFile { file, path: path.to_owned() })
    }

    /// Writes at an offset. Several threads may write at the same time.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_at(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all_at(bytes, offset as u64);
        written.map_err(|error| Error::io("write", &self.path, error))
    }

    /// Puts what was written on the disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|error| Error::io("write", &self.path, error))
    }
}

/// Where a file of this name, or of what the name leads to, has its temporary one.
pub fn temporary_at(target: &Path, name: &str, options: WriteOptions) -> PathBuf {
    directory_of(&resolve(target, options)).join(name)
}

/// What is replaced: the name, or what it leads to.
fn resolve(target: &Path, options: WriteOptions) -> PathBuf {
    if options.replaces_links { target.to_owned() } else { destination(target) }
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

/// Refuses to replace what is there and no regular file.
///
/// # Errors
/// [`Error::Io`].
pub fn check_replaceable(target: &Path) -> Result<()> {
    if target.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        let problem = std::io::Error::other("it exists and is not a regular file");
        return Err(Error::io("write", target, problem));
    }
    Ok(())
}

/// The mode of the file that is replaced, or that which any new file gets.
fn mode(existing: Option<&std::fs::Metadata>) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    existing.map_or(0o666, |existing| existing.permissions().mode() & 0o7777)
}

#[cfg(target_os = "linux")]
fn reserve(file: &File, bytes: usize) -> std::io::Result<()> {
    use rustix::fs::FallocateFlags;
    let reserved =
        rustix::io::retry_on_intr(|| rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes as u64));
    match reserved {
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
