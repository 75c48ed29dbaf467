//! How the elements of a tensor are held in a file, and how they become a host's: row-major and little-endian.

use std::sync::Arc;

use super::chunks::Chunks;
use crate::array::ArraySpec;
use crate::dtype::DType;

/// How the elements of a tensor are held. By default as a host has them, sub-byte ones packed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Encoding {
    /// The bytes are deflated.
    pub deflated: Option<Box<Deflated>>,
    /// Sub-byte elements take a byte each.
    pub is_unpacked: bool,
    /// Numbers of several bytes begin with the highest.
    pub is_big_endian: bool,
    /// They are in another order than row-major.
    pub strides: Option<Vec<usize>>,
    /// They are in chunks, each of which is stored by itself.
    pub chunks: Option<Arc<Chunks>>,
}

/// What is deflated (RFC 1951).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Deflated {
    /// The bytes of the content that come before the tensor's.
    pub skip: usize,
    /// The bytes of the tensor.
    pub bytes: usize,
    /// The bytes of the content, and the CRC-32 of all of them.
    pub content: (usize, u32),
}

impl Encoding {
    /// Whether any part of the elements can be read by itself.
    pub fn is_plain(&self) -> bool {
        self.deflated.is_none() && self.strides.is_none() && self.chunks.is_none()
    }

    /// Whether the bytes are those of an array on the host, as far as whole bytes go.
    pub fn is_as_on_the_host(&self) -> bool {
        self.is_plain() && !self.is_big_endian
    }

    /// Turns numbers that begin with the highest byte around.
    pub fn make_little_endian(&self, dtype: DType, bytes: &mut [u8]) {
        if self.is_big_endian {
            // A complex number is two of its parts.
            let parts = if dtype.is_complex() { 2 } else { 1 };
            match dtype.bits() / 8 / parts {
                0 | 1 => {}
                width => bytes.chunks_exact_mut(width).for_each(<[u8]>::reverse),
            }
        }
    }
}

/// The strides of an array whose first dimension is fastest, in elements; `None` where that is row-major too.
pub(crate) fn column_major(shape: &[usize]) -> Option<Vec<usize>> {
    if shape.iter().filter(|&&dim| dim != 1).count() < 2 {
        return None;
    }
    let stride =
        |stride: &mut usize, &dim: &usize| Some(std::mem::replace(stride, stride.saturating_mul(dim)));
    Some(shape.iter().scan(1, stride).collect())
}

/// The strides of an array whose last dimension is fastest, in elements.
pub(crate) fn row_major(shape: &[usize]) -> Vec<usize> {
    let stride =
        |stride: &mut usize, &dim: &usize| Some(std::mem::replace(stride, stride.saturating_mul(dim)));
    let mut strides: Vec<usize> = shape.iter().rev().scan(1, stride).collect();
    strides.reverse();
    strides
}

/// Elements that strides reach over, from the first to the last; `None` where that is more than there can be.
pub(crate) fn reach(shape: &[usize], strides: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    let last = shape
        .iter()
        .zip(strides)
        .try_fold(0usize, |sum, (&dim, &stride)| sum.checked_add((dim - 1).checked_mul(stride)?));
    last?.checked_add(1)
}

/// Bytes of a tile's side in [`gather`]: some lines of a cache.
const TILE_BYTES: usize = 256;

/// Puts elements that lie by these strides one after another, row-major. Where neighbours in the result lie apart, both
/// sides are walked in tiles that fit into the caches, so that this costs what the bytes cost.
pub(crate) fn gather(source: &[u8], spec: &ArraySpec, strides: &[usize], target: &mut [u8]) {
    if target.is_empty() {
        return;
    }
    let width = spec.dtype.bits().div_ceil(8);
    // Dimensions of one do not matter.
    let (shape, from): (Vec<usize>, Vec<usize>) =
        spec.shape.iter().zip(strides).filter(|(dim, _)| **dim != 1).unzip();
    let to = row_major(&shape);
    let Some(last) = shape.len().checked_sub(1) else {
        target.copy_from_slice(&source[..width]);
        return;
    };
    // The dimension that is fastest in the source, and that which is fastest in the target: these two are tiled. Where they
    // are one, whole rows of it are copied, whatever repeats them.
    let has_rows = from[last] == 1;
    let fast = (0..last).min_by_key(|&dim| from[dim]).filter(|&dim| !has_rows && from[dim] < from[last]);
    let outer: Vec<usize> = (0..last).filter(|dim| Some(*dim) != fast).collect();
    let (rows, row_from, row_to) = fast.map_or((1, 0, 0), |dim| (shape[dim], from[dim], to[dim]));
    let side = (TILE_BYTES / width).max(1);
    let mut index = vec![0usize; outer.len()];
    loop {
        let sum =
            |strides: &[usize]| -> usize { index.iter().zip(&outer).map(|(i, &dim)| i * strides[dim]).sum() };
        let (from_start, to_start) = (sum(&from), sum(&to));
        if has_rows {
            let (from, to, bytes) = (from_start * width, to_start * width, shape[last] * width);
            target[to..to + bytes].copy_from_slice(&source[from..from + bytes]);
        } else {
            for first_row in (0..rows).step_by(side) {
                for first_column in (0..shape[last]).step_by(side) {
                    for row in first_row..(first_row + side).min(rows) {
                        for column in first_column..(first_column + side).min(shape[last]) {
                            let at = (from_start + row * row_from + column * from[last]) * width;
                            let place = (to_start + row * row_to + column) * width;
                            target[place..place + width].copy_from_slice(&source[at..at + width]);
                        }
                    }
                }
            }
        }
        if !advance(&mut index, &outer, &shape) {
            return;
        }
    }
}

/// Goes on to the next index of these dimensions; false after the last.
fn advance(index: &mut [usize], dims: &[usize], shape: &[usize]) -> bool {
    for (position, &dim) in index.iter_mut().zip(dims).rev() {
        *position += 1;
        if *position < shape[dim] {
            return true;
        }
        *position = 0;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn gathered_elements_are_those_that_the_strides_say(
            dims in proptest::collection::vec((1usize..7, 0usize..9), 0..5),
            width in proptest::sample::select(vec![DType::U8, DType::U16, DType::F32, DType::C128]),
        ) {
            let shape: Vec<usize> = dims.iter().map(|(dim, _)| *dim).collect();
            // Any strides, those of broadcast dimensions and of rows among them.
            let strides: Vec<usize> = dims.iter().map(|(_, stride)| *stride).collect();
            let spec = ArraySpec::new(width, shape.clone());
            let bytes = width.bits() / 8;
            let source: Vec<u8> =
                (0..reach(&shape, &strides).unwrap() * bytes).map(|at| (at % 251) as u8).collect();
            let mut target = vec![0; spec.host_bytes().unwrap()];
            gather(&source, &spec, &strides, &mut target);
            let mut index = vec![0; shape.len()];
            let all: Vec<usize> = (0..shape.len()).collect();
            for element in target.chunks(bytes) {
                let at = index.iter().zip(&strides).map(|(i, stride)| i * stride).sum::<usize>() * bytes;
                prop_assert_eq!(element, &source[at..at + bytes]);
                advance(&mut index, &all, &shape);
            }
        }
    }
}
