//! Python's complex numbers as arrays.

use crate::dtype::DType;
use crate::tree::LeafKind;

/// A complex number's kind, type and bytes: narrowed where that loses nothing, since safetensors has the narrower type
/// only.
pub fn complex_scalar(real: f64, imaginary: f64) -> (LeafKind, DType, Vec<u8>) {
    let parts = [real, imaginary];
    let narrow = parts.map(|part| part as f32);
    if narrow.iter().zip(&parts).all(|(narrow, part)| f64::from(*narrow).to_bits() == part.to_bits()) {
        return (LeafKind::Complex, DType::C64, bytemuck::cast_slice(&narrow).to_vec());
    }
    (LeafKind::Complex, DType::C128, bytemuck::cast_slice(&parts).to_vec())
}
