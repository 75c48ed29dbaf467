//! The element that stands where no chunk is.

use half::{bf16, f16};
use serde_json::Value;

use crate::dtype::DType;

/// The element's bytes, little-endian.
///
/// # Errors
/// What cannot be read of it.
pub fn element(value: &Value, dtype: DType) -> Result<Vec<u8>, String> {
    let unknown = || format!("the value that stands for them, {value}, cannot be read as {dtype}");
    let width = dtype.bits().div_ceil(8);
    if matches!(value, Value::Null | Value::Bool(false)) {
        return Ok(vec![0; width]);
    }
    if let (true, Some([real, imaginary])) = (dtype.is_complex(), value.as_array().map(Vec::as_slice)) {
        let part = if dtype == DType::C64 { DType::F32 } else { DType::F64 };
        return Ok([element(real, part)?, element(imaginary, part)?].concat());
    }
    if let Some(hex) = value.as_str().and_then(|text| text.strip_prefix("0x")) {
        let bits = u64::from_str_radix(hex, 16).ok().filter(|_| hex.len() == width * 2);
        return Ok(bits.ok_or_else(unknown)?.to_le_bytes()[..width].to_vec());
    }
    let float = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    };
    let integer = || value.as_i64().map(i64::to_le_bytes).or(value.as_u64().map(u64::to_le_bytes));
    Ok(match (dtype, float) {
        (DType::Bool, _) if *value == Value::Bool(true) => vec![1],
        (DType::F64, Some(float)) => float.to_le_bytes().to_vec(),
        (DType::F32, Some(float)) => (float as f32).to_le_bytes().to_vec(),
        (DType::F16, Some(float)) => f16::from_f64(float).to_le_bytes().to_vec(),
        (DType::BF16, Some(float)) => bf16::from_f64(float).to_le_bytes().to_vec(),
        (dtype, _) if dtype.is_integer() => integer().ok_or_else(unknown)?[..width].to_vec(),
        // Of other types, zero is known.
        (_, Some(float)) if float.to_bits() == 0 => vec![0; width],
        _ => return Err(unknown()),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_elements_of_their_type() {
        assert_eq!(element(&json!(null), DType::F32), Ok(vec![0; 4]));
        assert_eq!(element(&json!(-2), DType::I16), Ok(vec![254, 255]));
        assert_eq!(element(&json!(u64::MAX), DType::U64), Ok(vec![255; 8]));
        assert_eq!(element(&json!(1.5), DType::BF16), Ok(vec![0xc0, 0x3f]));
        assert_eq!(element(&json!("-Infinity"), DType::F32), Ok(f32::NEG_INFINITY.to_le_bytes().to_vec()));
        assert_eq!(element(&json!([0.0, 0.0]), DType::C64), Ok(vec![0; 8]));
        assert_eq!(element(&json!("0x7fc00001"), DType::F32), Ok(vec![1, 0, 0xc0, 0x7f]));
        assert_eq!(element(&json!(-0.0), DType::F32), Ok(vec![0, 0, 0, 0x80]));
        assert_eq!(element(&json!([-0.0, 1.0]), DType::C64), Ok(vec![0, 0, 0, 0x80, 0, 0, 0x80, 0x3f]));
        assert_eq!(element(&json!(0.0), DType::F8E4M3FN), Ok(vec![0]));
        let tiny: Value = serde_json::from_str("1e-45").unwrap();
        assert_eq!(element(&tiny, DType::F64), Ok(1e-45f64.to_le_bytes().to_vec()));
        assert!(element(&json!("0x7f"), DType::F32).is_err() && element(&json!("0xzz"), DType::U8).is_err());
        assert!(element(&json!(1.0), DType::F8E4M3FN).is_err());
    }
}
