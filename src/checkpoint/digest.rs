//! Digests of tensors, recorded in a file's metadata and checked against its bytes.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// The metadata key of the digests: a JSON object of tensor name to the sha256 of its bytes, in hex.
pub const DIGEST_KEY: &str = "safejax.sha256";

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

/// Compares a tensor's digest with the recorded one.
///
/// # Errors
/// [`Error::Malformed`] when they differ.
pub(crate) fn check_digest(found: &str, recorded: &str) -> Result<()> {
    if found == recorded {
        return Ok(());
    }
    Err(Error::Malformed {
        origin: "the tensor".into(),
        format: "copy of what was written",
        problem: format!("its sha256 is {found}, and {recorded} was recorded"),
    })
}

/// The digests that are recorded; empty if there are none.
///
/// # Errors
/// [`Error::Tree`] when the record is not a JSON object of strings.
pub fn read_digests(metadata: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>> {
    let Some(text) = metadata.get(DIGEST_KEY) else { return Ok(BTreeMap::new()) };
    serde_json::from_str(text)
        .map_err(|error| Error::Tree(format!("its record of digests cannot be read: {error}")))
}
