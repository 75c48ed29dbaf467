//! The writer of arrays: zarr 2, which Orbax has had from the beginning.

use std::borrow::Cow;
use std::ops::Range;

use serde_json::json;

use super::V2_KEY;
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::npy;

/// The most bytes of a chunk that is not compressed: Orbax divides what is larger, too.
const MAX_CHUNK_BYTES: usize = 2 << 30;

/// The most bytes of a chunk that is compressed: chunks are compressed, and expanded, side by side.
const MAX_COMPRESSED_CHUNK_BYTES: usize = 16 << 20;

/// How an array lies in chunks: each is a part of its bytes, row-major.
pub struct Layout {
    spec: ArraySpec,
    dtype: String,
    /// The bytes of an element.
    width: usize,
    zstd_level: Option<i32>,
    chunk: Vec<usize>,
    /// The dimension that is divided into blocks; those before it, into single positions.
    divided: usize,
}

impl Layout {
    /// The key of the description.
    pub const KEY: &str = V2_KEY;

    /// Lays an array out; its chunks are compressed at this level, if any.
    ///
    /// # Errors
    /// Why it cannot be: what is wrong with its type.
    pub fn new(spec: &ArraySpec, zstd_level: Option<i32>) -> Result<Layout, String> {
        let most = if zstd_level.is_some() { MAX_COMPRESSED_CHUNK_BYTES } else { MAX_CHUNK_BYTES };
        Layout::with_chunks_of(spec, zstd_level, most)
    }

    fn with_chunks_of(spec: &ArraySpec, zstd_level: Option<i32>, most: usize) -> Result<Layout, String> {
        let (dtype, width) = (name_of(spec.dtype)?, spec.dtype.bits().div_ceil(8));
        let mut chunk: Vec<usize> = spec.shape.iter().map(|size| (*size).max(1)).collect();
        let mut divided = 0;
        loop {
            let bytes = width * chunk.iter().product::<usize>();
            let Some(size) = chunk.get_mut(divided).filter(|_| bytes > most) else { break };
            // As few blocks as are needed, and all alike.
            let fit = (most / (bytes / *size)).max(1);
            let blocks = size.div_ceil(fit);
            *size = size.div_ceil(blocks);
            if *size > 1 || width * chunk.iter().product::<usize>() <= most {
                break;
            }
            divided += 1;
        }
        divided = divided.min(chunk.len().saturating_sub(1));
        Ok(Layout { spec: spec.clone(), dtype, width, zstd_level, chunk, divided })
    }

    /// The description, in JSON.
    pub fn description(&self) -> String {
        let compressor = self.zstd_level.map(|level| json!({"id": "zstd", "level": level}));
        json!({
            "zarr_format": 2,
            "shape": self.spec.shape,
            "chunks": self.chunk,
            "dtype": self.dtype,
            "order": "C",
            "compressor": compressor,
            "fill_value": null,
            "filters": null,
            "dimension_separator": ".",
        })
        .to_string()
    }

    /// Passes on the chunks of an array of these bytes, each with its key.
    ///
    /// # Errors
    /// Those of `take`; [`Error::InvalidArgument`] when memory runs out.
    pub fn with_chunks(&self, bytes: &[u8], take: &mut dyn FnMut(String, &[u8]) -> Result<()>) -> Result<()> {
        let chunks = self.chunks();
        let Some(level) = self.zstd_level else {
            return chunks.into_iter().try_for_each(|(key, range)| take(key, &self.whole(&bytes[range])));
        };
        let at_once = std::thread::available_parallelism().map_or(1, usize::from);
        for chunks in chunks.chunks(at_once) {
            let compress =
                |range: &Range<usize>| zstd::bulk::compress(&self.whole(&bytes[range.clone()]), level);
            let compressed: Vec<std::io::Result<Vec<u8>>> = std::thread::scope(|scope| {
                let others: Vec<_> =
                    chunks[1..].iter().map(|(_, range)| scope.spawn(move || compress(range))).collect();
                let own = compress(&chunks[0].1);
                let others = others
                    .into_iter()
                    .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
                [own].into_iter().chain(others).collect()
            });
            for ((key, _), compressed) in chunks.iter().zip(compressed) {
                let compressed = compressed.map_err(|error| {
                    Error::InvalidArgument(format!("it cannot be compressed with Zstandard: {error}"))
                })?;
                take(key.clone(), &compressed)?;
            }
        }
        Ok(())
    }

    /// A chunk as it is stored: one that reaches over the end of the array has zeros there.
    fn whole<'a>(&self, part: &'a [u8]) -> Cow<'a, [u8]> {
        let bytes = self.width * self.chunk.iter().product::<usize>();
        if part.len() == bytes {
            return Cow::Borrowed(part);
        }
        let mut whole = vec![0; bytes];
        whole[..part.len()].copy_from_slice(part);
        Cow::Owned(whole)
    }

    /// The key of each chunk, and its bytes among those of the array.
    fn chunks(&self) -> Vec<(String, Range<usize>)> {
        let shape = &self.spec.shape;
        if shape.is_empty() {
            return vec![("0".into(), 0..self.width)];
        }
        if shape.contains(&0) {
            return Vec::new();
        }
        let (size, block) = (shape[self.divided], self.chunk[self.divided]);
        let inner = self.width * shape[self.divided + 1..].iter().product::<usize>();
        let outer: usize = shape[..self.divided].iter().product();
        let blocks = size.div_ceil(block);
        let chunk = |number: usize| {
            let (row, place) = (number / blocks, number % blocks);
            let start = row * size + place * block;
            let end = row * size + (place * block + block).min(size);
            let mut cell = vec![0; shape.len()];
            cell[self.divided] = place;
            let mut rest = row;
            for dimension in (0..self.divided).rev() {
                cell[dimension] = rest % shape[dimension];
                rest /= shape[dimension];
            }
            let key: Vec<String> = cell.iter().map(usize::to_string).collect();
            (key.join("."), start * inner..end * inner)
        };
        (0..outer * blocks).map(chunk).collect()
    }
}

/// What TensorStore calls a type in zarr 2. Types of less than a byte have a byte an element there.
fn name_of(dtype: DType) -> Result<String, String> {
    if let Some(descr) = npy::numpy_descr(dtype) {
        return Ok(descr);
    }
    match dtype {
        DType::BF16
        | DType::I2
        | DType::I4
        | DType::F4E2M1FN
        | DType::F8E3M4
        | DType::F8E4M3FN
        | DType::F8E4M3FNUZ
        | DType::F8E4M3B11FNUZ
        | DType::F8E5M2
        | DType::F8E5M2FNUZ
        | DType::F8E8M0FNU => Ok(dtype.name().to_owned()),
        _ => Err(format!(
            "Orbax has no arrays of {dtype}; write another type (`--dtype`) or another format, or leave it out (`--exclude`)"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chunks of an array, each with its key and where it begins and ends.
    fn chunks(shape: &[usize], most: usize) -> (Vec<usize>, Vec<(String, usize, usize)>) {
        let layout = Layout::with_chunks_of(&ArraySpec::new(DType::F32, shape), None, most).unwrap();
        let chunks = layout.chunks().into_iter().map(|(key, range)| (key, range.start, range.end));
        (layout.chunk.clone(), chunks.collect())
    }

    #[test]
    fn an_array_is_divided_where_it_is_too_large() {
        let key = |key: &str, start, end| (key.to_owned(), start, end);
        assert_eq!(chunks(&[], 1), (vec![], vec![key("0", 0, 4)]));
        assert_eq!(chunks(&[2, 3], 24), (vec![2, 3], vec![key("0.0", 0, 24)]));
        assert_eq!(chunks(&[0, 3], 24), (vec![1, 3], vec![]));
        let thirds = vec![key("0.0", 0, 24), key("1.0", 24, 48), key("2.0", 48, 60)];
        assert_eq!(chunks(&[5, 3], 30), (vec![2, 3], thirds));
        let halves = vec![key("0.0", 0, 8), key("0.1", 8, 12), key("1.0", 12, 20), key("1.1", 20, 24)];
        assert_eq!(chunks(&[2, 3], 8), (vec![1, 2], halves));
        assert_eq!(chunks(&[2, 2], 1).1.len(), 4);
        let rows = vec![key("0.0.0", 0, 12), key("0.1.0", 12, 24)];
        assert_eq!(chunks(&[1, 2, 3], 12), (vec![1, 1, 3], rows));
    }

    #[test]
    fn every_byte_is_in_a_chunk() {
        for shape in [vec![7], vec![3, 5], vec![2, 3, 4], vec![1, 9, 2], vec![4, 1, 1, 3]] {
            let bytes = 4 * shape.iter().product::<usize>();
            for most in 1..=bytes + 1 {
                let (chunk, found) = chunks(&shape, most);
                assert_eq!(found.iter().map(|(_, start, end)| end - start).sum::<usize>(), bytes);
                assert!(found.windows(2).all(|pair| pair[0].2 == pair[1].1), "{shape:?} {most}");
                assert!(4 * chunk.iter().product::<usize>() <= most.max(4), "{shape:?} {most}");
            }
        }
    }
}
