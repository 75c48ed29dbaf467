//! Parts of tensors: a slice of one is a tensor of its own, whose bytes are some of the whole's.

use std::ops::Range;
use std::sync::Arc;

use crate::array::ArraySpec;
use crate::error::{Error, Result};
use crate::format::encoding::Encoding;
use crate::format::{Chunks, Extent, Tensor};
use crate::sharding::Runs;

/// A slice of a tensor that is plain ([`Tensor::is_plain`]) or in chunks, of which it has those that it needs.
///
/// # Errors
/// [`Error::InvalidArgument`] where sub-byte elements of it share bytes with others.
pub fn part_of(tensor: &Tensor, slice: &[Range<usize>]) -> Result<Tensor> {
    if let Some(chunks) = &tensor.encoding.chunks {
        return Ok(part_of_chunks(tensor, chunks, slice));
    }
    let (dtype, bits) = (tensor.spec.dtype, element_bits(tensor));
    // In elements, or in bytes where these are whole.
    let unit = if bits < 8 { 1 } else { bits / 8 };
    let runs = Runs::new(&tensor.spec.shape, slice, unit);
    let in_bytes = |run: Range<usize>| -> Result<Range<usize>> {
        if bits >= 8 {
            return Ok(run);
        }
        let (start, end) = (run.start * bits, run.end * bits);
        if start % 8 != 0 || end % 8 != 0 {
            return Err(Error::InvalidArgument(format!(
                "a part of {} would begin or end within a byte; split it over another dimension",
                tensor.spec
            )));
        }
        Ok(start / 8..end / 8)
    };
    let mut extents: Vec<Extent> = Vec::with_capacity(runs.count());
    let mut stored = Stored { extents: tensor.extents(), index: 0, before: 0 };
    for run in runs.iter() {
        stored.append(in_bytes(run)?, &mut extents);
    }
    let shape: Vec<usize> = slice.iter().map(Range::len).collect();
    Ok(Tensor {
        name: tensor.name.clone(),
        spec: ArraySpec::new(dtype, shape),
        extents: extents.into(),
        encoding: tensor.encoding.clone(),
        checksum: None,
    })
}

/// Bits that an element takes in the file.
fn element_bits(tensor: &Tensor) -> usize {
    if tensor.encoding.is_unpacked { 8 } else { tensor.spec.dtype.bits() }
}

fn part_of_chunks(tensor: &Tensor, chunks: &Chunks, slice: &[Range<usize>]) -> Tensor {
    let wanted = chunks.of_slice(slice, tensor.extents().len());
    let extents: Vec<Extent> = wanted.iter().map(|&index| tensor.extents()[index].clone()).collect();
    let shape: Vec<usize> = slice.iter().map(Range::len).collect();
    Tensor {
        name: tensor.name.clone(),
        spec: ArraySpec::new(tensor.spec.dtype, shape),
        extents: extents.into(),
        encoding: Encoding {
            chunks: Some(Arc::new(chunks.slice(slice, &wanted))),
            ..tensor.encoding.clone()
        },
        checksum: None,
    }
}

/// Runs of a part that are noted one by one, however short they are.
const FEW_RUNS: usize = 1 << 16;

/// The shortest of many runs that are, in bytes: noting where one is takes nearly as many.
const SHORT_RUN: usize = 32;

/// Whether these slices of a tensor, which are of one shape, are better read one by one than dealt out of the whole: they are runs of
/// its bytes, and not very many and very short ones, or chunks that no two of them share.
pub fn has_parts(tensor: &Tensor, slices: &[Vec<Range<usize>>]) -> bool {
    let Some(chunks) = &tensor.encoding.chunks else {
        let is_too_fine = |slice: &Vec<Range<usize>>| {
            let runs = Runs::new(&tensor.spec.shape, slice, 1);
            runs.count() > FEW_RUNS && runs.run_bytes() * element_bits(tensor) < SHORT_RUN * 8
        };
        return tensor.is_plain() && !slices.first().is_some_and(is_too_fine);
    };
    let count = tensor.extents().len();
    let read: usize = slices.iter().map(|slice| chunks.of_slice(slice, count).len()).sum();
    read <= count
}

/// Where a tensor's bytes are. Asked for runs in their order.
struct Stored<'a> {
    extents: &'a [Extent],
    /// The extent that the last run began in, and the tensor's bytes before it.
    index: usize,
    before: usize,
}

impl Stored<'_> {
    /// Adds where these bytes of the tensor are, to the last extent if they follow it.
    fn append(&mut self, mut run: Range<usize>, to: &mut Vec<Extent>) {
        while let Some(Extent { file, range }) = self.extents.get(self.index) {
            if run.start >= self.before + range.len() {
                self.before += range.len();
                self.index += 1;
                continue;
            }
            let start = range.start + (run.start - self.before);
            let here = run.len().min(range.end - start);
            match to.last_mut() {
                Some(last) if (last.file, last.range.end) == (*file, start) => last.range.end += here,
                _ => to.push(Extent { file: *file, range: start..start + here }),
            }
            run.start += here;
            if run.is_empty() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;

    #[test]
    fn parts_are_the_bytes_of_their_slices_wherever_these_are() {
        let tensor = Tensor::plain("w".into(), ArraySpec::new(DType::F32, [4, 6]), 1, 100..196);
        let extents = |slice: &[Range<usize>]| -> Vec<(usize, Range<usize>)> {
            let part = part_of(&tensor, slice).unwrap();
            assert_eq!(part.bytes(), part.spec.host_bytes().unwrap());
            part.extents().iter().map(|extent| (extent.file, extent.range.clone())).collect()
        };
        assert_eq!(extents(&[2..4, 0..6]), [(1, 148..196)]);
        assert_eq!(extents(&[0..2, 3..6]), [(1, 112..124), (1, 136..148)]);
        let mut split = tensor.clone();
        split.extents = vec![Extent { file: 0, range: 10..50 }, Extent { file: 2, range: 0..56 }].into();
        let part = part_of(&split, &[1..3, 0..6]).unwrap();
        assert_eq!(part.extents(), [Extent { file: 0, range: 34..50 }, Extent { file: 2, range: 0..32 }]);
    }

    #[test]
    fn parts_of_sub_byte_elements_are_whole_bytes() {
        let tensor = Tensor::plain("w".into(), ArraySpec::new(DType::I4, [4, 6]), 0, 0..12);
        assert_eq!(part_of(&tensor, &[2..4, 0..6]).unwrap().extents()[0].range, 6..12);
        assert_eq!(part_of(&tensor, &[0..4, 0..2]).unwrap().extents().len(), 4);
        assert!(part_of(&tensor, &[0..4, 0..3]).unwrap_err().to_string().contains("within a byte"));
    }
}
