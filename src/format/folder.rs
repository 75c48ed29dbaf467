//! The files of a checkpoint that is a directory: each is opened once, and none is outside.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use bytes::{Bytes, BytesMut};

use super::checkpoint::Extent;
use super::problem::Problem;
use crate::error::Error;
use crate::limits::Limits;
use crate::printable::Line;
use crate::store::{ClosedBlob, FileBlob, MemoryBlob, SharedBlob};

/// The names in a directory, in order.
///
/// # Errors
/// [`Error::Io`].
pub fn names_in(directory: &Path) -> crate::error::Result<Vec<String>> {
    let entries = std::fs::read_dir(directory).map_err(|error| Error::io("open", directory, error))?;
    let mut names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// Some bytes of a folder's files, or of what is kept beside them.
pub type Location = Extent;

/// The files of a checkpoint that is a directory, and memory for small values that are in none of them as they are.
pub struct Folder {
    root: PathBuf,
    /// The first is what is kept.
    blobs: Vec<SharedBlob>,
    by_path: HashMap<String, usize>,
    kept: BytesMut,
    limits: Limits,
    spent: Spent,
}

/// What opening the folder has taken so far: a file can be small, and refer to the same bytes again and again.
#[derive(Default)]
struct Spent {
    /// Keys, chunks and files.
    count: usize,
    /// Bytes of what was read to find them.
    bytes: usize,
    /// Bytes that all chunks expand to.
    expanded: u64,
    /// Bytes of the files.
    stored: u64,
}

/// The most bytes that are read, or made, to find what is in a folder.
const MAX_SPENT_BYTES: usize = 512 << 20;

/// Files that are held open; of others, each is opened when it is read.
const MAX_OPEN_FILES: usize = 256;

/// The position of what is kept among the files.
const KEPT: usize = 0;

/// The longest file that is read whole, in bytes: more than the descriptions and manifests of real checkpoints have.
const MAX_WHOLE_BYTES: usize = 128 << 20;

impl Folder {
    pub fn new(root: &Path, limits: Limits) -> Folder {
        let kept = MemoryBlob::shared(&root.display().to_string(), Bytes::new());
        let (blobs, by_path) = (vec![kept], HashMap::new());
        Folder {
            root: root.to_owned(),
            blobs,
            by_path,
            kept: BytesMut::new(),
            limits,
            spent: Spent::default(),
        }
    }

    /// What it is called in messages.
    pub fn origin(&self) -> String {
        self.root.display().to_string()
    }

    /// What it may ask for.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Counts keys, chunks and files that are found.
    ///
    /// # Errors
    /// That there are more than there may be.
    pub fn count(&mut self, more: usize) -> Result<(), Problem> {
        self.spent.count = self.spent.count.saturating_add(more);
        Ok(self.limits.check_nodes(self.spent.count)?)
    }

    /// Counts bytes that are read, or made, to find what is in it.
    ///
    /// # Errors
    /// That there are more than there may be.
    pub fn spend(&mut self, bytes: usize) -> Result<(), Problem> {
        self.spent.bytes = self.spent.bytes.saturating_add(bytes);
        if self.spent.bytes > MAX_SPENT_BYTES {
            return Err(format!("its tree of keys has more than {MAX_SPENT_BYTES} bytes").into());
        }
        Ok(())
    }

    /// Counts bytes that chunks expand to.
    ///
    /// # Errors
    /// That all together expand to more than the files may.
    pub fn expand(&mut self, bytes: u64) -> Result<(), Problem> {
        self.spent.expanded = self.spent.expanded.saturating_add(bytes);
        let stored = self.spent.stored + self.kept.len() as u64;
        Ok(self.limits.check_expansion(stored, self.spent.expanded)?)
    }

    /// The names in a directory within it, in order.
    ///
    /// # Errors
    /// That it cannot be read.
    pub fn names(&self, directory: &str) -> Result<Vec<String>, Problem> {
        Ok(names_in(&self.root.join(directory))?)
    }

    /// Whether there is something of this name that is no directory. What is no file is told when it is read.
    pub fn has(&self, path: &str) -> bool {
        let path = self.root.join(path);
        path.symlink_metadata().is_ok() && !path.is_dir()
    }

    /// Whether there is a directory of this name.
    pub fn is_directory(&self, path: &str) -> bool {
        self.root.join(path).is_dir()
    }

    /// Whether there is a directory of this name that is no link: links can lead in circles.
    pub fn is_own_directory(&self, path: &str) -> bool {
        self.root.join(path).symlink_metadata().is_ok_and(|found| found.is_dir())
    }

    /// All of a small file.
    ///
    /// # Errors
    /// That it is not there, cannot be read, is too long, or is outside.
    pub fn read_whole(&mut self, path: &str) -> Result<Bytes, Problem> {
        let blob = self.blob(path)?;
        check_size(&Line(path), blob.size(), MAX_WHOLE_BYTES)?;
        Ok(blob.read(0..blob.size())?)
    }

    /// Where some bytes of a file are.
    ///
    /// # Errors
    /// That the file is not there, cannot be opened, is outside, or ends before.
    pub fn locate(&mut self, path: &str, range: Range<usize>) -> Result<Location, Problem> {
        let file = self.open(path)?;
        let size = self.blobs[file].size();
        if range.end > size {
            return Err(
                format!("{} ends at byte {size}, and bytes {range:?} of it are wanted", Line(path)).into()
            );
        }
        Ok(Extent { file, range })
    }

    /// Where all of a file is.
    ///
    /// # Errors
    /// That the file is not there, cannot be opened, or is outside.
    pub fn whole(&mut self, path: &str) -> Result<Location, Problem> {
        let file = self.open(path)?;
        Ok(Extent { file, range: 0..self.blobs[file].size() })
    }

    /// A file, which is not counted among the others.
    ///
    /// # Errors
    /// That it is not there, cannot be opened, or is outside.
    pub fn blob(&self, path: &str) -> Result<SharedBlob, Problem> {
        Ok(FileBlob::open(&self.path(path)?)?)
    }

    /// Takes files of another kind of checkpoint among the others; the position of the first.
    pub fn adopt(&mut self, blobs: Vec<SharedBlob>) -> usize {
        let first = self.blobs.len();
        self.blobs.extend(blobs);
        first
    }

    /// Keeps a value; says where.
    ///
    /// # Errors
    /// As for [`Folder::spend`].
    pub fn keep(&mut self, value: &[u8]) -> Result<Location, Problem> {
        self.spend(value.len())?;
        let start = self.kept.len();
        self.kept.extend_from_slice(value);
        Ok(Extent { file: KEPT, range: start..self.kept.len() })
    }

    /// As [`Folder::read`], of what has at most so many bytes.
    ///
    /// # Errors
    /// That they are more, or cannot be read.
    pub fn read_at_most(&self, what: &str, location: &Location, most: usize) -> Result<Bytes, Problem> {
        check_size(&what, location.range.len(), most)?;
        self.read(location)
    }

    /// The bytes that are there.
    ///
    /// # Errors
    /// That they cannot be read.
    pub fn read(&self, Extent { file, range }: &Location) -> Result<Bytes, Problem> {
        if *file == KEPT {
            return Ok(Bytes::copy_from_slice(&self.kept[range.clone()]));
        }
        Ok(self.blobs[*file].read(range.clone())?)
    }

    /// The files.
    pub fn into_blobs(mut self) -> Vec<SharedBlob> {
        self.blobs[KEPT] = MemoryBlob::shared(&self.root.display().to_string(), self.kept.freeze());
        self.blobs
    }

    fn open(&mut self, path: &str) -> Result<usize, Problem> {
        if let Some(file) = self.by_path.get(path) {
            return Ok(*file);
        }
        let blob = self.blob(path).map_err(|problem| match problem {
            Problem::Unreadable(Error::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Problem::Content(format!(
                    "its file {} is missing, so that it is not a whole copy",
                    Line(path)
                ))
            }
            problem => problem,
        })?;
        self.spent.stored += blob.size() as u64;
        let is_held = self.blobs.len() <= MAX_OPEN_FILES;
        self.blobs.push(if is_held { blob } else { ClosedBlob::of(&*blob) });
        self.by_path.insert(path.to_owned(), self.blobs.len() - 1);
        Ok(self.blobs.len() - 1)
    }

    /// The path of a file by what the checkpoint calls it.
    fn path(&self, path: &str) -> Result<PathBuf, Problem> {
        let is_within = !path.is_empty()
            && !path.contains(['\0', '\\'])
            && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        if !is_within {
            return Err(
                format!("it refers to the file `{}`, which is not within its directory", Line(path)).into()
            );
        }
        let mut whole = self.root.clone();
        for part in Path::new(path).components() {
            if whole != self.root && whole.is_symlink() {
                return Err(format!(
                    "it refers to the file `{}`, which is behind a link to a directory",
                    Line(path)
                )
                .into());
            }
            whole.push(part);
        }
        Ok(whole)
    }
}

fn check_size(what: &dyn fmt::Display, bytes: usize, most: usize) -> Result<(), String> {
    if bytes > most {
        return Err(format!("{what} has {bytes} bytes, and {most} are the most"));
    }
    Ok(())
}
