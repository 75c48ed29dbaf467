//! Where bytes are: files and memory. Read by position from many threads, mapped where that is possible, written so that
//! a name stands for the old content or the new, and hashed.
//!
//! Knows no format, no tree and no device.

mod atomic;
mod blob;
mod digest;
mod reader;
mod temporary;

pub use atomic::WriteOptions;
pub(crate) use atomic::{AtomicFile, check_replaceable, write_atomically};
pub(crate) use blob::{Blob, BlobCursor};
pub use digest::{Crc32, Digest, DigestCheck, DigestState, sha256};
pub use reader::Io;
pub(crate) use reader::Reader;
