//! Files read past the page cache (`O_DIRECT`).

use std::cell::RefCell;
use std::fs::File;

use super::blob::cut_off;
use crate::error::{Error, Result};

/// What positions, lengths and memory of direct reads must be multiples of, in bytes: enough for any disk.
const DIRECT_ALIGNMENT: usize = 4096;

/// The most that is read past the page cache at once, in bytes.
const DIRECT_BYTES: usize = 4 << 20;

/// A file whose reads go past the page cache. Read from several threads at once.
#[derive(Debug)]
pub struct DirectFile {
    origin: String,
    file: File,
}

impl DirectFile {
    /// Opens the same file again, whatever has its name by now.
    ///
    /// # Errors
    /// [`Error::Io`] where its file system has no such reads.
    pub fn open(origin: &str, file: &File) -> Result<DirectFile> {
        let file = open_direct(file).map_err(|error| Error::io("read directly", origin, error))?;
        Ok(DirectFile { origin: origin.to_owned(), file })
    }

    /// Fills the parts, one after another, with the bytes from `offset` on: reads the whole blocks around them into memory
    /// of this thread, and copies the parts out of it.
    ///
    /// # Errors
    /// As for [`Blob::read_at`](super::Blob::read_at).
    pub fn read_at(&self, offset: usize, parts: &mut [&mut [u8]]) -> Result<()> {
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
                let count = self.read_blocks(start, &mut staging[..wanted])?;
                let Some(read) =
                    staging[..count.min(end - start)].get(at - start..).filter(|read| !read.is_empty())
                else {
                    return Err(cut_off(&self.origin, start + count));
                };
                scatter(read, at, parts, offset);
                at += read.len();
            }
            Ok(())
        })
    }

    /// Reads whole blocks: as much as there is room for, less only at the end of the file.
    fn read_blocks(&self, start: usize, blocks: &mut [u8]) -> Result<usize> {
        let mut count = 0;
        while count < blocks.len() {
            match rustix::io::pread(&self.file, &mut blocks[count..], (start + count) as u64) {
                Ok(more) => {
                    count += more;
                    if more == 0 || !more.is_multiple_of(DIRECT_ALIGNMENT) {
                        break;
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::io("read", &self.origin, error.into())),
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
