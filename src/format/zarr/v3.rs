//! The descriptions of zarr 3.

use serde::Deserialize;
use serde_json::Value;

use super::{Description, Shards, fill};
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::format::chunks::Codec as Undone;

/// The key of a description, after the array's name.
pub const KEY: &str = "zarr.json";

#[derive(Deserialize)]
struct ZarrJson {
    zarr_format: u64,
    node_type: String,
    shape: Vec<usize>,
    data_type: Value,
    chunk_grid: Named,
    chunk_key_encoding: Named,
    codecs: Vec<Named>,
    #[serde(default)]
    fill_value: Value,
}

/// Something by its name, and how it is set.
#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(default)]
    configuration: Value,
}

/// What a list of codecs does to a chunk.
struct Chain {
    order: Option<Vec<usize>>,
    is_big_endian: bool,
    /// What divides a chunk once more.
    sharding: Option<Sharding>,
    /// In the order in which they are undone.
    undone: Vec<Undone>,
}

#[derive(Deserialize)]
struct Sharding {
    chunk_shape: Vec<usize>,
    codecs: Vec<Named>,
    index_codecs: Vec<Named>,
    #[serde(default)]
    index_location: Option<String>,
}

pub fn parse(json: &[u8]) -> Result<Description, String> {
    let found: ZarrJson =
        serde_json::from_slice(json).map_err(|error| format!("its description cannot be read: {error}"))?;
    if (found.zarr_format, found.node_type.as_str()) != (3, "array") {
        return Err(format!(
            "its description is of version {} of zarr, of a node of type `{}`, and not of version 3, of an array",
            found.zarr_format, found.node_type
        ));
    }
    let dtype =
        found.data_type.as_str().and_then(|name| DType::from_name(name).filter(|dtype| dtype.name() == name));
    let dtype =
        dtype.ok_or_else(|| format!("its elements are of type {}, which is not read", found.data_type))?;
    if found.chunk_grid.name != "regular" {
        return Err(format!("its chunks are a grid of type `{}`, which is not read", found.chunk_grid.name));
    }
    let chunk = sizes(&found.chunk_grid.configuration, "chunk_shape")?;
    let outer = Chain::of(&found.codecs)?;
    let (chain, shards) = match &outer.sharding {
        None => (outer, None),
        Some(sharding) => {
            if outer.order.is_some() || !outer.undone.is_empty() {
                return Err("its shards are turned or compressed as a whole, which is not read".into());
            }
            let inner = Chain::of(&sharding.codecs)?;
            if inner.sharding.is_some() {
                return Err("it has shards within shards, which are not read".into());
            }
            let shards = sharding.shards()?;
            (inner, Some(shards))
        }
    };
    Ok(Description {
        fill: fill::element(&found.fill_value, dtype),
        spec: ArraySpec::new(dtype, found.shape),
        is_big_endian: chain.is_big_endian && dtype.bits() > 8,
        chunk,
        order: chain.order.filter(|order| !order.is_sorted()),
        codecs: chain.undone,
        shards,
        keys: keys(&found.chunk_key_encoding)?,
    })
}

impl Chain {
    fn of(codecs: &[Named]) -> Result<Chain, String> {
        let mut chain = Chain { order: None, is_big_endian: false, sharding: None, undone: Vec::new() };
        let mut is_bytes = false;
        for Named { name, configuration } in codecs {
            let undone = match name.as_str() {
                "transpose" if !is_bytes && chain.order.is_none() => {
                    chain.order = Some(sizes(configuration, "order")?);
                    continue;
                }
                "bytes" if !is_bytes => {
                    chain.is_big_endian = match configuration.get("endian").and_then(Value::as_str) {
                        None | Some("little") => false,
                        Some("big") => true,
                        Some(other) => {
                            return Err(format!("its numbers are `{other}`, and neither little nor big"));
                        }
                    };
                    is_bytes = true;
                    continue;
                }
                "sharding_indexed" if !is_bytes => {
                    let sharding = Sharding::deserialize(configuration);
                    chain.sharding =
                        Some(sharding.map_err(|error| format!("its shards cannot be read: {error}"))?);
                    is_bytes = true;
                    continue;
                }
                "zstd" => Undone::Zstd,
                "gzip" => Undone::Gzip,
                "crc32c" => Undone::Crc32c,
                other => return Err(format!("it has the codec `{other}`, which is not read")),
            };
            if !is_bytes {
                return Err(format!("its codec `{name}` comes before its elements are bytes"));
            }
            let is_compressed = chain.undone.iter().any(|codec| *codec != Undone::Crc32c);
            if is_compressed && undone != Undone::Crc32c {
                return Err("it is compressed twice, which is not read".into());
            }
            chain.undone.insert(0, undone);
        }
        if is_bytes { Ok(chain) } else { Err("its codecs do not make bytes of its elements".into()) }
    }
}

impl Sharding {
    fn shards(&self) -> Result<Shards, String> {
        let index = Chain::of(&self.index_codecs)?;
        let has_crc = match &index.undone[..] {
            [] => false,
            [Undone::Crc32c] => true,
            _ => return Err("the index of its shards is compressed, which is not read".into()),
        };
        if index.order.is_some() || index.is_big_endian || index.sharding.is_some() {
            return Err("the index of its shards is not of little-endian numbers, which is not read".into());
        }
        let is_at_end = match self.index_location.as_deref() {
            None | Some("end") => true,
            Some("start") => false,
            Some(other) => {
                return Err(format!("the index of its shards is at `{other}`, and neither at start nor end"));
            }
        };
        Ok(Shards { chunk: self.chunk_shape.clone(), has_crc, is_at_end })
    }
}

fn keys(encoding: &Named) -> Result<(String, char), String> {
    let (prefix, usual) = match encoding.name.as_str() {
        "default" => ("c", '/'),
        "v2" => ("", '.'),
        other => return Err(format!("the keys of its chunks are of type `{other}`, which is not read")),
    };
    let separator = match encoding.configuration.get("separator").and_then(Value::as_str) {
        None => usual,
        Some("/") => '/',
        Some(".") => '.',
        Some(other) => {
            return Err(format!(
                "the numbers in the keys of its chunks are apart by `{other}`, which is not read"
            ));
        }
    };
    Ok((prefix.to_owned(), separator))
}

fn sizes(configuration: &Value, key: &str) -> Result<Vec<usize>, String> {
    let found = configuration.get(key).cloned().unwrap_or_default();
    serde_json::from_value(found).map_err(|error| format!("its `{key}` cannot be read: {error}"))
}
