//! Tensors of PyTorch: views of storages.

use super::values::{Array, Elements, Storage, Value};
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::format::encoding::{Encoding, reach, row_major};

/// A tensor of this shape and these strides, in elements, over a storage, from this element on. Its type is the storage's
/// if none is given. A view of another kind, such as one that is conjugated when it is read, is none.
pub fn tensor(
    storage: &Storage,
    dtype: Option<DType>,
    offset: &Value,
    (shape, strides): (Vec<usize>, Vec<usize>),
    is_view: bool,
) -> Result<Value, String> {
    let Some(dtype) = dtype.or(storage.dtype) else {
        return Ok(Value::NoNumbers("its storage has no type of elements".into()));
    };
    if is_view {
        return Ok(Value::NoNumbers(
            "it is conjugated or negated when it is read; resolve it in PyTorch".into(),
        ));
    }
    let Value::Int(offset) = *offset else { return Err("a tensor begins nowhere".into()) };
    if shape.len() != strides.len() {
        return Err(format!("a tensor has {} dimensions, and {} strides", shape.len(), strides.len()));
    }
    let width = dtype.bits().div_ceil(8);
    let spec = ArraySpec::new(dtype, shape);
    spec.host_bytes().map_err(|error| error.to_string())?;
    let start = usize::try_from(offset).ok().and_then(|offset| offset.checked_mul(width));
    // In what is stored, and in the part of it that is the storage.
    let first = storage.first.saturating_mul(storage.width());
    let reached = reach(&spec.shape, &strides).and_then(|elements| elements.checked_mul(width));
    let end = start.zip(reached).and_then(|(start, reached)| start.checked_add(reached));
    let has = storage.elements.saturating_mul(storage.width());
    let range = match (start, end) {
        (Some(start), Some(end)) if end <= has => first.saturating_add(start)..first.saturating_add(end),
        _ => return Err(format!("a tensor reaches beyond its storage `{}` of {has} bytes", storage.key)),
    };
    let is_row_major = spec.shape.contains(&0)
        || spec
            .shape
            .iter()
            .zip(strides.iter().zip(row_major(&spec.shape)))
            .all(|(dim, (a, b))| *dim == 1 || *a == b);
    let strides = if is_row_major { None } else { Some(strides) };
    let encoding = Encoding { strides, is_unpacked: dtype.is_sub_byte(), ..Encoding::default() };
    Ok(Value::Array(Box::new(Array {
        spec,
        elements: Elements::Stored(storage.key.clone(), range),
        encoding,
    })))
}
