//! Pickled trees of arrays: NumPy's, JAX's, joblib's, of every protocol. They are read by a parser that can build nothing
//! but containers, strings, numbers and arrays. Functions and classes are names to it: a few are known, and stand for a
//! container or an array; every other is refused where it stands in the tree. Nothing of the file is ever run.

mod globals;
mod machine;
mod optax;
mod tree;
mod values;

use bytes::Bytes;

use super::npy;
use super::source::{LeftOut, Source, SourceFormat};
use crate::array::ArraySpec;
use crate::checkpoint::FileBytes;
use crate::error::{Context, Result};
use crate::load::LoadOptions;
use crate::sub_byte;
use crate::tree::KeyMap;
use machine::Machine;
use tree::TreeBuilder;
use values::{Array, Content};

/// A tree of arrays in a pickle.
pub struct PickleSource {
    origin: String,
    data: FileBytes,
    keys: KeyMap,
    specs: Vec<ArraySpec>,
    leaves: Vec<Array>,
    left_out: Vec<LeftOut>,
}

impl PickleSource {
    /// Reads the tree. What the options do not want need not be an array.
    pub fn new(origin: String, data: FileBytes, options: &LoadOptions) -> Result<PickleSource, String> {
        let mut machine = Machine::new(data.bytes(), options.limits);
        let root = machine.run()?;
        let (def, leaves, mut left_out) =
            TreeBuilder::new(&machine.values, data.bytes(), options).build(root)?;
        if machine.rest() > 0 {
            let (name, bytes) = ("(the rest of the file)".to_owned(), machine.rest());
            let why = format!("{bytes} bytes follow the first pickle, perhaps another one");
            left_out.push(LeftOut { name, why });
        }
        let keys = KeyMap::new(def).map_err(|error| error.to_string())?;
        let specs = leaves.iter().map(|leaf: &Array| leaf.spec.clone()).collect();
        Ok(PickleSource { origin, data, keys, specs, leaves, left_out })
    }
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

impl Source for PickleSource {
    fn origin(&self) -> &str {
        &self.origin
    }

    fn format(&self) -> SourceFormat {
        SourceFormat::Pickle
    }

    fn keys(&self) -> &KeyMap {
        &self.keys
    }

    fn specs(&self) -> &[ArraySpec] {
        &self.specs
    }

    fn warn_if_changed(&self) {
        self.data.warn_if_changed();
    }

    fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    fn read(&self, index: usize) -> Result<Bytes> {
        let leaf = &self.leaves[index];
        let bytes = match &leaf.content {
            Content::Decoded(bytes) => bytes.clone(),
            Content::Range(range) => self.data.read(range.clone())?,
        };
        let name = &self.keys.leaves()[index].name;
        let bytes = npy::to_native(bytes, &leaf.spec, &leaf.descr, leaf.is_fortran_order).for_tensor(name)?;
        let dtype = leaf.spec.dtype;
        Ok(if dtype.is_sub_byte() { sub_byte::pack(&bytes, dtype).into() } else { bytes })
    }
}

#[cfg(test)]
mod tests;
