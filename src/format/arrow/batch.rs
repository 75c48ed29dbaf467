//! The rows of a table, batch after batch: where those of each column are.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;

use super::column::{Column, Dims, Kind, Other};
use super::metadata_of;
use super::tensor::within;
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::flatbuffer::Table;
use crate::format::checkpoint::{Extent, LeftOut, Tensor};
use crate::format::encoding::{Encoding, row_major};
use crate::format::pool::Pool;
use crate::format::problem::Problem;
use crate::limits::{Limits, MAX_RANK};
use crate::store::SharedBlob;

/// The fields of a schema.
const ENDIANNESS: usize = 0;
const FIELDS: usize = 1;
const METADATA: usize = 2;

/// The fields of a batch.
const ROWS: usize = 0;
const NODES: usize = 1;
const BUFFERS: usize = 2;
const COMPRESSION: usize = 3;
const MORE_BUFFERS: usize = 4;

/// The numbers of ways to compress.
const LZ4_FRAME: u8 = 0;
const ZSTD: u8 = 1;

/// The length before a buffer that is not compressed, among those that are.
const UNCOMPRESSED: i64 = -1;

/// A table as its rows come.
pub struct Rows {
    columns: Vec<Column>,
    metadata: BTreeMap<String, String>,
    is_big_endian: bool,
    /// Batches so far, and bytes that were expanded of them.
    batches: usize,
    expanded: u64,
    found: Found,
}

/// What there is of arrays so far, by their names.
#[derive(Default)]
struct Found {
    arrays: BTreeMap<String, Growing>,
    left_out: BTreeMap<String, LeftOut>,
}

/// An array that gets longer with each batch.
struct Growing {
    dtype: DType,
    rows: usize,
    row: RowLayout,
    extents: Vec<Extent>,
}

/// How each row of an array lies.
struct RowLayout {
    dims: Vec<usize>,
    /// Where they are not row-major, with the elements from row to row first.
    strides: Option<Vec<usize>>,
}

impl Rows {
    /// The columns of a schema, without rows.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of_schema(schema: Table<'_>) -> Result<Rows, String> {
        let columns = schema.tables(FIELDS)?.into_iter().map(|field| Column::of_field(field, 0));
        Ok(Rows {
            columns: columns.collect::<Result<_, _>>()?,
            metadata: metadata_of(schema, METADATA)?,
            is_big_endian: schema.u16(ENDIANNESS)? == Some(1),
            batches: 0,
            expanded: 0,
            found: Found::default(),
        })
    }

    /// How many columns there are, with those within others.
    pub fn columns(&self) -> usize {
        self.columns.iter().map(Column::count).sum()
    }

    /// Adds the rows of a batch, whose body is there.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn add(
        &mut self,
        batch: Table<'_>,
        body: Range<usize>,
        file: (&SharedBlob, Limits),
        pool: &mut Pool<'_>,
    ) -> Result<(), Problem> {
        self.batches += 1;
        let rows = batch.i64(ROWS)?.unwrap_or(0);
        let rows = usize::try_from(rows).map_err(|_| format!("it has {rows} rows"))?;
        let codec = batch.table(COMPRESSION)?.map(|table| table.u8(0)).transpose()?;
        let mut reader = BatchReader {
            nodes: batch.structs::<16>(NODES)?.into_iter().flatten(),
            buffers: batch.structs::<16>(BUFFERS)?.into_iter().flatten(),
            more: batch.structs::<8>(MORE_BUFFERS)?.into_iter().flatten(),
            codec: codec.map(|codec| codec.unwrap_or(LZ4_FRAME)),
            body,
            blob: file.0,
            limits: file.1,
            pool,
            found: &mut self.found,
            expanded: &mut self.expanded,
            names: BTreeSet::new(),
        };
        for column in &self.columns {
            let path = Path { name: column.name.clone(), length: rows, levels: Vec::new(), is_array: true };
            reader.read(column, path, rows)?;
        }
        Ok(())
    }

    /// The arrays, and the table's metadata.
    ///
    /// # Errors
    /// What is wrong with an array.
    pub fn finish(
        self,
        left_out: &mut Vec<LeftOut>,
    ) -> Result<(Vec<Tensor>, BTreeMap<String, String>), String> {
        let Found { arrays, left_out: parts } = self.found;
        let mut tensors = Vec::with_capacity(arrays.len());
        for (name, array) in arrays {
            if !parts.contains_key(&name) {
                tensors.push(array.into_tensor(name, self.is_big_endian)?);
            }
        }
        left_out.extend(parts.into_values());
        if self.batches == 0 {
            let empty = |column: Column| LeftOut::new(column.name, "it has no rows");
            left_out.extend(self.columns.into_iter().map(empty));
        }
        Ok((tensors, self.metadata))
    }
}

impl Growing {
    fn into_tensor(self, name: String, is_big_endian: bool) -> Result<Tensor, String> {
        let shape = [&[self.rows][..], &self.row.dims].concat();
        let spec = ArraySpec::new(self.dtype, shape);
        spec.host_bytes().map_err(|error| format!("`{name}`: {error}"))?;
        let encoding = Encoding { strides: self.row.strides, is_big_endian, ..Encoding::default() };
        Ok(Tensor { name, spec, extents: self.extents.into(), encoding, checksum: None })
    }
}

/// The way to a column within others.
struct Path<'c> {
    name: String,
    /// Its elements in this batch.
    length: usize,
    /// The dimensions of the lists that it is in.
    levels: Vec<&'c Dims>,
    /// Whether it is taken: it is not within something that is none.
    is_array: bool,
}

struct BatchReader<'a, 'p, N, B, M> {
    /// The length of each column, and how many of its values are missing.
    nodes: N,
    /// Where each buffer is in the body.
    buffers: B,
    /// How many more buffers columns have.
    more: M,
    codec: Option<u8>,
    body: Range<usize>,
    blob: &'a SharedBlob,
    limits: Limits,
    pool: &'a mut Pool<'p>,
    found: &'a mut Found,
    /// Bytes that were expanded of all batches.
    expanded: &'a mut u64,
    /// Of the arrays that were met in this batch.
    names: BTreeSet<String>,
}

impl<N, B, M> BatchReader<'_, '_, N, B, M>
where
    N: Iterator<Item = [u8; 16]>,
    B: Iterator<Item = [u8; 16]>,
    M: Iterator<Item = [u8; 8]>,
{
    /// Finds the rows of a column, and of those within it.
    fn read<'c>(&mut self, column: &'c Column, path: Path<'c>, rows: usize) -> Result<(), Problem> {
        let node = self.nodes.next().ok_or("it says nothing of some columns")?;
        let [length, missing] =
            [&node[..8], &node[8..]].map(|half| u64::from_le_bytes(half.try_into().unwrap_or_default()));
        if let Kind::Other(other) = &column.kind {
            return self.pass_over(column, other, path, rows);
        }
        if path.is_array && length != path.length as u64 {
            let (name, expected) = (&path.name, path.length);
            return Err(format!("its column `{name}` has {length} values, and not {expected}").into());
        }
        let mut is_array = path.is_array;
        if missing > 0 && is_array {
            is_array = false;
            self.leave_out(&path.name, format!("{missing} of its values are missing"), true);
        }
        // Which values are missing.
        self.buffer()?;
        let path = Path { is_array, ..path };
        match &column.kind {
            Kind::Numbers(dtype) => self.numbers(*dtype, path, rows),
            Kind::Bits => self.bits(path, rows),
            Kind::Lists { size, dims } => {
                let child = &column.children[0];
                let length = path.length.checked_mul(*size).ok_or("a list is longer than memory")?;
                let levels = path.levels.iter().copied().chain([dims]).collect();
                self.read(child, Path { length, levels, ..path }, rows)
            }
            Kind::Struct | Kind::Other(_) => column.children.iter().try_for_each(|child| {
                let name = format!("{}.{}", path.name, child.name);
                self.read(child, Path { name, levels: path.levels.clone(), ..path }, rows)
            }),
        }
    }

    /// Passes over a column that is no array, and those within it.
    fn pass_over(
        &mut self,
        column: &Column,
        other: &Other,
        path: Path<'_>,
        rows: usize,
    ) -> Result<(), Problem> {
        for _ in 0..other.buffers {
            self.buffer()?;
        }
        if other.has_more {
            let more = self.more.next().map_or(0, u64::from_le_bytes);
            for _ in 0..more {
                self.buffer()?;
            }
        }
        if path.is_array {
            self.leave_out(&path.name, format!("it is a column {}", other.what), other.has_numbers);
        }
        column.children.iter().try_for_each(|child| {
            let within = Path { name: path.name.clone(), length: 0, levels: Vec::new(), is_array: false };
            self.read(child, within, rows)
        })
    }

    fn leave_out(&mut self, name: &str, why: String, is_refused: bool) {
        let refusal = format!("`{name}`: {why}; leave it out (`--exclude`)");
        let part = match is_refused {
            true => LeftOut::refused(name, why, refusal),
            false => LeftOut::new(name, why),
        };
        self.found.left_out.entry(name.to_owned()).or_insert(part);
    }

    fn buffer(&mut self) -> Result<[u8; 16], Problem> {
        Ok(self.buffers.next().ok_or("it says nothing of some buffers")?)
    }

    fn numbers(&mut self, dtype: DType, path: Path<'_>, rows: usize) -> Result<(), Problem> {
        let buffer = self.buffer()?;
        if !path.is_array {
            return Ok(());
        }
        let bytes = path.length.checked_mul(dtype.bits() / 8).ok_or("a column is longer than memory")?;
        let extent = match self.codec {
            None => Extent { file: 0, range: self.within(&path, &buffer, bytes)? },
            Some(_) => {
                let content = self.expand(&path, &buffer, bytes)?;
                self.keep(&content)
            }
        };
        self.grow(dtype, path, rows, extent)
    }

    /// Bools, which take a byte each on a device.
    fn bits(&mut self, path: Path<'_>, rows: usize) -> Result<(), Problem> {
        let buffer = self.buffer()?;
        if !path.is_array {
            return Ok(());
        }
        let stored = path.length.div_ceil(8);
        let content = match self.codec {
            None => self.blob.read(self.within(&path, &buffer, stored)?)?,
            Some(_) => self.expand(&path, &buffer, stored)?,
        };
        self.count_expanded(path.length)?;
        let bits: Vec<u8> = (0..path.length).map(|at| content[at / 8] >> (at % 8) & 1).collect();
        let extent = self.keep(&bits.into());
        self.grow(DType::Bool, path, rows, extent)
    }

    fn within(&self, path: &Path<'_>, buffer: &[u8; 16], bytes: usize) -> Result<Range<usize>, Problem> {
        let short = || {
            let (name, has) = (&path.name, self.body.len());
            format!("its column `{name}` has {bytes} bytes, and they are not in its body of {has}")
        };
        Ok(within(&self.body, buffer, bytes).ok_or_else(short)?)
    }

    /// The first of so many bytes of a buffer that can be compressed.
    fn expand(&mut self, path: &Path<'_>, buffer: &[u8; 16], bytes: usize) -> Result<Bytes, Problem> {
        if bytes == 0 {
            return Ok(Bytes::new());
        }
        let length = u64::from_le_bytes(buffer[8..].try_into().unwrap_or_default());
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let stored = self.blob.read(self.within(path, buffer, length)?)?;
        let at = |problem: String| format!("its column `{}`: {problem}", path.name);
        let (says, content) =
            stored.split_at_checked(8).ok_or_else(|| at("a buffer of it has no length".into()))?;
        let says = i64::from_le_bytes(says.try_into().unwrap_or_default());
        if says == UNCOMPRESSED {
            return Ok(stored
                .slice(8..)
                .slice_ref(content.get(..bytes).ok_or_else(|| at("it is cut off".into()))?));
        }
        let says = usize::try_from(says).ok().filter(|says| *says >= bytes);
        let says = says.ok_or_else(|| at(format!("a buffer of it should have {bytes} bytes or more")))?;
        self.count_expanded(says)?;
        let mut expanded = decompress(self.codec, content, says).map_err(at)?;
        expanded.truncate(bytes);
        Ok(expanded.into())
    }

    /// Counts bytes that are about to be expanded: all of them are in memory.
    fn count_expanded(&mut self, bytes: usize) -> Result<(), Problem> {
        *self.expanded = self.expanded.saturating_add(bytes as u64);
        Ok(self.limits.check_expansion(self.blob.size() as u64, *self.expanded)?)
    }

    fn keep(&mut self, content: &Bytes) -> Extent {
        let extents = self.pool.add(content);
        extents.as_slice()[0].clone()
    }

    fn grow(&mut self, dtype: DType, path: Path<'_>, rows: usize, extent: Extent) -> Result<(), Problem> {
        let Path { name, levels, .. } = path;
        if !self.names.insert(name.clone()) {
            return Err(format!("there are two columns `{name}`").into());
        }
        if !self.found.arrays.contains_key(&name) {
            let new = Growing { dtype, rows: 0, row: RowLayout::within(&levels)?, extents: Vec::new() };
            self.found.arrays.insert(name.clone(), new);
        }
        let Some(array) = self.found.arrays.get_mut(&name) else { return Ok(()) };
        array.rows = array.rows.checked_add(rows).ok_or("a column is longer than memory")?;
        if !extent.range.is_empty() {
            array.extents.push(extent);
        }
        Ok(())
    }
}

impl RowLayout {
    /// Of rows that are in lists of these.
    fn within(levels: &[&Dims]) -> Result<RowLayout, String> {
        let stored: Vec<usize> = levels.iter().flat_map(|level| level.stored.iter().copied()).collect();
        if stored.len() >= MAX_RANK {
            return Err(format!("a column has {} dimensions, more than {MAX_RANK}", stored.len() + 1));
        }
        if levels.iter().all(|level| level.order.is_none()) {
            return Ok(RowLayout { dims: stored, strides: None });
        }
        let whole = row_major(&stored);
        let mut places = Vec::with_capacity(stored.len());
        for level in levels {
            let start = places.len();
            match &level.order {
                Some(order) => places.extend(order.iter().map(|place| start + place)),
                None => places.extend(start..start + level.stored.len()),
            }
        }
        let dims = places.iter().map(|&place| stored[place]).collect();
        let own = places.iter().map(|&place| whole[place]);
        Ok(RowLayout { dims, strides: Some(std::iter::once(stored.iter().product()).chain(own).collect()) })
    }
}

fn decompress(codec: Option<u8>, content: &[u8], bytes: usize) -> Result<Vec<u8>, String> {
    use std::io::Read;
    let damaged = |error: std::io::Error| format!("what is compressed in it is damaged: {error}");
    let mut expanded = crate::store::zeros(bytes).map_err(|error| error.to_string())?;
    match codec {
        Some(ZSTD) => zstd::stream::read::Decoder::with_buffer(content)
            .and_then(|mut reader| reader.read_exact(&mut expanded))
            .map_err(damaged)?,
        Some(LZ4_FRAME) => {
            lz4_flex::frame::FrameDecoder::new(content).read_exact(&mut expanded).map_err(damaged)?;
        }
        other => return Err(format!("it is compressed in a way of number {other:?}, which is not known")),
    }
    Ok(expanded)
}
