//! The ways in which the bytes of a blob get into memory of one's own: out of the map, by positional reads, or past the
//! page cache.

use std::ops::Range;

use bytes::Bytes;

use super::blob::{Blob, SharedBlob, copy_out};
use super::direct::DirectFile;
use crate::error::{Error, Result};

/// How the bytes of a file are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Io {
    /// The map in place where the device can use it there, positional reads for everything that must be copied;
    /// positional reads alone on a network file system, where a map is read page by page.
    #[default]
    Auto,
    /// The map only: what must be copied is copied out of it.
    Mapped,
    /// Positional reads in large blocks only. Nothing keeps using the file after the load.
    Positional,
    /// As `Positional`, past the page cache (`O_DIRECT`): for files larger than memory, and for those that will
    /// not be read again soon.
    Direct,
}

impl std::fmt::Display for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Io::Auto => "chosen per file",
            Io::Mapped => "memory map",
            Io::Positional => "positional reads",
            Io::Direct => "direct reads",
        })
    }
}

/// The bytes of a blob, read in one way. Can be used from several threads at once.
#[derive(Debug)]
pub enum Reader {
    /// They need not be read.
    Memory(Bytes),
    Positional(SharedBlob),
    Direct(DirectFile),
}

impl Reader {
    /// The bytes of a blob, read in this way.
    ///
    /// # Errors
    /// [`Error::Io`] where its file system has no direct reads, or no maps.
    pub fn new(blob: &SharedBlob, io: Io) -> Result<Reader> {
        match (io, blob.as_file(), blob.map_for(io)) {
            (_, _, Some(data)) => Ok(Reader::Memory(data.clone())),
            (Io::Direct, Some(file), None) => file.direct().map(Reader::Direct),
            (Io::Mapped, ..) => {
                let problem = std::io::Error::other("it cannot be mapped; read it by position");
                Err(Error::io("map", blob.origin(), problem))
            }
            _ => Ok(Reader::Positional(SharedBlob::clone(blob))),
        }
    }

    /// Fills the parts, one after another, with the bytes from `offset` on.
    ///
    /// # Errors
    /// As for [`Blob::read_at`].
    pub fn read(&self, offset: usize, parts: &mut [&mut [u8]]) -> Result<()> {
        match self {
            Reader::Memory(data) => {
                copy_out(data, offset, parts);
                Ok(())
            }
            Reader::Positional(blob) => blob.read_at(offset, parts),
            Reader::Direct(file) => file.read_at(offset, parts),
        }
    }

    /// Has the system read a range ahead, where it does that.
    pub fn will_need(&self, range: Range<usize>) {
        let Reader::Positional(blob) = self else { return };
        if let Some(Err(error)) = blob.as_file().map(|file| file.will_need(range)) {
            tracing::debug!(%error, "the system does not read ahead");
        }
    }

    /// The bytes, where they need not be read.
    pub fn in_memory(&self, range: Range<usize>) -> Option<Bytes> {
        match self {
            Reader::Memory(data) => Some(data.slice(range)),
            _ => None,
        }
    }
}

impl dyn Blob + '_ {
    /// What needs no reading if it is to be read in this way.
    fn map_for(&self, io: Io) -> Option<&Bytes> {
        if io == Io::Mapped || self.is_memory() { self.map() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::FileBlob;

    fn content() -> Vec<u8> {
        (0..(4 << 20) + 70_001).map(|at| (at % 251) as u8).collect()
    }

    fn blob(path: &std::path::Path) -> SharedBlob {
        std::fs::write(path, content()).unwrap();
        FileBlob::open(path).unwrap()
    }

    #[test]
    fn every_way_reads_the_same_bytes_into_many_parts() {
        // Not in the system's directory for temporary files, which may be in memory and have no direct reads.
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let blob = blob(&directory.path().join("x"));
        let expected = &content()[77..];
        for io in [Io::Auto, Io::Mapped, Io::Positional, Io::Direct] {
            let reader = match Reader::new(&blob, io) {
                Ok(reader) => reader,
                Err(_) if io == Io::Direct => continue,
                Err(error) => panic!("{io}: {error}"),
            };
            let mut read = vec![0u8; expected.len()];
            // More parts than one system call takes, an empty one among them, and a long one.
            let (short, long) = read.split_at_mut(7 * 1500);
            let mut parts: Vec<&mut [u8]> = short.chunks_mut(7).collect();
            parts.push(&mut []);
            parts.push(long);
            reader.read(77, &mut parts).unwrap();
            assert!(read == expected, "{io}");
        }
    }

    #[test]
    fn a_file_that_is_shortened_meanwhile_is_an_error() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = directory.path().join("x");
        let blob = blob(&path);
        std::fs::File::options().write(true).open(&path).unwrap().set_len(5000).unwrap();
        // It was not mapped before, and cannot be as it was.
        assert!(Reader::new(&blob, Io::Mapped).is_err());
        for io in [Io::Positional, Io::Direct] {
            let Ok(reader) = Reader::new(&blob, io) else { continue };
            let mut bytes = vec![0; blob.size()];
            let error = reader.read(0, &mut [&mut bytes]).unwrap_err().to_string();
            assert!(error.contains("it now ends at byte 5000"), "{io}: {error}");
        }
    }
}
