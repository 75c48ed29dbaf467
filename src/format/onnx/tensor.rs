//! A tensor of a model: `TensorProto`, whose elements are bytes, numbers of some field, or in a file beside the model.

use std::ops::Range;

use bytes::Bytes;

use super::super::checkpoint::{Extent, Extents, Tensor};
use super::super::encoding::Encoding;
use super::super::folder::Folder;
use super::super::pool::Pool;
use super::super::problem::Problem;
use super::Model;
use super::wire::{self, Field, Value};
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::limits::MAX_RANK;
use crate::store::Cursor;
use crate::sub_byte::unpack;

/// The numbers of types: of what a constant's attributes hold.
const FLOAT: u64 = 1;
const INT64: u64 = 7;
const TEXT: u64 = 8;

/// The types by their numbers (`onnx.proto`).
const DTYPES: [(u64, DType); 23] = [
    (FLOAT, DType::F32),
    (2, DType::U8),
    (3, DType::I8),
    (4, DType::U16),
    (5, DType::I16),
    (6, DType::I32),
    (INT64, DType::I64),
    (9, DType::Bool),
    (10, DType::F16),
    (11, DType::F64),
    (12, DType::U32),
    (13, DType::U64),
    (14, DType::C64),
    (15, DType::C128),
    (16, DType::BF16),
    (17, DType::F8E4M3FN),
    (18, DType::F8E4M3FNUZ),
    (19, DType::F8E5M2),
    (20, DType::F8E5M2FNUZ),
    (21, DType::U4),
    (22, DType::I4),
    (23, DType::F4E2M1FN),
    (24, DType::F8E8M0FNU),
];

/// A tensor as it is in a model.
#[derive(Default)]
pub struct TensorProto {
    pub name: String,
    dims: Vec<u64>,
    dtype: u64,
    /// The fields that hold elements: their numbers, and what they hold.
    elements: Vec<(u32, Value)>,
    /// What `external_data` says, by key.
    external: Vec<(String, String)>,
    is_external: bool,
    is_segment: bool,
}

/// Where the elements of a tensor are.
enum Stored {
    There(Extent),
    /// In no file as they are.
    Here(Vec<u8>),
}

/// Where a tensor was found.
pub struct Found {
    name: String,
    spec: ArraySpec,
    extents: Extents,
    encoding: Encoding,
    /// Whether that is among the files beside the model.
    is_external: bool,
}

impl Found {
    /// The tensor; the files beside the model are those from this position on.
    pub fn into_tensor(self, first: usize) -> Tensor {
        let Found { name, spec, mut extents, encoding, is_external } = self;
        if let (true, Extents::One(extent)) = (is_external, &mut extents) {
            extent.file += first;
        }
        Tensor { name, spec, extents, encoding, checksum: None }
    }
}

impl Model<'_> {
    /// `TensorProto`: 1 `dims`, 2 `data_type`, 3 `segment`, 8 `name`, 13 `external_data`, 14 `data_location`; elements are 4
    /// `float_data`, 5 `int32_data`, 7 `int64_data`, 9 `raw_data`, 10 `double_data`, 11 `uint64_data`.
    pub fn tensor(&mut self, range: Range<usize>) -> Result<TensorProto, Problem> {
        let mut tensor = TensorProto::default();
        self.message(range, |model, Field { number, value }| {
            match (number, value) {
                (1, value) => tensor.dims.extend(wire::numbers(&mut model.cursor, &value)?),
                (2, Value::Number(number)) => tensor.dtype = number,
                (3, _) => tensor.is_segment = true,
                (4 | 5 | 7 | 9 | 10 | 11, value) => {
                    model.count()?;
                    tensor.elements.push((number, value));
                }
                (8, Value::Bytes(range)) => tensor.name = model.name(range)?,
                (13, Value::Bytes(range)) => tensor.external.push(model.entry(range)?),
                (14, Value::Number(number)) => tensor.is_external = number == 1,
                _ => {}
            }
            if tensor.dims.len() > MAX_RANK {
                return Err(format!("a tensor has more than {MAX_RANK} dimensions").into());
            }
            Ok(())
        })?;
        Ok(tensor)
    }

    /// Takes what the field of an attribute holds as an element of a constant: 2 `f`, 3 `i`, 4 `s`, 7 `floats`, 8 `ints`, 9
    /// `strings`, and of 20 `type` that there can be several.
    pub fn element(&mut self, tensor: &mut TensorProto, number: u32, value: Value) -> Result<(), Problem> {
        let (dtype, field, is_list) = match (number, &value) {
            (2 | 7, _) | (20, Value::Number(6)) => (FLOAT, 4, number != 2),
            (3 | 8, _) | (20, Value::Number(7)) => (INT64, 7, number != 3),
            (4 | 9, _) => (TEXT, 9, number != 4),
            _ => return Ok(()),
        };
        tensor.dtype = dtype;
        if is_list && tensor.dims.is_empty() {
            tensor.dims.push(0);
        }
        if number == 20 {
            return Ok(());
        }
        if let (true, Some(size)) = (is_list, tensor.dims.first_mut()) {
            *size += match (dtype, &value) {
                (FLOAT, Value::Bytes(range)) => range.len() as u64 / 4,
                (INT64, value) => wire::numbers(&mut self.cursor, value)?.len() as u64,
                _ => 1,
            };
        }
        self.count()?;
        tensor.elements.push((field, value));
        Ok(())
    }
}

impl TensorProto {
    /// Whether nothing was said of it.
    pub fn is_empty(&self) -> bool {
        self.dtype == 0
    }

    /// How many fields its elements are in.
    pub fn fields(&self) -> usize {
        self.elements.len()
    }

    pub fn is_text(&self) -> bool {
        self.dtype == TEXT
    }

    /// Finds the elements, as a tensor of this name.
    ///
    /// # Errors
    /// Why it is none that can be read.
    pub fn find(
        self,
        name: String,
        cursor: &mut Cursor,
        pool: &mut Pool<'_>,
        external: &mut Folder,
    ) -> Result<Found, Problem> {
        if self.is_segment {
            return Err("it is in segments, which is not read".into());
        }
        let dtype = DTYPES.iter().find(|(number, _)| *number == self.dtype);
        let dtype = dtype
            .ok_or_else(|| format!("its elements are of ONNX's type {}, which is not read", self.dtype))?;
        let size =
            |&size: &u64| usize::try_from(size as i64).map_err(|_| format!("a dimension is {}", size as i64));
        let spec = ArraySpec::new(dtype.1, self.dims.iter().map(size).collect::<Result<Vec<_>, _>>()?);
        let (bits, count) = (spec.dtype.bits(), spec.element_count()?);
        let bytes = count.checked_mul(bits).ok_or("it is larger than any memory")?.div_ceil(8);
        // Of those whose last byte is not full, each element gets a byte.
        let is_unpacked = count * bits % 8 != 0;
        let stored = match self.is_external {
            true if is_unpacked => {
                return Err(format!("it is {spec}, which does not fill its last byte").into());
            }
            true => Stored::There(self.external(bytes, external)?),
            false => self.inside(&spec, bytes, cursor)?,
        };
        let stored = match stored {
            Stored::There(extent) if is_unpacked => Stored::Here(cursor.blob().read(extent.range)?.to_vec()),
            stored => stored,
        };
        let extents = match stored {
            Stored::There(extent) => Extents::One(extent),
            Stored::Here(packed) if is_unpacked => pool.add(&Bytes::from(unpack(&packed, spec.dtype, count))),
            Stored::Here(content) => pool.add(&Bytes::from(content)),
        };
        let encoding = Encoding { is_unpacked, ..Encoding::default() };
        Ok(Found { name, spec, extents, encoding, is_external: self.is_external })
    }

    /// Where the elements are in a file beside the model.
    fn external(&self, bytes: usize, files: &mut Folder) -> Result<Extent, Problem> {
        let value = |key: &str| self.external.iter().find(|(found, _)| found == key).map(|(_, value)| value);
        let number = |key: &str, otherwise: usize| match value(key) {
            None => Ok(otherwise),
            Some(text) => text.parse().map_err(|_| format!("its {key} in another file is `{text}`")),
        };
        let location = value("location").ok_or("it does not say in which file it is")?;
        let (offset, length) = (number("offset", 0)?, number("length", bytes)?);
        if length != bytes {
            return Err(wrong_length(length, bytes).into());
        }
        let end = offset.checked_add(length).ok_or("it ends behind all memory")?;
        files.locate(location, offset..end)
    }

    /// Where the elements are that are in the model itself.
    fn inside(&self, spec: &ArraySpec, bytes: usize, cursor: &mut Cursor) -> Result<Stored, Problem> {
        // Floating point that is packed, and bytes, are elements as they are.
        let is_as_it_is = |number: u32| {
            matches!(
                (number, spec.dtype),
                (9, _) | (4, DType::F32 | DType::C64) | (10, DType::F64 | DType::C128)
            )
        };
        if let [(number, Value::Bytes(range))] = &self.elements[..]
            && is_as_it_is(*number)
        {
            return match range.len() == bytes {
                true => Ok(Stored::There(Extent { file: 0, range: range.clone() })),
                false => Err(wrong_length(range.len(), bytes).into()),
            };
        }
        let width = spec.dtype.bits().div_ceil(8);
        let mut content = Vec::new();
        for (number, value) in &self.elements {
            match value {
                Value::Bytes(range) | Value::Fixed(range) if is_as_it_is(*number) => {
                    content.extend_from_slice(&cursor.blob().read(range.clone())?);
                }
                value if has_numbers(*number, spec.dtype) => {
                    for number in wire::numbers(cursor, value)? {
                        content.extend_from_slice(&element(number, spec.dtype)?[..width]);
                    }
                }
                _ => {
                    let dtype = spec.dtype;
                    return Err(format!(
                        "its elements of type {dtype} are in field {number}, which is of others"
                    )
                    .into());
                }
            }
        }
        if content.len() != bytes {
            return Err(wrong_length(content.len(), bytes).into());
        }
        Ok(Stored::Here(content))
    }
}

/// Whether elements of a type are in a field of whole numbers: 5 `int32_data`, 7 `int64_data`, 11 `uint64_data`.
fn has_numbers(field: u32, dtype: DType) -> bool {
    match dtype {
        DType::I64 => field == 7,
        DType::U32 | DType::U64 => field == 11,
        DType::F32 | DType::F64 | DType::C64 | DType::C128 => false,
        _ => field == 5,
    }
}

/// The bytes of an element that is a whole number, of which it has the first: what is no integer is its bits, and two of half a
/// byte are one number.
///
/// # Errors
/// That the type has no such element.
fn element(number: u64, dtype: DType) -> Result<[u8; 8], String> {
    let signed = number as i64;
    let fits = match dtype {
        DType::Bool => number <= 1,
        DType::I8 => i8::try_from(signed).is_ok(),
        DType::I16 => i16::try_from(signed).is_ok(),
        DType::I32 => i32::try_from(signed).is_ok(),
        DType::I64 | DType::U64 => true,
        _ => number >> (dtype.bits().max(8)) == 0,
    };
    match fits {
        true => Ok(number.to_le_bytes()),
        false => Err(format!("it has an element {signed}, which is none of type {dtype}")),
    }
}

fn wrong_length(found: usize, wanted: usize) -> String {
    format!("it has {found} bytes, and its type and shape take {wanted}")
}
