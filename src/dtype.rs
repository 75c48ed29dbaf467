//! One table of element types: what safetensors, PJRT and NumPy/JAX each call them, and their width.
//!
//! Sources: the `Dtype` enum of the `safetensors` crate 0.8, `PJRT_Buffer_Type` and
//! `xla.PrimitiveType` of the XLA headers, and the names that `jax.numpy.dtype(...).name` prints.

use std::fmt;

use half::{bf16, f16};
use safetensors::Dtype as SafetensorsDtype;

/// The type of one element of an array.
///
/// The variants are named as XLA names them; [`DType::name`] is the name JAX and NumPy print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[rustfmt::skip]
#[allow(missing_docs)] // The names are the documentation; `name` spells each out.
pub enum DType {
    Bool,
    I2, I4, I8, I16, I32, I64,
    U2, U4, U8, U16, U32, U64,
    F16, BF16, F32, F64,
    C64, C128,
    F4E2M1FN,
    F6E2M3FN, F6E3M2FN,
    F8E3M4, F8E4M3, F8E4M3B11FNUZ, F8E4M3FN, F8E4M3FNUZ, F8E5M2, F8E5M2FNUZ, F8E8M0FNU,
}

/// What the libraries call one [`DType`]. `None` where a library does not have it.
struct Row {
    dtype: DType,
    bits: usize,
    numpy: &'static str,
    safetensors: Option<SafetensorsDtype>,
    /// `PJRT_Buffer_Type` of the PJRT C API.
    pjrt: Option<u32>,
    /// `xla.PrimitiveType` of `xla_data.proto`.
    xla: Option<i32>,
}

const fn row(
    dtype: DType,
    bits: usize,
    numpy: &'static str,
    safetensors: Option<SafetensorsDtype>,
    pjrt: Option<u32>,
    xla: Option<i32>,
) -> Row {
    Row { dtype, bits, numpy, safetensors, pjrt, xla }
}

use SafetensorsDtype as S;

#[rustfmt::skip]
static TABLE: [Row; 30] = [
    row(DType::Bool,          8,   "bool",            Some(S::BOOL),        Some(1),  Some(1)),
    row(DType::I2,            2,   "int2",            None,                 Some(24), Some(26)),
    row(DType::I4,            4,   "int4",            None,                 Some(21), Some(21)),
    row(DType::I8,            8,   "int8",            Some(S::I8),          Some(2),  Some(2)),
    row(DType::I16,           16,  "int16",           Some(S::I16),         Some(3),  Some(3)),
    row(DType::I32,           32,  "int32",           Some(S::I32),         Some(4),  Some(4)),
    row(DType::I64,           64,  "int64",           Some(S::I64),         Some(5),  Some(5)),
    row(DType::U2,            2,   "uint2",           None,                 Some(25), Some(27)),
    row(DType::U4,            4,   "uint4",           None,                 Some(22), Some(22)),
    row(DType::U8,            8,   "uint8",           Some(S::U8),          Some(6),  Some(6)),
    row(DType::U16,           16,  "uint16",          Some(S::U16),         Some(7),  Some(7)),
    row(DType::U32,           32,  "uint32",          Some(S::U32),         Some(8),  Some(8)),
    row(DType::U64,           64,  "uint64",          Some(S::U64),         Some(9),  Some(9)),
    row(DType::F16,           16,  "float16",         Some(S::F16),         Some(10), Some(10)),
    row(DType::BF16,          16,  "bfloat16",        Some(S::BF16),        Some(13), Some(16)),
    row(DType::F32,           32,  "float32",         Some(S::F32),         Some(11), Some(11)),
    row(DType::F64,           64,  "float64",         Some(S::F64),         Some(12), Some(12)),
    row(DType::C64,           64,  "complex64",       Some(S::C64),         Some(14), Some(15)),
    row(DType::C128,          128, "complex128",      None,                 Some(15), Some(18)),
    row(DType::F4E2M1FN,      4,   "float4_e2m1fn",   Some(S::F4),          Some(29), Some(32)),
    row(DType::F6E2M3FN,      6,   "float6_e2m3fn",   Some(S::F6_E2M3),     None,     None),
    row(DType::F6E3M2FN,      6,   "float6_e3m2fn",   Some(S::F6_E3M2),     None,     None),
    row(DType::F8E3M4,        8,   "float8_e3m4",     None,                 Some(27), Some(29)),
    row(DType::F8E4M3,        8,   "float8_e4m3",     None,                 Some(26), Some(28)),
    row(DType::F8E4M3B11FNUZ, 8,   "float8_e4m3b11fnuz", None,              Some(18), Some(23)),
    // What safetensors calls F8_E4M3 is the finite variant: torch.float8_e4m3fn, jnp.float8_e4m3fn.
    row(DType::F8E4M3FN,      8,   "float8_e4m3fn",   Some(S::F8_E4M3),     Some(17), Some(20)),
    row(DType::F8E4M3FNUZ,    8,   "float8_e4m3fnuz", Some(S::F8_E4M3FNUZ), Some(20), Some(25)),
    row(DType::F8E5M2,        8,   "float8_e5m2",     Some(S::F8_E5M2),     Some(16), Some(19)),
    row(DType::F8E5M2FNUZ,    8,   "float8_e5m2fnuz", Some(S::F8_E5M2FNUZ), Some(19), Some(24)),
    row(DType::F8E8M0FNU,     8,   "float8_e8m0fnu",  Some(S::F8_E8M0),     Some(28), Some(33)),
];

impl DType {
    fn row(self) -> &'static Row {
        // The table is in the order of the variants (a test holds it there).
        &TABLE[self as usize]
    }

    /// Every element type, in the order of the variants.
    pub fn all() -> impl Iterator<Item = DType> {
        TABLE.iter().map(|row| row.dtype)
    }

    /// The name that NumPy, ml_dtypes and JAX print, such as `float32` or `bfloat16`.
    pub fn name(self) -> &'static str {
        self.row().numpy
    }

    /// The width of one element in bits, as it is stored in a safetensors file.
    pub fn bits(self) -> usize {
        self.row().bits
    }

    /// Whether an element is two numbers.
    pub(crate) fn is_complex(self) -> bool {
        matches!(self, DType::C64 | DType::C128)
    }

    /// The type with this name: NumPy's (`bfloat16`), safetensors' (`BF16`) or JAX's short form (`bf16`).
    /// Letter case does not matter.
    pub fn from_name(name: &str) -> Option<DType> {
        let wanted = name.to_ascii_lowercase();
        TABLE
            .iter()
            .find(|row| {
                wanted == row.numpy
                    || row.safetensors.is_some_and(|dtype| wanted == dtype.to_string().to_ascii_lowercase())
                    || wanted == format!("{:?}", row.dtype).to_ascii_lowercase()
            })
            .map(|row| row.dtype)
    }

    /// What safetensors calls the type, such as `BF16`; `None` where the format has no name for it.
    pub fn safetensors_name(self) -> Option<String> {
        self.row().safetensors.map(|dtype| dtype.to_string())
    }

    /// The same type in a safetensors header; `None` where the format has no name for it.
    pub(crate) fn to_safetensors(self) -> Option<SafetensorsDtype> {
        self.row().safetensors
    }

    /// The type that a safetensors header names; `None` for one this version does not know.
    pub(crate) fn from_safetensors(dtype: SafetensorsDtype) -> Option<DType> {
        TABLE.iter().find(|row| row.safetensors == Some(dtype)).map(|row| row.dtype)
    }

    /// The value of `PJRT_Buffer_Type`; `None` where PJRT does not have the type.
    pub fn to_pjrt(self) -> Option<u32> {
        self.row().pjrt
    }

    /// The type behind a `PJRT_Buffer_Type`; `None` for a token, an invalid or an unknown value.
    pub fn from_pjrt(code: u32) -> Option<DType> {
        TABLE.iter().find(|row| row.pjrt == Some(code)).map(|row| row.dtype)
    }

    /// The type behind an `xla.PrimitiveType`, as HLO protos carry it.
    pub fn from_xla(code: i32) -> Option<DType> {
        TABLE.iter().find(|row| row.xla == Some(code)).map(|row| row.dtype)
    }

    /// Whether several elements share a byte in a safetensors file.
    pub fn is_sub_byte(self) -> bool {
        self.bits() < 8
    }

    /// Whether this is an integer, of any width.
    pub(crate) fn is_integer(self) -> bool {
        self.name().contains("int")
    }

    /// Whether this is a real floating point type, of any width.
    pub fn is_float(self) -> bool {
        self.name().contains("float")
    }

    /// Bytes of `count` elements in a safetensors file; `None` when that overflows, or when
    /// sub-byte elements do not fill the last byte.
    pub fn packed_bytes(self, count: usize) -> Option<usize> {
        let bits = count.checked_mul(self.bits())?;
        (bits % 8 == 0).then_some(bits / 8)
    }

    /// Bytes of `count` elements in a host transfer, where PJRT gives sub-byte elements one byte each;
    /// `None` when that overflows.
    pub fn host_bytes(self, count: usize) -> Option<usize> {
        count.checked_mul(self.bits().div_ceil(8))
    }
}

impl std::str::FromStr for DType {
    type Err = crate::error::Error;

    /// As [`DType::from_name`].
    ///
    /// # Errors
    /// [`crate::Error::NotFound`] with the names that look alike.
    fn from_str(name: &str) -> crate::Result<DType> {
        let names = DType::all().map(DType::name);
        DType::from_name(name).ok_or_else(|| crate::Error::not_found("type", name, names))
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl serde::Serialize for DType {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Multiplies the dimensions of a shape; `None` when that overflows.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |count, &dim| count.checked_mul(dim))
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type whose values are the elements of an array of [`Element::DTYPE`].
///
/// Implemented for the primitive numbers, `bool` excepted (any byte but 0 and 1 in a PRED buffer would
/// not be a valid `bool`; read those as `u8` through the bytes), and for [`half::f16`] and [`half::bf16`].
pub trait Element: bytemuck::Pod + Send + Sync + sealed::Sealed {
    /// The element type of an array of `Self`.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($rust:ty => $dtype:ident),* $(,)?) => {$(
        impl sealed::Sealed for $rust {}
        impl Element for $rust {
            const DTYPE: DType = DType::$dtype;
        }
    )*};
}

elements! {
    i8 => I8, i16 => I16, i32 => I32, i64 => I64,
    u8 => U8, u16 => U16, u32 => U32, u64 => U64,
    f16 => F16, bf16 => BF16, f32 => F32, f64 => F64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_variants() {
        for (position, row) in TABLE.iter().enumerate() {
            assert_eq!(row.dtype as usize, position, "{:?}", row.dtype);
        }
    }

    #[test]
    fn widths_agree_with_the_safetensors_crate() {
        for dtype in DType::all() {
            if let Some(theirs) = dtype.to_safetensors() {
                assert_eq!(dtype.bits(), theirs.bitsize(), "{dtype}");
                assert_eq!(DType::from_safetensors(theirs), Some(dtype));
            }
        }
    }

    #[test]
    fn every_name_finds_its_type_again() {
        for dtype in DType::all() {
            assert_eq!(DType::from_name(dtype.name()), Some(dtype));
            assert_eq!(DType::from_name(&format!("{dtype:?}")), Some(dtype));
        }
        assert_eq!(DType::from_name("BF16"), Some(DType::BF16));
        assert_eq!(DType::from_name("F8_E4M3"), Some(DType::F8E4M3FN));
        assert_eq!(DType::from_name("float23"), None);
    }

    #[test]
    fn sub_byte_types_are_packed_in_files_and_whole_bytes_in_transfers() {
        assert_eq!(DType::F4E2M1FN.packed_bytes(6), Some(3));
        assert_eq!(DType::F4E2M1FN.packed_bytes(5), None);
        assert_eq!(DType::F4E2M1FN.host_bytes(5), Some(5));
        assert_eq!(DType::F64.packed_bytes(usize::MAX), None);
    }
}
