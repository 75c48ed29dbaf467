//! Safetensors files: the header, where each tensor is, the layout of files that are written, and their writing.

mod header;
pub(crate) mod layout;
mod writer;

use std::collections::BTreeMap;

pub use layout::{DEFAULT_ALIGNMENT, Layout, check_alignment};
pub use writer::CheckpointWriter;

use super::checkpoint::{Checkpoint, Format, Tensor};
use super::foreign;
use super::open::SEARCHED_BYTES;
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::store::SharedBlob;

/// The metadata key of the digests: a JSON object of tensor name to the sha256 of its bytes, in hex.
pub const DIGEST_KEY: &str = "safejax.sha256";

/// The digests of a record, by the names of the tensors.
///
/// # Errors
/// [`Error::Tree`] when the record is not a JSON object of strings.
pub(super) fn read_digests(record: &str) -> Result<BTreeMap<String, String>> {
    serde_json::from_str(record)
        .map_err(|error| Error::Tree(format!("its record of digests cannot be read: {error}")))
}

/// Reads and checks the header of a file.
///
/// # Errors
/// [`Error::Malformed`], naming the tensor and the rule that is broken, or what else the file is.
pub(super) fn parse(blob: SharedBlob) -> Result<Checkpoint> {
    let origin = blob.origin().to_owned();
    let malformed = |format, problem| Error::Malformed { origin: origin.clone(), format, problem };
    let no_header = |problem| match blob.head(SEARCHED_BYTES).map(|head| foreign::file(&head)) {
        Ok(Some(problem)) => malformed("checkpoint", problem),
        Ok(None) => malformed("safetensors file", problem),
        Err(error) => error,
    };
    let range = header::range(&blob.head(header::START_BYTES)?, blob.size()).map_err(no_header)?;
    let text = blob.read(range.clone())?;
    let header = header::read(&text, blob.size() - range.end).map_err(no_header)?;
    let data_start = range.end;
    let tensor = |(name, entry): (String, header::TensorEntry)| match DType::from_safetensors(entry.dtype) {
        // That the offsets lie within the file was checked, so they fit.
        Some(dtype) => {
            let (start, end) = (entry.data_offsets.0 as usize, entry.data_offsets.1 as usize);
            let spec = ArraySpec::new(dtype, entry.shape);
            Ok(Tensor::plain(name, spec, 0, data_start + start..data_start + end))
        }
        None => {
            let problem = format!("tensor `{name}` is of type {}, which is not supported", entry.dtype);
            Err(malformed("safetensors file", problem))
        }
    };
    let tensors = header.tensors.into_iter().map(tensor).collect::<Result<Vec<_>>>()?;
    let digest_records = header.metadata.get(DIGEST_KEY).cloned().into_iter().collect();
    Ok(Checkpoint {
        by_name: header.by_name,
        metadata: header.metadata,
        digest_records,
        ..Checkpoint::without_order(&origin, Format::Safetensors, vec![blob], tensors)
    })
}
