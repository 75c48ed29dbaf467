//! A tensor of a model: `TensorProto`, whose elements are bytes, numbers of some field, or in a file beside the model.

use std::ops::Range;

use bytes::Bytes;

use super::super::checkpoint::{Extent, Extents, Tensor};
use super::super::folder::Folder;
use super::super::pool::Pool;
use super::super::problem::Problem;
use super::Model;
use super::wire::{self, Field, Value};
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::limits::MAX_RANK;
use crate::store::Cursor;

/// The number of the type of texts.
const TEXT: u64 = 8;

/// The types by their numbers (`onnx.proto`).
const DTYPES: [(u64, DType); 23] = [
    (1, DType::F32),
    (2, DType::U8),
    (3, DType::I8),
    (4, DType::U16),
    (5, DType::I16),
    (6, DType::I32),
    (7, DType::I64),
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

/// Where a tensor was found.
pub struct Found {
    name: String,
    spec: ArraySpec,
    extents: Extents,
    /// Whether that is among the files beside the model.
    is_external: bool,
}

impl Found {
    /// The tensor; the files beside the model are those from this position on.
    pub fn into_tensor(self, first: usize) -> Tensor {
        let Found { name, spec, mut extents, is_external } = self;
        if let (true, Extents::One(extent)) = (is_external, &mut extents) {
            extent.file += first;
        }
        Tensor { name, spec, extents, encoding: Default::default(), checksum: None }
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
                (4 | 5 | 7 | 9 | 10 | 11, value) => tensor.elements.push((number, value)),
                (8, Value::Bytes(range)) => tensor.name = model.text(range)?,
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
}

impl TensorProto {
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
        let bytes = spec.packed_bytes()?;
        let extents = match self.is_external {
            true => Extents::One(self.external(bytes, external)?),
            false => self.inside(&spec, bytes, cursor, pool)?,
        };
        Ok(Found { name, spec, extents, is_external: self.is_external })
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

    fn inside(
        &self,
        spec: &ArraySpec,
        bytes: usize,
        cursor: &mut Cursor,
        pool: &mut Pool<'_>,
    ) -> Result<Extents, Problem> {
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
                true => Ok(Extents::One(Extent { file: 0, range: range.clone() })),
                false => Err(wrong_length(range.len(), bytes).into()),
            };
        }
        let width = spec.dtype.bits().div_ceil(8);
        let mut content = Vec::new();
        for (number, value) in &self.elements {
            match (number, value) {
                (number, Value::Bytes(range) | Value::Fixed(range)) if is_as_it_is(*number) => {
                    content.extend_from_slice(&cursor.blob().read(range.clone())?);
                }
                // Numbers of every type but these are in 32 bits each.
                (5, value) if spec.dtype.bits() >= 8 && width <= 4 => {
                    for number in wire::numbers(cursor, value)? {
                        content.extend_from_slice(&number.to_le_bytes()[..width]);
                    }
                }
                (7 | 11, value) if width == 8 || spec.dtype == DType::U32 => {
                    for number in wire::numbers(cursor, value)? {
                        content.extend_from_slice(&number.to_le_bytes()[..width]);
                    }
                }
                _ => {
                    return Err(format!(
                        "its elements of type {} are in field {number}, which is not read",
                        spec.dtype
                    )
                    .into());
                }
            }
        }
        if content.len() != bytes {
            return Err(wrong_length(content.len(), bytes).into());
        }
        Ok(pool.add(&Bytes::from(content)))
    }
}

fn wrong_length(found: usize, wanted: usize) -> String {
    format!("it has {found} bytes, and its type and shape take {wanted}")
}
