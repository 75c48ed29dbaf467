//! Comparing the values of two arrays, and looking for those that are no numbers.

#![forbid(unsafe_code)]

use half::{bf16, f16};

use crate::array::ArraySpec;
use crate::dtype::{DType, Element};

/// How two arrays of one type and shape differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Comparison {
    /// Elements.
    pub elements: u64,
    /// Elements whose bits differ; two zeros of different sign do, two NaN of the same bits do not.
    pub differing: u64,
    /// The largest difference of two finite elements; `None` for types that are only compared bit by bit.
    pub largest_absolute: Option<f64>,
    /// The largest difference in relation to the larger of the two.
    pub largest_relative: Option<f64>,
    /// NaN in the first array.
    pub first_nan: u64,
    /// NaN in the second array.
    pub second_nan: u64,
}

/// What is in an array that is no finite number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct NonFinite {
    /// Elements that are NaN.
    pub nan: u64,
    /// Elements that are infinite.
    pub infinite: u64,
}

/// Elements that are taken at a time.
const CHUNK: usize = 4096;

/// Compares two arrays of this type and shape, element by element.
pub fn compare(spec: &ArraySpec, first: &[u8], second: &[u8]) -> Comparison {
    let width = (spec.dtype.bits() / 8).max(1);
    let mut result = Comparison { elements: (first.len() / width) as u64, ..Comparison::default() };
    for (a, b) in first.chunks(CHUNK * width).zip(second.chunks(CHUNK * width)) {
        if a != b {
            let differ = |(a, b): &(&[u8], &[u8])| a != b;
            result.differing += a.chunks(width).zip(b.chunks(width)).filter(differ).count() as u64;
        }
        if let (Some(a), Some(b)) = (values(spec.dtype, a), values(spec.dtype, b)) {
            result.add(&a, &b);
        }
    }
    result
}

impl Comparison {
    fn add(&mut self, first: &[f64], second: &[f64]) {
        let (absolute, relative) =
            (self.largest_absolute.get_or_insert(0.0), self.largest_relative.get_or_insert(0.0));
        for (a, b) in first.iter().zip(second) {
            self.first_nan += u64::from(a.is_nan());
            self.second_nan += u64::from(b.is_nan());
            let difference = (a - b).abs();
            if difference.is_finite() && difference > 0.0 {
                *absolute = absolute.max(difference);
                *relative = relative.max(difference / a.abs().max(b.abs()));
            }
        }
    }
}

/// Counts the elements that are no finite numbers; zero for types that have none.
pub fn non_finite(dtype: DType, bytes: &[u8]) -> NonFinite {
    let mut found = NonFinite::default();
    let width = (dtype.bits() / 8).max(1);
    if !dtype.is_float() && !dtype.name().starts_with("complex") {
        return found;
    }
    for chunk in bytes.chunks(CHUNK * width) {
        for value in values(dtype, chunk).unwrap_or_default() {
            found.nan += u64::from(value.is_nan());
            found.infinite += u64::from(value.is_infinite());
        }
    }
    found
}

/// The elements as f64, complex ones as two; `None` for types that are only compared bit by bit.
fn values(dtype: DType, bytes: &[u8]) -> Option<Vec<f64>> {
    fn read<T: Element>(bytes: &[u8], convert: impl Fn(T) -> f64) -> Option<Vec<f64>> {
        Some(
            bytes
                .chunks_exact(size_of::<T>())
                .map(|chunk| convert(bytemuck::pod_read_unaligned(chunk)))
                .collect(),
        )
    }
    match dtype {
        DType::I8 => read::<i8>(bytes, f64::from),
        DType::I16 => read::<i16>(bytes, f64::from),
        DType::I32 => read::<i32>(bytes, f64::from),
        DType::I64 => read::<i64>(bytes, |value| value as f64),
        DType::U8 | DType::Bool => read::<u8>(bytes, f64::from),
        DType::U16 => read::<u16>(bytes, f64::from),
        DType::U32 => read::<u32>(bytes, f64::from),
        DType::U64 => read::<u64>(bytes, |value| value as f64),
        DType::F16 => read::<f16>(bytes, f16::to_f64),
        DType::BF16 => read::<bf16>(bytes, bf16::to_f64),
        DType::F32 | DType::C64 => read::<f32>(bytes, f64::from),
        DType::F64 | DType::C128 => read::<f64>(bytes, |value| value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32s(values: &[f32]) -> Vec<u8> {
        bytemuck::cast_slice(values).to_vec()
    }

    #[test]
    fn differences_are_counted_and_measured() {
        let spec = ArraySpec::new(DType::F32, [4]);
        let result = compare(&spec, &f32s(&[1.0, 2.0, f32::NAN, 0.0]), &f32s(&[1.0, 2.5, f32::NAN, -0.0]));
        assert_eq!((result.elements, result.differing), (4, 2));
        assert_eq!((result.largest_absolute, result.largest_relative), (Some(0.5), Some(0.2)));
        assert_eq!((result.first_nan, result.second_nan), (1, 1));
        let eights = ArraySpec::new(DType::F8E4M3FN, [2]);
        let result = compare(&eights, &[1, 2], &[1, 3]);
        assert_eq!((result.differing, result.largest_absolute), (1, None));
    }

    #[test]
    fn what_is_no_number_is_counted() {
        let bytes = f32s(&[f32::NAN, f32::INFINITY, 1.0, f32::NEG_INFINITY]);
        assert_eq!(non_finite(DType::F32, &bytes), NonFinite { nan: 1, infinite: 2 });
        assert_eq!(non_finite(DType::C64, &bytes), NonFinite { nan: 1, infinite: 2 });
        assert_eq!(non_finite(DType::U8, &[255; 9]), NonFinite::default());
    }
}
