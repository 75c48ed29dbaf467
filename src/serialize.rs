//! Python safejax's pair: a tree to bytes, and back.

use crate::error::Result;
use crate::format::Checkpoint;
use crate::load::LoadOptions;
use crate::params::Params;
use crate::pjrt::Client;
use crate::save::SaveOptions;

/// The parameters as the bytes of a safetensors file. Blocks until they are on the host.
///
/// # Errors
/// An error naming the tensor when its transfer fails or the format cannot hold it.
pub fn serialize(params: &Params) -> Result<Vec<u8>> {
    params.to_bytes(&SaveOptions::default())
}

/// Parameters on the client's first device, from the bytes of a safetensors file, which are copied.
///
/// # Errors
/// [`crate::Error::Malformed`] when the bytes are not a valid safetensors file.
pub fn deserialize(client: &Client, bytes: &[u8]) -> Result<Params> {
    let checkpoint = Checkpoint::from_bytes(bytes.to_vec())?;
    Ok(Params::load_checkpoint(client, &checkpoint, &LoadOptions::default())?.0)
}
