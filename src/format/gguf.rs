//! GGUF files, as llama.cpp uses them: strings and numbers, then tensors by name. Those that are quantised have no type of JAX's,
//! and are refused by name. Held against files of `gguf` 0.19, versions 2 and 3.

use std::collections::BTreeMap;

use super::checkpoint::{Checkpoint, Format, LeftOut, Tensor};
use super::problem::Problem;
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::error::Result;
use crate::limits::{Limits, MAX_RANK};
use crate::store::{Cursor, SharedBlob};

/// What a file is, for errors.
const FORMAT: &str = "GGUF file";

/// What a file begins with.
pub(super) const MAGIC: &[u8] = b"GGUF";

/// The multiple of bytes at which the data and each tensor begin, where the file does not say another.
const ALIGNMENT: usize = 32;

/// The name of the number that says another.
const ALIGNMENT_KEY: &str = "general.alignment";

/// The longest name, in bytes.
const MAX_NAME_BYTES: usize = 1 << 16;

/// The longest text that is kept, in bytes.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// How deep lists of lists are read.
const MAX_LISTS: usize = 4;

/// The types of tensors that are arrays, by their numbers (`ggml.h`).
const DTYPES: [(u32, DType); 8] = [
    (0, DType::F32),
    (1, DType::F16),
    (24, DType::I8),
    (25, DType::I16),
    (26, DType::I32),
    (27, DType::I64),
    (28, DType::F64),
    (30, DType::BF16),
];

/// The quantised types by their numbers.
const QUANTISED: [(u32, &str); 25] = [
    (2, "Q4_0"),
    (3, "Q4_1"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (8, "Q8_0"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

/// Opens a file.
///
/// # Errors
/// [`crate::Error::Malformed`]; [`crate::Error::Io`].
pub(super) fn open(blob: SharedBlob, limits: Limits) -> Result<Checkpoint> {
    let origin = blob.origin().to_owned();
    let mut reader = Reader { cursor: Cursor::new(SharedBlob::clone(&blob)), limits, count: 0 };
    let (metadata, tensors, left_out) =
        reader.read().map_err(|problem| problem.into_error(&origin, FORMAT))?;
    let mut checkpoint = Checkpoint::new(&origin, Format::Gguf, vec![blob], tensors);
    checkpoint.metadata = metadata;
    checkpoint.left_out = left_out;
    Ok(checkpoint)
}

struct Reader {
    cursor: Cursor,
    limits: Limits,
    /// Values, tensors and elements of lists so far.
    count: usize,
}

type Contents = (BTreeMap<String, String>, Vec<Tensor>, Vec<LeftOut>);

/// What the table says of a tensor.
struct Entry {
    name: String,
    shape: Vec<usize>,
    kind: u32,
    /// In bytes from where the data begins.
    offset: u64,
}

impl Reader {
    fn read(&mut self) -> Result<Contents, Problem> {
        self.cursor.skip(MAGIC.len())?;
        match self.u32()? {
            2 | 3 => {}
            version if matches!(version.swap_bytes(), 1..=3) => {
                return Err("its numbers begin with the highest byte, which is not read".into());
            }
            version => return Err(format!("its version is {version}; 2 and 3 are read").into()),
        }
        let (tensors, values) = (self.u64()?, self.u64()?);
        let mut metadata = BTreeMap::new();
        for _ in 0..values {
            self.count(1)?;
            let key = self.text(MAX_NAME_BYTES)?.ok_or("a key is too long")?;
            let kind = self.u32()?;
            let value =
                self.value(kind, 0).map_err(|problem| problem.at(format_args!("its value `{key}`")))?;
            metadata.extend(value.map(|value| (key, value)));
        }
        let mut entries = Vec::new();
        for number in 0..tensors {
            self.count(1)?;
            entries.push(self.entry().map_err(|problem| problem.at(format_args!("its tensor {number}")))?);
        }
        let alignment = metadata.get(ALIGNMENT_KEY).map_or(Ok(ALIGNMENT), |text| text.parse());
        let alignment = alignment.ok().filter(|alignment| *alignment > 0);
        let alignment =
            alignment.ok_or_else(|| format!("its value `{ALIGNMENT_KEY}` is no number of bytes"))?;
        let start =
            self.cursor.position().checked_next_multiple_of(alignment).ok_or("its alignment is too large")?;
        let (mut tensors, mut left_out) = (Vec::new(), Vec::new());
        for entry in entries {
            let name = entry.name.clone();
            match self.tensor(entry, start) {
                Ok(tensor) => tensors.push(tensor),
                Err(problem) => left_out.push(LeftOut::unreadable(name, problem)),
            }
        }
        tensors.sort_by_key(|tensor| tensor.extents().first().map(|extent| extent.range.start));
        Ok((metadata, tensors, left_out))
    }

    fn entry(&mut self) -> Result<Entry, Problem> {
        let name = self.bytes(MAX_NAME_BYTES)?.ok_or("its name is too long")?;
        let name = String::from_utf8(name).map_err(|_| "its name is not UTF-8")?;
        let rank = self.u32()? as usize;
        if rank > MAX_RANK {
            return Err(format!("`{name}` has {rank} dimensions, more than {MAX_RANK}").into());
        }
        let mut shape = Vec::with_capacity(rank);
        for _ in 0..rank {
            let size = self.u64()?;
            shape.push(usize::try_from(size).map_err(|_| format!("a dimension of `{name}` is {size}"))?);
        }
        // The first dimension is the fastest there.
        shape.reverse();
        Ok(Entry { name, shape, kind: self.u32()?, offset: self.u64()? })
    }

    fn tensor(&self, entry: Entry, start: usize) -> Result<Tensor, String> {
        let Entry { name, shape, kind, offset } = entry;
        let Some((_, dtype)) = DTYPES.iter().find(|(number, _)| *number == kind) else {
            let quantised = QUANTISED.iter().find(|(number, _)| *number == kind);
            return Err(match quantised {
                Some((_, name)) => format!(
                    "it is quantised ({name}), which is no type of JAX's; convert the model without quantisation, such as \
                     with `--outtype bf16`, or leave it out (`--exclude`)"
                ),
                None => format!("its elements are of GGML's type {kind}, which is not known"),
            });
        };
        let spec = ArraySpec::new(*dtype, shape);
        let bytes = spec.host_bytes().map_err(|error| error.to_string())?;
        let size = self.cursor.blob().size();
        let begin = usize::try_from(offset).ok().and_then(|offset| start.checked_add(offset));
        let range =
            begin.and_then(|begin| Some(begin..begin.checked_add(bytes)?)).filter(|range| range.end <= size);
        let outside = || {
            format!(
                "its {bytes} bytes begin {offset} bytes behind byte {start}, and the file has {size}: it is cut off"
            )
        };
        Ok(Tensor::plain(name, spec, 0, range.ok_or_else(outside)?))
    }

    /// A value as a text, where it is kept: lists are not.
    fn value(&mut self, kind: u32, depth: usize) -> Result<Option<String>, Problem> {
        Ok(match kind {
            0 => Some(self.cursor.array::<1>()?[0].to_string()),
            1 => Some(i8::from_le_bytes(self.cursor.array()?).to_string()),
            2 => Some(u16::from_le_bytes(self.cursor.array()?).to_string()),
            3 => Some(i16::from_le_bytes(self.cursor.array()?).to_string()),
            4 => Some(self.u32()?.to_string()),
            5 => Some(i32::from_le_bytes(self.cursor.array()?).to_string()),
            6 => Some(f32::from_le_bytes(self.cursor.array()?).to_string()),
            7 => Some((self.cursor.array::<1>()?[0] != 0).to_string()),
            8 => self.text(MAX_TEXT_BYTES)?,
            9 => {
                self.list(depth)?;
                None
            }
            10 => Some(self.u64()?.to_string()),
            11 => Some(i64::from_le_bytes(self.cursor.array()?).to_string()),
            12 => Some(f64::from_le_bytes(self.cursor.array()?).to_string()),
            _ => return Err(format!("it is of type {kind}, which is not known").into()),
        })
    }

    /// Passes over a list: those of tokenizers are long.
    fn list(&mut self, depth: usize) -> Result<(), Problem> {
        if depth == MAX_LISTS {
            return Err(format!("its lists are nested deeper than {MAX_LISTS} levels").into());
        }
        let (kind, length) = (self.u32()?, self.u64()?);
        let width = match kind {
            0 | 1 | 7 => Some(1),
            2 | 3 => Some(2),
            4..=6 => Some(4),
            10..=12 => Some(8),
            _ => None,
        };
        if let Some(width) = width {
            let bytes = usize::try_from(length).ok().and_then(|length| length.checked_mul(width));
            self.cursor.skip(bytes.ok_or("a list is longer than memory")?)?;
            return Ok(());
        }
        for _ in 0..length {
            self.count(1)?;
            match kind {
                8 => {
                    let bytes = self.size()?;
                    self.cursor.skip(bytes)?;
                }
                9 => self.list(depth + 1)?,
                _ => return Err(format!("its elements are of type {kind}, which is not known").into()),
            }
        }
        Ok(())
    }

    /// A text; `None` of one that is longer, which is passed over.
    fn text(&mut self, most: usize) -> Result<Option<String>, Problem> {
        Ok(self.bytes(most)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn bytes(&mut self, most: usize) -> Result<Option<Vec<u8>>, Problem> {
        let bytes = self.size()?;
        if bytes > most {
            self.cursor.skip(bytes)?;
            return Ok(None);
        }
        Ok(Some(self.cursor.read_vec(bytes)?))
    }

    fn count(&mut self, more: usize) -> Result<(), Problem> {
        self.count += more;
        Ok(self.limits.check_nodes(self.count)?)
    }

    fn size(&mut self) -> Result<usize, Problem> {
        let size = self.u64()?;
        Ok(usize::try_from(size).map_err(|_| format!("a length is {size}"))?)
    }

    fn u32(&mut self) -> Result<u32, Problem> {
        Ok(u32::from_le_bytes(self.cursor.array()?))
    }

    fn u64(&mut self) -> Result<u64, Problem> {
        Ok(u64::from_le_bytes(self.cursor.array()?))
    }
}
