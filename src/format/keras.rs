//! Keras's archives: what `model.save("model.keras")` writes since Keras 3, a zip archive with the weights as HDF5 beside two
//! descriptions in JSON.

use super::archive::{Archive, Compression, Member};
use super::checkpoint::{Checkpoint, Format};
use super::hdf5;
use crate::error::Result;
use crate::limits::Limits;
use crate::store::{MemoryBlob, SharedBlob};

/// What a file is, for errors.
const FORMAT: &str = "Keras archive";

/// The member that is the weights.
const WEIGHTS: &str = "model.weights.h5";

/// The members that describe the model, and are kept in the metadata.
const DESCRIPTIONS: [&str; 2] = ["config.json", "metadata.json"];

/// Whether an archive is one of Keras's.
pub(super) fn is_keras(archive: &Archive) -> bool {
    archive.names().any(|name| name == WEIGHTS)
}

/// Opens the weights of an archive.
///
/// # Errors
/// [`crate::Error::Malformed`]; [`crate::Error::Io`].
pub(super) fn open(mut archive: Archive, limits: Limits) -> Result<Checkpoint> {
    let mut weights = None;
    let mut descriptions = Vec::new();
    for index in 0..archive.len() {
        let member = archive.member(index)?;
        if member.name == WEIGHTS {
            weights = Some((index, member));
        } else if DESCRIPTIONS.contains(&&*member.name) {
            let content = content(&mut archive, index, &member, limits)?;
            descriptions.push((member.name, String::from_utf8_lossy(&content).into_owned()));
        }
    }
    let Some((index, member)) = weights else {
        return Err(archive.malformed(FORMAT, format!("it has no member `{WEIGHTS}`")));
    };
    let mut checkpoint = match member.compression {
        Compression::Stored => {
            let blob = SharedBlob::clone(archive.blob());
            hdf5::open_within(blob, member.stored, Format::Keras, limits)?
        }
        Compression::Deflated => {
            let content = content(&mut archive, index, &member, limits)?;
            let window = 0..content.len();
            let blob = MemoryBlob::shared(archive.origin(), content.into());
            hdf5::open_within(blob, window, Format::Keras, limits)?
        }
    };
    checkpoint.metadata.extend(descriptions);
    Ok(checkpoint)
}

/// All of a member, held against its checksum.
fn content(archive: &mut Archive, index: usize, member: &Member, limits: Limits) -> Result<Vec<u8>> {
    let content = archive.expand(index, member, limits);
    let content = content.map_err(|problem| problem.at(format_args!("`{}`", member.name)));
    content.map_err(|problem| problem.into_error(archive.origin(), FORMAT))
}
