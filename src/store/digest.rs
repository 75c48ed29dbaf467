//! Digests of tensors, recorded in a file's metadata or by its format, and checked against its bytes.

use bytes::Bytes;
use flate2::Crc;
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};

/// The sha256 of a tensor's bytes as they are in the file, in hex.
pub fn sha256(bytes: &[u8]) -> String {
    let mut state = DigestState::default();
    state.update(bytes);
    state.finish()
}

/// A digest of bytes that come piece by piece, in order.
#[derive(Debug, Clone, Default)]
pub struct DigestState(Sha256);

impl DigestState {
    /// Adds the bytes that come next.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The sha256 of all of them, in hex.
    pub fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What a file records of a tensor's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Digest {
    /// Their sha256, in hex.
    Sha256(String),
    /// A checksum, as zip archives have it.
    Crc32(Crc32),
    /// A checksum, as TensorFlow has it: CRC-32C (Castagnoli).
    Crc32c(u32),
}

/// A CRC-32 (that of zip, RFC 1952) over bytes that end with a tensor's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crc32 {
    /// The bytes that come before the tensor's.
    pub(crate) head: Bytes,
    /// The checksum of all of them.
    pub(crate) sum: u32,
}

impl Digest {
    /// Begins to hold bytes against it.
    pub fn begin(&self) -> DigestCheck<'_> {
        DigestCheck(match self {
            Digest::Sha256(recorded) => State::Sha256(DigestState::default(), recorded),
            Digest::Crc32(recorded) => {
                let mut state = Crc::new();
                state.update(&recorded.head);
                State::Crc32(state, recorded.sum)
            }
            Digest::Crc32c(recorded) => State::Crc32c(0, *recorded),
        })
    }

    /// Holds all bytes of a tensor against it.
    ///
    /// # Errors
    /// [`Error::Malformed`] when they are not what was recorded.
    pub fn check(&self, bytes: &[u8]) -> Result<()> {
        let mut check = self.begin();
        check.update(bytes);
        check.finish()
    }
}

/// Bytes that come piece by piece, in order, and are held against what is recorded of them.
#[derive(Debug)]
pub struct DigestCheck<'a>(State<'a>);

#[derive(Debug)]
enum State<'a> {
    Sha256(DigestState, &'a str),
    Crc32(Crc, u32),
    Crc32c(u32, u32),
}

impl DigestCheck<'_> {
    /// Adds the bytes that come next.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(state, _) => state.update(bytes),
            State::Crc32(state, _) => state.update(bytes),
            State::Crc32c(state, _) => *state = crc32c::crc32c_append(*state, bytes),
        }
    }

    /// Says whether all of them were those that were recorded.
    ///
    /// # Errors
    /// [`Error::Malformed`] when they were not.
    pub fn finish(self) -> Result<()> {
        let (kind, found, recorded) = match self.0 {
            State::Sha256(state, recorded) => ("sha256", state.finish(), recorded.to_owned()),
            State::Crc32(state, recorded) => {
                ("CRC-32", format!("{:08x}", state.sum()), format!("{recorded:08x}"))
            }
            State::Crc32c(found, recorded) => ("CRC-32C", format!("{found:08x}"), format!("{recorded:08x}")),
        };
        if found == recorded {
            return Ok(());
        }
        Err(Error::Malformed {
            origin: "the tensor".into(),
            format: "copy of what was written",
            problem: format!("its {kind} is {found}, and {recorded} was recorded"),
        })
    }
}
