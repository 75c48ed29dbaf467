//! Elements narrower than a byte: packed in files, a byte each in host transfers.
//!
//! The first of two elements is in the low half of the byte, as PyTorch's `float4_e2m1fn_x2` has it, which
//! is what safetensors files of type `F4` hold.

#![forbid(unsafe_code)]

use crate::dtype::DType;

/// One byte per element, its bits in the low end, of so many elements: the last byte may not be full.
pub(crate) fn unpack(packed: &[u8], dtype: DType, count: usize) -> Vec<u8> {
    let mut unpacked = vec![0; packed.len() * (8 / dtype.bits())];
    unpack_into(packed, dtype, &mut unpacked);
    unpacked.truncate(count);
    unpacked
}

/// As [`unpack`], into memory that is as long as the elements are many.
pub(crate) fn unpack_into(packed: &[u8], dtype: DType, unpacked: &mut [u8]) {
    let bits = dtype.bits();
    let mask = (1u8 << bits) - 1;
    for (byte, elements) in packed.iter().zip(unpacked.chunks_exact_mut(8 / bits)) {
        for (slot, element) in elements.iter_mut().enumerate() {
            *element = (byte >> (slot * bits)) & mask;
        }
    }
}

/// The elements packed again; their number fills whole bytes.
pub(crate) fn pack(unpacked: &[u8], dtype: DType) -> Vec<u8> {
    let bits = dtype.bits();
    let mask = (1u8 << bits) - 1;
    unpacked
        .chunks(8 / bits)
        .map(|elements| {
            elements
                .iter()
                .enumerate()
                .fold(0, |byte, (slot, element)| byte | (element & mask) << (slot * bits))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_element_is_in_the_low_half() {
        assert_eq!(unpack(&[0x21, 0xf4], DType::F4E2M1FN, 3), [1, 2, 4]);
        assert_eq!(pack(&[1, 2, 4, 15], DType::F4E2M1FN), [0x21, 0xf4]);
        // A host transfer may leave the sign extended into the high bits.
        assert_eq!(pack(&[0xf1, 0xff], DType::F4E2M1FN), [0xf1]);
    }
}
