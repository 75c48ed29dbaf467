//! Pickled dictionaries of NumPy arrays, read by a parser that can build nothing but containers, strings,
//! numbers and arrays. Every other instruction, and every other class, is refused by name: nothing of the file
//! is ever run.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use bytes::Bytes;

use super::npy;
use super::source::{Source, SourceFormat};
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::error::{Context, Result};
use crate::sub_byte;
use crate::tree::{DictKey, Key, KeyMap, KeyPath, LeafKind, MAX_DEPTH, TreeDef};

/// A tree of arrays in a pickle.
pub struct PickleSource {
    origin: String,
    data: Bytes,
    keys: KeyMap,
    specs: Vec<ArraySpec>,
    leaves: Vec<Array>,
}

/// An array of the file.
#[derive(Debug, Clone, PartialEq)]
struct Array {
    spec: ArraySpec,
    content: Content,
    /// As NumPy names the type, for byte order.
    descr: String,
    is_fortran_order: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Content {
    /// Part of the file.
    Range(Range<usize>),
    /// Decoded from it. Shared, since a file can refer to it again and again.
    Decoded(Bytes),
}

impl PickleSource {
    pub fn new(origin: String, data: Bytes) -> Result<PickleSource, String> {
        let mut machine = Machine::new(&data);
        let root = machine.run()?;
        let mut tree = TreeBuilder {
            values: &machine.values,
            data: &data,
            leaves: Vec::new(),
            visits: 0,
            path: Vec::new(),
        };
        let def = tree.def(root)?;
        let leaves = tree.leaves;
        let keys = KeyMap::new(def).map_err(|error| error.to_string())?;
        let specs = leaves.iter().map(|leaf: &Array| leaf.spec.clone()).collect();
        Ok(PickleSource { origin, data, keys, specs, leaves })
    }
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

    fn read(&self, index: usize) -> Result<Bytes> {
        let leaf = &self.leaves[index];
        let bytes = match &leaf.content {
            Content::Decoded(bytes) => bytes.clone(),
            Content::Range(range) => self.data.slice(range.clone()),
        };
        let name = &self.keys.leaves()[index].name;
        let bytes = npy::to_native(bytes, &leaf.spec, &leaf.descr, leaf.is_fortran_order).for_tensor(name)?;
        let dtype = leaf.spec.dtype;
        Ok(if dtype.is_sub_byte() { sub_byte::pack(&bytes, dtype).into() } else { bytes })
    }
}

/// A value, by its position among all that the file has made. What the file refers to twice is one value, so that what is
/// put into it later is seen from everywhere.
type Id = usize;

/// The values that the parser builds.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// Text, by its place in the file, where it is valid UTF-8.
    Str(Range<usize>),
    /// Bytes, of the file or decoded.
    Bytes(Content),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    /// Keys and values in turn.
    Dict(Vec<Id>),
    /// One of the functions of NumPy's that rebuild arrays.
    Global(Global),
    /// A type of elements: as NumPy writes it.
    DType(String),
    /// An array whose state has not come yet.
    EmptyArray,
    Array(Box<Array>),
    Mark,
}

impl Value {
    /// What it is, for a message.
    fn kind(&self) -> &'static str {
        match self {
            Value::None => "None",
            Value::Bool(_) => "a bool",
            Value::Int(_) => "an integer",
            Value::Float(_) => "a number",
            Value::Str(_) => "a string",
            Value::Bytes(_) => "bytes",
            Value::Tuple(_) => "a tuple",
            Value::List(_) => "a list",
            Value::Dict(_) => "a dictionary",
            Value::Global(_) => "a function",
            Value::DType(_) => "a type of elements",
            Value::EmptyArray => "an array without content",
            Value::Array(_) => "an array",
            Value::Mark => "a mark",
        }
    }
}

/// Values that every file has, at their positions: they take no memory however often they come.
const SHARED: [Value; 4] = [Value::None, Value::Bool(false), Value::Bool(true), Value::Mark];
const NONE: Id = 0;
const FALSE: Id = 1;
const TRUE: Id = 2;
const MARK: Id = 3;

/// The functions and classes that may be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Global {
    Reconstruct,
    NdArray,
    DType,
    Scalar,
    FromBuffer,
    OrderedDict,
    /// How protocol 2 writes bytes: as text that is encoded.
    Encode,
    /// How protocol 2 writes no bytes.
    Bytes,
    /// A type of ml_dtypes, by its position in [`EXTENSION_TYPES`].
    Extension(usize),
}

/// The element types of ml_dtypes that a pickle may name.
const EXTENSION_TYPES: [DType; 6] =
    [DType::BF16, DType::F8E4M3FN, DType::F8E5M2, DType::F8E4M3FNUZ, DType::F8E5M2FNUZ, DType::F8E8M0FNU];

fn global(module: &str, name: &str) -> Result<Global, String> {
    match (module, name) {
        ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => Ok(Global::Reconstruct),
        ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Ok(Global::Scalar),
        ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => Ok(Global::FromBuffer),
        ("numpy", "ndarray") => Ok(Global::NdArray),
        ("numpy", "dtype") => Ok(Global::DType),
        ("collections", "OrderedDict") => Ok(Global::OrderedDict),
        ("_codecs", "encode") => Ok(Global::Encode),
        ("__builtin__" | "builtins", "bytes") => Ok(Global::Bytes),
        ("ml_dtypes", name) => {
            let known = EXTENSION_TYPES.iter().position(|dtype| dtype.name() == name);
            known
                .map(Global::Extension)
                .ok_or_else(|| format!("it names ml_dtypes.{}, which is not known", name))
        }
        _ => Err(format!(
            "it names {}.{}, and only arrays, containers, strings and numbers are read; load it in Python, if you \
             trust it, and save the arrays as safetensors",
            module, name
        )),
    }
}

struct Machine<'a> {
    data: &'a [u8],
    position: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    memo: HashMap<u64, Id>,
}

impl<'a> Machine<'a> {
    fn new(data: &'a [u8]) -> Machine<'a> {
        Machine { data, position: 0, values: SHARED.to_vec(), stack: Vec::new(), memo: HashMap::new() }
    }

    fn take(&mut self, count: usize) -> Result<Range<usize>, String> {
        let end = self.position.checked_add(count).filter(|end| *end <= self.data.len());
        let end = end.ok_or_else(|| format!("it is cut off at byte {}", self.position))?;
        let range = self.position..end;
        self.position = end;
        Ok(range)
    }

    fn number(&mut self, bytes: usize) -> Result<u64, String> {
        let range = self.take(bytes)?;
        Ok(self.data[range].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn length(&mut self, bytes: usize) -> Result<usize, String> {
        usize::try_from(self.number(bytes)?)
            .map_err(|_| format!("a length at byte {} is too large", self.position))
    }

    /// The place of so many bytes of text.
    fn text(&mut self, length: usize) -> Result<Range<usize>, String> {
        let range = self.take(length)?;
        match std::str::from_utf8(&self.data[range.clone()]) {
            Ok(_) => Ok(range),
            Err(_) => Err(format!("a string before byte {} is not UTF-8", self.position)),
        }
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.data[self.position..];
        let length = rest.iter().position(|&byte| byte == b'\n').ok_or("a line does not end")?;
        let range = self.text(length)?;
        self.take(1)?;
        Ok(text_at(self.data, &range))
    }

    fn pop(&mut self) -> Result<Id, String> {
        self.stack.pop().ok_or_else(|| format!("the stack is empty at byte {}", self.position))
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn push_shared(&mut self, id: Id) -> Result<(), String> {
        self.stack.push(id);
        Ok(())
    }

    /// The values above the last mark, which goes.
    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.stack.iter().rposition(|&id| id == MARK);
        let mark = mark.ok_or_else(|| format!("there is no mark at byte {}", self.position))?;
        let values = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(values)
    }

    fn tuple(&mut self, count: usize) -> Result<(), String> {
        let start = self.stack.len().checked_sub(count).ok_or("the stack is too short for a tuple")?;
        let items = self.stack.split_off(start);
        self.push(Value::Tuple(items));
        Ok(())
    }

    fn remember(&mut self, index: u64) -> Result<(), String> {
        let id = *self.stack.last().ok_or("the stack is empty")?;
        self.memo.insert(index, id);
        Ok(())
    }

    fn recall(&mut self, index: u64) -> Result<(), String> {
        let id = self.memo.get(&index).ok_or_else(|| format!("nothing is remembered as {index}"))?;
        self.stack.push(*id);
        Ok(())
    }

    /// Runs to the end, and returns what is built.
    fn run(&mut self) -> Result<Id, String> {
        loop {
            let start = self.position;
            let range = self.take(1)?;
            let opcode = self.data[range.start];
            if opcode == b'.' {
                return self.pop();
            }
            self.step(opcode).map_err(|problem| format!("at byte {start}: {problem}"))?;
        }
    }

    /// One instruction. The letters are those of Python's `pickletools`.
    fn step(&mut self, opcode: u8) -> Result<(), String> {
        let value = match opcode {
            0x80 => {
                self.take(1)?; // PROTO
                return Ok(());
            }
            0x95 => {
                self.take(8)?; // FRAME
                return Ok(());
            }
            b'(' => return self.push_shared(MARK),
            b'N' => return self.push_shared(NONE),
            0x88 => return self.push_shared(TRUE),
            0x89 => return self.push_shared(FALSE),
            b'K' => Value::Int(self.number(1)? as i64),
            b'M' => Value::Int(self.number(2)? as i64),
            b'J' => Value::Int(i64::from(self.number(4)? as u32 as i32)),
            0x8a => {
                let length = self.length(1)?; // LONG1: little-endian with a sign
                if length > 8 {
                    return Err("an integer does not fit into 64 bits".into());
                }
                let raw = self.number(length)?;
                let unused = 64 - 8 * length as u32;
                Value::Int(if length == 0 { 0 } else { ((raw << unused) as i64) >> unused })
            }
            b'G' => {
                let range = self.take(8)?;
                let bytes: [u8; 8] = self.data[range].try_into().unwrap_or_default();
                Value::Float(f64::from_be_bytes(bytes))
            }
            b'X' => self.length(4).and_then(|length| self.text(length)).map(Value::Str)?,
            0x8c => self.length(1).and_then(|length| self.text(length)).map(Value::Str)?,
            0x8d => self.length(8).and_then(|length| self.text(length)).map(Value::Str)?,
            b'B' => self
                .length(4)
                .and_then(|length| self.take(length))
                .map(|range| Value::Bytes(Content::Range(range)))?,
            b'C' => self
                .length(1)
                .and_then(|length| self.take(length))
                .map(|range| Value::Bytes(Content::Range(range)))?,
            0x8e | 0x96 => self
                .length(8)
                .and_then(|length| self.take(length))
                .map(|range| Value::Bytes(Content::Range(range)))?,
            b'}' => Value::Dict(Vec::new()),
            b']' => Value::List(Vec::new()),
            b')' => Value::Tuple(Vec::new()),
            b't' => Value::Tuple(self.pop_to_mark()?),
            0x85 => return self.tuple(1),
            0x86 => return self.tuple(2),
            0x87 => return self.tuple(3),
            b'q' => return self.number(1).and_then(|index| self.remember(index)),
            b'r' => return self.number(4).and_then(|index| self.remember(index)),
            0x94 => return self.remember(self.memo.len() as u64),
            b'h' => return self.number(1).and_then(|index| self.recall(index)),
            b'j' => return self.number(4).and_then(|index| self.recall(index)),
            b'0' => return self.pop().map(drop),
            b'a' => {
                let item = self.pop()?;
                return self.append(vec![item]);
            }
            b'e' => return self.pop_to_mark().and_then(|items| self.append(items)),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                return self.set_items(vec![key, value]);
            }
            b'u' => return self.pop_to_mark().and_then(|items| self.set_items(items)),
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                Value::Global(global(module, name)?)
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (&self.values[module], &self.values[name]) {
                    (Value::Str(module), Value::Str(name)) => {
                        Value::Global(global(text_at(self.data, module), text_at(self.data, name))?)
                    }
                    _ => return Err("a global has no name".into()),
                }
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.call(function, arguments)?
            }
            b'b' => {
                let (state, object) = (self.pop()?, self.pop()?);
                let built = self.build(object, state)?;
                // In its place, for all who refer to it.
                self.values[object] = built;
                self.stack.push(object);
                return Ok(());
            }
            opcode => return Err(format!("the instruction {} is not one that is read", opcode_name(opcode))),
        };
        self.push(value);
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), String> {
        match self.stack.last().map(|&id| &mut self.values[id]) {
            Some(Value::List(list)) => {
                list.extend(items);
                Ok(())
            }
            _ => Err("something is appended to what is no list".into()),
        }
    }

    fn set_items(&mut self, items: Vec<Id>) -> Result<(), String> {
        let Some(Value::Dict(dict)) = self.stack.last().map(|&id| &mut self.values[id]) else {
            return Err("something is set in what is no dictionary".into());
        };
        if !items.len().is_multiple_of(2) {
            return Err("a key has no value".into());
        }
        dict.extend(items);
        Ok(())
    }

    /// The values of a tuple.
    fn items(&self, tuple: Id) -> Option<Vec<&Value>> {
        match &self.values[tuple] {
            Value::Tuple(items) => Some(items.iter().map(|&item| &self.values[item]).collect()),
            _ => None,
        }
    }

    /// What a call of one of NumPy's functions builds.
    fn call(&self, function: Id, arguments: Id) -> Result<Value, String> {
        let (Value::Global(function), Some(arguments)) = (&self.values[function], self.items(arguments))
        else {
            return Err("something is called that is no function".into());
        };
        let text = |range: &Range<usize>| text_at(self.data, range);
        match (function, &arguments[..]) {
            (Global::Reconstruct, _) => Ok(Value::EmptyArray),
            (Global::OrderedDict, []) => Ok(Value::Dict(Vec::new())),
            (Global::Encode, [Value::Str(characters), Value::Str(encoding)])
                if text(encoding) == "latin1" =>
            {
                // Every character stands for the byte of its number.
                let bytes: Option<Vec<u8>> =
                    text(characters).chars().map(|c| u8::try_from(c as u32).ok()).collect();
                let bytes = bytes.ok_or("bytes are written as characters that stand for none")?;
                Ok(Value::Bytes(Content::Decoded(bytes.into())))
            }
            (Global::Bytes, []) => Ok(Value::Bytes(Content::Decoded(Bytes::new()))),
            (Global::DType, [Value::Str(descr), ..]) => Ok(Value::DType(text(descr).to_owned())),
            (Global::DType, [Value::Global(Global::Extension(index)), ..]) => {
                Ok(Value::DType(EXTENSION_TYPES[*index].name().to_owned()))
            }
            (Global::Scalar, [Value::DType(descr), Value::Bytes(content)]) => {
                self.array(vec![], descr, content.clone(), false).map(|array| Value::Array(Box::new(array)))
            }
            (
                Global::FromBuffer,
                [Value::Bytes(content), Value::DType(descr), Value::Tuple(shape), Value::Str(order)],
            ) => self
                .array(self.dims(shape)?, descr, content.clone(), text(order) == "F")
                .map(|array| Value::Array(Box::new(array))),
            (function, _) => Err(format!("{function:?} is called in a way that NumPy does not use")),
        }
    }

    /// What a state makes of an object: the content of an array, the byte order of a type.
    fn build(&self, object: Id, state: Id) -> Result<Value, String> {
        let Some(state) = self.items(state) else { return Err("a state is no tuple".into()) };
        match (&self.values[object], &state[..]) {
            (
                Value::EmptyArray,
                [
                    Value::Int(_),
                    Value::Tuple(shape),
                    Value::DType(descr),
                    Value::Bool(order),
                    Value::Bytes(content),
                ],
            ) => {
                let array = self.array(self.dims(shape)?, descr, content.clone(), *order)?;
                Ok(Value::Array(Box::new(array)))
            }
            (Value::EmptyArray, [.., Value::List(_)]) => Err("it holds an array of Python objects".into()),
            // (version, byte order, …): the first letter of the type.
            (Value::DType(descr), [Value::Int(_), Value::Str(order), ..]) => {
                let is_plain = descr.starts_with(['b', 'i', 'u', 'f', 'c']) && !descr.contains("float");
                let order = text_at(self.data, order);
                Ok(Value::DType(if is_plain { format!("{order}{descr}") } else { descr.clone() }))
            }
            _ => Err("an object is given a state that NumPy does not write".into()),
        }
    }

    fn dims(&self, shape: &[Id]) -> Result<Vec<usize>, String> {
        let dim = |&id: &Id| match self.values[id] {
            Value::Int(dim) => usize::try_from(dim).ok(),
            _ => None,
        };
        shape.iter().map(dim).collect::<Option<_>>().ok_or_else(|| "a shape is not one of sizes".to_owned())
    }

    fn array(
        &self,
        shape: Vec<usize>,
        descr: &str,
        content: Content,
        is_fortran_order: bool,
    ) -> Result<Array, String> {
        let dtype = match DType::from_name(descr).filter(|dtype| dtype.name() == descr) {
            Some(dtype) => dtype,
            None => npy::dtype_of(descr)?,
        };
        let spec = ArraySpec::new(dtype, shape);
        let expected = spec.host_bytes().map_err(|error| error.to_string())?;
        let length = match &content {
            Content::Range(range) => range.len(),
            Content::Decoded(bytes) => bytes.len(),
        };
        if length != expected {
            return Err(format!("an array is {spec}, {expected} bytes, but has {length}"));
        }
        Ok(Array { spec, content, descr: descr.to_owned(), is_fortran_order })
    }
}

/// The text at a place that was found to be text.
fn text_at<'a>(data: &'a [u8], range: &Range<usize>) -> &'a str {
    std::str::from_utf8(&data[range.clone()]).unwrap_or_default()
}

/// The names of the instructions that run code or load it, for the error.
fn opcode_name(opcode: u8) -> String {
    let name = match opcode {
        b'i' => "INST",
        b'o' => "OBJ",
        0x81 => "NEWOBJ",
        0x92 => "NEWOBJ_EX",
        b'P' => "PERSID",
        b'Q' => "BINPERSID",
        0x82..=0x84 => "EXT",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        0x8b => "LONG4",
        0x8f => "EMPTY_SET",
        0x91 => "FROZENSET",
        _ => return format!("0x{opcode:02x}"),
    };
    name.to_owned()
}

/// Makes a tree of values, in which what is shared stands as often as it is referred to.
struct TreeBuilder<'a> {
    values: &'a [Value],
    data: &'a [u8],
    /// In JAX's order.
    leaves: Vec<Array>,
    visits: usize,
    /// Where in the tree it is.
    path: Vec<Key>,
}

impl TreeBuilder<'_> {
    /// Values that a tree may have beyond those that its file made, and bytes of it: what is shared must not multiply
    /// itself.
    const MORE_VISITS: usize = 1 << 16;

    fn def(&mut self, id: Id) -> Result<TreeDef, String> {
        self.visits += 1;
        if self.visits > self.values.len() + self.data.len() + TreeBuilder::MORE_VISITS {
            return Err("it refers to its own parts too often".into());
        }
        if self.path.len() > MAX_DEPTH {
            return Err(format!("it is nested deeper than {MAX_DEPTH} levels"));
        }
        let values = self.values;
        match &values[id] {
            Value::None => Ok(TreeDef::None),
            Value::Bool(value) => Ok(self.scalar(LeafKind::Bool, DType::Bool, &[u8::from(*value)])),
            Value::Int(value) => Ok(self.scalar(LeafKind::Int, DType::I64, &value.to_le_bytes())),
            Value::Float(value) => Ok(self.scalar(LeafKind::Float, DType::F64, &value.to_le_bytes())),
            Value::Array(array) => {
                self.leaves.push((**array).clone());
                Ok(TreeDef::LEAF)
            }
            Value::List(items) => self.sequence(items).map(TreeDef::List),
            Value::Tuple(items) => self.sequence(items).map(TreeDef::Tuple),
            Value::Dict(items) => self.dict(items),
            other => {
                Err(self.here(format!("is {}, which is neither a container nor an array", other.kind())))
            }
        }
    }

    fn here(&self, problem: String) -> String {
        let path = KeyPath::from(self.path.clone());
        if self.path.is_empty() { format!("its value {problem}") } else { format!("{path} {problem}") }
    }

    fn scalar(&mut self, kind: LeafKind, dtype: DType, bytes: &[u8]) -> TreeDef {
        self.leaves.push(Array {
            spec: ArraySpec::new(dtype, []),
            content: Content::Decoded(Bytes::copy_from_slice(bytes)),
            descr: dtype.name().into(),
            is_fortran_order: false,
        });
        TreeDef::Leaf(kind)
    }

    fn below(&mut self, key: Key, id: Id) -> Result<TreeDef, String> {
        self.path.push(key);
        let def = self.def(id);
        self.path.pop();
        def
    }

    fn sequence(&mut self, items: &[Id]) -> Result<Vec<TreeDef>, String> {
        items.iter().enumerate().map(|(index, &item)| self.below(Key::Index(index), item)).collect()
    }

    fn dict(&mut self, items: &[Id]) -> Result<TreeDef, String> {
        // What is set twice has its last value.
        let mut entries: BTreeMap<DictKey, Id> = BTreeMap::new();
        for pair in items.chunks_exact(2) {
            let key = match &self.values[pair[0]] {
                Value::Str(range) => DictKey::Str(text_at(self.data, range).to_owned()),
                Value::Int(key) => DictKey::Int(*key),
                other => {
                    let problem = format!("has a key that is {}, neither string nor integer", other.kind());
                    return Err(self.here(problem));
                }
            };
            entries.insert(key, pair[1]);
        }
        let entries = entries.into_iter().map(|(key, id)| {
            let def = self.below(Key::Dict(key.clone()), id)?;
            Ok((key, def))
        });
        let entries = entries.collect::<Result<Vec<_>, String>>()?;
        TreeDef::dict(entries).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(bytes: &[u8]) -> String {
        PickleSource::new("x".into(), Bytes::copy_from_slice(bytes)).err().unwrap()
    }

    #[test]
    fn what_could_run_code_is_refused_by_name() {
        assert!(problem(b"\x80\x02cos\nsystem\n").contains("it names os.system"));
        assert!(problem(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93").contains("it names builtins.eval"));
        assert!(problem(b"\x80\x02(i").contains("INST"));
        assert!(problem(b"\x80\x02N\x81").contains("NEWOBJ"));
        assert!(problem(b"\x80\x02Px\n").contains("PERSID"));
        assert!(problem(b"\x80\x02\x82\x01").contains("EXT"));
    }

    #[test]
    fn damage_is_an_error() {
        assert!(problem(b"\x80\x02").contains("cut off"));
        assert!(problem(b"\x80\x02.").contains("stack is empty"));
        assert!(problem(b"\x80\x02h\x00.").contains("nothing is remembered"));
        assert!(problem(b"\x80\x02]K\x01K\x01s.").contains("no dictionary"));
        assert!(problem(b"\x80\x02X\xff\xff\xff\xff.").contains("cut off"));
        assert!(problem(b"\x80\x02X\x01\x00\x00\x00x.").contains("neither a container nor an array"));
        let lists = [&b"\x80\x02"[..], &[b']'; 100_000], &[b'a'; 99_999], b"."].concat();
        let tuples = [&b"\x80\x02N"[..], &[0x85; 100_000], b"."].concat();
        assert!(problem(&lists).contains("nested deeper") && problem(&tuples).contains("nested deeper"));
        // A list in itself.
        assert!(problem(b"\x80\x02]q\x00h\x00a.").contains("nested deeper"));
        // Doubling itself forty times over.
        let mut bomb = b"\x80\x02]N".to_vec();
        bomb.push(b'a');
        for round in 0..40u8 {
            bomb.extend([b'q', round, b'h', round, 0x86]);
        }
        bomb.push(b'.');
        assert!(problem(&bomb).contains("too often"));
    }

    #[test]
    fn what_is_shared_is_whole_wherever_it_stands() {
        // d = {'w': 5}; l = [1]; pickle.dumps({'a': d, 'b': d, 'c': l, 'd': l}, 2)
        let file = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01}q\x02X\x01\x00\x00\x00wq\x03K\x05sX\x01\x00\x00\x00bq\x04h\x02\
            X\x01\x00\x00\x00cq\x05]q\x06K\x01aX\x01\x00\x00\x00dq\x07h\x06u.";
        let source = PickleSource::new("x".into(), Bytes::from_static(file)).unwrap();
        assert_eq!(source.keys().def().to_string(), "{'a': {'w': *}, 'b': {'w': *}, 'c': [*], 'd': [*]}");
        assert_eq!(&source.read(1).unwrap()[..], 5i64.to_le_bytes());
    }

    #[test]
    fn plain_values_become_a_tree() {
        // pickle.dumps({'a': 5, 'b': [None, True]}, 2)
        let file = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x05X\x01\x00\x00\x00bq\x02]q\x03(N\x88eu.";
        let source = PickleSource::new("x".into(), Bytes::from_static(file)).unwrap();
        assert_eq!(source.keys().def().to_string(), "{'a': *, 'b': [None, *]}");
        assert_eq!(&source.read(0).unwrap()[..], 5i64.to_le_bytes());
        assert_eq!(&source.read(1).unwrap()[..], [1]);
    }
}
