//! The opening of files and of memory maps over them: the one place outside `pjrt` with `unsafe` code.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use memmap2::{Advice, Mmap};

use crate::error::{Error, Result};
use crate::printable::Line;

/// What Linux before 5.14 says of advice that it does not know.
#[cfg(target_os = "linux")]
const EINVAL: i32 = 22;

/// Bytes that do not change: a file's, or memory's. Cheap to clone.
///
/// What a parser looks at is the map of a file; what is read of arrays is read by position, so that a file that is
/// truncated meanwhile is an error, and does not end the process.
#[derive(Debug, Clone)]
pub struct Blob {
    origin: Arc<str>,
    /// The file that is open, where it is one.
    pub(super) file: Option<OpenFile>,
    /// All bytes: of a file, its map, which lives as long as this or any slice of it.
    data: Bytes,
}

/// A file that is open.
#[derive(Debug, Clone)]
pub(super) struct OpenFile {
    pub file: Arc<File>,
    /// Its map, for advice; `None` for an empty file.
    map: Option<Arc<Mmap>>,
    identity: Option<Identity>,
}

/// What tells that a file was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    bytes: u64,
    modified: Option<SystemTime>,
}

impl Identity {
    /// That of an open file, whatever its name stands for by now.
    fn of(file: &File) -> Option<Identity> {
        let metadata = file.metadata().ok()?;
        Some(Identity { bytes: metadata.len(), modified: metadata.modified().ok() })
    }
}

impl Blob {
    /// Opens and maps a whole file, read-only.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened, or is no regular file.
    pub fn open(path: &Path) -> Result<Blob> {
        // Asked first, since opening a pipe would wait for a writer.
        let metadata = std::fs::metadata(path).map_err(|error| Error::io("open", path, error))?;
        if !metadata.is_file() {
            let what = if metadata.is_dir() { "it is a directory" } else { "it is not a regular file" };
            return Err(Error::io("map", path, std::io::Error::other(what)));
        }
        let file = Arc::new(File::open(path).map_err(|error| Error::io("open", path, error))?);
        let identity = Identity::of(&file);
        let map = if metadata.len() == 0 { None } else { Some(Arc::new(map(&file, path)?)) };
        let data = map.as_ref().map_or(Bytes::new(), |map| Bytes::from_owner(Shared(Arc::clone(map))));
        let file = Some(OpenFile { file, map, identity });
        Ok(Blob { origin: path.display().to_string().into(), file, data })
    }

    /// Bytes in memory.
    pub fn in_memory(origin: &str, data: Bytes) -> Blob {
        Blob { origin: origin.into(), file: None, data }
    }

    /// The file, or what else the bytes come from, for messages.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// All bytes; of a file, as they are mapped.
    pub fn bytes(&self) -> &Bytes {
        &self.data
    }

    /// Whether it is a file.
    pub fn is_file(&self) -> bool {
        self.file.is_some()
    }

    /// The content as a stream that can be repositioned, read now.
    pub fn cursor(&self) -> BlobCursor {
        BlobCursor { blob: self.clone(), position: 0 }
    }

    /// Logs a warning if the file was written to since it was opened: what was read of it may be neither the old nor the
    /// new content.
    pub fn warn_if_changed(&self) {
        let Some(open) = &self.file else { return };
        if open.identity.is_some() && Identity::of(&open.file) != open.identity {
            let origin = Line(&self.origin);
            tracing::warn!(
                "{origin} was written to while it was read; what was read of it may be neither the old nor the new. \
                 Replace files by renaming, so that the old content stays whole for those who read it"
            );
        }
    }

    /// Has the system read these bytes of the file soon, in the background; does nothing where they are in memory.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn will_need(&self, range: Range<usize>) -> Result<()> {
        self.advise(range, Advice::WillNeed)
    }

    /// Has the system read these bytes of the file, and map them into the process, before this returns; as
    /// [`Blob::will_need`] where it cannot.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn populate(&self, range: Range<usize>) -> Result<()> {
        #[cfg(target_os = "linux")]
        match self.advise(range.clone(), Advice::PopulateRead) {
            Err(Error::Io { source, .. }) if source.raw_os_error() == Some(EINVAL) => {}
            result => return result,
        }
        self.will_need(range)
    }

    fn advise(&self, range: Range<usize>, advice: Advice) -> Result<()> {
        match self.file.as_ref().and_then(|open| open.map.as_ref()) {
            Some(map) if !range.is_empty() => map
                .advise_range(advice, range.start, range.len())
                .map_err(|error| Error::io("advise the system about", &*self.origin, error)),
            _ => Ok(()),
        }
    }
}

fn map(file: &File, path: &Path) -> Result<Mmap> {
    #[allow(unsafe_code)]
    // SAFETY: the map is read-only and shared with the file. Whoever writes to the file in place, another process or safe
    // code of this one, changes the bytes under us, and whoever truncates it makes reading them fault: no system call
    // prevents that, and `Checkpoint` documents it. What keeps it harmless: this crate replaces files by renaming and
    // never writes to one in place; everything that is decided by bytes of the file, the header above all, is read from
    // a copy; and elements of arrays are valid whatever their bytes are.
    let map = unsafe { Mmap::map(file) };
    map.map_err(|error| Error::io("map", path, error))
}

/// See [`Blob::cursor`].
pub struct BlobCursor {
    blob: Blob,
    position: u64,
}

impl Read for BlobCursor {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let count = match &self.blob.file {
            Some(open) => open.file.read_at(bytes, self.position)?,
            None => {
                let start = usize::try_from(self.position).unwrap_or(usize::MAX).min(self.blob.data.len());
                (&self.blob.data[start..]).read(bytes)?
            }
        };
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for BlobCursor {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => (self.blob.data.len() as u64).checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

struct Shared(Arc<Mmap>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
