//! Tensors by themselves (`Tensor.fbs`), and the types of numbers.

use std::ops::Range;

use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::flatbuffer::Table;
use crate::format::checkpoint::Tensor;
use crate::format::encoding::{Encoding, reach, row_major};
use crate::limits::MAX_RANK;

/// The numbers of types that are read (`Schema.fbs`).
pub const INT: u8 = 2;
pub const FLOATING_POINT: u8 = 3;
pub const BOOL: u8 = 6;

/// The fields of a tensor.
const KIND: usize = 0;
const TYPE: usize = 1;
const SHAPE: usize = 2;
const STRIDES: usize = 3;
const DATA: usize = 4;

/// The type behind its description; `None` for one that is none of a JAX array.
///
/// # Errors
/// What is wrong with it.
pub fn dtype_of(kind: u8, table: Option<Table<'_>>) -> Result<Option<DType>, String> {
    Ok(match (kind, table) {
        (INT, Some(table)) => match (table.u32(0)?.unwrap_or(0), table.u8(1)?.unwrap_or(0) != 0) {
            (8, true) => Some(DType::I8),
            (16, true) => Some(DType::I16),
            (32, true) => Some(DType::I32),
            (64, true) => Some(DType::I64),
            (8, false) => Some(DType::U8),
            (16, false) => Some(DType::U16),
            (32, false) => Some(DType::U32),
            (64, false) => Some(DType::U64),
            _ => None,
        },
        (FLOATING_POINT, Some(table)) => match table.u16(0)?.unwrap_or(0) {
            0 => Some(DType::F16),
            1 => Some(DType::F32),
            2 => Some(DType::F64),
            _ => None,
        },
        _ => None,
    })
}

/// The tensor that a message is about, whose body is there.
///
/// # Errors
/// What is wrong with it.
pub fn read(tensor: Table<'_>, name: String, body: &Range<usize>) -> Result<Tensor, String> {
    let dtype = dtype_of(tensor.u8(KIND)?.unwrap_or(0), tensor.table(TYPE)?)?;
    let dtype = dtype.ok_or("its elements are of a type that is not read")?;
    let size = |dim: Table<'_>| {
        let size = dim.i64(0)?.unwrap_or(0);
        usize::try_from(size).map_err(|_| format!("a dimension is {size}"))
    };
    let dims = tensor.tables(SHAPE)?;
    if dims.len() > MAX_RANK {
        return Err(format!("it has {} dimensions, more than {MAX_RANK}", dims.len()));
    }
    let spec = ArraySpec::new(dtype, dims.into_iter().map(size).collect::<Result<Vec<_>, _>>()?);
    spec.host_bytes().map_err(|error| error.to_string())?;
    let width = dtype.bits() / 8;
    let strides = match tensor.structs::<8>(STRIDES)? {
        None => row_major(&spec.shape),
        Some(strides) => {
            let stride = |bytes: [u8; 8]| {
                usize::try_from(i64::from_le_bytes(bytes)).ok().filter(|stride| stride % width == 0)
            };
            let strides: Option<Vec<usize>> = strides.map(|bytes| Some(stride(bytes)? / width)).collect();
            strides
                .filter(|strides| strides.len() == spec.shape.len())
                .ok_or("its strides are not those of its dimensions and elements")?
        }
    };
    let data: [u8; 16] = tensor.inline(DATA)?.ok_or("it has no data")?;
    let reached = reach(&spec.shape, &strides).and_then(|elements| elements.checked_mul(width));
    let range = reached.and_then(|reached| within(body, &data, reached));
    let range =
        range.ok_or_else(|| format!("it is {spec}, and reaches beyond its body of {} bytes", body.len()))?;
    let mut found = Tensor::plain(name, spec, 0, range);
    let is_row_major = strides == row_major(&found.spec.shape) || found.spec.shape.contains(&0);
    found.encoding = Encoding { strides: (!is_row_major).then_some(strides), ..Encoding::default() };
    Ok(found)
}

/// Where the first of so many bytes are of a buffer, which is described by its offset in the body and its length.
pub fn within(body: &Range<usize>, buffer: &[u8; 16], bytes: usize) -> Option<Range<usize>> {
    let number = |at: usize| {
        let eight: [u8; 8] = buffer[at..at + 8].try_into().ok()?;
        usize::try_from(i64::from_le_bytes(eight)).ok()
    };
    let (offset, length) = (number(0)?, number(8)?);
    let fits = bytes <= length && offset.checked_add(length)? <= body.len();
    fits.then(|| body.start + offset..body.start + offset + bytes)
}
