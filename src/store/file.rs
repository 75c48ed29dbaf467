//! Files of this system: read by position, mapped where that is wanted: the one place outside `pjrt` with `unsafe` code.

use std::fs::File;
use std::io::IoSliceMut;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use bytes::Bytes;
use memmap2::{Advice, Mmap};

use super::blob::{Blob, SharedBlob, cut_off};
use super::direct::DirectFile;
use super::temporary::directory_of;
use crate::error::{Error, Result};

/// What Linux before 5.14 says of advice that it does not know.
#[cfg(target_os = "linux")]
const EINVAL: i32 = 22;

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

/// A file that is open. What is decided by its bytes, and what is copied, is read by position, so that a file that is
/// truncated meanwhile is an error, and does not end the process.
#[derive(Debug)]
pub struct FileBlob {
    origin: String,
    file: File,
    size: usize,
    identity: Option<Identity>,
    /// Its map, once it was asked for; `None` where it cannot be mapped.
    map: OnceLock<Option<FileMap>>,
}

/// What tells that a file was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    bytes: u64,
    modified: Option<SystemTime>,
}

/// The map of a file.
#[derive(Debug)]
struct FileMap {
    /// For advice; `None` for an empty file.
    map: Option<Arc<Mmap>>,
    /// All bytes: the map lives as long as this or any slice of it.
    data: Bytes,
}

impl Identity {
    /// That of an open file, whatever its name stands for by now.
    fn of(file: &File) -> Option<Identity> {
        let metadata = file.metadata().ok()?;
        Some(Identity { bytes: metadata.len(), modified: metadata.modified().ok() })
    }
}

impl FileBlob {
    /// Opens a file.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened, or is no regular file.
    pub fn open(path: &Path) -> Result<SharedBlob> {
        let failed = |error| Error::io("open", path, error);
        // Asked first, since opening a pipe would wait for a writer.
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if !metadata.is_file() {
            let what = if metadata.is_dir() { "it is a directory" } else { "it is not a regular file" };
            return Err(failed(std::io::Error::other(what)));
        }
        let file = File::open(path).map_err(failed)?;
        let identity = Identity::of(&file);
        let size = identity.map_or(metadata.len(), |identity| identity.bytes);
        let size = usize::try_from(size).map_err(|_| {
            failed(std::io::Error::other("it has more bytes than this processor has addresses"))
        })?;
        let origin = path.display().to_string();
        Ok(Arc::new(FileBlob { origin, file, size, identity, map: OnceLock::new() }))
    }

    /// Whether a name stands for this file still, as far as can be told.
    pub fn is_still_at(&self, path: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        let is_same = |(own, there): (std::fs::Metadata, std::fs::Metadata)| {
            let modified = |metadata: &std::fs::Metadata| (metadata.mtime(), metadata.mtime_nsec());
            (own.dev(), own.ino(), modified(&own)) == (there.dev(), there.ino(), modified(&there))
        };
        self.file.metadata().and_then(|own| Ok((own, std::fs::metadata(path)?))).is_ok_and(is_same)
    }

    /// The same file, for reads past the page cache.
    ///
    /// # Errors
    /// [`Error::Io`] where its file system has none.
    pub fn direct(&self) -> Result<DirectFile> {
        DirectFile::open(&self.origin, &self.file)
    }

    /// Has the system read these bytes of the map soon, in the background.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn will_need(&self, range: Range<usize>) -> Result<()> {
        self.advise(range, Advice::WillNeed)
    }

    /// Has the system read these bytes, and map them into the process, before this returns; as [`FileBlob::will_need`]
    /// where it cannot.
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
        match self.file_map().and_then(|map| map.map.as_ref()) {
            Some(map) if !range.is_empty() => map
                .advise_range(advice, range.start, range.len())
                .map_err(|error| Error::io("advise the system about", &self.origin, error)),
            _ => Ok(()),
        }
    }

    fn file_map(&self) -> Option<&FileMap> {
        let make = || {
            if self.size == 0 {
                return Some(FileMap { map: None, data: Bytes::new() });
            }
            match map(&self.file) {
                // What was cut off since it was opened is not there, and what was added is not wanted.
                Ok(map) if map.len() >= self.size => {
                    let map = Arc::new(map);
                    let data = Bytes::from_owner(Shared(Arc::clone(&map))).slice(..self.size);
                    Some(FileMap { map: Some(map), data })
                }
                Ok(_) => None,
                Err(error) => {
                    tracing::info!(file = self.origin, %error, "the file cannot be mapped, and is read");
                    None
                }
            }
        };
        self.map.get_or_init(make).as_ref()
    }
}

impl Blob for FileBlob {
    fn origin(&self) -> &str {
        &self.origin
    }

    fn size(&self) -> usize {
        self.size
    }

    fn read_at(&self, mut offset: usize, parts: &mut [&mut [u8]]) -> Result<()> {
        for parts in parts.chunks_mut(MAX_PARTS) {
            let mut slices: Vec<IoSliceMut<'_>> =
                parts.iter_mut().map(|part| IoSliceMut::new(part)).collect();
            let mut rest = &mut slices[..];
            // Parts without bytes are not read.
            IoSliceMut::advance_slices(&mut rest, 0);
            while !rest.is_empty() {
                match rustix::io::preadv(&self.file, rest, offset as u64) {
                    Ok(0) => return Err(cut_off(&self.origin, offset)),
                    Ok(count) => {
                        offset += count;
                        IoSliceMut::advance_slices(&mut rest, count);
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(Error::io("read", &self.origin, error.into())),
                }
            }
        }
        Ok(())
    }

    fn map(&self) -> Option<&Bytes> {
        self.file_map().map(|map| &map.data)
    }

    fn has_changed(&self) -> bool {
        self.identity.is_some() && Identity::of(&self.file) != self.identity
    }

    fn is_waited_for(&self, ranges: &[Range<usize>]) -> bool {
        self.is_remote() || !is_cached(&self.file, ranges)
    }

    fn is_remote(&self) -> bool {
        is_remote(&self.file)
    }

    fn as_file(&self) -> Option<&FileBlob> {
        Some(self)
    }
}

fn map(file: &File) -> std::io::Result<Mmap> {
    #[allow(unsafe_code)]
    // SAFETY: the map is read-only and shared with the file. Whoever writes to the file in place, another process or safe
    // code of this one, changes the bytes under us, and whoever truncates it makes reading them fault: no system call
    // prevents that, and `Checkpoint` documents it. What keeps it harmless: this crate replaces files by renaming and
    // never writes to one in place; nothing is decided by bytes of the map, headers are read by position into memory of
    // our own; and elements of arrays are valid whatever their bytes are.
    unsafe {
        Mmap::map(file)
    }
}

struct Shared(Arc<Mmap>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Pages that are looked at to tell whether a file is in the page cache.
#[cfg(target_os = "linux")]
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

/// Of those, the ones whose clients write pages that they keep, so that two machines that write to one page of a file undo each
/// other's writes: NFS, SMB, 9P, AFS.
const INCOHERENT: [u32; 7] =
    [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42, 0x0102_1997, 0x5346_414f, 0x6b41_4653];

/// Whether machines that write to one file beside this one undo each other's writes.
#[cfg(target_os = "linux")]
pub fn is_incoherent(target: &Path) -> bool {
    // The width of the field depends on the platform.
    #[allow(clippy::unnecessary_cast)]
    rustix::fs::statfs(directory_of(target)).is_ok_and(|system| INCOHERENT.contains(&(system.f_type as u32)))
}

#[cfg(not(target_os = "linux"))]
pub fn is_incoherent(_target: &Path) -> bool {
    false
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
