//! Pickled trees of arrays: NumPy's, JAX's, joblib's, of every protocol. They are read by a parser that can build nothing
//! but containers, strings, numbers and arrays. Functions and classes are names to it: a few are known, and stand for a
//! container or an array; every other is refused where it stands in the tree. Nothing of the file is ever run.

mod calls;
mod escapes;
mod globals;
pub(super) mod legacy;
mod machine;
mod optax;
mod tensor;
mod tree;
mod values;

use super::checkpoint::{Checkpoint, Extent, Extents, Format, LeftOut, RecordedStructure, Tensor};
use super::pool::Pool;
use super::problem::Problem;
use crate::error::Result;
use crate::limits::Limits;
use crate::store::{Cursor, SharedBlob};
use crate::tree::{Framework, KeyMap, TreeDef};
use machine::Machine;
use tree::TreeBuilder;
use values::ByteString;
pub(super) use values::{Array, Elements};

/// What a pickle holds.
pub(super) struct Pickled {
    pub def: TreeDef,
    /// In JAX's order.
    pub arrays: Vec<Array>,
    pub left_out: Vec<LeftOut>,
}

/// Reads the tree of a pickle. It may refer to storages beside it if there are any.
pub(super) fn read(blob: SharedBlob, limits: Limits, has_storages: bool) -> Result<Pickled, Problem> {
    let mut machine = Machine::new(blob, limits, has_storages);
    let root = machine.run()?;
    let (def, arrays, mut left_out) = TreeBuilder::new(&machine, limits).build(root)?;
    left_out.extend(rest(&machine.bytes));
    Ok(Pickled { def, arrays, left_out })
}

/// What follows the end, if anything does.
fn rest(bytes: &Cursor) -> Option<LeftOut> {
    let rest = bytes.rest();
    let why = format!("{rest} bytes follow its end, perhaps another pickle");
    (rest > 0).then(|| LeftOut::new("(the rest of the file)", why))
}

/// Where elements are that are in the pickle, which is the file at this position.
pub(super) fn place(content: &ByteString, file: usize, pool: &mut Pool<'_>) -> Extents {
    match content {
        ByteString::Range(range) => Extents::One(Extent { file, range: range.clone() }),
        ByteString::Decoded(bytes) => pool.add(bytes),
    }
}

/// A pickle as a checkpoint.
pub(super) fn open(blob: SharedBlob, limits: Limits) -> Result<Checkpoint> {
    let origin = &blob.origin().to_owned();
    let pickled = read(SharedBlob::clone(&blob), limits, false);
    let pickled = pickled.and_then(|pickled| {
        let keys = KeyMap::new(pickled.def.clone()).map_err(|error| error.to_string())?;
        Ok((keys, pickled))
    });
    let (keys, Pickled { arrays, left_out, .. }) =
        pickled.map_err(|problem| problem.into_error(origin, "pickled tree of arrays"))?;
    let mut pool = Pool::new(origin, vec![blob]);
    let tensor = |(leaf, array): (&crate::tree::Leaf, Array)| {
        let extents = match &array.elements {
            Elements::Here(content) => place(content, 0, &mut pool),
            // There are none.
            Elements::Stored(..) => Vec::new().into(),
        };
        let Array { spec, encoding, .. } = array;
        Tensor { name: leaf.name.clone(), spec, extents, encoding, checksum: None }
    };
    let tensors = keys.leaves().iter().zip(arrays).map(tensor).collect();
    let mut checkpoint = Checkpoint::new(origin, Format::Pickle, pool.into_blobs(), tensors);
    checkpoint.structure = RecordedStructure::Tree(keys.def().clone(), Framework::Plain);
    checkpoint.left_out = left_out;
    Ok(checkpoint)
}

/// Whether bytes begin like a pickle.
pub fn begins_with_pickle(data: &[u8]) -> bool {
    // Protocol 2 and later say so first: PROTO, then the version.
    if data.len() > 2 && data[0] == 0x80 && (2..=5).contains(&data[1]) {
        return true;
    }
    // Protocols 0 and 1 begin with their content: a dictionary, list or tuple that is remembered, or the name of a
    // function such as numpy.core.multiarray's.
    let containers: [&[u8]; 6] = [b"(dp", b"(lp", b"(tp", b"(ip", b"}q", b"]q"];
    if containers.iter().any(|start| data.starts_with(start)) {
        return true;
    }
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.');
    data.strip_prefix(b"c").is_some_and(|rest| {
        let mut lines = rest.splitn(3, |&byte| byte == b'\n');
        let mut is_line = || {
            lines.next().is_some_and(|line| !line.is_empty() && line.len() < 100 && line.iter().all(is_name))
        };
        is_line() && is_line() && lines.next().is_some()
    })
}
