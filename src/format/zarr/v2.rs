//! The descriptions of zarr 2.

use serde::Deserialize;
use serde_json::Value;

use super::{Description, fill};
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::format::chunks::Codec;
use crate::format::npy;

/// The key of a description, after the array's name.
pub const KEY: &str = ".zarray";

#[derive(Deserialize)]
struct Zarray {
    zarr_format: u64,
    shape: Vec<usize>,
    chunks: Vec<usize>,
    dtype: Value,
    #[serde(default)]
    compressor: Option<Compressor>,
    #[serde(default)]
    fill_value: Value,
    order: String,
    #[serde(default)]
    filters: Option<Vec<Value>>,
    #[serde(default)]
    dimension_separator: Option<char>,
}

#[derive(Deserialize)]
struct Compressor {
    id: String,
}

pub fn parse(json: &[u8]) -> Result<Description, String> {
    let found: Zarray =
        serde_json::from_slice(json).map_err(|error| format!("its description cannot be read: {error}"))?;
    if found.zarr_format != 2 {
        return Err(format!("its description says version {} of zarr, and not 2", found.zarr_format));
    }
    if found.filters.as_ref().is_some_and(|filters| !filters.is_empty()) {
        return Err("it has filters, which are not read".into());
    }
    let codecs = match found.compressor.as_ref().map(|compressor| compressor.id.as_str()) {
        None => Vec::new(),
        Some("zstd") => vec![Codec::Zstd],
        Some("gzip") => vec![Codec::Gzip],
        Some("zlib") => vec![Codec::Zlib],
        Some(other) => return Err(format!("it is compressed with {other}, which is not read")),
    };
    let rank = found.shape.len();
    let order = match found.order.as_str() {
        "C" => None,
        "F" => (rank > 1).then(|| (0..rank).rev().collect()),
        other => return Err(format!("its order is `{other}`, and neither C nor F")),
    };
    let Value::String(name) = &found.dtype else {
        return Err(format!("its elements are of type {}, which is not read", found.dtype));
    };
    let dtype = match DType::from_name(name).filter(|dtype| dtype.name() == name) {
        Some(dtype) => dtype,
        None => npy::dtype_of(name)?,
    };
    Ok(Description {
        fill: fill::element(&found.fill_value, dtype),
        spec: ArraySpec::new(dtype, found.shape),
        is_big_endian: name.starts_with('>'),
        chunk: found.chunks,
        order,
        codecs,
        shards: None,
        keys: (String::new(), found.dimension_separator.unwrap_or('.')),
    })
}
