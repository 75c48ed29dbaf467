//! The opening of files and of memory maps over them: the one place outside `pjrt` with `unsafe` code.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use memmap2::Mmap;

use super::foreign;
use crate::error::{Error, Result};
use crate::printable::Line;

/// A file that is open, and mapped.
#[derive(Debug, Clone)]
pub struct MappedFile {
    /// The file, for reads that do not go through the map.
    pub file: Arc<File>,
    /// Its map, for advice; `None` for an empty file.
    pub map: Option<Arc<Mmap>>,
    /// Its content. The map lives as long as this or any slice of it.
    pub data: Bytes,
}

/// Opens and maps a whole file, read-only.
pub fn open(path: &Path) -> Result<MappedFile> {
    // Asked first, since opening a pipe would wait for a writer.
    let metadata = std::fs::metadata(path).map_err(|error| Error::io("open", path, error))?;
    if metadata.is_dir() {
        let (origin, problem) = (path.display().to_string(), foreign::directory(path));
        return Err(Error::Malformed { origin, format: "checkpoint", problem });
    }
    if !metadata.is_file() {
        let kind = std::io::Error::other("it is not a regular file");
        return Err(Error::io("map", path, kind));
    }
    let file = Arc::new(File::open(path).map_err(|error| Error::io("open", path, error))?);
    if metadata.len() == 0 {
        return Ok(MappedFile { file, map: None, data: Bytes::new() });
    }
    #[allow(unsafe_code)]
    // SAFETY: the map is read-only and shared with the file. Whoever writes to the file in place, another process or safe
    // code of this one, changes the bytes under us, and whoever truncates it makes reading them fault: no system call
    // prevents that, and `Checkpoint` documents it. What keeps it harmless: this crate replaces files by renaming and
    // never writes to one in place; everything that is decided by bytes of the file, the header above all, is read from
    // a copy; and elements of arrays are valid whatever their bytes are.
    let map = unsafe { Mmap::map(&*file) }.map_err(|error| Error::io("map", path, error))?;
    let map = Arc::new(map);
    Ok(MappedFile { file, data: Bytes::from_owner(Shared(Arc::clone(&map))), map: Some(map) })
}

/// The content of a whole file. What a parser looks at is the map; what is read of arrays is read by position, so that a
/// file that is truncated meanwhile is an error, and does not end the process.
#[derive(Debug, Clone)]
pub struct FileBytes {
    origin: String,
    file: Option<Arc<File>>,
    identity: Option<Identity>,
    data: Bytes,
}

/// What tells that a file was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    bytes: u64,
    modified: Option<SystemTime>,
}

impl Identity {
    /// That of an open file, whatever its name stands for by now.
    pub fn of(file: &File) -> Option<Identity> {
        let metadata = file.metadata().ok()?;
        Some(Identity { bytes: metadata.len(), modified: metadata.modified().ok() })
    }
}

/// Warns if a file is not what it was.
pub fn warn_if_changed(origin: &str, file: Option<&File>, before: Option<Identity>) {
    let now = file.and_then(Identity::of);
    if before.is_some() && now != before {
        let origin = Line(origin);
        tracing::warn!(
            "{origin} was written to while it was read; what was read of it may be neither the old nor the new. Replace \
             files by renaming, so that the old content stays whole for those who read it"
        );
    }
}

/// Opens and maps a whole file.
pub fn map(path: &Path) -> Result<FileBytes> {
    let opened = open(path)?;
    let identity = Identity::of(&opened.file);
    let origin = path.display().to_string();
    Ok(FileBytes { origin, file: Some(opened.file), identity, data: opened.data })
}

impl FileBytes {
    /// What was made of a file's content, in memory.
    pub fn unpacked(&self, data: Bytes) -> FileBytes {
        FileBytes { origin: self.origin.clone(), file: None, identity: None, data }
    }

    /// Bytes that are no file's.
    #[cfg(test)]
    pub fn in_memory(data: Bytes) -> FileBytes {
        FileBytes { origin: "memory".into(), file: None, identity: None, data }
    }

    /// The bytes as they are mapped.
    pub fn bytes(&self) -> &Bytes {
        &self.data
    }

    /// Some of the bytes, read now.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`] when the file has become shorter.
    pub fn read(&self, range: Range<usize>) -> Result<Bytes> {
        let Some(file) = &self.file else { return Ok(self.data.slice(range)) };
        let mut bytes = vec![0; range.len()];
        read_exact_at(file, &self.origin, range.start, &mut bytes)?;
        Ok(bytes.into())
    }

    /// The file's content as a stream that can be repositioned, read now.
    pub fn cursor(&self) -> FileCursor {
        FileCursor { file: self.clone(), position: 0 }
    }

    /// Warns if the file is not what it was when it was opened.
    pub fn warn_if_changed(&self) {
        warn_if_changed(&self.origin, self.file.as_deref(), self.identity);
    }
}

/// See [`FileBytes::cursor`].
pub struct FileCursor {
    file: FileBytes,
    position: u64,
}

impl Read for FileCursor {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        use std::os::unix::fs::FileExt;
        let count = match &self.file.file {
            Some(file) => file.read_at(bytes, self.position)?,
            None => {
                let start = usize::try_from(self.position).unwrap_or(usize::MAX).min(self.file.data.len());
                (&self.file.data[start..]).read(bytes)?
            }
        };
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for FileCursor {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => (self.file.data.len() as u64).checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

/// Fills `bytes` with those of the file from `offset` on.
///
/// # Errors
/// [`Error::Io`]; [`Error::Malformed`] when the file has become shorter.
pub fn read_exact_at(file: &File, origin: &str, offset: usize, bytes: &mut [u8]) -> Result<()> {
    use std::os::unix::fs::FileExt;
    file.read_exact_at(bytes, offset as u64).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Error::Malformed {
            origin: origin.to_owned(),
            format: "file",
            problem: "it is shorter than when it was opened; something shortened it while it was read".into(),
        },
        _ => Error::io("read", origin, error),
    })
}

struct Shared(Arc<Mmap>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
