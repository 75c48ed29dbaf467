//! The element types of the `xla` crate, and what a buffer of it holds.

use ::xla::{ArrayShape, ElementType, PjRtBuffer};

use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// The types that the `xla` crate has.
#[rustfmt::skip]
const TYPES: [ElementType; 19] = {
    use ElementType::*;
    [Pred, S8, S16, S32, S64, U8, U16, U32, U64, F16, Bf16, F32, F64, C64, C128, F8E5M2, F8E4M3FN, F8E8M0FNU, F4E2M1FN]
};

/// What the `xla` crate calls a type.
///
/// # Errors
/// [`Error::UnsupportedDType`] for those that it does not have: integers of 2 and 4 bits, and some of 8-bit floating point.
pub fn to_element_type(dtype: DType) -> Result<ElementType> {
    let found = TYPES.into_iter().find(|theirs| from_element_type(*theirs) == dtype);
    found.ok_or_else(|| Error::UnsupportedDType { dtype, context: "the xla crate".into() })
}

/// The type behind one of the `xla` crate's.
pub fn from_element_type(element: ElementType) -> DType {
    match element {
        ElementType::Pred => DType::Bool,
        ElementType::S8 => DType::I8,
        ElementType::S16 => DType::I16,
        ElementType::S32 => DType::I32,
        ElementType::S64 => DType::I64,
        ElementType::U8 => DType::U8,
        ElementType::U16 => DType::U16,
        ElementType::U32 => DType::U32,
        ElementType::U64 => DType::U64,
        ElementType::F16 => DType::F16,
        ElementType::Bf16 => DType::BF16,
        ElementType::F32 => DType::F32,
        ElementType::F64 => DType::F64,
        ElementType::C64 => DType::C64,
        ElementType::C128 => DType::C128,
        ElementType::F8E5M2 => DType::F8E5M2,
        ElementType::F8E4M3FN => DType::F8E4M3FN,
        ElementType::F8E8M0FNU => DType::F8E8M0FNU,
        ElementType::F4E2M1FN => DType::F4E2M1FN,
    }
}

/// The type and shape of a buffer.
///
/// # Errors
/// [`Error::Xla`] when it is a tuple, or of a type that the crate does not have.
pub fn spec_of(buffer: &PjRtBuffer) -> Result<ArraySpec> {
    let shape = buffer.on_device_shape().and_then(|shape| ArrayShape::try_from(&shape));
    let shape = shape.map_err(|error| Error::xla("tell the shape of a buffer", error))?;
    let dims: Vec<usize> = shape.dims().iter().map(|&dim| dim as usize).collect();
    Ok(ArraySpec::new(from_element_type(shape.element_type()), dims))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_of_the_xla_crate_is_that_of_the_same_number() {
        for theirs in TYPES {
            let ours = from_element_type(theirs);
            assert_eq!(DType::from_xla(theirs.primitive_type() as i32), Some(ours));
            assert_eq!(theirs.element_size_in_bytes(), ours.host_bytes(1).unwrap());
            assert_eq!(to_element_type(ours).unwrap(), theirs);
        }
        assert!(to_element_type(DType::I4).unwrap_err().to_string().contains("the xla crate cannot hold"));
    }
}
