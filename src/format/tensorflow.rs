//! TensorFlow's checkpoints: the variables of a SavedModel, and what `tf.train.Checkpoint` and `tf.compat.v1.train.Saver` write. A
//! table names the tensors (`PREFIX.index`), whose bytes lie in `PREFIX.data-0000S-of-0000N`. Held against TensorFlow 2.21, and
//! files of TensorFlow 1 and 2 in Python packages.

mod messages;
mod place;
mod table;

use std::collections::BTreeMap;

use prost::Message;

use super::checkpoint::{Checkpoint, Extents, Format, LeftOut, RecordedStructure, Tensor};
use super::encoding::Encoding;
use super::folder::Folder;
use super::problem::Problem;
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::error::Result;
use crate::limits::{Limits, MAX_RANK};
use crate::store::Digest;
use crate::tree::{Framework, Key, KeyMap, KeyPath};
use messages::{Entry, Header, ObjectGraph, Shape};
pub(super) use place::{Place, place_of};

/// What a checkpoint is, for errors.
const FORMAT: &str = "checkpoint of TensorFlow";

/// What the keys of variables end with since TensorFlow 2.
const VARIABLE: &str = "/.ATTRIBUTES/VARIABLE_VALUE";

/// The key of the graph of objects, which has the variables' own names.
const OBJECT_GRAPH: &str = "_CHECKPOINTABLE_OBJECT_GRAPH";

/// The largest graph of objects that is read, in bytes.
const MAX_GRAPH_BYTES: usize = 64 << 20;

/// The number of the type of texts.
const TEXT: i32 = 7;

/// The types by their numbers (`tensorflow/core/framework/types.proto`).
const DTYPES: [(i32, DType); 20] = [
    (1, DType::F32),
    (2, DType::F64),
    (3, DType::I32),
    (4, DType::U8),
    (5, DType::I16),
    (6, DType::I8),
    (8, DType::C64),
    (9, DType::I64),
    (10, DType::Bool),
    (14, DType::BF16),
    (17, DType::U16),
    (18, DType::C128),
    (19, DType::F16),
    (22, DType::U32),
    (23, DType::U64),
    (24, DType::F8E5M2),
    (25, DType::F8E4M3FN),
    (29, DType::I4),
    (30, DType::U4),
    (26, DType::F8E4M3FNUZ),
];

/// Opens the checkpoint that is there.
///
/// # Errors
/// [`crate::Error::Malformed`]; [`crate::Error::Io`].
pub(super) fn open(place: &Place, limits: Limits) -> Result<Checkpoint> {
    let mut folder = Folder::new(&place.directory, limits);
    let origin = place.origin();
    let read = Contents::read(&mut folder, &place.prefix);
    let Contents { tensors: found, left_out, names, .. } =
        read.map_err(|problem| problem.into_error(&origin, FORMAT))?;
    let keys: Vec<&str> = found.iter().map(|tensor| tensor.name.as_str()).collect();
    let paths = keys.iter().map(|name| path_of(name)).collect();
    // The slots of an optimizer can be below the variable that they are of.
    let placed = KeyMap::place_paths_or_flat(&keys, paths);
    let (keys, order) =
        placed.map_err(|error| Problem::Content(error.to_string()).into_error(&origin, FORMAT))?;
    let leaves = keys.leaves().iter().zip(order);
    let named = leaves.map(|(leaf, position)| {
        let tensor = Tensor { name: leaf.name.clone(), ..found[position].clone() };
        (tensor, names.get(&found[position].name))
    });
    let (mut tensors, mut metadata) = (Vec::with_capacity(found.len()), BTreeMap::new());
    for (tensor, full_name) in named {
        if let Some(full_name) = full_name {
            metadata.insert(format!("full_name.{}", tensor.name), full_name.clone());
        }
        tensors.push(tensor);
    }
    let mut checkpoint = Checkpoint::new(&origin, Format::TensorFlow, folder.into_blobs(), tensors);
    checkpoint.structure = RecordedStructure::Tree(keys.def().clone(), Framework::Plain);
    checkpoint.left_out = left_out;
    checkpoint.metadata = metadata;
    Ok(checkpoint)
}

/// The keys that a name stands for.
fn path_of(name: &str) -> KeyPath {
    KeyPath::from(name.split('/').map(Key::dict).collect::<Vec<_>>())
}

/// What a checkpoint holds.
struct Contents<'a> {
    folder: &'a mut Folder,
    prefix: &'a str,
    header: Header,
    tensors: Vec<Tensor>,
    left_out: Vec<LeftOut>,
    /// The names that variables have in the program, by those of the tensors.
    names: BTreeMap<String, String>,
}

impl<'a> Contents<'a> {
    fn read(folder: &'a mut Folder, prefix: &'a str) -> Result<Contents<'a>, Problem> {
        let index = format!("{prefix}.index");
        let table = folder.read_whole(&index)?;
        let entries = table::read(&table, folder).map_err(|problem| problem.at(format_args!("`{index}`")))?;
        let header = entries.get(&b""[..]).ok_or("its table has no header")?;
        let header =
            Header::decode(&**header).map_err(|error| format!("its header cannot be read: {error}"))?;
        if header.endianness > 1 || header.num_shards < 1 {
            return Err(format!(
                "its header has {} files, of byte order {}",
                header.num_shards, header.endianness
            )
            .into());
        }
        let (tensors, left_out, names) = (Vec::new(), Vec::new(), BTreeMap::new());
        let mut contents = Contents { folder, prefix, header, tensors, left_out, names };
        for (key, value) in &entries {
            // Keys that begin with a zero are those of slices, which belong to a tensor with a name.
            if key.first().is_none_or(|byte| *byte == 0) {
                continue;
            }
            let name = std::str::from_utf8(key).map_err(|_| "a name is no text")?;
            contents.add(name, value)?;
        }
        Ok(contents)
    }

    fn add(&mut self, key: &str, value: &[u8]) -> Result<(), Problem> {
        let name = key.strip_suffix(VARIABLE).unwrap_or(key);
        let entry = Entry::decode(value).map_err(|error| format!("`{name}` cannot be read: {error}"))?;
        if key == OBJECT_GRAPH {
            return self.add_names(&entry).map_err(|problem| problem.at("its graph of objects"));
        }
        if entry.dtype == TEXT {
            self.left_out.push(LeftOut::new(name, "its elements are texts"));
            return Ok(());
        }
        match self.tensor(name, &entry) {
            Ok(tensor) => self.tensors.push(tensor),
            Err(Problem::Content(problem)) => self.left_out.push(LeftOut::unreadable(name, problem)),
            Err(unreadable) => return Err(unreadable),
        }
        Ok(())
    }

    fn tensor(&mut self, name: &str, entry: &Entry) -> Result<Tensor, Problem> {
        if !entry.slices.is_empty() {
            return Err("it is saved in slices, as of partitioned variables, which are not read".into());
        }
        let dtype = DTYPES.iter().find(|(number, _)| *number == entry.dtype);
        let dtype = dtype.ok_or_else(|| {
            format!("its elements are of TensorFlow's type {}, which is not read", entry.dtype)
        })?;
        let spec = ArraySpec::new(dtype.1, sizes(entry.shape.as_ref())?);
        let range = self.range(entry)?;
        let bytes = spec.host_bytes()?;
        if range.len() != bytes {
            return Err(format!("it is {spec}, {bytes} bytes, and {} are recorded", range.len()).into());
        }
        let location = self.folder.locate(&self.shard(entry.shard_id)?, range)?;
        let encoding = Encoding {
            is_unpacked: spec.dtype.is_sub_byte(),
            is_big_endian: self.header.endianness == 1,
            ..Encoding::default()
        };
        let checksum = Some(Box::new(Digest::Crc32c(table::unmasked(entry.crc32c))));
        Ok(Tensor { name: name.to_owned(), spec, extents: Extents::One(location), encoding, checksum })
    }

    fn range(&self, entry: &Entry) -> Result<std::ops::Range<usize>, String> {
        let start = usize::try_from(entry.offset).ok();
        let end = start.and_then(|start| start.checked_add(usize::try_from(entry.size).ok()?));
        let outside =
            || format!("{} bytes of it are from byte {} on, which cannot be", entry.size, entry.offset);
        Ok(start.ok_or_else(outside)?..end.ok_or_else(outside)?)
    }

    /// The name of a file of data.
    fn shard(&self, number: i32) -> Result<String, String> {
        let count = self.header.num_shards;
        if !(0..count).contains(&number) {
            return Err(format!("it is in file {number} of {count}"));
        }
        Ok(format!("{}.data-{number:05}-of-{count:05}", self.prefix))
    }

    /// Takes the names that the program gave its variables. The graph is a text: its length, a checksum of that, the text.
    fn add_names(&mut self, entry: &Entry) -> Result<(), Problem> {
        let location = self.folder.locate(&self.shard(entry.shard_id)?, self.range(entry)?)?;
        let bytes = self.folder.read_at_most("it", &location, MAX_GRAPH_BYTES)?;
        let mut rest = &bytes[..];
        let length = prost::encoding::decode_varint(&mut rest).map_err(|error| error.to_string())?;
        let text = rest.get(table::CRC_BYTES..).filter(|text| text.len() as u64 == length);
        let graph =
            ObjectGraph::decode(text.ok_or("its length is wrong")?).map_err(|error| error.to_string())?;
        self.folder.count(graph.nodes.len())?;
        for attribute in graph.nodes.into_iter().flat_map(|node| node.attributes) {
            if let Some(name) = attribute.checkpoint_key.strip_suffix(VARIABLE)
                && !attribute.full_name.is_empty()
            {
                self.names.insert(name.to_owned(), attribute.full_name);
            }
        }
        Ok(())
    }
}

fn sizes(shape: Option<&Shape>) -> Result<Vec<usize>, String> {
    let Some(shape) = shape else { return Ok(Vec::new()) };
    if shape.unknown_rank || shape.dims.len() > MAX_RANK {
        return Err(format!("it has {} dimensions", shape.dims.len()));
    }
    let size =
        |dim: &messages::Dim| usize::try_from(dim.size).map_err(|_| format!("a dimension is {}", dim.size));
    shape.dims.iter().map(size).collect()
}
