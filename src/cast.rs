//! Casts between element types on the host.

#![forbid(unsafe_code)]

use half::f16;
use half::slice::HalfFloatSliceExt;

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
        let mut cast = vec![0; bytes.len() / (from.bits() / 8).max(1) * (to.bits() / 8)];
        let overflows = cast_into(bytes, from, to, &mut cast)?;
        Ok(Cast { bytes: cast, overflows })
    }
}

/// Elements that are cast at a time: few enough to stay in the first level cache, as f32.
const BLOCK: usize = 1024;

/// Casts elements, rounding to nearest, ties to even, into memory that is as long as they become. Returns the
/// number of finite elements that became infinite.
///
/// # Errors
/// [`Error::InvalidArgument`] for types between which [`can_cast`] is false, and for memory of another length.
pub(crate) fn cast_into(bytes: &[u8], from: DType, to: DType, cast: &mut [u8]) -> Result<usize> {
    if !can_cast(from, to) {
        return Err(Error::InvalidArgument(format!("a cast from {from} to {to} is not supported")));
    }
    let (from_bytes, to_bytes) = (from.bits() / 8, to.bits() / 8);
    if bytes.len() / from_bytes * to_bytes != cast.len() {
        return Err(Error::InvalidArgument(format!(
            "{} bytes of {from} do not become {} of {to}",
            bytes.len(),
            cast.len()
        )));
    }
    let mut single = [0f32; BLOCK];
    let mut overflows = 0;
    for (bytes, cast) in bytes.chunks(BLOCK * from_bytes).zip(cast.chunks_mut(BLOCK * to_bytes)) {
        let single = &mut single[..bytes.len() / from_bytes];
        overflows += widen(bytes, from, to, single);
        overflows += narrow(single, bytes, from, to, cast);
    }
    Ok(overflows)
}

/// The elements as f32: exactly, or so that rounding on to `to` gives what rounding at once would. Returns how
/// many became infinite.
fn widen(bytes: &[u8], from: DType, to: DType, single: &mut [f32]) -> usize {
    match from {
        DType::F32 => bytemuck::cast_slice_mut(single).copy_from_slice(bytes),
        DType::BF16 => {
            for (element, wide) in bytes.chunks_exact(2).zip(single) {
                *wide = f32::from_bits(u32::from(u16::from_le_bytes([element[0], element[1]])) << 16);
            }
        }
        DType::F16 => {
            let mut halves = [f16::ZERO; BLOCK];
            let halves = &mut halves[..single.len()];
            bytemuck::cast_slice_mut(halves).copy_from_slice(bytes);
            halves.convert_to_f32_slice(single);
        }
        _ => {
            let round = if to == DType::F32 { |value: f64| value as f32 } else { to_f32_odd };
            let mut overflows = 0;
            for (element, narrow) in bytes.chunks_exact(8).zip(single) {
                let value: f64 = bytemuck::pod_read_unaligned(element);
                *narrow = round(value);
                overflows += usize::from(value.is_finite() && narrow.is_infinite());
            }
            return overflows;
        }
    }
    0
}

/// The elements in their new type. Returns how many of the finite ones became infinite.
fn narrow(single: &[f32], bytes: &[u8], from: DType, to: DType, cast: &mut [u8]) -> usize {
    match (from, to) {
        (DType::F64, DType::F64) => cast.copy_from_slice(bytes),
        (_, DType::F64) => {
            for (&value, element) in single.iter().zip(cast.chunks_exact_mut(8)) {
                element.copy_from_slice(&f64::from(value).to_le_bytes());
            }
        }
        (_, DType::F32) => cast.copy_from_slice(bytemuck::cast_slice(single)),
        (_, DType::BF16) => {
            let mut overflows = 0u32;
            for (&value, element) in single.iter().zip(cast.chunks_exact_mut(2)) {
                let bits = bf16_bits(value.to_bits());
                overflows += u32::from(value.is_finite() && bits & 0x7fff == 0x7f80);
                element.copy_from_slice(&(bits as u16).to_le_bytes());
            }
            return overflows as usize;
        }
        _ => {
            let mut halves = [f16::ZERO; BLOCK];
            let halves = &mut halves[..single.len()];
            halves.convert_from_f32_slice(single);
            cast.copy_from_slice(bytemuck::cast_slice(halves));
            let became = |(value, half): (&f32, &f16)| value.is_finite() && half.is_infinite();
            return single.iter().zip(&*halves).filter(|&pair| became(pair)).count();
        }
    }
    0
}

/// The bfloat16 nearest to a f32, in the low half. Written without branches, so that compilers make vector
/// instructions of a loop over it, which they do not of `half`'s.
fn bf16_bits(bits: u32) -> u32 {
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // A NaN stays one whatever of it is cut off.
    let nan = (bits >> 16) | 0x40;
    if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { rounded }
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
    use half::bf16;

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
    fn every_half_survives_and_every_kind_of_float_becomes_the_bfloat16_that_half_says() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        for dtype in [DType::F16, DType::BF16] {
            let wide = Cast::new(bytemuck::cast_slice(&all), dtype, DType::F32).unwrap();
            let back = Cast::new(&wide.bytes, DType::F32, dtype).unwrap();
            let is_nan = |bits: u16| match dtype {
                DType::F16 => f16::from_bits(bits).is_nan(),
                _ => bf16::from_bits(bits).is_nan(),
            };
            for (&before, after) in all.iter().zip(bytemuck::pod_collect_to_vec::<_, u16>(&back.bytes)) {
                assert!(
                    before == after || (is_nan(before) && is_nan(after)),
                    "{dtype} {before:#x} {after:#x}"
                );
            }
            assert_eq!(back.overflows, 0);
        }
        let floats: Vec<f32> = (0..=u32::MAX).step_by(4097).map(f32::from_bits).collect();
        let cast = Cast::new(&f32_bytes(&floats), DType::F32, DType::BF16).unwrap();
        for (value, cast) in floats.iter().zip(bytemuck::pod_collect_to_vec::<_, u16>(&cast.bytes)) {
            assert_eq!(cast, bf16::from_f32(*value).to_bits(), "{value}");
        }
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
