//! What manifests and nodes have in common: an envelope with a checksum around fields, many of which are in columns.

use std::borrow::Cow;
use std::io::Read;

use crate::format::chunks::{CRC_BYTES, before_crc32c};
use crate::format::compressed::read_all;

/// What an envelope is around, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Magic {
    Manifest = 0x0cdb_3a2a,
    Node = 0x0cdb_20de,
}

/// The most bytes of an envelope, and of a body: more than TensorStore makes a node, of which all keys of a checkpoint are in one.
pub const MAX_BODY_BYTES: usize = 256 << 20;

/// The body within an envelope that is all of these bytes.
///
/// # Errors
/// What is wrong with it.
pub fn open(bytes: &[u8], magic: Magic) -> Result<Cow<'_, [u8]>, String> {
    let content = bytes.get(..bytes.len().wrapping_sub(CRC_BYTES)).ok_or("it has too few bytes")?;
    let mut fields = Fields::new(content);
    let found = u32::from_be_bytes(fields.array()?);
    if found != magic as u32 {
        return Err(format!("it begins with {found:08x}, and not with {:08x}", magic as u32));
    }
    let length = fields.u64()?;
    if length != bytes.len() as u64 {
        return Err(format!("it says that it has {length} bytes, and there are {}", bytes.len()));
    }
    before_crc32c(bytes)?;
    match fields.varint()? {
        0 => {}
        version => return Err(format!("it is of version {version}, and only version 0 is known")),
    }
    match fields.varint()? {
        0 => Ok(Cow::Borrowed(fields.rest())),
        1 => expand(fields.rest()).map(Cow::Owned),
        other => Err(format!("it is compressed in a way of number {other}, which is not known")),
    }
}

/// An envelope around a body, which is not compressed.
pub fn close(magic: Magic, body: &[u8]) -> Vec<u8> {
    // The magic number and the length; the version and how it is compressed; the checksum.
    const AROUND: usize = 4 + 8 + 2 + CRC_BYTES;
    let length = (body.len() + AROUND) as u64;
    let mut bytes = [&(magic as u32).to_be_bytes()[..], &length.to_le_bytes(), &[0, 0], body].concat();
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

/// Fields that are written, one after another.
#[derive(Default)]
pub struct Sink(Vec<u8>);

impl Sink {
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// As [`Fields::varint`] reads it.
    pub fn varint(&mut self, mut number: u64) {
        while number > 0x7f {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    /// A table of one data file, whose path is relative to the database.
    pub fn data_files(&mut self, path: &str) {
        self.varint(1);
        self.varint(path.len() as u64);
        // Of its base, which there is none of.
        self.varint(0);
        self.bytes(path.as_bytes());
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// The body that Zstandard compressed, which need not say how long it is.
fn expand(frame: &[u8]) -> Result<Vec<u8>, String> {
    let damaged = |error| format!("what is compressed in it is damaged: {error}");
    let body = zstd::stream::read::Decoder::with_buffer(frame).map_err(damaged)?;
    let body = read_all(body.take(MAX_BODY_BYTES as u64 + 1)).map_err(damaged)?;
    if body.len() > MAX_BODY_BYTES {
        return Err(format!("it expands to more than {MAX_BODY_BYTES} bytes"));
    }
    Ok(body)
}

/// Fields, one after another.
pub struct Fields<'a> {
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    pub fn new(bytes: &'a [u8]) -> Fields<'a> {
        Fields { bytes }
    }

    pub fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    /// So many bytes.
    pub fn take(&mut self, count: u64) -> Result<&'a [u8], String> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or("it ends too early")?;
        self.bytes = rest;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N as u64).map(|bytes| bytes.try_into().unwrap_or([0; N]))
    }

    pub fn u8(&mut self) -> Result<u8, String> {
        self.array().map(|[byte]| byte)
    }

    pub fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    /// A number in groups of seven bits, the lowest first.
    pub fn varint(&mut self) -> Result<u64, String> {
        let mut number = 0u64;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err("a number in it has more than 64 bits".into())
    }

    /// How many of something follow, each of which takes a byte or more.
    pub fn count(&mut self) -> Result<usize, String> {
        let count = self.varint()?;
        match usize::try_from(count) {
            Ok(count) if count <= self.bytes.len() => Ok(count),
            _ => Err(format!(
                "it says that {count} entries follow, and it has {} bytes more",
                self.bytes.len()
            )),
        }
    }

    /// So many numbers.
    pub fn column(&mut self, count: usize) -> Result<Vec<u64>, String> {
        if count > self.bytes.len() {
            return Err("it ends too early".into());
        }
        (0..count).map(|_| self.varint()).collect()
    }

    /// Refuses bytes after the last field.
    pub fn end(&self) -> Result<(), String> {
        if self.bytes.is_empty() { Ok(()) } else { Err(format!("{} bytes follow its end", self.bytes.len())) }
    }
}

/// Texts that share their beginnings: of each but the first, how many bytes it has in common with the one before; the lengths of the
/// rests; and the rests one after another, when their time comes.
pub struct Shared {
    prefixes: Vec<u64>,
    rests: Vec<u64>,
}

/// The longest key or path, in bytes.
pub const MAX_TEXT_BYTES: usize = 65_535;

/// The most bytes of such texts together. What they share is in each of them, so that few bytes can say much.
const MAX_TEXTS_BYTES: usize = 128 << 20;

impl Shared {
    /// The lengths of so many texts.
    pub fn lengths(fields: &mut Fields<'_>, count: usize) -> Result<Shared, String> {
        let prefixes = fields.column(count.saturating_sub(1))?;
        Ok(Shared { prefixes, rests: fields.column(count)? })
    }

    /// The texts.
    pub fn texts(&self, fields: &mut Fields<'_>) -> Result<Vec<Vec<u8>>, String> {
        let mut texts: Vec<Vec<u8>> = Vec::with_capacity(self.rests.len());
        let mut total = 0;
        for (index, &rest) in self.rests.iter().enumerate() {
            let rest = fields.take(rest)?;
            let shared = match index.checked_sub(1) {
                None => &[],
                Some(before) => {
                    let prefix = usize::try_from(self.prefixes[before]).unwrap_or(usize::MAX);
                    texts[before]
                        .get(..prefix)
                        .ok_or("a text in it begins with more than the one before has")?
                }
            };
            let text = [shared, rest].concat();
            if text.len() > MAX_TEXT_BYTES {
                return Err(format!(
                    "a text in it has {} bytes, and {MAX_TEXT_BYTES} are the most",
                    text.len()
                ));
            }
            total += text.len();
            if total > MAX_TEXTS_BYTES {
                return Err(format!("its keys or paths have more than {MAX_TEXTS_BYTES} bytes together"));
            }
            texts.push(text);
        }
        Ok(texts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_more_than_64_bits_are_refused() {
        let number = |bytes: &[u8]| Fields::new(bytes).varint();
        let written = |value| {
            let mut sink = Sink::default();
            sink.varint(value);
            sink.into_bytes()
        };
        for value in [0, 127, 128, 300, 1 << 35, u64::MAX] {
            assert_eq!(number(&written(value)), Ok(value));
        }
        assert_eq!(number(&[0xac, 0x02]), Ok(300));
        assert_eq!(number(&[255, 255, 255, 255, 255, 255, 255, 255, 255, 1]), Ok(u64::MAX));
        assert!(number(&[255, 255, 255, 255, 255, 255, 255, 255, 255, 2]).is_err());
        assert!(number(&[0x80; 12]).is_err());
        assert!(number(&[0x80]).unwrap_err().contains("too early"));
    }

    #[test]
    fn an_envelope_is_checked_before_it_is_opened() {
        let bytes = close(Magic::Manifest, b"abc");
        assert_eq!(&open(&bytes, Magic::Manifest).unwrap()[..], b"abc");
        assert!(open(&bytes, Magic::Node).unwrap_err().contains("begins with"));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(open(&damaged, Magic::Manifest).is_err(), "{at}");
            assert!(open(&bytes[..at], Magic::Manifest).is_err(), "{at}");
        }
    }
}
