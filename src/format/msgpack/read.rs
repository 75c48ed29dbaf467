//! The parser: it finds the leaves' places in the bytes and reads none of them.

use std::ops::Range;

use rmp::Marker;

use super::{CHUNKED, EXT_COMPLEX, EXT_NDARRAY, EXT_NUMPY_SCALAR, FlaxLeaf, LeafContent};
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::format::complex::complex_scalar;
use crate::format::problem::Problem;
use crate::limits::{Limits, MAX_RANK};
use crate::store::{Cursor, SharedBlob};
use crate::tree::{DictKey, LeafKind, MAX_DEPTH, TreeDef};

type Result<T> = std::result::Result<T, Problem>;

/// The structure of a file, and its leaves in JAX's order.
pub fn read(blob: SharedBlob, file: usize, limits: Limits) -> Result<(TreeDef, Vec<FlaxLeaf>)> {
    let size = blob.size();
    let mut parser = Parser { bytes: Cursor::new(blob), file, limits, nodes: 0 };
    let node = parser.node(0)?;
    if parser.bytes.rest() > 0 {
        let end = parser.bytes.position();
        return Err(format!("the tree ends at byte {end}, but the file has {size}").into());
    }
    let mut leaves = Vec::new();
    let def = node.into_def(&mut leaves)?;
    Ok((def, leaves))
}

/// A node with its leaves still in it, in the file's order.
enum Node {
    Leaf(LeafKind, FlaxLeaf),
    None,
    Str(String),
    Bytes(Vec<u8>),
    Map(Vec<(DictKey, Node)>),
    List(Vec<Node>),
}

impl Node {
    /// The structure; the leaves are appended in its order.
    fn into_def(self, leaves: &mut Vec<FlaxLeaf>) -> Result<TreeDef> {
        match self {
            Node::None => Ok(TreeDef::None),
            Node::Str(text) => Ok(TreeDef::Str(text)),
            Node::Bytes(bytes) => Ok(TreeDef::Bytes(bytes)),
            Node::Leaf(kind, leaf) => {
                leaves.push(leaf);
                Ok(TreeDef::Leaf(kind))
            }
            Node::List(items) => {
                let items = items.into_iter().map(|item| item.into_def(leaves));
                Ok(TreeDef::List(items.collect::<Result<_>>()?))
            }
            Node::Map(mut entries) => {
                entries.sort_by(|a, b| a.0.cmp(&b.0));
                let entries = entries.into_iter().map(|(key, node)| Ok((key, node.into_def(leaves)?)));
                let entries = entries.collect::<Result<Vec<_>>>()?;
                TreeDef::dict(entries).map_err(|error| error.to_string().into())
            }
        }
    }
}

struct Parser {
    bytes: Cursor,
    file: usize,
    limits: Limits,
    /// Nodes so far.
    nodes: usize,
}

impl Parser {
    /// Where it is.
    fn position(&self) -> usize {
        self.bytes.position()
    }

    /// The bytes of a big-endian number.
    fn number<const N: usize>(&mut self) -> Result<u64> {
        Ok(self.bytes.array::<N>()?.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    /// A length of this many bytes.
    fn length<const N: usize>(&mut self) -> Result<usize> {
        // At most 32 bits.
        Ok(self.number::<N>()? as usize)
    }

    fn marker(&mut self) -> Result<Marker> {
        let [byte] = self.bytes.array()?;
        Ok(Marker::from_u8(byte))
    }

    fn node(&mut self, depth: usize) -> Result<Node> {
        if depth > MAX_DEPTH {
            let problem = format!("it is nested deeper than {MAX_DEPTH} levels at byte {}", self.position());
            return Err(problem.into());
        }
        self.nodes += 1;
        self.limits.check_nodes(self.nodes)?;
        let start = self.position();
        let marker = self.marker()?;
        match marker {
            Marker::Null => Ok(Node::None),
            Marker::FixMap(count) => self.map(usize::from(count), depth),
            Marker::Map16 => self.length::<2>().and_then(|count| self.map(count, depth)),
            Marker::Map32 => self.length::<4>().and_then(|count| self.map(count, depth)),
            Marker::FixArray(count) => self.list(usize::from(count), depth),
            Marker::Array16 => self.length::<2>().and_then(|count| self.list(count, depth)),
            Marker::Array32 => self.length::<4>().and_then(|count| self.list(count, depth)),
            Marker::True | Marker::False => {
                Ok(scalar(LeafKind::Bool, DType::Bool, vec![u8::from(matches!(marker, Marker::True))]))
            }
            Marker::F32 => {
                let value = f32::from_bits(self.number::<4>()? as u32);
                Ok(scalar(LeafKind::Float, DType::F64, f64::from(value).to_le_bytes().to_vec()))
            }
            Marker::F64 => {
                Ok(scalar(LeafKind::Float, DType::F64, self.number::<8>()?.to_le_bytes().to_vec()))
            }
            marker => {
                if let Some(integer) = self.integer(marker)? {
                    return Ok(scalar(LeafKind::Int, DType::I64, integer.to_le_bytes().to_vec()));
                }
                if let Some(length) = self.string(marker)? {
                    let text = String::from_utf8(self.bytes.read_vec(length)?);
                    let text = text.map_err(|_| format!("the string at byte {start} is not UTF-8"))?;
                    return Ok(Node::Str(text));
                }
                if let Some(length) = self.binary(marker)? {
                    return Ok(Node::Bytes(self.bytes.read_vec(length)?));
                }
                match self.extension(marker)? {
                    Some((kind, length)) => self.extension_node(kind, length),
                    None => {
                        Err(format!("the byte 0x{:02x} at {start} begins nothing", marker.to_u8()).into())
                    }
                }
            }
        }
    }

    /// The value behind the marker of an integer; `None` for another marker.
    fn integer(&mut self, marker: Marker) -> Result<Option<i64>> {
        let start = self.position();
        Ok(Some(match marker {
            Marker::FixPos(value) => i64::from(value),
            Marker::FixNeg(value) => i64::from(value),
            Marker::U8 => self.number::<1>()? as i64,
            Marker::U16 => self.number::<2>()? as i64,
            Marker::U32 => self.number::<4>()? as i64,
            Marker::U64 => i64::try_from(self.number::<8>()?)
                .map_err(|_| format!("the integer at byte {start} does not fit into 64 bits with a sign"))?,
            Marker::I8 => i64::from(self.number::<1>()? as i8),
            Marker::I16 => i64::from(self.number::<2>()? as i16),
            Marker::I32 => i64::from(self.number::<4>()? as i32),
            Marker::I64 => self.number::<8>()? as i64,
            _ => return Ok(None),
        }))
    }

    /// The length behind the marker of a string; `None` for another marker.
    fn string(&mut self, marker: Marker) -> Result<Option<usize>> {
        Ok(Some(match marker {
            Marker::FixStr(length) => usize::from(length),
            Marker::Str8 => self.length::<1>()?,
            Marker::Str16 => self.length::<2>()?,
            Marker::Str32 => self.length::<4>()?,
            _ => return Ok(None),
        }))
    }

    /// The length behind the marker of bytes; `None` for another marker.
    fn binary(&mut self, marker: Marker) -> Result<Option<usize>> {
        Ok(Some(match marker {
            Marker::Bin8 => self.length::<1>()?,
            Marker::Bin16 => self.length::<2>()?,
            Marker::Bin32 => self.length::<4>()?,
            _ => return Ok(None),
        }))
    }

    /// The type and length behind the marker of an extension; `None` for another marker.
    fn extension(&mut self, marker: Marker) -> Result<Option<(i8, usize)>> {
        let length = match marker {
            Marker::FixExt1 => 1,
            Marker::FixExt2 => 2,
            Marker::FixExt4 => 4,
            Marker::FixExt8 => 8,
            Marker::FixExt16 => 16,
            Marker::Ext8 => self.length::<1>()?,
            Marker::Ext16 => self.length::<2>()?,
            Marker::Ext32 => self.length::<4>()?,
            _ => return Ok(None),
        };
        Ok(Some((self.number::<1>()? as i8, length)))
    }

    fn map(&mut self, count: usize, depth: usize) -> Result<Node> {
        let mut entries: Vec<(DictKey, Node)> = Vec::new();
        for position in 0..count {
            let key = self.key()?;
            if position == 0 && key == DictKey::from(CHUNKED) {
                return self.chunked(count, depth);
            }
            entries.push((key, self.node(depth + 1)?));
        }
        Ok(Node::Map(entries))
    }

    fn list(&mut self, count: usize, depth: usize) -> Result<Node> {
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(self.node(depth + 1)?);
        }
        Ok(Node::List(items))
    }

    fn key(&mut self) -> Result<DictKey> {
        let start = self.position();
        let marker = self.marker()?;
        if let Some(integer) = self.integer(marker)? {
            return Ok(DictKey::Int(integer));
        }
        let length = self.string(marker)?.ok_or_else(|| {
            format!("a key was expected at byte {start}, and there is 0x{:02x}", marker.to_u8())
        })?;
        let text = String::from_utf8(self.bytes.read_vec(length)?);
        Ok(DictKey::Str(text.map_err(|_| format!("the key at byte {start} is not UTF-8"))?))
    }

    /// What an extension holds: a message of its own, which ends where it does.
    fn extension_node(&mut self, kind: i8, length: usize) -> Result<Node> {
        let start = self.position();
        self.bytes.check(length)?;
        let outer_end = self.bytes.end_after(length);
        let node = match kind {
            EXT_NDARRAY | EXT_NUMPY_SCALAR => {
                let (spec, range) = self.array()?;
                let content = LeafContent::Ranges(self.file, vec![range]);
                Node::Leaf(LeafKind::Array, FlaxLeaf { spec, content })
            }
            EXT_COMPLEX => self.complex()?,
            kind => {
                let problem =
                    format!("the extension at byte {start} is of type {kind}, which Flax does not write");
                return Err(problem.into());
            }
        };
        self.bytes.leave(outer_end);
        Ok(node)
    }

    /// An array's inner message: shape, type's name, bytes.
    fn array(&mut self) -> Result<(ArraySpec, Range<usize>)> {
        let start = self.position();
        let wrong = |what: &str| Problem::Content(format!("the array at byte {start} {what}"));
        let Marker::FixArray(3) = self.marker()? else { return Err(wrong("is not [shape, type, bytes]")) };
        let count = match self.marker()? {
            Marker::FixArray(count) => usize::from(count),
            Marker::Array16 => self.length::<2>()?,
            _ => return Err(wrong("has no shape")),
        };
        if count > MAX_RANK {
            return Err(wrong(&format!("has more than {MAX_RANK} dimensions")));
        }
        let mut shape = Vec::new();
        for _ in 0..count {
            let marker = self.marker()?;
            let dim = self.integer(marker)?.and_then(|dim| usize::try_from(dim).ok());
            shape.push(dim.ok_or_else(|| wrong("has a dimension that is no size"))?);
        }
        let DictKey::Str(name) = self.key()? else { return Err(wrong("has no type")) };
        let dtype = DType::from_name(&name).filter(|dtype| dtype.name() == name);
        let dtype = dtype.ok_or_else(|| wrong(&format!("is of type `{}`, which is not known", name)))?;
        let marker = self.marker()?;
        let length = match self.binary(marker)? {
            Some(length) => length,
            // Old writers store bytes as a string.
            None => self.string(marker)?.ok_or_else(|| wrong("has no bytes"))?,
        };
        let spec = ArraySpec::new(dtype, shape);
        let expected = spec.host_bytes().map_err(|error| wrong(&format!("cannot be: {error}")))?;
        if length != expected {
            return Err(wrong(&format!("is {spec}, {expected} bytes, but has {length}")));
        }
        let range = self.bytes.skip(length)?;
        if self.bytes.rest() > 0 {
            return Err(wrong("is followed by something else"));
        }
        Ok((spec, range))
    }

    /// A complex scalar: real and imaginary part.
    fn complex(&mut self) -> Result<Node> {
        let start = self.position();
        let wrong =
            || Problem::Content(format!("the complex number at byte {start} is not [real, imaginary]"));
        let Marker::FixArray(2) = self.marker()? else { return Err(wrong()) };
        let mut parts = [0.0; 2];
        for part in &mut parts {
            *part = match self.marker()? {
                Marker::F64 => f64::from_bits(self.number::<8>()?),
                Marker::F32 => f64::from(f32::from_bits(self.number::<4>()? as u32)),
                marker => self.integer(marker)?.ok_or_else(wrong)? as f64,
            };
        }
        if self.bytes.rest() > 0 {
            return Err(wrong());
        }
        let (kind, dtype, bytes) = complex_scalar(parts[0], parts[1]);
        Ok(scalar(kind, dtype, bytes))
    }

    /// The rest of a map that stands for an array in chunks, whose first key has been read.
    fn chunked(&mut self, count: usize, depth: usize) -> Result<Node> {
        let start = self.position();
        let wrong = |what: &str| Problem::Content(format!("the array in chunks at byte {start} {what}"));
        if count != 3 || !matches!(self.marker()?, Marker::True) {
            return Err(wrong("is not a map of a mark, a shape and chunks"));
        }
        let (mut shape, mut chunks) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let key = self.key()?;
            // What is in there is two levels deep; another such array in it is deeper, however often.
            let Node::Map(mut entries) = self.node((depth + 1).max(MAX_DEPTH - 2))? else {
                return Err(wrong("has a part that is no map"));
            };
            // "0", "1", …, "10": by number, not as strings.
            entries.sort_by_key(|(key, _)| match key {
                DictKey::Str(key) => key.parse::<i64>().unwrap_or(i64::MAX),
                DictKey::Int(key) => *key,
            });
            match key {
                DictKey::Str(key) if key == "shape" => shape = entries,
                DictKey::Str(key) if key == "chunks" => chunks = entries,
                _ => return Err(wrong("has a part that is neither shape nor chunks")),
            }
        }
        let dim = |(_, node): &(DictKey, Node)| match node {
            Node::Leaf(LeafKind::Int, FlaxLeaf { content: LeafContent::Scalar(bytes), .. }) => {
                let bytes: [u8; 8] = bytes.as_slice().try_into().ok()?;
                usize::try_from(i64::from_le_bytes(bytes)).ok()
            }
            _ => None,
        };
        if shape.len() > MAX_RANK {
            return Err(wrong(&format!("has more than {MAX_RANK} dimensions")));
        }
        let shape: Option<Vec<usize>> = shape.iter().map(dim).collect();
        let mut ranges = Vec::new();
        let mut dtype = None;
        for (_, chunk) in chunks {
            let Node::Leaf(_, FlaxLeaf { spec, content: LeafContent::Ranges(_, range) }) = chunk else {
                return Err(wrong("has a chunk that is no array"));
            };
            if *dtype.get_or_insert(spec.dtype) != spec.dtype {
                return Err(wrong("has chunks of several types"));
            }
            ranges.extend(range);
        }
        let shape = shape.ok_or_else(|| wrong("has a dimension that is no size"))?;
        let spec = ArraySpec::new(dtype.ok_or_else(|| wrong("has no chunks"))?, shape);
        let expected = spec.host_bytes().map_err(|error| wrong(&format!("cannot be: {error}")))?;
        let found: usize = ranges.iter().map(Range::len).sum();
        if found != expected {
            return Err(wrong(&format!("is {spec}, {expected} bytes, but its chunks have {found}")));
        }
        Ok(Node::Leaf(LeafKind::Array, FlaxLeaf { spec, content: LeafContent::Ranges(self.file, ranges) }))
    }
}

fn scalar(kind: LeafKind, dtype: DType, bytes: Vec<u8>) -> Node {
    Node::Leaf(kind, FlaxLeaf { spec: ArraySpec::new(dtype, []), content: LeafContent::Scalar(bytes) })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::store::MemoryBlob;

    fn parse(bytes: &[u8]) -> Result<(TreeDef, Vec<FlaxLeaf>)> {
        read(MemoryBlob::shared("memory", Bytes::copy_from_slice(bytes)), 0, Limits::default())
    }

    fn problem(bytes: &[u8]) -> String {
        parse(bytes).unwrap_err().to_string()
    }

    /// A list of so many times nothing.
    fn nils(count: u32) -> Vec<u8> {
        let mut file = vec![0xdd];
        file.extend(count.to_be_bytes());
        file.resize(5 + count as usize, 0xc0);
        file
    }

    #[test]
    fn what_is_cut_off_nests_for_ever_or_claims_too_much_is_an_error() {
        assert!(problem(&[]).contains("cut off"));
        assert!(problem(&[0xdf, 0xff, 0xff, 0xff, 0xff]).contains("cut off"));
        assert!(problem(&[0xdd, 0xff, 0xff, 0xff, 0xff, 0xc0]).contains("cut off"));
        assert!(problem(&[0x91; 100_000]).contains("nested deeper than 128"));
        assert!(problem(&[0xc6, 0xff, 0xff, 0xff, 0xff]).contains("cut off"));
        assert!(problem(&[0xa1, 0xff]).contains("not UTF-8"));
        assert!(problem(&[0xc1]).contains("0xc1 at 0 begins nothing"));
        assert!(problem(&nils(1 << 21)).contains("more than 1048576 nodes"));
        assert!(problem(&[0x81, 0xc0, 0xc0]).contains("a key was expected at byte 1"));
        assert!(problem(&[0xc0, 0xc0]).contains("ends at byte 1"));
        assert!(problem(&[0xd4, 9, 0]).contains("of type 9"));
        // An array that says it has 2^60 elements.
        let mut array = vec![0x93, 0x91, 0xcf, 0x10, 0, 0, 0, 0, 0, 0, 0, 0xa7];
        array.extend(b"float32");
        array.extend([0xc4, 0]);
        let mut file = vec![0xc7, array.len() as u8, 1];
        file.extend(&array);
        assert!(
            problem(&file).contains("float32[1152921504606846976], 4611686018427387904 bytes, but has 0")
        );
        for length in 0..file.len() {
            assert!(parse(&file[..length]).is_err());
        }
    }

    #[test]
    fn native_values_become_scalars() {
        let bytes = [
            0x86, 0xa1, b'a', 0xc3, 0xa1, b'b', 0xff, 0xa1, b'c', 0xc0, 0xa1, b'd', 0x90, 0xa1, b'e', 0xa1,
            b'x', 0xa1, b'f', 0xc4, 2, 0, 1,
        ];
        let (def, leaves) = parse(&bytes).unwrap();
        assert_eq!(def.to_string(), "{'a': *, 'b': *, 'c': None, 'd': [], 'e': \"x\", 'f': <2 bytes>}");
        let specs: Vec<String> = leaves.iter().map(|leaf| leaf.spec.to_string()).collect();
        assert_eq!(specs, ["bool[]", "int64[]"]);
    }
}
