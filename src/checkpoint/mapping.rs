//! The opening of files and of memory maps over them: the one place outside `pjrt` with `unsafe` code.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::Mmap;

use super::foreign;
use crate::error::{Error, Result};

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
    // SAFETY: the map is private and read-only. Should another process write to the file, the bytes can
    // change under us, and should one truncate it, reading them faults: `Checkpoint` documents both. Within
    // this process nothing writes to a file in place: checkpoints are replaced by renaming.
    let map = unsafe { Mmap::map(&*file) }.map_err(|error| Error::io("map", path, error))?;
    let map = Arc::new(map);
    Ok(MappedFile { file, data: Bytes::from_owner(Shared(Arc::clone(&map))), map: Some(map) })
}

/// The content of a whole file, mapped as by [`open`].
pub fn map(path: &Path) -> Result<Bytes> {
    open(path).map(|file| file.data)
}

struct Shared(Arc<Mmap>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
