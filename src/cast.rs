//! Casts between element types on the host.

#![forbid(unsafe_code)]

use half::{bf16, f16};

use crate::array::{ArraySpec, HostArray};
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};

/// The result of a cast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cast {
    /// The elements in the new type, row-major.
    pub bytes: Vec<u8>,
    /// Finite elements that the new type can only hold as infinity.
    pub overflows: usize,
}

/// Whether [`Cast::new`] can cast between these types: any two of float16, bfloat16, float32, float64.
pub fn can_cast(from: DType, to: DType) -> bool {
    const TYPES: [DType; 4] = [DType::F16, DType::BF16, DType::F32, DType::F64];
    TYPES.contains(&from) && TYPES.contains(&to)
}

/// What elements of type `from` become where floating point ones are to be of type `wanted`: others stay as
/// they are.
///
/// # Errors
/// [`Error::InvalidArgument`] for types between which [`can_cast`] is false.
pub fn cast_dtype(from: DType, wanted: Option<DType>) -> Result<DType> {
    match wanted {
        Some(to) if from.is_float() && from != to => {
            if can_cast(from, to) {
                return Ok(to);
            }
            Err(Error::InvalidArgument(format!(
                "a cast from {from} to {to} is not supported; float16, bfloat16, float32 and float64 can be cast \
                 to each other"
            )))
        }
        _ => Ok(from),
    }
}

impl Cast {
    /// Casts elements, rounding to nearest, ties to even.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for types between which [`can_cast`] is false.
    pub fn new(bytes: &[u8], from: DType, to: DType) -> Result<Cast> {
        match (from, to) {
            (DType::F16, _) => cast_from::<f16>(bytes, to),
            (DType::BF16, _) => cast_from::<bf16>(bytes, to),
            (DType::F32, _) => cast_from::<f32>(bytes, to),
            (DType::F64, _) => cast_from::<f64>(bytes, to),
            _ => None,
        }
        .ok_or_else(|| Error::InvalidArgument(format!("a cast from {from} to {to} is not supported")))
    }
}

fn cast_from<F: Float>(bytes: &[u8], to: DType) -> Option<Cast> {
    match to {
        DType::F16 => Some(cast::<F, f16>(bytes)),
        DType::BF16 => Some(cast::<F, bf16>(bytes)),
        DType::F32 => Some(cast::<F, f32>(bytes)),
        DType::F64 => Some(cast::<F, f64>(bytes)),
        _ => None,
    }
}

fn cast<F: Float, T: Float>(bytes: &[u8]) -> Cast {
    let mut elements: Vec<T> = Vec::with_capacity(bytes.len() / size_of::<F>());
    let mut overflows = 0;
    // The file's bytes need not be aligned to their elements.
    for chunk in bytes.chunks_exact(size_of::<F>()) {
        let element: F = bytemuck::pod_read_unaligned(chunk);
        let cast = T::from_f64(element.to_f64());
        overflows += usize::from(element.to_f64().is_finite() && !cast.to_f64().is_finite());
        elements.push(cast);
    }
    Cast { bytes: bytemuck::cast_slice(&elements).to_vec(), overflows }
}

/// Whether [`convert`] can convert between these types, if the values allow it.
pub fn can_convert(from: DType, to: DType) -> bool {
    let is_integer = from == DType::Bool || Integer::of_dtype(from).is_some();
    can_cast(from, to) || (is_integer && (Integer::of_dtype(to).is_some() || can_cast(DType::F64, to)))
}

/// The array in another type, if that changes values by rounding at most: floating point types become each other,
/// integers and booleans become those, and integers become others that hold their values.
///
/// # Errors
/// [`Error::InvalidArgument`] for types between which [`can_convert`] is false, and for an integer that the new
/// type does not hold.
pub fn convert(array: &HostArray, to: DType) -> Result<HostArray> {
    let from = array.spec().dtype;
    let spec = ArraySpec::new(to, array.spec().shape.clone());
    if from == to {
        return Ok(array.clone());
    }
    let refuse = || Error::InvalidArgument(format!("{} cannot be converted to {to}", array.spec()));
    if !can_convert(from, to) {
        return Err(refuse());
    }
    if can_cast(from, to) {
        return HostArray::from_bytes(spec, Cast::new(array.bytes(), from, to)?.bytes);
    }
    let values: Vec<i128> = match from {
        DType::Bool => array.bytes().iter().map(|&byte| i128::from(byte != 0)).collect(),
        _ => (Integer::of_dtype(from).ok_or_else(refuse)?.read)(array.bytes()),
    };
    let bytes = match Integer::of_dtype(to) {
        Some(integer) => (integer.write)(&values)?,
        None => {
            let wide: Vec<f64> = values.iter().map(|&value| value as f64).collect();
            Cast::new(bytemuck::cast_slice(&wide), DType::F64, to)?.bytes
        }
    };
    HostArray::from_bytes(spec, bytes)
}

/// How the elements of an integer type of whole bytes are read and written.
struct Integer {
    dtype: DType,
    read: fn(&[u8]) -> Vec<i128>,
    /// Fails for a value that the type does not hold.
    write: fn(&[i128]) -> Result<Vec<u8>>,
}

impl Integer {
    const ALL: [Integer; 8] = [
        Integer::of::<i8>(),
        Integer::of::<i16>(),
        Integer::of::<i32>(),
        Integer::of::<i64>(),
        Integer::of::<u8>(),
        Integer::of::<u16>(),
        Integer::of::<u32>(),
        Integer::of::<u64>(),
    ];

    const fn of<T: Element + Into<i128> + TryFrom<i128>>() -> Integer {
        Integer { dtype: T::DTYPE, read: read::<T>, write: write::<T> }
    }

    fn of_dtype(dtype: DType) -> Option<&'static Integer> {
        const { &Integer::ALL }.iter().find(|integer| integer.dtype == dtype)
    }
}

fn read<T: Element + Into<i128>>(bytes: &[u8]) -> Vec<i128> {
    let elements = bytes.chunks_exact(size_of::<T>());
    elements.map(|element| bytemuck::pod_read_unaligned::<T>(element).into()).collect()
}

fn write<T: Element + TryFrom<i128>>(values: &[i128]) -> Result<Vec<u8>> {
    let element = |value: &i128| {
        T::try_from(*value)
            .map_err(|_| Error::InvalidArgument(format!("{value} does not fit into {}", T::DTYPE)))
    };
    Ok(bytemuck::cast_slice(&values.iter().map(element).collect::<Result<Vec<T>>>()?).to_vec())
}

/// A floating point type that f64 holds exactly, so that going through it rounds once.
trait Float: Element {
    fn to_f64(self) -> f64;
    fn from_f64(value: f64) -> Self;
}

macro_rules! floats {
    ($($type:ty: $to:expr, $from:expr);* $(;)?) => {$(
        impl Float for $type {
            fn to_f64(self) -> f64 {
                $to(self)
            }
            fn from_f64(value: f64) -> $type {
                $from(value)
            }
        }
    )*};
}

floats! {
    f16: f16::to_f64, |value| f16::from_f32(to_f32_odd(value));
    bf16: bf16::to_f64, |value| bf16::from_f32(to_f32_odd(value));
    f32: f64::from, |value| value as f32;
    f64: |value| value, |value| value;
}

/// Rounds to a f32 so that rounding on to a narrower type gives what rounding at once would: a value
/// between two goes to the one whose last bit is set. (`half`'s own conversions from f64 drop the low half
/// of the value, and with it whether it is past the middle.)
fn to_f32_odd(value: f64) -> f32 {
    let nearest = value as f32;
    let back = f64::from(nearest);
    if back == value || value.is_nan() {
        return nearest;
    }
    let toward_zero = if back.abs() > value.abs() { nearest.to_bits() - 1 } else { nearest.to_bits() };
    f32::from_bits(toward_zero | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32_bytes(values: &[f32]) -> Vec<u8> {
        bytemuck::cast_slice(values).to_vec()
    }

    #[test]
    fn values_are_rounded_to_nearest_even_and_overflows_are_counted() {
        let half_step = 2f32.powi(-8);
        let values = [1.0, 1.0 + half_step, 1.0 + 3.0 * half_step, -0.0, f32::MAX, f32::INFINITY, 65520.0];
        let cast = Cast::new(&f32_bytes(&values), DType::F32, DType::BF16).unwrap();
        let halves: Vec<bf16> = bytemuck::pod_collect_to_vec(&cast.bytes);
        // Half-way between two neighbours goes to the even one.
        assert_eq!(halves[1], bf16::from_f32(1.0));
        assert_eq!(halves[2], bf16::from_f32(1.0 + 4.0 * half_step));
        assert_eq!(cast.overflows, 1);
        let cast = Cast::new(&f32_bytes(&values), DType::F32, DType::F16).unwrap();
        assert_eq!(cast.overflows, 2);
    }

    #[test]
    fn a_double_is_rounded_once() {
        // Just past the middle between 1 and the next bfloat16, by less than a f32 can tell.
        let past = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        let cast = |value: f64, to| Cast::new(&value.to_le_bytes(), DType::F64, to).unwrap();
        let bf16_of = |value| bytemuck::pod_read_unaligned::<bf16>(&cast(value, DType::BF16).bytes);
        assert_eq!(bf16_of(past), bf16::from_f32(1.0 + 2f32.powi(-7)));
        assert_eq!(bf16_of(1.0 + 2f64.powi(-8)), bf16::from_f32(1.0));
        assert_eq!(bf16_of(-1e-300), bf16::from_f32(-0.0));
        assert_eq!(bf16_of(f64::MAX), bf16::INFINITY);
        assert_eq!(cast(f64::MAX, DType::BF16).overflows, 1);
        let f16_of = |value| bytemuck::pod_read_unaligned::<f16>(&cast(value, DType::F16).bytes);
        assert_eq!(f16_of(1.0 + 2f64.powi(-11) + 2f64.powi(-45)), f16::from_f32(1.0 + 2f32.powi(-10)));
        assert!(bf16_of(f64::NAN).is_nan());
    }

    #[test]
    fn integers_are_converted_to_types_that_hold_them() {
        let wide = HostArray::from_slice(&[3], &[-1i64, 0, 70_000]).unwrap();
        assert_eq!(convert(&wide, DType::I32).unwrap().to_vec::<i32>().unwrap(), [-1, 0, 70_000]);
        assert_eq!(convert(&wide, DType::F32).unwrap().to_vec::<f32>().unwrap(), [-1.0, 0.0, 70_000.0]);
        let error = convert(&wide, DType::I16).unwrap_err().to_string();
        assert_eq!(error, "70000 does not fit into int16");
        assert!(convert(&wide, DType::U64).unwrap_err().to_string().contains("-1 does not fit into uint64"));
        assert!(convert(&wide, DType::Bool).is_err());
        let bits = HostArray::from_bytes(ArraySpec::new(DType::Bool, [2]), vec![1, 0]).unwrap();
        assert_eq!(convert(&bits, DType::BF16).unwrap().to_vec::<bf16>().unwrap(), [bf16::ONE, bf16::ZERO]);
        let fraction = HostArray::from_slice(&[1], &[1.5f32]).unwrap();
        assert!(!can_convert(DType::F32, DType::I32) && convert(&fraction, DType::I32).is_err());
    }

    #[test]
    fn widening_is_exact() {
        let values = [0.1f32, -3.5e-40, f32::NAN];
        let wide = Cast::new(&f32_bytes(&values), DType::F32, DType::F64).unwrap();
        let back = Cast::new(&wide.bytes, DType::F64, DType::F32).unwrap();
        assert_eq!(back.bytes, f32_bytes(&values));
        assert!(Cast::new(&[0; 4], DType::I32, DType::F32).is_err());
    }
}
