//! A place in a blob, for parsers: what they read comes through a small window, what they skip is not read.

use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use bytes::Bytes;

use super::blob::{SharedBlob, memory};
use crate::error::{Error, Result};

/// The window after a skip, in bytes; while nothing is skipped, each is twice as large as the one before.
const LEAST_WINDOW: usize = 4 << 10;
const MOST_WINDOW: usize = 64 << 10;

/// A place in a blob from which is read on.
///
/// Nothing is read beyond the end, which is that of the blob or before it. Each byte that a parser takes is in memory of
/// its own by then, so that a file that changes meanwhile cannot say first this and then that.
#[derive(Debug)]
pub struct Cursor {
    blob: SharedBlob,
    position: usize,
    end: usize,
    /// Some bytes of the blob, from `start` on.
    window: Bytes,
    start: usize,
}

impl Cursor {
    /// The beginning of a blob.
    pub fn new(blob: SharedBlob) -> Cursor {
        let end = blob.size();
        Cursor { blob, position: 0, end, window: Bytes::new(), start: 0 }
    }

    /// Where it is, in bytes from the beginning.
    pub fn position(&self) -> usize {
        self.position
    }

    /// The bytes up to the end.
    pub fn rest(&self) -> usize {
        self.end - self.position
    }

    /// The blob.
    pub fn blob(&self) -> &SharedBlob {
        &self.blob
    }

    // Only msgpack has messages within messages.
    #[cfg(any(test, feature = "msgpack"))]
    /// Ends so many bytes further on, or where it ended if that is sooner; returns where it ended before.
    pub fn end_after(&mut self, count: usize) -> usize {
        let end = self.position.saturating_add(count).min(self.end);
        std::mem::replace(&mut self.end, end)
    }

    #[cfg(any(test, feature = "msgpack"))]
    /// Goes to the end, and ends there from now on.
    pub fn leave(&mut self, end: usize) {
        self.position = self.end;
        self.end = end;
    }

    /// Goes to a place, in bytes from the beginning, which is before the end.
    pub fn go_to(&mut self, position: usize) {
        self.position = position.min(self.end);
    }

    /// Passes over so many bytes; returns where they are.
    ///
    /// # Errors
    /// [`Error::Malformed`] when there are fewer.
    pub fn skip(&mut self, count: usize) -> Result<Range<usize>> {
        self.check(count)?;
        let start = self.position;
        self.position += count;
        Ok(start..self.position)
    }

    /// So many bytes.
    ///
    /// # Errors
    /// [`Error::Malformed`] when there are fewer; those of reading.
    pub fn read_vec(&mut self, count: usize) -> Result<Vec<u8>> {
        self.check(count)?;
        let mut bytes = memory(count, self.blob.origin())?;
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// So many bytes, as many as the array has.
    ///
    /// # Errors
    /// As for [`Cursor::read_vec`].
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.check(N)?;
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// What comes before the next byte of this value, and not that itself, which is passed over; `None` where it does not
    /// come within so many bytes.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read_until(&mut self, byte: u8, most: usize) -> Result<Option<Vec<u8>>> {
        let start = self.position;
        let mut found = None;
        while found.is_none() && self.rest() > 0 && self.position - start < most {
            let window = self.window()?;
            let (place, bytes) = (window.iter().position(|&other| other == byte), window.len());
            found = place.map(|place| self.position + place);
            self.position += bytes;
        }
        self.position = start;
        let Some(end) = found else { return Ok(None) };
        let line = self.read_vec(end - start)?;
        self.position += 1;
        Ok(Some(line))
    }

    /// Says whether so many bytes follow.
    ///
    /// # Errors
    /// [`Error::Malformed`] when there are fewer.
    pub fn check(&self, count: usize) -> Result<()> {
        if count <= self.rest() {
            return Ok(());
        }
        Err(Error::Malformed {
            origin: self.blob.origin().to_owned(),
            format: "checkpoint",
            problem: format!(
                "{count} bytes should follow at byte {}, but {} do; {}",
                self.position,
                self.rest(),
                if self.end == self.blob.size() {
                    "the file is cut off"
                } else {
                    "what they are part of ends there"
                }
            ),
        })
    }

    /// Fills memory with the bytes that come next, which are there.
    fn fill(&mut self, mut target: &mut [u8]) -> Result<()> {
        while !target.is_empty() {
            let count = self.fill_some(target)?;
            target = &mut target[count..];
        }
        Ok(())
    }

    /// Fills the beginning of memory with bytes that come next, of which there are some; returns how many.
    fn fill_some(&mut self, target: &mut [u8]) -> Result<usize> {
        let count = target.len().min(self.rest());
        let target = &mut target[..count];
        let is_far = self.window_from(self.position).is_empty();
        let count = if is_far && count >= MOST_WINDOW {
            self.blob.read_at(self.position, &mut [target])?;
            count
        } else {
            let window = self.window()?;
            let count = count.min(window.len());
            target[..count].copy_from_slice(&window[..count]);
            count
        };
        self.position += count;
        Ok(count)
    }

    /// What the window has from here on.
    fn window_from(&self, position: usize) -> &[u8] {
        let offset = position.checked_sub(self.start);
        let window = offset.and_then(|offset| self.window.get(offset..)).unwrap_or_default();
        &window[..window.len().min(self.end - position)]
    }

    /// Some bytes that come next, of which there are some.
    fn window(&mut self) -> Result<&[u8]> {
        if self.window_from(self.position).is_empty() {
            let is_next = self.position == self.start + self.window.len();
            let bytes = if is_next { 2 * self.window.len() } else { 0 };
            let bytes = bytes.clamp(LEAST_WINDOW, MOST_WINDOW).min(self.blob.size() - self.position);
            self.window = self.blob.read(self.position..self.position + bytes)?;
            self.start = self.position;
        }
        Ok(self.window_from(self.position))
    }
}

impl Read for Cursor {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        if bytes.is_empty() || self.rest() == 0 {
            return Ok(0);
        }
        self.fill_some(bytes).map_err(std::io::Error::other)
    }
}

impl Seek for Cursor {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => (self.end as u64).checked_add_signed(offset),
            SeekFrom::Current(offset) => (self.position as u64).checked_add_signed(offset),
        };
        // Beyond the end there is nothing, wherever that is.
        let position = position.ok_or(std::io::ErrorKind::InvalidInput)?;
        self.position = usize::try_from(position).unwrap_or(usize::MAX).min(self.end);
        Ok(self.position as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{FileBlob, MemoryBlob};

    fn content() -> Vec<u8> {
        (0..300_000).map(|at: u32| (at % 241) as u8).collect()
    }

    /// The same bytes in a file and in memory.
    fn cursors() -> Vec<Cursor> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content()).unwrap();
        let memory = MemoryBlob::shared("memory", content().into());
        [FileBlob::open(file.path()).unwrap(), memory].map(Cursor::new).into()
    }

    #[test]
    fn what_is_taken_after_skips_and_seeks_is_what_is_there() {
        let content = content();
        for mut cursor in cursors() {
            let mut at = 0;
            for (step, count) in
                [0, 1, 7, 5000, 100_000, 3, 40_000, 2].into_iter().cycle().take(40).enumerate()
            {
                if at + count > content.len() {
                    break;
                }
                if step % 3 == 2 {
                    assert_eq!(cursor.skip(count).unwrap(), at..at + count);
                } else {
                    assert!(cursor.read_vec(count).unwrap() == content[at..at + count]);
                }
                at += count;
                assert_eq!((cursor.position(), cursor.rest()), (at, content.len() - at));
            }
            cursor.seek(SeekFrom::End(-5)).unwrap();
            assert_eq!(cursor.array::<5>().unwrap(), content[content.len() - 5..]);
            let error = cursor.array::<1>().unwrap_err().to_string();
            assert!(error.contains("1 bytes should follow at byte 300000, but 0 do"), "{error}");
            cursor.seek(SeekFrom::Start(10)).unwrap();
            let mut all = Vec::new();
            cursor.read_to_end(&mut all).unwrap();
            assert!(all == content[10..]);
        }
    }

    #[test]
    fn a_line_ends_where_its_byte_is_or_is_none() {
        for mut cursor in cursors() {
            assert_eq!(cursor.read_until(3, 100).unwrap(), Some(vec![0, 1, 2]));
            assert_eq!(cursor.position(), 4);
            assert_eq!(cursor.read_until(3, usize::MAX).unwrap().unwrap().len(), 240);
            assert_eq!(cursor.read_until(250, usize::MAX).unwrap(), None);
            assert_eq!(cursor.position(), 245);
        }
    }

    #[test]
    fn nothing_is_read_beyond_an_end_that_was_set() {
        for mut cursor in cursors() {
            cursor.skip(10).unwrap();
            let outer = cursor.end_after(20);
            assert_eq!(cursor.read_vec(15).unwrap().len(), 15);
            assert!(cursor.read_vec(6).is_err());
            cursor.leave(outer);
            assert_eq!(cursor.array::<2>().unwrap(), [30, 31]);
        }
    }
}
