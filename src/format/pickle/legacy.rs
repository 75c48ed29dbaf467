//! What PyTorch wrote before 1.6, and still does when it is asked to: pickles one after another, and the storages after them.
//! In turn: a number that says what it is; the version; what machine it was; the tree, which refers to storages; their keys;
//! and for each key, the number of its elements and the elements. All of it is little-endian, whatever the machine
//! (`_legacy_save` in torch/serialization.py, `THPStorage_writeFileRaw` in torch/csrc/serialization.cpp).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::machine::Machine;
use super::tree::TreeBuilder;
use super::values::Value;
use super::{Pickled, rest};
use crate::format::problem::Problem;
use crate::limits::Limits;
use crate::store::{Cursor, SharedBlob};

/// What such a file begins with: the number 0x1950a86a20f9469cfc6c, as a pickle.
pub const MAGIC: &[u8] = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.";

/// The version that all such files have.
const VERSION: i64 = 1001;

/// What such a file holds.
pub struct Legacy {
    pub pickled: Pickled,
    /// Where the elements of each storage are in the file, by its key.
    pub storages: HashMap<Arc<str>, Range<usize>>,
}

/// Reads the tree, and finds the storages.
pub fn read(blob: SharedBlob, limits: Limits) -> Result<Legacy, Problem> {
    let mut machine = Machine::new(blob, limits, true);
    machine.bytes.skip(MAGIC.len())?;
    let version = machine.run()?;
    if machine.values[version] != Value::Int(VERSION) {
        return Err(format!("its version is {}, not {VERSION}", machine.values[version].kind()).into());
    }
    machine.run()?;
    let root = machine.run()?;
    let keys = machine.run()?;
    let storages = find_storages(&mut machine, keys)?;
    let (def, arrays, mut left_out) = TreeBuilder::new(&machine, limits).build(root)?;
    left_out.extend(rest(&machine.bytes));
    Ok(Legacy { pickled: Pickled { def, arrays, left_out }, storages })
}

/// Passes over the storages, which have these keys.
fn find_storages(machine: &mut Machine, keys: usize) -> Result<HashMap<Arc<str>, Range<usize>>, Problem> {
    let Machine { bytes, values, .. } = machine;
    let widths = values.iter().filter_map(|value| match value {
        Value::Storage(storage) => Some((Arc::clone(&storage.key), storage.width())),
        _ => None,
    });
    let widths: HashMap<Arc<str>, usize> = widths.collect();
    let Value::List(keys) = &values[keys] else {
        return Err("what follows its tree is no list of storages".into());
    };
    let mut storages = HashMap::with_capacity(keys.len());
    for &key in keys {
        let key = values[key].short_text().ok_or("the key of a storage is no string")?;
        let (key, width) = widths.get_key_value(&*key).ok_or_else(|| {
            format!("the storage `{key}` has elements of a kind that is not read, so that what follows is not found")
        })?;
        let place = elements(bytes, *width).map_err(|problem| problem.at(format!("the storage `{key}`")))?;
        storages.insert(Arc::clone(key), place);
    }
    Ok(storages)
}

/// Passes over the elements of a storage, each so many bytes, which come after their number.
fn elements(bytes: &mut Cursor, width: usize) -> Result<Range<usize>, Problem> {
    let count = i64::from_le_bytes(bytes.array()?);
    let length = usize::try_from(count).ok().and_then(|count| count.checked_mul(width));
    let length = length.ok_or_else(|| format!("it cannot have {count} elements"))?;
    Ok(bytes.skip(length)?)
}
