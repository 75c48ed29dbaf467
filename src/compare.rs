//! Comparing the values of two arrays, and looking for those that are no numbers.

#![forbid(unsafe_code)]

use half::{bf16, f16};

use crate::array::{ArraySpec, HostArray};
use crate::dtype::{DType, Element};

/// How two arrays of one shape differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Comparison {
    /// Elements.
    pub elements: u64,
    /// Elements that differ: in their bits for arrays of one type, so that two zeros of different sign do and two NaN of the
    /// same bits do not; in their values for arrays of two.
    pub differing: u64,
    /// Elements of which one or both are infinite or NaN, and that no difference is measured of: one NaN, or two that are
    /// not the same infinity.
    pub not_measured: u64,
    /// The largest difference of two finite elements; `None` for types that are only compared bit by bit.
    pub largest_absolute: Option<f64>,
    /// The largest difference in relation to the larger of the two.
    pub largest_relative: Option<f64>,
    /// NaN in the first array.
    pub first_nan: u64,
    /// NaN in the second array.
    pub second_nan: u64,
}

impl Comparison {
    /// Whether no element differs by more than this. Of types that are only compared bit by bit, none may differ.
    pub fn is_within(&self, tolerance: f64) -> bool {
        let is_near = self.largest_absolute.is_some_and(|largest| largest <= tolerance);
        self.differing == 0 || (is_near && self.not_measured == 0)
    }
}

/// What is in an array that is no finite number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct NonFinite {
    /// Elements that are NaN.
    pub nan: u64,
    /// Elements that are infinite.
    pub infinite: u64,
}

impl std::ops::Add for NonFinite {
    type Output = NonFinite;
    fn add(self, other: NonFinite) -> NonFinite {
        NonFinite { nan: self.nan + other.nan, infinite: self.infinite + other.infinite }
    }
}

/// Elements that are taken at a time.
const CHUNK: usize = 1024;

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

/// Compares two arrays of one shape and of these types by their values, as a cast is checked; `None` where one of the types
/// is only compared bit by bit.
pub fn compare_values(first: (DType, &[u8]), second: (DType, &[u8])) -> Option<Comparison> {
    let width = |dtype: DType| (dtype.bits() / 8).max(1);
    let mut result =
        Comparison { elements: (first.1.len() / width(first.0)) as u64, ..Comparison::default() };
    if first.1.is_empty() {
        return values(first.0, &[]).and(values(second.0, &[])).map(|_| result);
    }
    for (a, b) in first.1.chunks(CHUNK * width(first.0)).zip(second.1.chunks(CHUNK * width(second.0))) {
        let (a, b) = (values(first.0, a)?, values(second.0, b)?);
        if a.len() != b.len() {
            return None; // Complex elements are two values.
        }
        result.differing += a.iter().zip(&b).filter(|(a, b)| !a.is_same(**b)).count() as u64;
        result.add(&a, &b);
    }
    Some(result)
}

/// A number of any type, exactly.
#[derive(Debug, Clone, Copy)]
enum Scalar {
    Integer(i128),
    Float(f64),
}

impl Scalar {
    fn to_f64(self) -> f64 {
        match self {
            Scalar::Integer(value) => value as f64,
            Scalar::Float(value) => value,
        }
    }

    /// The whole number that it is, if it is one of less than 2 to the 126th.
    fn to_integer(self) -> Option<i128> {
        match self {
            Scalar::Integer(value) => Some(value),
            Scalar::Float(value) => {
                (value.trunc() == value && value.abs() < 2f64.powi(126)).then_some(value as i128)
            }
        }
    }

    /// Whether two are the same number; two NaN are.
    fn is_same(self, other: Scalar) -> bool {
        match (self, other) {
            (Scalar::Float(a), Scalar::Float(b)) => a == b || (a.is_nan() && b.is_nan()),
            (a, b) => a.to_integer().is_some() && a.to_integer() == b.to_integer(),
        }
    }

    /// How far two are apart: of integers exactly, before it is rounded.
    fn distance(self, other: Scalar) -> f64 {
        match (self, other, self.to_integer(), other.to_integer()) {
            (Scalar::Float(a), Scalar::Float(b), ..) => (a - b).abs(),
            (_, _, Some(a), Some(b)) => (a - b).unsigned_abs() as f64,
            (a, b, ..) => (a.to_f64() - b.to_f64()).abs(),
        }
    }
}

impl Comparison {
    fn add(&mut self, first: &[Scalar], second: &[Scalar]) {
        let (absolute, relative) =
            (self.largest_absolute.get_or_insert(0.0), self.largest_relative.get_or_insert(0.0));
        for (&a, &b) in first.iter().zip(second) {
            let (x, y) = (a.to_f64(), b.to_f64());
            self.first_nan += u64::from(x.is_nan());
            self.second_nan += u64::from(y.is_nan());
            if a.is_same(b) {
                continue;
            }
            let difference = a.distance(b);
            // The difference of two large finite numbers may be infinite, and is measured.
            if x.is_finite() && y.is_finite() {
                *absolute = absolute.max(difference);
                *relative = relative.max(difference / x.abs().max(y.abs()));
            } else {
                self.not_measured += 1;
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
            found.nan += u64::from(value.to_f64().is_nan());
            found.infinite += u64::from(value.to_f64().is_infinite());
        }
    }
    found
}

/// The elements of an array, row-major, as text: `[1, 2.5, …]`; `None` for types whose values are not read here.
pub fn show_values(array: &HostArray) -> Option<String> {
    let dtype = array.spec().dtype;
    let show = |value: &Scalar| match value {
        Scalar::Integer(value) if dtype == DType::Bool => (*value != 0).to_string(),
        Scalar::Integer(value) => value.to_string(),
        // The shortest text that is read back as the same number of the narrower type.
        Scalar::Float(value) if dtype.bits() <= 32 => format!("{}", *value as f32),
        Scalar::Float(value) => format!("{value}"),
    };
    let values: Vec<String> = values(dtype, array.bytes())?.iter().map(show).collect();
    if dtype.name().starts_with("complex") {
        let pairs = values.chunks(2).map(|pair| format!("{} + {}j", pair[0], pair[1]));
        return Some(format!("[{}]", pairs.collect::<Vec<_>>().join(", ")));
    }
    if array.spec().shape.is_empty() {
        return values.into_iter().next();
    }
    Some(format!("[{}]", values.join(", ")))
}

/// The elements, complex ones as two; `None` for types that are only compared bit by bit.
fn values(dtype: DType, bytes: &[u8]) -> Option<Vec<Scalar>> {
    fn read<T: Element>(bytes: &[u8], convert: impl Fn(T) -> Scalar) -> Option<Vec<Scalar>> {
        let elements = bytes.chunks_exact(size_of::<T>());
        Some(elements.map(|chunk| convert(bytemuck::pod_read_unaligned(chunk))).collect())
    }
    fn integers<T: Element + Into<i128>>(bytes: &[u8]) -> Option<Vec<Scalar>> {
        read(bytes, |value: T| Scalar::Integer(value.into()))
    }
    match dtype {
        DType::I8 => integers::<i8>(bytes),
        DType::I16 => integers::<i16>(bytes),
        DType::I32 => integers::<i32>(bytes),
        DType::I64 => integers::<i64>(bytes),
        DType::U8 | DType::Bool => integers::<u8>(bytes),
        DType::U16 => integers::<u16>(bytes),
        DType::U32 => integers::<u32>(bytes),
        DType::U64 => integers::<u64>(bytes),
        DType::F16 => read::<f16>(bytes, |value| Scalar::Float(value.to_f64())),
        DType::BF16 => read::<bf16>(bytes, |value| Scalar::Float(value.to_f64())),
        DType::F32 | DType::C64 => read::<f32>(bytes, |value| Scalar::Float(value.into())),
        DType::F64 | DType::C128 => read::<f64>(bytes, Scalar::Float),
        dtype => {
            let format = EightBits::of(dtype)?;
            Some(bytes.iter().map(|&bits| Scalar::Float(format.value(bits))).collect())
        }
    }
}

/// How a type of eight bits holds floating point numbers, as `ml_dtypes` defines them (its README and `float8.h`).
struct EightBits {
    has_sign: bool,
    mantissa_bits: u32,
    bias: i32,
    special: Special,
}

/// Which patterns are no finite numbers.
enum Special {
    /// As in IEEE 754: an exponent of ones is infinity, or NaN where the mantissa is not zero.
    Ieee,
    /// Ones only, but for the sign, are NaN; there is no infinity ("fn").
    OnesAreNan,
    /// What would be negative zero is NaN; there is no infinity ("fnuz").
    NegativeZeroIsNan,
}

impl EightBits {
    fn of(dtype: DType) -> Option<EightBits> {
        let (mantissa_bits, bias, special) = match dtype {
            DType::F8E3M4 => (4, 3, Special::Ieee),
            DType::F8E4M3 => (3, 7, Special::Ieee),
            DType::F8E5M2 => (2, 15, Special::Ieee),
            DType::F8E4M3FN => (3, 7, Special::OnesAreNan),
            DType::F8E4M3FNUZ => (3, 8, Special::NegativeZeroIsNan),
            DType::F8E5M2FNUZ => (2, 16, Special::NegativeZeroIsNan),
            DType::F8E4M3B11FNUZ => (3, 11, Special::NegativeZeroIsNan),
            DType::F8E8M0FNU => {
                return Some(EightBits {
                    has_sign: false,
                    mantissa_bits: 0,
                    bias: 127,
                    special: Special::OnesAreNan,
                });
            }
            _ => return None,
        };
        Some(EightBits { has_sign: true, mantissa_bits, bias, special })
    }

    fn value(&self, bits: u8) -> f64 {
        let magnitude = i32::from(if self.has_sign { bits & 0x7f } else { bits });
        let sign = if self.has_sign && bits & 0x80 != 0 { -1.0 } else { 1.0 };
        let largest = if self.has_sign { 0x7f } else { 0xff };
        let (exponent, mantissa) =
            (magnitude >> self.mantissa_bits, magnitude & ((1 << self.mantissa_bits) - 1));
        match self.special {
            Special::Ieee if exponent == largest >> self.mantissa_bits => {
                return if mantissa == 0 { sign * f64::INFINITY } else { f64::NAN };
            }
            Special::OnesAreNan if magnitude == largest => return f64::NAN,
            Special::NegativeZeroIsNan if bits == 0x80 => return f64::NAN,
            _ => {}
        }
        let fraction = f64::from(mantissa) / f64::from(1 << self.mantissa_bits);
        // Without a mantissa there is no zero, and so nothing below the normal numbers.
        if exponent == 0 && self.mantissa_bits > 0 {
            return sign * fraction * 2f64.powi(1 - self.bias);
        }
        sign * (1.0 + fraction) * 2f64.powi(exponent - self.bias)
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
        assert_eq!((result.differing, result.largest_absolute), (1, Some(1.0 / 512.0)));
        let packed = ArraySpec::new(DType::F4E2M1FN, [4]);
        let result = compare(&packed, &[1, 2], &[1, 3]);
        assert_eq!((result.differing, result.largest_absolute), (1, None));
        assert!(!result.is_within(f64::INFINITY));
    }

    #[test]
    fn what_is_infinite_or_nan_is_within_no_tolerance() {
        let spec = ArraySpec::new(DType::F32, [3]);
        let of = |a: [f32; 3], b: [f32; 3]| compare(&spec, &f32s(&a), &f32s(&b));
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        assert_eq!(of([inf, nan, 1.0], [1.0, 1.0, nan]).not_measured, 3);
        assert!(!of([inf, 0.0, 0.0], [-inf, 0.0, 0.0]).is_within(f64::INFINITY));
        assert!(of([inf, nan, 1.0], [inf, nan, 1.5]).is_within(0.5));
        assert!(!of([inf, nan, 1.0], [inf, nan, 1.5]).is_within(0.4));
        assert!(of([f32::MAX, 0.0, 0.0], [f32::MIN, 0.0, 0.0]).is_within(1e39));
    }

    #[test]
    fn integers_of_64_bits_are_compared_exactly() {
        let spec = ArraySpec::new(DType::U64, [1]);
        let result = compare(&spec, &u64::MAX.to_le_bytes(), &(u64::MAX - 1).to_le_bytes());
        assert_eq!((result.differing, result.largest_absolute), (1, Some(1.0)));
        assert!(!result.is_within(0.5));
    }

    #[test]
    fn a_cast_is_compared_by_its_values() {
        let halves: Vec<u8> = [1.0, 2.5].map(bf16::from_f32).iter().flat_map(|v| v.to_le_bytes()).collect();
        let result = compare_values((DType::F32, &f32s(&[1.0, 2.502])), (DType::BF16, &halves)).unwrap();
        assert_eq!(result.differing, 1);
        assert!(result.is_within(0.01) && !result.is_within(0.001));
        // A float64 of a large integer is compared exactly too.
        let (whole, float) = (i64::MAX.to_le_bytes(), 2f64.powi(63).to_le_bytes());
        let result = compare_values((DType::I64, &whole), (DType::F64, &float)).unwrap();
        assert_eq!((result.differing, result.largest_absolute), (1, Some(1.0)));
        assert_eq!(compare_values((DType::C64, &f32s(&[1.0, 0.0])), (DType::F32, &f32s(&[1.0]))), None);
        assert_eq!(compare_values((DType::F4E2M1FN, &[1]), (DType::F32, &f32s(&[1.0]))), None);
    }

    /// The values that `ml_dtypes` 0.5.4 gives these patterns.
    #[test]
    fn eight_bit_floats_are_what_ml_dtypes_says() {
        let text = include_str!("../tests/data/float8.json");
        // The bits of a float64, or null for NaN.
        let table: std::collections::BTreeMap<String, Vec<Option<u64>>> = serde_json::from_str(text).unwrap();
        assert_eq!(table.len(), 8);
        for (name, expected) in table {
            let dtype = DType::from_name(&name).unwrap();
            let format = EightBits::of(dtype).unwrap();
            for (bits, expected) in (0..=255).zip(expected) {
                let found = format.value(bits);
                match expected {
                    None => assert!(found.is_nan(), "{name} {bits:#x}"),
                    Some(value) => assert_eq!(found.to_bits(), value, "{name} {bits:#x}"),
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_is_counted() {
        let bytes = f32s(&[f32::NAN, f32::INFINITY, 1.0, f32::NEG_INFINITY]);
        assert_eq!(non_finite(DType::F32, &bytes), NonFinite { nan: 1, infinite: 2 });
        assert_eq!(non_finite(DType::C64, &bytes), NonFinite { nan: 1, infinite: 2 });
        assert_eq!(non_finite(DType::U8, &[255; 9]), NonFinite::default());
        assert_eq!(non_finite(DType::F8E4M3FN, &[0x7f, 0x7e]), NonFinite { nan: 1, infinite: 0 });
        assert_eq!(non_finite(DType::F8E5M2, &[0x7c, 0x7f, 1]), NonFinite { nan: 1, infinite: 1 });
    }
}
