//! NumPy's `.npy` files: one array each.
//!
//! NumPy itself does not know bfloat16 and the other types of ml_dtypes, and writes their bytes as an
//! untyped `V2` or `V1`; what they are must come from elsewhere.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use bytes::Bytes;

use super::checkpoint::{Checkpoint, Extent, Extents, Format, RecordedStructure, Tensor};
use super::encoding::{Encoding, column_major};
use super::leaves::Leaves;
use super::problem::Problem;
use super::{TensorReader, open_blob};
use crate::array::{ArraySpec, HostArray};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::limits::MAX_RANK;
use crate::store::{Blob, MemoryBlob, SharedBlob, WriteOptions, write_atomically};
use crate::tree::{Framework, KeyMap, TreeDef};

/// Reads an array from a file. `expected` says what untyped bytes are; without it, two-byte ones are taken
/// for bfloat16.
///
/// # Errors
/// [`Error::Io`]; [`Error::Malformed`] when it is not an `.npy` file of numbers, or is cut off.
pub fn read(path: impl AsRef<Path>, expected: Option<DType>) -> Result<HostArray> {
    parse(open_blob(path.as_ref())?, expected)
}

/// Reads an array from the bytes of a file. As [`read`].
///
/// # Errors
/// [`Error::Malformed`].
pub fn from_bytes(file: &[u8], expected: Option<DType>) -> Result<HostArray> {
    parse(MemoryBlob::shared("the npy data in memory", Bytes::copy_from_slice(file)), expected)
}

/// An array as the bytes of a file.
///
/// # Errors
/// [`Error::InvalidArgument`] when it has more dimensions than a header can hold.
pub fn to_bytes(array: &HostArray) -> Result<Vec<u8>> {
    let header = header_of(array.spec()).map_err(|error| Error::InvalidArgument(error.to_string()))?;
    Ok([header.as_slice(), array.bytes()].concat())
}

/// The array that is all of a file.
fn parse(blob: SharedBlob, expected: Option<DType>) -> Result<HostArray> {
    let checkpoint = open_as(blob, expected)?;
    TensorReader::new(&checkpoint)?.read_array(&checkpoint.tensors()[0])
}

/// Holds what a file announces against what follows its header.
fn check_size(blob: &dyn Blob, announced: &Announced) -> Result<(), Problem> {
    let Announced { spec, data_start, .. } = announced;
    let (size, found) = (spec.host_bytes()?, blob.size() - data_start);
    if found == size {
        return Ok(());
    }
    if found > size {
        let start = data_start + size;
        if blob.read(start..blob.size().min(start + MAGIC.len()))? == MAGIC {
            return Err("another array follows the first, as repeated `numpy.save` and Equinox's `tree_serialise_leaves` \
                        write them, without names; open it as a checkpoint, of which they are the leaves"
                .into());
        }
    }
    Err(format!("{spec} takes {size} bytes, but {found} follow the header").into())
}

/// A file as a checkpoint: a tree of one leaf.
pub(super) fn open(blob: SharedBlob) -> Result<Checkpoint> {
    open_as(blob, None)
}

/// As [`open`]; `expected` says what untyped bytes are.
fn open_as(blob: SharedBlob, expected: Option<DType>) -> Result<Checkpoint> {
    let announced = || -> Result<Announced, Problem> {
        let mut head = blob.head(HEADER_BYTES)?;
        if let Some(bytes) = longer_header(&head) {
            head = blob.head(bytes)?;
        }
        let announced = read_header(&head, expected).map_err(HeaderProblem::into_text)?;
        check_size(&*blob, &announced).map(|()| announced)
    };
    let announced = announced().map_err(|problem| problem.into_error(blob.origin(), "npy file"))?;
    let Announced { spec, data_start, encoding } = announced;
    let name = KeyMap::new(TreeDef::LEAF)?.leaves()[0].name.clone();
    let extents = Extents::One(Extent { file: 0, range: data_start..blob.size() });
    let tensor = Tensor { name, spec, extents, encoding, checksum: None };
    let origin = blob.origin().to_owned();
    let mut checkpoint = Checkpoint::new(&origin, Format::Npy, vec![blob], vec![tensor]);
    checkpoint.structure = RecordedStructure::Tree(TreeDef::LEAF, Framework::Plain);
    Ok(checkpoint)
}

/// The type behind NumPy's name for it, such as `<f4` or, without a byte order, `f4`.
pub(super) fn dtype_of(descr: &str) -> Result<DType, String> {
    let with_order =
        if descr.starts_with(['<', '>', '|', '=']) { descr.to_owned() } else { format!("|{descr}") };
    Ok(NpyElement::parse(&with_order, None)?.dtype)
}

/// How elements are held that NumPy wrote as `descr` and in that order.
pub(super) fn encoding_of(spec: &ArraySpec, is_big_endian: bool, is_fortran_order: bool) -> Encoding {
    Encoding {
        is_unpacked: spec.dtype.is_sub_byte(),
        is_big_endian,
        strides: if is_fortran_order { column_major(&spec.shape) } else { None },
        ..Encoding::default()
    }
}

/// Why a header gives no type and shape.
pub(super) enum HeaderProblem {
    /// The file is damaged.
    Damaged(String),
    /// Its elements are no numbers: strings, Python objects.
    NoNumbers(String),
}

impl HeaderProblem {
    fn into_text(self) -> String {
        match self {
            HeaderProblem::Damaged(text) | HeaderProblem::NoNumbers(text) => text,
        }
    }
}

/// What the beginning of a file announces.
pub(super) struct Announced {
    pub spec: ArraySpec,
    /// Where its data begins, in bytes.
    pub data_start: usize,
    pub encoding: Encoding,
}

/// Reads the beginning of a file.
pub(super) fn read_header(head: &[u8], expected: Option<DType>) -> Result<Announced, HeaderProblem> {
    let (header, data) = split(head).map_err(HeaderProblem::Damaged)?;
    let header = NpyHeader::parse(header)?;
    let element = NpyElement::parse(&header.descr, expected).map_err(HeaderProblem::NoNumbers)?;
    let spec = ArraySpec::new(element.dtype, header.shape);
    let encoding = encoding_of(&spec, element.is_big_endian, header.is_fortran_order);
    Ok(Announced { spec, data_start: head.len() - data.len(), encoding })
}

/// The text of an array that is one string: of characters (`<U5`) or bytes (`|S5`), padded with zeros.
pub(super) fn text_scalar(file: &[u8]) -> Option<String> {
    let (header, data) = split(file).ok()?;
    let header = NpyHeader::parse(header).ok()?;
    let (order, descr) = header.descr.split_at_checked(1)?;
    let (kind, size) = descr.split_at_checked(1)?;
    let size: usize = size.parse().ok()?;
    if !header.shape.is_empty() {
        return None;
    }
    let text = match kind {
        "S" if data.len() == size => String::from_utf8(data.to_vec()).ok()?,
        "U" if Some(data.len()) == size.checked_mul(4) => {
            let number = |four: &[u8]| {
                let four = four.try_into().unwrap_or_default();
                if order == ">" { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) }
            };
            data.chunks(4).map(|four| char::from_u32(number(four))).collect::<Option<String>>()?
        }
        _ => return None,
    };
    Some(text.trim_end_matches('\0').to_owned())
}

/// The header of almost any file is within its first bytes; NumPy itself reads no more than 10,000 unless it is told to.
pub(super) const HEADER_BYTES: usize = 65_536 + 16;

/// The longest header that is read, in bytes: one of very many fields.
const MAX_HEADER_BYTES: usize = 16 << 20;

/// How many bytes of a file have its header, where that is more than there are here and not more than is read.
pub(super) fn longer_header(head: &[u8]) -> Option<usize> {
    let (length, rest) = header_length(head).ok()?;
    let bytes = (head.len() - rest.len()).checked_add(length)?;
    (head.len() == HEADER_BYTES && (HEADER_BYTES + 1..=MAX_HEADER_BYTES).contains(&bytes)).then_some(bytes)
}

/// With what every version of the format begins; a byte each for major and minor version follow.
pub(super) const MAGIC: &[u8] = b"\x93NUMPY";

/// The header's text and the data after it.
fn split(file: &[u8]) -> Result<(&str, &[u8]), String> {
    let (length, rest) = header_length(file)?;
    let (header, data) = rest.split_at_checked(length).ok_or_else(|| {
        if length > MAX_HEADER_BYTES {
            format!("its header has {length} bytes, over the limit of {MAX_HEADER_BYTES}")
        } else {
            cut_off()
        }
    })?;
    Ok((std::str::from_utf8(header).map_err(|_| "its header is not text")?, data))
}

fn cut_off() -> String {
    "it is cut off within its header".into()
}

/// The beginning of a file that tells the length of its header, in bytes.
pub(super) const PREAMBLE_BYTES: usize = 12;

/// The bytes of a header, by the preamble that it begins with.
pub(super) fn header_bytes(preamble: &[u8]) -> Result<usize, String> {
    let (length, rest) = header_length(preamble)?;
    (preamble.len() - rest.len()).checked_add(length).ok_or_else(cut_off)
}

/// The bytes of the data behind a header whose elements are bytes of no type, as NumPy writes types that it does not know.
pub(super) fn untyped_bytes(head: &[u8]) -> Option<usize> {
    let header = NpyHeader::parse(split(head).ok()?.0).ok()?;
    let width: usize =
        header.descr.trim_start_matches(['<', '>', '|', '=']).strip_prefix('V')?.parse().ok()?;
    header.shape.iter().try_fold(width, |bytes, &dim| bytes.checked_mul(dim))
}

/// The length of the header's text, and what comes after that length.
fn header_length(file: &[u8]) -> Result<(usize, &[u8]), String> {
    let rest = file.strip_prefix(MAGIC).ok_or("it does not begin with \\x93NUMPY")?;
    let (&[major, _minor], rest) = rest.split_first_chunk::<2>().ok_or_else(cut_off)?;
    // The header's length has two bytes in version 1, and four in versions 2 and 3.
    let (length, rest) = match major {
        1 => rest
            .split_first_chunk::<2>()
            .map(|(length, rest)| (usize::from(u16::from_le_bytes(*length)), rest)),
        2 | 3 => {
            rest.split_first_chunk::<4>().map(|(length, rest)| (u32::from_le_bytes(*length) as usize, rest))
        }
        _ => return Err(format!("version {major} of the format is not known")),
    }
    .ok_or_else(cut_off)?;
    Ok((length, rest))
}

/// What a message shows of a header that cannot be read.
const SHOWN_CHARS: usize = 120;

/// What the header says: a Python dictionary with three entries.
struct NpyHeader {
    descr: String,
    is_fortran_order: bool,
    shape: Vec<usize>,
}

impl NpyHeader {
    fn parse(text: &str) -> Result<NpyHeader, HeaderProblem> {
        let unreadable = || {
            let start: String = text.trim().chars().take(SHOWN_CHARS).collect();
            HeaderProblem::Damaged(format!("its header cannot be read: {start}"))
        };
        // The entry's value, up to the end that its kind of value has.
        let value = |key: &str, close: char| {
            let (_, after) = text.split_once(&format!("'{key}':"))?;
            after.split_once(close).map(|(value, _)| value.trim())
        };
        let descr = value("descr", ',').ok_or_else(unreadable)?;
        if descr.starts_with('[') {
            return Err(HeaderProblem::NoNumbers("its elements are records, not numbers".into()));
        }
        let descr = descr.strip_prefix('\'').and_then(|descr| descr.strip_suffix('\''));
        let descr = descr.ok_or_else(unreadable)?.to_owned();
        let is_fortran_order = match value("fortran_order", ',') {
            Some("True") => true,
            Some("False") => false,
            _ => return Err(unreadable()),
        };
        let shape = value("shape", ')').and_then(|shape| shape.strip_prefix('(')).ok_or_else(unreadable)?;
        let dims = shape.split(',').map(str::trim).filter(|dim| !dim.is_empty());
        let shape: Vec<usize> = dims.map(str::parse).collect::<Result<_, _>>().map_err(|_| unreadable())?;
        if shape.len() > MAX_RANK {
            let rank = shape.len();
            return Err(HeaderProblem::Damaged(format!(
                "it has {rank} dimensions, and NumPy's arrays have at most {MAX_RANK}"
            )));
        }
        Ok(NpyHeader { descr, is_fortran_order, shape })
    }
}

/// The type of the elements.
struct NpyElement {
    dtype: DType,
    is_big_endian: bool,
}

impl NpyElement {
    /// Reads a type as NumPy writes it: byte order, kind, bytes, such as `<f4`.
    fn parse(descr: &str, expected: Option<DType>) -> Result<NpyElement, String> {
        let unsupported = || format!("its elements are of type `{}`, which is not supported", descr);
        let (order, rest) = descr.split_at_checked(1).ok_or_else(unsupported)?;
        let (kind, size) = rest.split_at_checked(1).ok_or_else(unsupported)?;
        let bits =
            size.parse::<usize>().ok().and_then(|bytes| bytes.checked_mul(8)).ok_or_else(unsupported)?;
        let kind = match kind {
            "b" if bits == 8 => return Ok(NpyElement { dtype: DType::Bool, is_big_endian: false }),
            "V" => return NpyElement::untyped(bits, expected),
            "i" => "int",
            "u" => "uint",
            "f" => "float",
            "c" => "complex",
            _ => return Err(unsupported()),
        };
        let dtype = DType::from_name(&format!("{kind}{bits}")).ok_or_else(unsupported)?;
        Ok(NpyElement { dtype, is_big_endian: order == ">" })
    }

    /// Elements of which only the width is known.
    fn untyped(bits: usize, expected: Option<DType>) -> Result<NpyElement, String> {
        let dtype = match (expected, bits) {
            (Some(dtype), bits) if dtype.bits().next_multiple_of(8) == bits => dtype,
            (None, 16) => DType::BF16,
            _ => {
                return Err(format!(
                    "its elements are {bits} bits of no type, as NumPy writes types that it does not know; save the \
                     array as safetensors instead"
                ));
            }
        };
        Ok(NpyElement { dtype, is_big_endian: false })
    }
}

/// Writes an array to a file, through a temporary one beside it.
///
/// # Errors
/// [`Error::Io`].
pub fn write(path: impl AsRef<Path>, array: &HostArray) -> Result<()> {
    write_bytes(path.as_ref(), array.spec(), array.bytes(), WriteOptions::default())
}

/// As [`write`](fn@write), of an array's bytes: row-major and little-endian, sub-byte elements in a byte each.
pub(crate) fn write_bytes(path: &Path, spec: &ArraySpec, bytes: &[u8], options: WriteOptions) -> Result<()> {
    let header = header_of(spec).map_err(|error| Error::io("write", path, error))?;
    write_atomically(path, options, |file| {
        file.write_all(&header)?;
        file.write_all(bytes)
    })
}

/// The file up to the data, in version 1.0, padded so that the data begins at a multiple of 64.
pub(super) fn header_of(spec: &ArraySpec) -> std::io::Result<Vec<u8>> {
    /// Magic, version and the header's length.
    const FIXED_BYTES: usize = MAGIC.len() + 4;
    let dims: String = spec.shape.iter().map(|dim| format!("{dim}, ")).collect();
    // Python writes (3,) but (3, 4).
    let dims = if spec.shape.len() == 1 { dims.trim_end() } else { dims.trim_end_matches(", ") };
    let mut text =
        format!("{{'descr': '{}', 'fortran_order': False, 'shape': ({dims}), }}", descr(spec.dtype));
    let padded = (FIXED_BYTES + text.len() + 1).next_multiple_of(64) - FIXED_BYTES;
    text.extend(std::iter::repeat_n(' ', padded - text.len() - 1));
    text.push('\n');
    let length =
        u16::try_from(text.len()).map_err(|_| std::io::Error::other("the shape has too many dimensions"))?;
    Ok([MAGIC, &[1, 0], &length.to_le_bytes(), text.as_bytes()].concat())
}

/// The type as NumPy writes it: untyped bytes for what NumPy does not know, as ml_dtypes does.
fn descr(dtype: DType) -> String {
    match numpy_descr(dtype) {
        Some(descr) => descr,
        None if dtype == DType::BF16 => "<V2".into(),
        None => "|V1".into(),
    }
}

/// Tells of types that NumPy does not know.
pub(crate) fn note_types(leaves: &mut dyn Leaves) {
    let unknown = leaves.specs().iter().map(|spec| spec.dtype).filter(|dtype| numpy_descr(*dtype).is_none());
    let unknown: BTreeSet<&str> = unknown.map(DType::name).collect();
    for name in unknown {
        leaves.note(format!(
            "NumPy's files have no name for {name}: numpy.load gives bytes, of which `.view(ml_dtypes.{name})` makes numbers"
        ));
    }
}

/// NumPy's own name for a type, if it has one.
pub(super) fn numpy_descr(dtype: DType) -> Option<String> {
    let bytes = dtype.bits().div_ceil(8);
    Some(match dtype {
        DType::Bool => "|b1".into(),
        DType::I8 => "|i1".into(),
        DType::U8 => "|u1".into(),
        DType::I16 | DType::I32 | DType::I64 => format!("<i{bytes}"),
        DType::U16 | DType::U32 | DType::U64 => format!("<u{bytes}"),
        DType::F16 | DType::F32 | DType::F64 => format!("<f{bytes}"),
        DType::C64 | DType::C128 => format!("<c{bytes}"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file as NumPy 2 writes it.
    fn file(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
        let fortran = if fortran { "True" } else { "False" };
        let mut header = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}");
        while (header.len() + 11) % 64 != 0 {
            header.push(' ');
        }
        header.push('\n');
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend((header.len() as u16).to_le_bytes());
        file.extend(header.as_bytes());
        file.extend(data);
        file
    }

    #[test]
    fn order_and_endianness_are_made_native() {
        let array = from_bytes(&file("|u1", true, "(2, 3)", &[1, 4, 2, 5, 3, 6]), None).unwrap();
        assert_eq!(&array.bytes()[..], [1, 2, 3, 4, 5, 6]);
        let array = from_bytes(&file(">i2", false, "(2,)", &[0, 1, 1, 0]), None).unwrap();
        assert_eq!(array.to_vec::<i16>().unwrap(), [1, 256]);
    }

    #[test]
    fn every_element_of_fortrans_order_finds_its_place() {
        for shape in
            [vec![5, 7], vec![3, 1, 4], vec![300, 2, 70], vec![2, 3, 4, 5], vec![1, 9], vec![130, 129]]
        {
            let spec = ArraySpec::new(DType::U32, shape.clone());
            let count = spec.element_count().unwrap();
            // Each element is its position in C's order.
            let mut fortran = vec![0u32; count];
            for position in 0..count {
                let (mut rest, mut index) = (position, vec![0; shape.len()]);
                for (place, dim) in index.iter_mut().zip(&shape).rev() {
                    (*place, rest) = (rest % dim, rest / dim);
                }
                let place = index.iter().zip(&shape).rev().fold(0, |place, (i, dim)| place * dim + i);
                fortran[place] = position as u32;
            }
            let bytes = bytemuck::cast_slice(&fortran);
            let ordered = from_bytes(
                &file("<u4", true, &format!("{shape:?}").replace('[', "(").replace(']', ")"), bytes),
                None,
            );
            let ordered = ordered.unwrap();
            let expected: Vec<u32> = (0..count as u32).collect();
            assert!(ordered.to_vec::<u32>().unwrap() == expected, "{shape:?}");
        }
    }

    #[test]
    fn a_string_without_dimensions_is_text() {
        let utf32: Vec<u8> = "né\0".chars().flat_map(|c| (c as u32).to_le_bytes()).collect();
        assert_eq!(text_scalar(&file("<U3", false, "()", &utf32)).as_deref(), Some("né"));
        assert_eq!(text_scalar(&file("|S2", false, "()", b"ab")).as_deref(), Some("ab"));
        assert_eq!(text_scalar(&file("|S2", false, "(1,)", b"ab")), None);
        assert_eq!(text_scalar(&file("<f4", false, "()", &[0; 4])), None);
    }

    #[test]
    fn bytes_without_a_type_take_the_one_that_is_expected() {
        let bytes = file("<V2", false, "()", &[0x80, 0x3f]);
        assert_eq!(from_bytes(&bytes, None).unwrap().spec().dtype, DType::BF16);
        assert_eq!(from_bytes(&bytes, Some(DType::BF16)).unwrap().spec().dtype, DType::BF16);
        assert!(
            from_bytes(&file("|V1", false, "()", &[0]), None).unwrap_err().to_string().contains("no type")
        );
        assert!(from_bytes(&bytes, Some(DType::F32)).is_err());
    }

    #[test]
    fn a_damaged_file_is_an_error() {
        let whole = file("<f4", false, "(2,)", &[0; 8]);
        for length in 0..whole.len() {
            assert!(from_bytes(&whole[..length], None).is_err(), "cut to {length} bytes");
        }
        assert!(from_bytes(&file("<f4", false, "(9223372036854775807, 8)", &[]), None).is_err());
        assert!(from_bytes(&file("|O", false, "(1,)", &[0; 8]), None).is_err());
    }

    #[test]
    fn what_is_written_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.npy");
        for dtype in DType::all().filter(|dtype| dtype.to_pjrt().is_some() && !dtype.is_sub_byte()) {
            let spec = ArraySpec::new(dtype, [2, 1]);
            let data: Vec<u8> = (0..spec.host_bytes().unwrap() as u8).map(|byte| byte % 2).collect();
            let array = HostArray::from_bytes(spec, data).unwrap();
            write(&path, &array).unwrap();
            assert_eq!(read(&path, Some(dtype)).unwrap(), array);
        }
    }
}
