//! Arrays of zarr, as TensorStore writes them: a description in JSON, and chunks, each under a key of its own.
//! Sources: the specifications of zarr 2 and 3 (zarr-specs.readthedocs.io), and what TensorStore 0.1.86 wrote.

mod fill;
mod v2;
mod v3;
pub mod write;

use std::sync::Arc;

use super::checkpoint::{Extents, Tensor};
use super::chunks::{CRC_BYTES, Chunks, Codec, before_crc32c};
use super::encoding::Encoding;
use super::folder::{Folder, Location};
use super::problem::Problem;
use crate::array::ArraySpec;
use crate::limits::MAX_RANK;
pub use v2::KEY as V2_KEY;
pub use v3::KEY as V3_KEY;

/// How an array lies in its chunks.
#[derive(Debug, PartialEq)]
pub struct Description {
    spec: ArraySpec,
    is_big_endian: bool,
    /// The shape of what is under one key.
    chunk: Vec<usize>,
    /// The dimensions in the order in which a chunk has them; `None` where that is row-major.
    order: Option<Vec<usize>>,
    /// What undoes what was done to a chunk's bytes, in this order.
    codecs: Vec<Codec>,
    /// How what is under one key is divided into chunks once more.
    shards: Option<Shards>,
    /// The element that stands where no chunk is; an error where that is not known here.
    fill: Result<Vec<u8>, String>,
    /// What every chunk's key begins with, and what stands between its numbers.
    keys: (String, char),
}

/// Chunks within a shard, which ends or begins with an index of them.
#[derive(Debug, PartialEq)]
struct Shards {
    chunk: Vec<usize>,
    /// Whether the index ends with a checksum.
    has_crc: bool,
    is_at_end: bool,
}

/// The longest description, in bytes: far more than real ones have.
pub const MAX_DESCRIPTION_BYTES: usize = 1 << 20;

/// The offset and length of a chunk that is not in its shard.
const NO_CHUNK: u64 = u64::MAX;

/// Bytes that the index of a shard has for each chunk.
const ENTRY_BYTES: usize = 16;

impl Description {
    /// Reads the description under this key.
    ///
    /// # Errors
    /// What is wrong with it, or not known here.
    pub fn parse(key: &str, json: &[u8]) -> Result<Description, String> {
        let found = if key == V2_KEY { v2::parse(json) } else { v3::parse(json) }?;
        found.check()?;
        Ok(found)
    }

    /// Has a chunk that is not there be an error.
    pub fn refuse_missing_chunks(&mut self) {
        self.fill = Err("all of them were stored".into());
    }

    fn check(&self) -> Result<(), String> {
        let rank = self.spec.shape.len();
        if rank > MAX_RANK {
            return Err(format!("it has {rank} dimensions, and {MAX_RANK} are the most"));
        }
        self.spec.host_bytes().map_err(|error| error.to_string())?;
        check_chunk(&self.chunk, &self.spec)?;
        if let Some(shards) = &self.shards {
            check_chunk(&shards.chunk, &self.spec)?;
            if self.chunk.iter().zip(&shards.chunk).any(|(shard, chunk)| shard % chunk != 0) {
                return Err(format!(
                    "shards of {:?} are not of whole chunks of {:?}",
                    self.chunk, shards.chunk
                ));
            }
        }
        match &self.order {
            Some(order) if !is_permutation(order, rank) => {
                Err(format!("{order:?} is no order of its {rank} dimensions"))
            }
            _ => Ok(()),
        }
    }

    /// The place in the grid of the chunk of this key, without the array's name; `None` for a key of something else.
    fn cell(&self, key: &str) -> Option<Vec<usize>> {
        let (prefix, separator) = &self.keys;
        let rank = self.spec.shape.len();
        let mut rest = key.strip_prefix(prefix.as_str())?;
        if rank == 0 {
            return (if prefix.is_empty() { rest == "0" } else { rest.is_empty() }).then(Vec::new);
        }
        if !prefix.is_empty() {
            rest = rest.strip_prefix(*separator)?;
        }
        let number = |text: &str| text.parse::<usize>().ok().filter(|number| number.to_string() == text);
        let cell = rest.split(*separator).map(number).collect::<Option<Vec<usize>>>()?;
        let is_in = |((cell, chunk), size): ((&usize, &usize), &usize)| *cell < size.div_ceil(*chunk);
        let is_there = cell.len() == rank && cell.iter().zip(&self.chunk).zip(&self.spec.shape).all(is_in);
        is_there.then_some(cell)
    }

    /// The array of this name, whose values are under these keys.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn tensor<'a>(
        self,
        name: &str,
        values: impl Iterator<Item = (&'a str, &'a Location)>,
        folder: &mut Folder,
    ) -> Result<Tensor, Problem> {
        let rank = self.spec.shape.len();
        let mut found: Vec<(Vec<usize>, Location)> = Vec::new();
        for (key, location) in values {
            let Some(cell) = self.cell(key) else { continue };
            let origin: Vec<usize> = cell.iter().zip(&self.chunk).map(|(cell, chunk)| cell * chunk).collect();
            match &self.shards {
                None => found.push((origin, location.clone())),
                Some(shards) => {
                    let inner = self.inner(shards, &origin, location, folder);
                    found.extend(inner.map_err(|problem| problem.at(format_args!("its shard `{key}`")))?);
                }
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        let chunk = self.shards.map_or(self.chunk, |shards| shards.chunk);
        let width = self.spec.dtype.bits().div_ceil(8);
        let chunk_bytes = chunk.iter().product::<usize>() * width;
        folder.expand((found.len() as u64).saturating_mul(chunk_bytes as u64))?;
        let cells: usize =
            self.spec.shape.iter().zip(&chunk).map(|(size, chunk)| size.div_ceil(*chunk)).product();
        let is_whole = found.len() == cells;
        let mut fill = match self.fill {
            Ok(fill) => fill,
            // It is not needed.
            Err(_) if is_whole => vec![0; width],
            Err(problem) => {
                return Err(format!(
                    "{} of its {cells} chunks are missing, and {problem}",
                    cells - found.len()
                )
                .into());
            }
        };
        let mut encoding = Encoding {
            is_unpacked: self.spec.dtype.is_sub_byte(),
            is_big_endian: self.is_big_endian,
            ..Encoding::default()
        };
        // To turn it around is the same in either direction.
        encoding.make_little_endian(self.spec.dtype, &mut fill);
        let is_row_major = self.order.is_none() && self.codecs.is_empty() && is_whole;
        let extents: Extents =
            match is_row_major.then(|| in_order(&self.spec, &chunk, &found, width)).flatten() {
                Some(extents) => extents,
                None => {
                    let chunks = Chunks {
                        shape: chunk,
                        order: self.order,
                        codecs: self.codecs,
                        origins: found.iter().flat_map(|(origin, _)| origin).copied().collect(),
                        start: vec![0; rank],
                        fill,
                    };
                    encoding.chunks = Some(Arc::new(chunks));
                    found.into_iter().map(|(_, location)| location).collect::<Vec<_>>().into()
                }
            };
        Ok(Tensor { name: name.to_owned(), spec: self.spec, extents, encoding, checksum: None })
    }

    /// Where the chunks of a shard are that begins there in the array.
    fn inner(
        &self,
        shards: &Shards,
        origin: &[usize],
        shard: &Location,
        folder: &mut Folder,
    ) -> Result<Vec<(Vec<usize>, Location)>, Problem> {
        let grid: Vec<usize> =
            self.chunk.iter().zip(&shards.chunk).map(|(shard, chunk)| shard / chunk).collect();
        let count: usize = grid.iter().product();
        let crc = if shards.has_crc { CRC_BYTES } else { 0 };
        let bytes = count.checked_mul(ENTRY_BYTES).and_then(|bytes| bytes.checked_add(crc));
        let bytes = bytes.filter(|bytes| *bytes <= shard.range.len());
        let bytes = bytes.ok_or("it has fewer bytes than the index of its chunks")?;
        let mut index = shard.clone();
        match shards.is_at_end {
            true => index.range.start = index.range.end - bytes,
            false => index.range.end = index.range.start + bytes,
        }
        let index = folder.read(&index)?;
        let entries = match shards.has_crc {
            true => before_crc32c(&index).map_err(|_| "the checksum of its index differs: it is damaged")?,
            false => &index[..],
        };
        let mut found = Vec::new();
        for (number, entry) in entries.chunks_exact(ENTRY_BYTES).enumerate() {
            let [offset, length] =
                [0, 8].map(|at| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap_or_default()));
            if (offset, length) == (NO_CHUNK, NO_CHUNK) {
                continue;
            }
            let end = offset.checked_add(length).filter(|end| *end <= shard.range.len() as u64);
            let end = end.ok_or("a chunk reaches over its end")?;
            if length == 0 {
                return Err("a chunk of it has no bytes".into());
            }
            folder.count(1)?;
            let start = shard.range.start;
            let range = start + offset as usize..start + end as usize;
            let mut rest = number;
            let mut chunk_origin = origin.to_vec();
            for dim in (0..grid.len()).rev() {
                chunk_origin[dim] += rest % grid[dim] * shards.chunk[dim];
                rest /= grid[dim];
            }
            // What is wholly past the end of the array is nobody's.
            if chunk_origin.iter().zip(&self.spec.shape).all(|(start, size)| start < size) {
                found.push((chunk_origin, Location { file: shard.file, range }));
            }
        }
        Ok(found)
    }
}

/// Where the elements are, one after another, if chunks that hold them as they are lie so: where they divide the first dimension alone.
fn in_order(
    spec: &ArraySpec,
    chunk: &[usize],
    found: &[(Vec<usize>, Location)],
    width: usize,
) -> Option<Extents> {
    let outer = spec.shape.iter().position(|&size| size != 1).unwrap_or(0);
    let is_divided =
        spec.shape.iter().zip(chunk).enumerate().any(|(dim, (size, chunk))| dim != outer && size != chunk);
    if is_divided {
        return None;
    }
    let row: usize = chunk.iter().skip(outer + 1).product::<usize>() * width;
    let extent = |(origin, location): &(Vec<usize>, Location)| {
        let (size, rows) = match chunk.get(outer) {
            Some(&rows) => (spec.shape[outer] - origin[outer], rows),
            None => (1, 1),
        };
        // The last one can reach over the end.
        let mut location = location.clone();
        (location.range.len() == rows * row).then(|| {
            location.range.end = location.range.start + size.min(rows) * row;
            location
        })
    };
    found.iter().map(extent).collect::<Option<Vec<_>>>().map(Extents::from)
}

fn check_chunk(chunk: &[usize], spec: &ArraySpec) -> Result<(), String> {
    if chunk.len() != spec.shape.len() || chunk.contains(&0) {
        return Err(format!("chunks of {chunk:?} do not divide an array of {spec}"));
    }
    let width = spec.dtype.bits().div_ceil(8);
    let bytes = chunk.iter().try_fold(width, |bytes, &size| bytes.checked_mul(size));
    bytes
        .filter(|bytes| *bytes <= isize::MAX as usize / 2)
        .map(drop)
        .ok_or_else(|| format!("chunks of {chunk:?} do not fit into memory"))
}

fn is_permutation(order: &[usize], rank: usize) -> bool {
    order.len() == rank && (0..rank).all(|dim| order.contains(&dim))
}
