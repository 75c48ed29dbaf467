//! Files that are compressed as a whole, with gzip or zlib: joblib writes such pickles.

use std::io::Read;

use bytes::Bytes;
use flate2::read::{MultiGzDecoder, ZlibDecoder};

use crate::limits::Limits;

/// Bytes that tell what a compressed file holds.
const START_BYTES: u64 = 512;

/// What reads the content of a file of a known kind of compression.
fn decoder(data: &[u8]) -> Option<Box<dyn Read + '_>> {
    match data {
        [0x1f, 0x8b, ..] => Some(Box::new(MultiGzDecoder::new(data))),
        // RFC 1950: deflate with a window of 32 kB, and a check of these two bytes.
        [0x78, flags, ..] if (0x7800 + u16::from(*flags)).is_multiple_of(31) => {
            Some(Box::new(ZlibDecoder::new(data)))
        }
        _ => None,
    }
}

/// The beginning of the content, if the file is compressed.
pub fn start(data: &[u8]) -> Option<Vec<u8>> {
    let mut start = Vec::new();
    decoder(data)?.take(START_BYTES).read_to_end(&mut start).ok()?;
    Some(start)
}

/// The content of a file that is compressed; `None` for one that is not.
pub fn expand(data: &[u8], limits: Limits) -> Option<Result<Bytes, String>> {
    let most = limits.most_expanded(data.len() as u64);
    let content = read_all(decoder(data)?.take(most.saturating_add(1)));
    Some(content.map_err(|error| format!("what is compressed in it cannot be read: {error}")).and_then(
        |content| {
            limits.check_expansion(data.len() as u64, content.len() as u64)?;
            Ok(content.into())
        },
    ))
}

/// All that comes. The memory grows by a quarter at a time: doubled, it could take twice what may be read.
fn read_all(mut reader: impl Read) -> std::io::Result<Vec<u8>> {
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
