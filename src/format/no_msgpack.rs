//! What stands for `msgpack` where the feature of that name is off: says so.

use std::path::Path;

use super::checkpoint::Checkpoint;
use super::leaves::Leaves;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::store::{SharedBlob, WriteOptions};

const MISSING: &str = "this build does not know Flax's msgpack: build safejax with its feature `msgpack`";

/// # Errors
/// [`Error::Malformed`], always.
pub(super) fn open(origin: &str, _: Vec<SharedBlob>, _: Limits) -> Result<Checkpoint> {
    Err(Error::Malformed { origin: origin.to_owned(), format: "Flax msgpack file", problem: MISSING.into() })
}

/// # Errors
/// [`Error::InvalidArgument`], always.
pub(crate) fn write(_: &mut dyn Leaves, _: &Path, _: WriteOptions) -> Result<()> {
    Err(Error::InvalidArgument(MISSING.into()))
}
