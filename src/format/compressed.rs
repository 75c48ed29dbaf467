//! Files that are compressed as a whole, with gzip or zlib: joblib writes such pickles.

use std::io::Read;

use bytes::Bytes;
use flate2::read::{MultiGzDecoder, ZlibDecoder};

use super::problem::Problem;
use crate::limits::Limits;
use crate::store::{Cursor, SharedBlob};

/// Bytes that tell what a compressed file holds.
const START_BYTES: u64 = 512;

/// What reads the content of a file that begins so, if it is of a known kind of compression.
fn decoder<'a>(head: &[u8], file: impl Read + 'a) -> Option<Box<dyn Read + 'a>> {
    match head {
        [0x1f, 0x8b, ..] => Some(Box::new(MultiGzDecoder::new(file))),
        // RFC 1950: deflate with a window of 32 kB, and a check of these two bytes.
        [0x78, flags, ..] if (0x7800 + u16::from(*flags)).is_multiple_of(31) => {
            Some(Box::new(ZlibDecoder::new(file)))
        }
        _ => None,
    }
}

/// The beginning of the content, if a file that begins so is compressed.
pub fn start(head: &[u8]) -> Option<Vec<u8>> {
    let mut start = Vec::new();
    // What was read before it turned out to be damaged tells, too.
    let _ = decoder(head, head)?.take(START_BYTES).read_to_end(&mut start);
    Some(start)
}

/// The content of a file that is compressed; `None` for one that is not.
pub fn expand(head: &[u8], blob: &SharedBlob, limits: Limits) -> Option<Result<Bytes, Problem>> {
    let size = blob.size() as u64;
    let file = decoder(head, Cursor::new(SharedBlob::clone(blob)))?;
    Some(match read_all(file.take(limits.most_expanded(size).saturating_add(1))) {
        Ok(content) => {
            limits.check_expansion(size, content.len() as u64).map(|()| content.into()).map_err(Problem::from)
        }
        Err(error) => Err(Problem::of_stream(error, "what is compressed in it cannot be read")),
    })
}

/// All that comes. The memory grows by a quarter at a time: doubled, it could take twice what may be read.
pub fn read_all(mut reader: impl Read) -> std::io::Result<Vec<u8>> {
    const LEAST_GROWTH: usize = 1 << 20;
    let mut content = Vec::new();
    loop {
        let growth = LEAST_GROWTH.max(content.len() / 4);
        content.try_reserve_exact(growth).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
        if reader.by_ref().take(growth as u64).read_to_end(&mut content)? < growth {
            return Ok(content);
        }
    }
}
