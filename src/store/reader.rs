//! Reading bytes into memory of one's own: through the map, by positional reads, or past the
//! page cache.

use std::cell::RefCell;
use std::fs::File;
use std::io::IoSliceMut;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::Blob;
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

/// What positions, lengths and memory of direct reads must be multiples of, in bytes: enough for any disk.
const DIRECT_ALIGNMENT: usize = 4096;

/// The most that is read past the page cache at once, in bytes.
const DIRECT_BYTES: usize = 4 << 20;

/// The most parts that one system call takes (`IOV_MAX` of Linux).
const MAX_PARTS: usize = 1024;

/// File systems that are reached over a network, or served by another process, by their magic numbers
/// (`linux/magic.h`): NFS, SMB (three), 9P, FUSE, Ceph, Lustre, AFS (two), OCFS2.
const REMOTE: [u32; 11] = [
    0x6969,
    0x517b,
    0xff53_4d42,
    0xfe53_4d42,
    0x0102_1997,
    0x6573_5546,
    0x00c3_6400,
    0x0bd0_0bd0,
    0x5346_414f,
    0x6b41_4653,
    0x7461_636f,
];

/// The bytes of a blob, read in one way. Can be used from several threads at once.
pub struct Reader {
    origin: String,
    source: ReadSource,
}

enum ReadSource {
    Memory(Bytes),
    File(Arc<File>),
    Direct(File),
}

impl Blob {
    /// Whether it is reached over a network, or served by another process.
    pub(crate) fn is_remote(&self) -> bool {
        self.file.as_ref().is_some_and(|open| is_remote(&open.file))
    }

    /// Whether reading these bytes by position will wait for a disk or a network rather than for memory.
    pub(crate) fn is_waited_for(&self, ranges: &[Range<usize>]) -> bool {
        self.file.as_ref().is_some_and(|open| is_remote(&open.file) || !is_cached(&open.file, ranges))
    }

    /// The bytes, read in this way.
    ///
    /// # Errors
    /// [`Error::Io`] where the file system has no direct reads.
    pub(crate) fn reader(&self, io: Io) -> Result<Reader> {
        let source = match (&self.file, io) {
            (None, _) | (_, Io::Mapped) => ReadSource::Memory(self.bytes().clone()),
            (Some(open), Io::Auto | Io::Positional) => ReadSource::File(Arc::clone(&open.file)),
            (Some(open), Io::Direct) => {
                let file = open_direct(&open.file);
                ReadSource::Direct(file.map_err(|error| Error::io("read directly", self.origin(), error))?)
            }
        };
        Ok(Reader { origin: self.origin().to_owned(), source })
    }
}

impl Reader {
    /// Fills the parts, one after another, with the bytes from `offset` of the file on.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`] when the file has become shorter.
    pub fn read(&self, offset: usize, parts: &mut [&mut [u8]]) -> Result<()> {
        match &self.source {
            ReadSource::Memory(data) => {
                let mut offset = offset;
                for part in parts {
                    part.copy_from_slice(&data[offset..offset + part.len()]);
                    offset += part.len();
                }
                Ok(())
            }
            ReadSource::File(file) => self.read_file(file, offset, parts),
            ReadSource::Direct(file) => self.read_direct(file, offset, parts),
        }
    }

    /// The bytes, where they need not be read.
    pub fn in_memory(&self, range: Range<usize>) -> Option<Bytes> {
        match &self.source {
            ReadSource::Memory(data) => Some(data.slice(range)),
            _ => None,
        }
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::io("read", &self.origin, error)
    }

    fn cut_off(&self, offset: usize) -> Error {
        Error::Malformed {
            origin: self.origin.clone(),
            format: "file",
            problem: format!("it now ends at byte {offset}; something shortened it while it was read"),
        }
    }

    fn read_file(&self, file: &File, mut offset: usize, parts: &mut [&mut [u8]]) -> Result<()> {
        for parts in parts.chunks_mut(MAX_PARTS) {
            let mut slices: Vec<IoSliceMut<'_>> =
                parts.iter_mut().map(|part| IoSliceMut::new(part)).collect();
            let mut rest = &mut slices[..];
            // Parts without bytes are not read.
            IoSliceMut::advance_slices(&mut rest, 0);
            while !rest.is_empty() {
                match rustix::io::preadv(file, rest, offset as u64) {
                    Ok(0) => return Err(self.cut_off(offset)),
                    Ok(count) => {
                        offset += count;
                        IoSliceMut::advance_slices(&mut rest, count);
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(self.failed(error.into())),
                }
            }
        }
        Ok(())
    }

    /// Reads the whole blocks around the bytes into memory of this thread, and copies the parts out of it.
    fn read_direct(&self, file: &File, offset: usize, parts: &mut [&mut [u8]]) -> Result<()> {
        thread_local! {
            static STAGING: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        let end = offset + parts.iter().map(|part| part.len()).sum::<usize>();
        STAGING.with_borrow_mut(|staging| {
            staging.resize(DIRECT_BYTES + DIRECT_ALIGNMENT, 0);
            let skip = staging.as_ptr().align_offset(DIRECT_ALIGNMENT);
            let staging = &mut staging[skip..skip + DIRECT_BYTES];
            let mut at = offset;
            while at < end {
                let start = at / DIRECT_ALIGNMENT * DIRECT_ALIGNMENT;
                let wanted = (end.next_multiple_of(DIRECT_ALIGNMENT) - start).min(DIRECT_BYTES);
                let count = self.read_blocks(file, start, &mut staging[..wanted])?;
                let Some(read) =
                    staging[..count.min(end - start)].get(at - start..).filter(|read| !read.is_empty())
                else {
                    return Err(self.cut_off(start + count));
                };
                scatter(read, at, parts, offset);
                at += read.len();
            }
            Ok(())
        })
    }

    /// Reads whole blocks: as much as there is room for, less only at the end of the file.
    fn read_blocks(&self, file: &File, start: usize, blocks: &mut [u8]) -> Result<usize> {
        let mut count = 0;
        while count < blocks.len() {
            match rustix::io::pread(file, &mut blocks[count..], (start + count) as u64) {
                Ok(more) => {
                    count += more;
                    if more == 0 || !more.is_multiple_of(DIRECT_ALIGNMENT) {
                        break;
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(self.failed(error.into())),
            }
        }
        Ok(count)
    }
}

/// Copies what was read at `at` of the file to where it belongs in parts that begin at `offset`.
fn scatter(read: &[u8], at: usize, parts: &mut [&mut [u8]], offset: usize) {
    let mut position = offset;
    for part in parts {
        let (from, to) = (position.max(at), (position + part.len()).min(at + read.len()));
        if from < to {
            part[from - position..to - position].copy_from_slice(&read[from - at..to - at]);
        }
        position += part.len();
    }
}

/// Pages that are looked at to tell whether a file is in the page cache.
const PROBES: usize = 64;

/// Whether most of these bytes are in the page cache: of some pages throughout, a byte each is asked for without
/// waiting for the disk. True where the system cannot say.
#[cfg(target_os = "linux")]
fn is_cached(file: &File, ranges: &[Range<usize>]) -> bool {
    let total: usize = ranges.iter().map(ExactSizeIterator::len).sum();
    let (mut cached, mut probed, mut before) = (0, 0, 0);
    for range in ranges {
        while probed < PROBES && probed * total / PROBES < before + range.len() {
            let at = range.start + (probed * total / PROBES - before);
            let mut byte = [0];
            let mut parts = [IoSliceMut::new(&mut byte)];
            match rustix::io::preadv2(file, &mut parts, at as u64, rustix::io::ReadWriteFlags::NOWAIT) {
                Ok(_) => cached += 1,
                Err(rustix::io::Errno::AGAIN) => {}
                Err(_) => return true,
            }
            probed += 1;
        }
        before += range.len();
    }
    cached * 2 >= probed
}

#[cfg(not(target_os = "linux"))]
fn is_cached(_file: &File, _ranges: &[Range<usize>]) -> bool {
    true
}

/// Whether the file is on a file system of [`REMOTE`].
#[cfg(target_os = "linux")]
fn is_remote(file: &File) -> bool {
    // The width of the field depends on the platform.
    #[allow(clippy::unnecessary_cast)]
    rustix::fs::fstatfs(file).is_ok_and(|system| REMOTE.contains(&(system.f_type as u32)))
}

#[cfg(not(target_os = "linux"))]
fn is_remote(_file: &File) -> bool {
    false
}

/// Opens the same file again, whatever has its name by now, for reads past the page cache.
#[cfg(target_os = "linux")]
fn open_direct(file: &File) -> std::io::Result<File> {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;
    let same = format!("/proc/self/fd/{}", file.as_raw_fd());
    File::options().read(true).custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32).open(same)
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_file: &File) -> std::io::Result<File> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file bigger than what is read at once, whose bytes tell where they are.
    fn blob(path: &std::path::Path) -> Blob {
        let bytes: Vec<u8> = (0..DIRECT_BYTES + 70_001).map(|at| (at % 251) as u8).collect();
        std::fs::write(path, bytes).unwrap();
        Blob::open(path).unwrap()
    }

    #[test]
    fn every_way_reads_the_same_bytes_into_many_parts() {
        // Not in the system's directory for temporary files, which may be in memory and have no direct reads.
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let blob = blob(&directory.path().join("x"));
        let expected = &blob.bytes()[77..];
        for io in [Io::Auto, Io::Mapped, Io::Positional, Io::Direct] {
            let reader = match blob.reader(io) {
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
        File::options().write(true).open(&path).unwrap().set_len(5000).unwrap();
        for io in [Io::Positional, Io::Direct] {
            let Ok(reader) = blob.reader(io) else { continue };
            let mut bytes = vec![0; blob.bytes().len()];
            let error = reader.read(0, &mut [&mut bytes]).unwrap_err().to_string();
            assert!(error.contains("it now ends at byte 5000"), "{io}: {error}");
        }
    }
}
