//! The element types of the `xla` crate, and what a buffer of it holds.

use ::xla::{ArrayShape, ElementType, PjRtBuffer};

use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// The types that the `xla` crate has, as both call them.
#[rustfmt::skip]
const TYPES: [(DType, ElementType); 19] = [
    (DType::Bool, ElementType::Pred),
    (DType::I8, ElementType::S8), (DType::I16, ElementType::S16),
    (DType::I32, ElementType::S32), (DType::I64, ElementType::S64),
    (DType::U8, ElementType::U8), (DType::U16, ElementType::U16),
    (DType::U32, ElementType::U32), (DType::U64, ElementType::U64),
    (DType::F16, ElementType::F16), (DType::BF16, ElementType::Bf16),
    (DType::F32, ElementType::F32), (DType::F64, ElementType::F64),
    (DType::C64, ElementType::C64), (DType::C128, ElementType::C128),
    (DType::F8E5M2, ElementType::F8E5M2), (DType::F8E4M3FN, ElementType::F8E4M3FN),
    (DType::F8E8M0FNU, ElementType::F8E8M0FNU), (DType::F4E2M1FN, ElementType::F4E2M1FN),
];

/// What the `xla` crate calls a type.
///
/// # Errors
/// [`Error::UnsupportedDType`] for those that it does not have: integers of 2 and 4 bits, and some of 8-bit floating point.
pub fn to_element_type(dtype: DType) -> Result<ElementType> {
    let found = TYPES.iter().find(|(ours, _)| *ours == dtype).map(|(_, theirs)| *theirs);
    found.ok_or_else(|| Error::UnsupportedDType { dtype, context: "the xla crate".into() })
}

/// The type behind one of the `xla` crate's.
pub fn from_element_type(element: ElementType) -> DType {
    // The table has all of them, see the test.
    TYPES.iter().find(|(_, theirs)| *theirs == element).map_or(DType::U8, |(ours, _)| *ours)
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
        let mut found = 0;
        for number in 0..64 {
            let primitive = TYPES.iter().find(|(_, theirs)| theirs.primitive_type() as i32 == number);
            if let Some((ours, theirs)) = primitive {
                assert_eq!(DType::from_xla(number), Some(*ours));
                assert_eq!(from_element_type(*theirs), *ours);
                assert_eq!(theirs.element_size_in_bytes(), ours.host_bytes(1).unwrap());
                found += 1;
            }
        }
        assert_eq!(found, TYPES.len());
        assert!(to_element_type(DType::I4).unwrap_err().to_string().contains("the xla crate cannot hold"));
    }

    /// Fails to compile when the crate gets a further type.
    #[allow(dead_code)]
    fn all(element: ElementType) {
        use ElementType::*;
        match element {
            Pred | S8 | S16 | S32 | S64 | U8 | U16 | U32 | U64 | F16 | F32 | Bf16 | F64 | F8E5M2
            | F8E4M3FN | F4E2M1FN | F8E8M0FNU | C64 | C128 => {}
        }
    }
}
