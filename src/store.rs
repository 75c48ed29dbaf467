//! Where bytes are: files and memory. Read by position from many threads, mapped where that is possible, written so that
//! a name stands for the old content or the new, and hashed.
//!
//! Knows no format, no tree and no device.

mod atomic;
mod blob;
mod closed;
mod cursor;
mod digest;
mod direct;
mod file;
mod new_directory;
mod reader;
mod temporary;

pub(crate) use atomic::{
    AtomicFile, SharedFile, check_replaceable, remove_all, sync_directory, temporary_at,
};
pub use atomic::{WriteOptions, write_atomically};
#[cfg(test)]
pub(crate) use blob::cut_off;
pub(crate) use blob::{Blob, MemoryBlob, SharedBlob, zeros};
pub(crate) use closed::ClosedBlob;
pub(crate) use cursor::Cursor;
pub use digest::{Crc32, Digest, DigestCheck, DigestState, sha256};
pub(crate) use file::{FileBlob, is_incoherent};
pub(crate) use new_directory::{NewDirectory, NewFile};
pub use reader::Io;
pub(crate) use reader::Reader;
