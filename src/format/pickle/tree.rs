//! From the values of a pickle to a tree of arrays.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::globals::Global;
use super::machine::Machine;
use super::optax;
use super::values::{Array, ByteString, Dict, Elements, Id, Object, Value};
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::format::checkpoint::LeftOut;
use crate::format::complex::complex_scalar;
use crate::format::encoding::Encoding;
use crate::format::pool::SHARED_BYTES;
use crate::format::problem::Problem;
use crate::limits::Limits;
use crate::store::SharedBlob;
use crate::tree::{DictKey, Key, KeyPath, LeafKind, MAX_DEPTH, TreeDef};

type Result<T> = std::result::Result<T, Problem>;

/// What a training state holds that is no part of the tree.
const FUNCTIONS_OF_TRAIN_STATE: [&str; 2] = ["apply_fn", "tx"];

/// What has arrays in it and can be saved as arrays, by part of the name of its class.
const SAVED_INSTEAD: [(&str, &str); 4] = [
    ("PRNGKeyArray", "`jax.random.key_data(key)`"),
    ("random_wrap", "`jax.random.key_data(key)`"),
    ("flax.nnx", "`nnx.to_pure_dict(state)`"),
    ("torch.nn.", "`module.state_dict()`"),
];

/// What a tree may copy of its file, in times of its size, and beyond that in bytes.
const COPIES_OF_FILE: usize = 4;
const FREE_COPIES: usize = 1 << 20;

/// Values that a tree may have beyond those that its file made, and bytes of it: what is shared must not multiply itself.
const MORE_VISITS: usize = 1 << 16;

/// Makes a tree of values. What is shared stands in it as often as it is referred to.
pub struct TreeBuilder<'a> {
    values: &'a [Value],
    /// Attributes of arrays and containers, by what has them.
    attributes: HashMap<Id, Id>,
    file: &'a SharedBlob,
    limits: Limits,
    /// In JAX's order.
    leaves: Vec<Array>,
    left_out: Vec<LeftOut>,
    visits: usize,
    /// Bytes of text, and of small arrays, that are copied into the tree: of a real file, each is once or twice.
    copied: usize,
    /// Where in the tree it is.
    path: Vec<Key>,
    /// Which values have arrays in them; found when it is first asked.
    have_arrays: Option<Vec<bool>>,
}

impl<'a> TreeBuilder<'a> {
    /// A builder of what a machine has made.
    pub fn new(machine: &'a Machine, limits: Limits) -> TreeBuilder<'a> {
        TreeBuilder {
            values: &machine.values,
            attributes: machine.attributes.iter().copied().collect(),
            file: machine.bytes.blob(),
            limits,
            leaves: Vec::new(),
            left_out: Vec::new(),
            visits: 0,
            copied: 0,
            path: Vec::new(),
            have_arrays: None,
        }
    }

    /// The tree, its arrays in JAX's order, and what of it is no array.
    pub fn build(mut self, root: Id) -> Result<(TreeDef, Vec<Array>, Vec<LeftOut>)> {
        let def = self.def(root)?.unwrap_or(TreeDef::None);
        Ok((def, self.leaves, self.left_out))
    }

    /// The structure of a value; `None` of what is left out.
    fn def(&mut self, id: Id) -> Result<Option<TreeDef>> {
        self.visits += 1;
        self.limits.check_nodes(self.visits)?;
        if self.visits > self.values.len() + self.file.size() + MORE_VISITS {
            return Err("it refers to its own parts too often".into());
        }
        if self.path.len() > MAX_DEPTH {
            return Err(format!("it is nested deeper than {MAX_DEPTH} levels").into());
        }
        if let Some(&attributes) = self.attributes.get(&id)
            && self.has_arrays(attributes)
        {
            let name = format!("the attributes of {}", self.name());
            self.left_out.push(LeftOut::new(name, "there are arrays among them, which are not read"));
        }
        let (values, file) = (self.values, self.file);
        Ok(Some(match &values[id] {
            Value::None => TreeDef::None,
            Value::Bool(value) => self.scalar(LeafKind::Bool, DType::Bool, &[u8::from(*value)]),
            Value::Int(value) => self.scalar(LeafKind::Int, DType::I64, &value.to_le_bytes()),
            Value::Float(value) => self.scalar(LeafKind::Float, DType::F64, &value.to_le_bytes()),
            Value::Complex(real, imaginary) => {
                let (kind, dtype, bytes) = complex_scalar(*real, *imaginary);
                self.scalar(kind, dtype, &bytes)
            }
            Value::Array(array) => {
                self.count_copy(array)?;
                self.leaves.push((**array).clone());
                TreeDef::LEAF
            }
            Value::Bytes(content) => {
                self.count_text(content)?;
                TreeDef::Bytes(content.read(file)?.to_vec())
            }
            value @ (Value::Str(content) | Value::RawStr(content)) => {
                self.count_text(content)?;
                TreeDef::Str(value.read_text(file)?.unwrap_or_default())
            }
            Value::List(items) => TreeDef::List(self.sequence(items)?),
            Value::Tuple(items) => TreeDef::Tuple(self.sequence(items)?),
            Value::Dict(dict) => self.dict(dict)?,
            Value::Object(object) => self.object(object)?,
            Value::NoNumbers(why) => return self.leave_out(why.clone()),
            Value::LargeInt => return self.leave_out("it does not fit into 64 bits".into()),
            other => return self.refuse_or_leave_out(id, other),
        }))
    }

    /// Whether a value is an array, or has any in it.
    fn has_arrays(&mut self, id: Id) -> bool {
        self.have_arrays.get_or_insert_with(|| have_arrays(self.values))[id]
    }

    fn count_text(&mut self, content: &ByteString) -> Result<()> {
        self.count(content.len())
    }

    /// Counts the elements of an array that were read already: a copy of them goes into the memory for small ones.
    fn count_copy(&mut self, array: &Array) -> Result<()> {
        match &array.elements {
            Elements::Here(ByteString::Decoded(bytes)) if bytes.len() <= SHARED_BYTES => {
                self.count(bytes.len())
            }
            _ => Ok(()),
        }
    }

    fn count(&mut self, bytes: usize) -> Result<()> {
        self.copied = self.copied.saturating_add(bytes);
        if self.copied > COPIES_OF_FILE * self.file.size() + FREE_COPIES {
            return Err("it repeats its own parts too often".into());
        }
        Ok(())
    }

    fn name(&self) -> String {
        KeyPath::from(self.path.clone()).to_name()
    }

    fn here(&self, problem: String) -> String {
        let path = KeyPath::from(self.path.clone());
        if self.path.is_empty() { format!("its value {problem}") } else { format!("{path} {problem}") }
    }

    /// Leaves out what cannot be held.
    fn leave_out(&mut self, why: String) -> Result<Option<TreeDef>> {
        self.left_out.push(LeftOut::new(self.name(), why));
        Ok(None)
    }

    /// Leaves out what a tree cannot have, and refuses the file where it is wanted: if there are arrays in it, or if it is
    /// all that the file has.
    fn refuse_or_leave_out(&mut self, id: Id, value: &Value) -> Result<Option<TreeDef>> {
        if !self.has_arrays(id) && !self.path.is_empty() {
            return self.leave_out(format!("it is {}, and has no arrays in it", value.kind()));
        }
        let kind = value.kind();
        let instead = SAVED_INSTEAD.iter().find(|(part, _)| kind.contains(part));
        let instead = instead.map_or("the arrays as safetensors", |(_, instead)| *instead);
        let refusal = self.here(format!(
            "is {kind}, which is neither a container nor an array; leave it out (`--exclude`), or load the file in Python, if \
             you trust it, and save {instead}"
        ));
        self.left_out.push(LeftOut::refused(self.name(), format!("it is {kind}"), refusal));
        Ok(None)
    }

    fn scalar(&mut self, kind: LeafKind, dtype: DType, bytes: &[u8]) -> TreeDef {
        let elements = Elements::Here(ByteString::Decoded(Bytes::copy_from_slice(bytes)));
        let (spec, encoding) = (ArraySpec::new(dtype, []), Encoding::default());
        self.leaves.push(Array { spec, elements, encoding });
        TreeDef::Leaf(kind)
    }

    fn below(&mut self, key: Key, id: Id) -> Result<Option<TreeDef>> {
        self.path.push(key);
        let def = self.def(id);
        self.path.pop();
        def
    }

    /// The items, with `None` in the place of what is left out.
    fn sequence(&mut self, items: &[Id]) -> Result<Vec<TreeDef>> {
        let item =
            |(index, &item): (usize, &Id)| Ok(self.below(Key::Index(index), item)?.unwrap_or(TreeDef::None));
        items.iter().enumerate().map(item).collect()
    }

    fn dict(&mut self, dict: &Dict) -> Result<TreeDef> {
        // What is set twice has its last value, in its first place.
        let mut places: BTreeMap<DictKey, usize> = BTreeMap::new();
        let mut entries: Vec<(DictKey, Id)> = Vec::new();
        for pair in dict.items.chunks_exact(2) {
            let key = self.key(pair[0])?;
            match places.get(&key) {
                Some(&place) => entries[place].1 = pair[1],
                None => {
                    places.insert(key.clone(), entries.len());
                    entries.push((key, pair[1]));
                }
            }
        }
        if !dict.is_ordered {
            entries.sort_by(|a, b| a.0.cmp(&b.0));
        }
        let mut children = Vec::with_capacity(entries.len());
        for (key, id) in entries {
            if let Some(def) = self.below(Key::Dict(key.clone()), id)? {
                children.push((key, def));
            }
        }
        let def = if dict.is_ordered { TreeDef::ordered_dict(children) } else { TreeDef::dict(children) };
        def.map_err(|error| self.here(format!("cannot be a dictionary of a tree: {error}")).into())
    }

    fn key(&mut self, id: Id) -> Result<DictKey> {
        if let Value::Str(content) | Value::RawStr(content) = &self.values[id] {
            self.count_text(content)?;
        }
        match &self.values[id] {
            Value::Int(key) => Ok(DictKey::Int(*key)),
            value => match value.read_text(self.file)? {
                Some(key) => Ok(DictKey::Str(key)),
                None => {
                    let problem = format!("has a key that is {}, neither string nor integer", value.kind());
                    Err(self.here(problem).into())
                }
            },
        }
    }

    fn object(&mut self, object: &Object) -> Result<TreeDef> {
        if let Global::OptaxState(position) = object.class {
            return self.named_tuple(optax::STATES[position], &object.arguments);
        }
        // A module has settings beside its tensors, which are not in what PyTorch calls its state.
        let is_module = matches!(object.class, Global::Module(_));
        let mut children = Vec::new();
        for pair in object.attributes.chunks_exact(2) {
            let DictKey::Str(name) = self.key(pair[0])? else { continue };
            if FUNCTIONS_OF_TRAIN_STATE.contains(&name.as_str()) || is_module && !self.has_arrays(pair[1]) {
                continue;
            }
            let key = Key::Attribute(name);
            if let Some(def) = self.below(key.clone(), pair[1])? {
                children.push((key, def));
            }
        }
        Ok(TreeDef::Custom { name: object.class.name().to_owned(), auxiliary: "null".into(), children })
    }

    fn named_tuple(&mut self, (name, fields): (&str, &[&str]), values: &[Id]) -> Result<TreeDef> {
        if fields.len() != values.len() {
            let problem = format!(
                "is a {name} of {} values, and those that are known have {}; load the file in Python, and save the \
                 arrays as safetensors",
                values.len(),
                fields.len()
            );
            return Err(self.here(problem).into());
        }
        let field = |(field, &id): (&&str, &Id)| {
            let def = self.below(Key::Attribute((*field).to_owned()), id)?;
            Ok(((*field).to_owned(), def.unwrap_or(TreeDef::None)))
        };
        let fields = fields.iter().zip(values).map(field).collect::<Result<_>>()?;
        Ok(TreeDef::NamedTuple { name: name.to_owned(), fields })
    }
}

/// Which values are arrays, or have them in them.
fn have_arrays(values: &[Value]) -> Vec<bool> {
    let mut holders: Vec<(Id, Id)> = Vec::new();
    for (id, value) in values.iter().enumerate() {
        holders.extend(value.parts().map(|part| (part, id)));
    }
    holders.sort_unstable();
    let mut have_arrays = vec![false; values.len()];
    let is_array = |id: &Id| match &values[*id] {
        Value::Array(_) | Value::NoNumbers(_) | Value::Storage(_) => true,
        // Its numbers are bytes to us.
        Value::Unknown(opaque) => opaque.name.starts_with("numpy.ma."),
        _ => false,
    };
    let mut found: Vec<Id> = (0..values.len()).filter(is_array).collect();
    while let Some(id) = found.pop() {
        if std::mem::replace(&mut have_arrays[id], true) {
            continue;
        }
        let start = holders.partition_point(|(part, _)| *part < id);
        found.extend(holders[start..].iter().take_while(|(part, _)| *part == id).map(|(_, holder)| *holder));
    }
    have_arrays
}
