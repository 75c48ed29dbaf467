//! A file without a name, or with one that nobody looks for, until it takes the name that it was written for.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Seek};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use tempfile::TempPath;

/// With what the names of temporary files begin and end.
pub const PREFIX: &str = ".safejax-";
const SUFFIX: &str = ".tmp";

/// A temporary file that nobody locks and that was not written to for so long is what a killed process left.
const STALE_AFTER: Duration = Duration::from_secs(60);

/// How long the lock of a file that is taken over is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// The times of a file that is touched.
const NOW: rustix::fs::Timestamps = rustix::fs::Timestamps {
    last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
    last_modification: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
};

/// A new file in a directory. Dropping it, or the end of the process, leaves nothing where the file system has files
/// without names.
pub struct TemporaryFile {
    file: File,
    /// Its name, where the file system demands one. Dropping it removes the file.
    path: Option<TempPath>,
}

impl TemporaryFile {
    /// Makes a file of this mode, which the umask cuts; and removes what killed processes left.
    pub fn create(directory: &Path, mode: u32) -> io::Result<TemporaryFile> {
        remove_stale(directory);
        match without_name(directory, mode) {
            Some(file) => Ok(TemporaryFile { file, path: None }),
            None => TemporaryFile::with_name(directory, mode),
        }
    }

    /// As [`TemporaryFile::create`], with a name, by which other processes find it.
    pub fn create_named(directory: &Path, mode: u32) -> io::Result<TemporaryFile> {
        remove_stale(directory);
        TemporaryFile::with_name(directory, mode)
    }

    /// Takes over one that another process has left, and that may be read alone. Dropping it removes it.
    pub fn adopt(path: &Path) -> io::Result<TemporaryFile> {
        let file = File::open(path)?;
        let path = TempPath::try_from_path(path)?;
        // Nobody is to take it for a stale one, before it is locked either.
        let touched = rustix::fs::futimens(&file, &NOW);
        let started = Instant::now();
        // Who leaves it may hold its lock for a moment yet.
        while rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            == Err(rustix::io::Errno::WOULDBLOCK)
            && started.elapsed() < LOCK_PATIENCE
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Another user's file cannot be touched; then its lock has to do.
        touched.or_else(|error| if error == rustix::io::Errno::PERM { Ok(()) } else { Err(error) })?;
        Ok(TemporaryFile { file, path: Some(path) })
    }

    /// Its name, if it has one.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Leaves it to another process under its name.
    pub fn leave(self) -> io::Result<()> {
        match self.path {
            Some(path) => path.keep().map(|_| ()).map_err(|error| error.error),
            None => Ok(()),
        }
    }

    fn with_name(directory: &Path, mode: u32) -> io::Result<TemporaryFile> {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        let mut builder = tempfile::Builder::new();
        let named = builder.prefix(PREFIX).suffix(SUFFIX).permissions(permissions).tempfile_in(directory)?;
        let (file, path) = named.into_parts();
        // For as long as it is locked, nobody takes it for a stale one. Where locks are missing, its age tells.
        let _ = rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive);
        Ok(TemporaryFile { file, path: Some(path) })
    }

    /// The file.
    pub fn as_file(&self) -> &File {
        &self.file
    }

    /// Gives the file its name, in the directory that it was made for; what had the name before loses it.
    pub fn persist(self, target: &Path) -> io::Result<()> {
        match self.path {
            Some(path) => path.persist(target).map_err(|error| error.error),
            None => give_name(&self.file, target).or_else(|error| {
                tracing::info!(%error, "the file cannot be given its name, and is copied");
                copy_to(&self.file, target)
            }),
        }
    }
}

/// The directory of a file.
pub fn directory_of(target: &Path) -> &Path {
    target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Copies a file that cannot be given a name to one that has one, and gives that the target's: there are file systems that
/// have files without names and cannot link them.
fn copy_to(file: &File, target: &Path) -> io::Result<()> {
    let mut source = file;
    source.seek(io::SeekFrom::Start(0))?;
    let copy = TemporaryFile::with_name(directory_of(target), 0o600)?;
    io::copy(&mut source, &mut copy.as_file())?;
    copy.as_file().set_permissions(file.metadata()?.permissions())?;
    copy.as_file().sync_all()?;
    copy.persist(target)
}

/// A file without a name, where the system and the file system have them.
#[cfg(target_os = "linux")]
fn without_name(directory: &Path, mode: u32) -> Option<File> {
    use rustix::fs::{Mode, OFlags};
    // Without /proc it could not be given a name.
    if !Path::new("/proc/self/fd").exists() {
        return None;
    }
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::from_raw_mode(mode)).ok().map(File::from)
}

#[cfg(not(target_os = "linux"))]
fn without_name(_directory: &Path, _mode: u32) -> Option<File> {
    None
}

/// Links a file that has no name.
#[cfg(target_os = "linux")]
fn give_name(file: &File, target: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    use rustix::fs::{AtFlags, CWD, linkat};
    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    let link = |target: &Path| linkat(CWD, &source, CWD, target, AtFlags::SYMLINK_FOLLOW);
    match link(target) {
        Err(rustix::io::Errno::EXIST) => {}
        result => return result.map_err(Into::into),
    }
    // A link takes nobody's place, but a rename does: the file gets another name first.
    let directory = directory_of(target);
    for attempt in 0..1000 {
        let unique = format!("{PREFIX}{}-{attempt}{SUFFIX}", std::process::id());
        let path = directory.join(unique);
        match link(&path) {
            Err(rustix::io::Errno::EXIST) => continue,
            result => result?,
        }
        return std::fs::rename(&path, target).inspect_err(|_| {
            // The error of the rename is what is told.
            let _ = std::fs::remove_file(&path);
        });
    }
    Err(io::Error::other("no name for a temporary file is free"))
}

#[cfg(not(target_os = "linux"))]
fn give_name(_file: &File, _target: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Removes the temporary files of processes that were killed. That one cannot be removed is no error.
fn remove_stale(directory: &Path) {
    let is_ours =
        |name: &OsStr| name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if is_ours(&entry.file_name()) && is_stale(&entry.path()) {
            tracing::info!(path = %entry.path().display(), "removing what a killed process left");
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn is_stale(path: &PathBuf) -> bool {
    let check = || -> io::Result<bool> {
        let metadata = path.symlink_metadata()?;
        let age = SystemTime::now().duration_since(metadata.modified()?).unwrap_or_default();
        if !metadata.is_file() || age < STALE_AFTER {
            return Ok(false);
        }
        let file = File::open(path)?;
        Ok(rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok())
    };
    check().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_takes_a_name_that_is_free_or_not_with_and_without_one_of_its_own() {
        for make in [TemporaryFile::create, TemporaryFile::with_name] {
            let directory = tempfile::tempdir().unwrap();
            let target = directory.path().join("a");
            for content in ["first", "second"] {
                let temporary = make(directory.path(), 0o666).unwrap();
                std::io::Write::write_all(&mut temporary.as_file(), content.as_bytes()).unwrap();
                temporary.persist(&target).unwrap();
                assert_eq!(std::fs::read_to_string(&target).unwrap(), content);
            }
            drop(make(directory.path(), 0o666).unwrap());
            assert_eq!(names(directory.path()), ["a"]);
        }
    }

    #[test]
    fn a_file_that_cannot_be_linked_is_copied() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("a");
        let temporary = TemporaryFile::create(directory.path(), 0o640).unwrap();
        std::io::Write::write_all(&mut temporary.as_file(), b"content").unwrap();
        copy_to(temporary.as_file(), &target).unwrap();
        drop(temporary);
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "content");
        assert_eq!(target.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(names(directory.path()), ["a"]);
    }

    #[test]
    fn what_is_taken_over_is_not_taken_for_stale() {
        let directory = tempfile::tempdir().unwrap();
        let other = TemporaryFile::create_named(directory.path(), 0o600).unwrap();
        let path = other.path().unwrap().to_owned();
        other.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
        other.as_file().set_modified(SystemTime::now() - 2 * STALE_AFTER).unwrap();
        let adopted = std::thread::scope(|scope| {
            let adopted = scope.spawn(|| TemporaryFile::adopt(&path).unwrap());
            std::thread::sleep(Duration::from_millis(50));
            other.leave().unwrap();
            adopted.join().unwrap()
        });
        // Locked as well.
        adopted.as_file().set_modified(SystemTime::now() - 2 * STALE_AFTER).unwrap();
        drop(TemporaryFile::create(directory.path(), 0o600).unwrap());
        assert!(path.exists());
        drop(adopted);
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn what_a_killed_process_left_goes_and_what_is_in_use_stays() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let old = SystemTime::now() - 2 * STALE_AFTER;
        for name in [".safejax-stale1.tmp", ".safejax-young1.tmp", ".other-x.tmp"] {
            let file = File::create(at(name)).unwrap();
            if name != ".safejax-young1.tmp" {
                file.set_modified(old).unwrap();
            }
        }
        let in_use = TemporaryFile::with_name(directory.path(), 0o666).unwrap();
        in_use.as_file().set_modified(old).unwrap();
        drop(TemporaryFile::create(directory.path(), 0o666).unwrap());
        let left = names(directory.path());
        assert!(!left.contains(&".safejax-stale1.tmp".to_owned()), "{left:?}");
        assert_eq!(left.len(), 3, "{left:?}");
    }
}
