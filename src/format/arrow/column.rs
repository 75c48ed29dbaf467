//! The columns of a table, as its schema describes them.

use std::collections::BTreeMap;

use super::metadata_of;
use super::tensor::{BOOL, dtype_of};
use crate::dtype::DType;
use crate::flatbuffer::Table;
use crate::limits::MAX_RANK;
use crate::tree::MAX_DEPTH;

/// Numbers of types that are not numbers (`Schema.fbs`).
const NULL: u8 = 1;
const TEXTS: [u8; 4] = [4, 5, 19, 20];
const LISTS: [u8; 3] = [12, 17, 21];
const STRUCT: u8 = 13;
const UNION: u8 = 14;
const FIXED_SIZE_LIST: u8 = 16;
const RUN_END_ENCODED: u8 = 22;
const VIEWS: [u8; 2] = [23, 24];
const LIST_VIEWS: [u8; 2] = [25, 26];

/// The metadata of a column of tensors, which are lists of one size otherwise.
const EXTENSION_NAME: &str = "ARROW:extension:name";
const EXTENSION_METADATA: &str = "ARROW:extension:metadata";
const FIXED_SHAPE_TENSOR: &str = "arrow.fixed_shape_tensor";

/// The fields of a column, and of a union.
const NAME: usize = 0;
const TYPE_KIND: usize = 2;
const TYPE: usize = 3;
const DICTIONARY: usize = 4;
const CHILDREN: usize = 5;
const METADATA: usize = 6;
const UNION_MODE: usize = 0;

/// A column, or one within it.
pub struct Column {
    pub name: String,
    pub kind: Kind,
    pub children: Vec<Column>,
}

/// What a column is, by what is stored of it with each batch of rows.
pub enum Kind {
    /// Numbers.
    Numbers(DType),
    /// Bools, eight to a byte.
    Bits,
    /// Lists of so many of what its only child has.
    Lists {
        size: usize,
        dims: Dims,
    },
    Struct,
    Other(Other),
}

/// What is no array.
pub struct Other {
    /// What it is, for messages.
    pub what: &'static str,
    /// Whether there could be numbers in it that somebody wants.
    pub has_numbers: bool,
    /// How many buffers there are of it.
    pub buffers: usize,
    /// Whether there are more, whose number every batch says.
    pub has_more: bool,
}

/// The dimensions of a row, or of an element of one, and the order in which the tensor's own are taken from them.
pub struct Dims {
    pub stored: Vec<usize>,
    pub order: Option<Vec<usize>>,
}

impl Column {
    /// The column that a field of a schema, or of a column, describes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of_field(field: Table<'_>, depth: usize) -> Result<Column, String> {
        let name = field.string(NAME)?.unwrap_or_default().to_owned();
        if depth > MAX_DEPTH {
            return Err(format!("its columns are nested deeper than {MAX_DEPTH} levels"));
        }
        let kind = kind_of(field).map_err(|problem| format!("its column `{name}`: {problem}"))?;
        let children = field.tables(CHILDREN)?.into_iter().map(|child| Column::of_field(child, depth + 1));
        let children = children.collect::<Result<Vec<_>, _>>()?;
        if matches!(kind, Kind::Lists { .. }) && children.len() != 1 {
            return Err(format!("its column `{name}` is of lists of {} things", children.len()));
        }
        Ok(Column { name, kind, children })
    }

    /// How many columns it is, with those within it.
    pub fn count(&self) -> usize {
        1 + self.children.iter().map(Column::count).sum::<usize>()
    }
}

fn kind_of(field: Table<'_>) -> Result<Kind, String> {
    let other =
        |what, has_numbers, buffers| Kind::Other(Other { what, has_numbers, buffers, has_more: false });
    if field.table(DICTIONARY)?.is_some() {
        return Ok(other("of values by their numbers in a dictionary", false, 2));
    }
    let kind = field.u8(TYPE_KIND)?.unwrap_or(0);
    let table = field.table(TYPE)?;
    if let Some(dtype) = dtype_of(kind, table)? {
        return Ok(Kind::Numbers(dtype));
    }
    Ok(match kind {
        BOOL => Kind::Bits,
        NULL => other("of nothing", false, 0),
        STRUCT => Kind::Struct,
        FIXED_SIZE_LIST => {
            let size = table.map(|table| table.u32(0)).transpose()?.flatten().unwrap_or(0) as usize;
            Kind::Lists { size, dims: dims_of(field, size)? }
        }
        kind if TEXTS.contains(&kind) => other("of texts or bytes", false, 3),
        kind if LISTS.contains(&kind) => other("of lists of several lengths", true, 2),
        kind if LIST_VIEWS.contains(&kind) => other("of lists of several lengths", true, 3),
        kind if VIEWS.contains(&kind) => {
            Kind::Other(Other { what: "of texts or bytes", has_numbers: false, buffers: 2, has_more: true })
        }
        UNION => {
            let is_dense = table.map(|table| table.u16(UNION_MODE)).transpose()?.flatten() == Some(1);
            other("of values of several types", true, if is_dense { 2 } else { 1 })
        }
        RUN_END_ENCODED => other("of values with their counts", true, 0),
        _ => other("of a type that JAX does not have", true, 2),
    })
}

/// The dimensions of lists of one size: of tensors, theirs.
fn dims_of(field: Table<'_>, size: usize) -> Result<Dims, String> {
    #[derive(serde::Deserialize)]
    struct Extension {
        shape: Vec<usize>,
        #[serde(default)]
        permutation: Option<Vec<usize>>,
    }
    let metadata: BTreeMap<String, String> = metadata_of(field, METADATA)?;
    if metadata.get(EXTENSION_NAME).map(String::as_str) != Some(FIXED_SHAPE_TENSOR) {
        return Ok(Dims { stored: vec![size], order: None });
    }
    let text = metadata.get(EXTENSION_METADATA).map_or("", String::as_str);
    let Extension { shape, permutation } = serde_json::from_str(text)
        .map_err(|error| format!("the description of its tensors, `{text}`, cannot be read: {error}"))?;
    let elements = shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim));
    if elements != Some(size) || shape.len() >= MAX_RANK {
        return Err(format!("its tensors are {shape:?}, and of {size} elements"));
    }
    let mut sorted = permutation.clone().unwrap_or_default();
    sorted.sort_unstable();
    if permutation.is_some() && !sorted.into_iter().eq(0..shape.len()) {
        return Err(format!("{permutation:?} is no order of the dimensions {shape:?}"));
    }
    Ok(Dims { stored: shape, order: permutation })
}
