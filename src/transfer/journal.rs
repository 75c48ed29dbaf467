//! The journal of a checkpoint that replaces another: while files take and lose their names, a file beside them says which. What a
//! killed process leaves is so known to the next one that saves there.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::format::shards_of;
use crate::store::{WriteOptions, remove_all, sha256};

/// The journal of the checkpoint of an index: `.safejax-….saving`. Whoever has it is the only one that replaces the checkpoint. It
/// goes when it is dropped, and stays when the process is killed.
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Whether it is to be there for the next one that saves.
    is_kept: bool,
}

/// What a journal says.
#[derive(Serialize, Deserialize)]
pub struct Naming {
    /// The file with which the new checkpoint is there.
    pub switch: Named,
    /// The other files that take their names, before it.
    pub new: Vec<Named>,
    /// Those that go after it.
    pub old: Vec<Named>,
}

/// A file beside the index: its name, and what tells it from any other that has the name later.
#[derive(Serialize, Deserialize, PartialEq)]
pub struct Named {
    name: String,
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Named {
    /// A file of this name, or one that will have it.
    pub fn new(path: &Path, metadata: &Metadata) -> Named {
        Named {
            name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }

    /// The file that is there; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn there(path: &Path) -> Result<Option<Named>> {
        match path.symlink_metadata() {
            Ok(metadata) => Ok(Some(Named::new(path, &metadata))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("look at", path, error)),
        }
    }

    /// Those of these files that are there still, beside the index.
    ///
    /// # Errors
    /// As for [`Named::there`].
    pub fn paths(files: &[Named], index: &Path) -> Result<Vec<PathBuf>> {
        let paths = files.iter().map(|file| file.path(index));
        Ok(paths.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// The place of its name. A journal has names alone.
    pub fn beside(&self, index: &Path) -> Option<PathBuf> {
        (!self.name.contains('/')).then(|| index.with_file_name(&self.name))
    }

    /// Whether it has its name, which can be a link's.
    fn is_through(&self, index: &Path) -> Result<bool> {
        let Some(path) = self.beside(index) else { return Ok(false) };
        match path.metadata() {
            Ok(metadata) => Ok(Named::new(&path, &metadata) == *self),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("look at", path, error)),
        }
    }

    fn path(&self, index: &Path) -> Result<Option<PathBuf>> {
        let Some(path) = self.beside(index) else { return Ok(None) };
        Ok((Named::there(&path)?.as_ref() == Some(self)).then_some(path))
    }
}

impl Naming {
    /// Removes what a killed process left, of either checkpoint.
    fn clean_up(&self, index: &Path) -> Result<()> {
        let kept = shards_of(index)?;
        let is_listed = self.new.iter().any(|file| kept.contains(&index.with_file_name(&file.name)));
        let is_there = is_listed || self.switch.is_through(index)?;
        let mut left = Named::paths(if is_there { &self.old } else { &self.new }, index)?;
        // What the index lists goes only with the index.
        if !left.iter().any(|path| path == index) {
            left.retain(|path| !kept.contains(path));
        }
        for path in &left {
            tracing::info!(path = %path.display(), "removing what a killed process left");
        }
        remove_all(left.iter().map(PathBuf::as_path))
    }
}

/// Where the journal of an index's checkpoint is. Its name has a fixed length, so that it is not too long where the index's is not.
pub fn journal_of(index: &Path) -> PathBuf {
    let name = index.file_name().unwrap_or_default().as_encoded_bytes();
    index.with_file_name(format!(".safejax-{:.16}.saving", sha256(name)))
}

impl Journal {
    /// Starts one, once nobody else is at it, and removes what a killed process left.
    ///
    /// # Errors
    /// [`Error::Io`], also when another process is at it for longer than that can take.
    pub fn begin(index: &Path) -> Result<Journal> {
        let path = journal_of(index);
        let since = Instant::now();
        loop {
            let file = open(&path)?;
            // Where there are no locks, nobody can say.
            if flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(rustix::io::Errno::WOULDBLOCK) {
                if since.elapsed() < PATIENCE {
                    std::thread::sleep(ASKED_EVERY);
                    continue;
                }
                let busy =
                    std::io::Error::new(std::io::ErrorKind::ResourceBusy, "another process is saving it");
                return Err(Error::io("replace", index, busy));
            }
            // Whoever had it may have removed it before it was locked here.
            let own = file.metadata().map_err(|error| Error::io("read", &path, error))?;
            if Named::there(&path)?.is_some_and(|there| (there.device, there.inode) == (own.dev(), own.ino()))
            {
                let mut journal = Journal { path, file, is_kept: false };
                journal.clean_up(index)?;
                return Ok(journal);
            }
        }
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::io("write", &self.path, error)
    }

    fn clean_up(&mut self, index: &Path) -> Result<()> {
        self.is_kept = self.file.metadata().is_ok_and(|metadata| metadata.len() > 0);
        let mut left = Vec::new();
        (&self.file).read_to_end(&mut left).map_err(|error| self.failed(error))?;
        // One that was not written to its end is of files none of which has its name yet.
        if let Ok(left) = serde_json::from_slice::<Naming>(&left) {
            left.clean_up(index)?;
        }
        self.is_kept = false;
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

    /// Leaves it for the next one that saves, which is to remove what could not be removed.
    pub fn keep(&mut self) {
        self.is_kept = true;
    }
}

/// The longest that anybody waits for another process to give files their names, which takes it milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often that is asked.
const ASKED_EVERY: Duration = Duration::from_millis(5);

/// The longest journal, in bytes: of more files than a checkpoint has.
const MAX_BYTES: u64 = 64 << 20;

/// Opens a journal, which is a file of its own and nothing else that has its name.
fn open(path: &Path) -> Result<File> {
    let failed = |error| Error::io("write", path, error);
    // A pipe would be waited for.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut options = File::options();
    options.create(true).truncate(false).read(true).write(true).custom_flags(flags);
    let file = options.open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let problem = if !metadata.is_file() {
        "it exists and is not a regular file"
    } else if metadata.uid() != rustix::process::geteuid().as_raw() {
        // It says what is removed.
        "it is another user's; remove it"
    } else if metadata.len() > MAX_BYTES {
        "it is too large to be a journal; remove it"
    } else {
        return Ok(file);
    };
    Err(failed(std::io::Error::other(problem)))
}

impl Drop for Journal {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "the journal of a save could not be removed");
        }
    }
}
