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
    let is_zero = match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Array(parts) => parts.iter().all(|part| part.as_f64() == Some(0.0)),
        _ => false,
    };
    let width = dtype.bits().div_ceil(8);
    if is_zero {
        return Ok(vec![0; width]);
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
        assert!(element(&json!("0x7fc00000"), DType::F32).is_err());
        assert!(element(&json!([1.0, 0.0]), DType::C64).is_err());
    }
}
