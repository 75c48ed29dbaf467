//! The opening of memory maps: the one place outside `pjrt` with `unsafe` code.

use std::fs::File;
use std::path::Path;

use bytes::Bytes;
use memmap2::Mmap;

use crate::error::{Error, Result};

/// Maps a whole file, read-only. The map lives as long as the bytes or any slice of them.
pub fn map(path: &Path) -> Result<Bytes> {
    // Asked first, since opening a pipe would wait for a writer.
    let metadata = std::fs::metadata(path).map_err(|error| Error::io("open", path, error))?;
    if !metadata.is_file() {
        let kind = std::io::Error::other("it is not a regular file");
        return Err(Error::io("map", path, kind));
    }
    let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
    if metadata.len() == 0 {
        return Ok(Bytes::new());
    }
    #[allow(unsafe_code)]
    // SAFETY: the map is private and read-only. Should another process write to the file, the bytes can
    // change under us, and should one truncate it, reading them faults: `Checkpoint` documents both. Within
    // this process nothing writes to a file in place: checkpoints are replaced by renaming.
    let map = unsafe { Mmap::map(&file) }.map_err(|error| Error::io("map", path, error))?;
    Ok(Bytes::from_owner(map))
}
