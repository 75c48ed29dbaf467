//! The stack machine that a pickle is a program for. Instructions have the names of Python's `pickletools`.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;

use super::globals::Global;
use super::tensor::tensor;
use super::values::{Array, ByteString, Dict, Elements, Id, Object, Storage, Value};
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::format::encoding::row_major;
use crate::format::npy;
use crate::limits::{Limits, MAX_RANK};

/// Values that every file has, at their positions: they take no memory however often they come.
const SHARED: [Value; 4] = [Value::None, Value::Bool(false), Value::Bool(true), Value::Mark];
const NONE: Id = 0;
const FALSE: Id = 1;
const TRUE: Id = 2;
const MARK: Id = 3;

/// Values that a node of the tree may be made of, at most and on average: a small array has a dozen.
const VALUES_PER_NODE: usize = 4;

/// Bytes of the file that may make a value beyond these.
const BYTES_PER_VALUE: usize = 16;

/// What may be copied of a file, in times of its size, and beyond that in bytes.
const COPIES_OF_FILE: usize = 4;
const FREE_COPIES: usize = 1 << 20;

pub struct Machine<'a> {
    data: &'a [u8],
    position: usize,
    pub values: Vec<Value>,
    stack: Vec<Id>,
    memo: HashMap<u64, Id>,
    most_values: usize,
    /// Whether there are storages beside it, to which it refers.
    has_storages: bool,
    /// Bytes that were copied, of strings that are decoded and of containers that are made of others. A file can ask for
    /// the same copy again and again.
    copied: usize,
}

/// What is made by a call.
enum Made {
    New(Value),
    /// Another name for a value that there is.
    Same(Id),
}

impl<'a> Machine<'a> {
    pub fn new(data: &'a [u8], limits: Limits, has_storages: bool) -> Machine<'a> {
        let most_values =
            limits.nodes.saturating_mul(VALUES_PER_NODE).saturating_add(data.len() / BYTES_PER_VALUE);
        let (values, stack, memo) = (SHARED.to_vec(), Vec::new(), HashMap::new());
        Machine { data, position: 0, values, stack, memo, most_values, has_storages, copied: 0 }
    }

    /// Bytes that follow the end of the program.
    pub fn rest(&self) -> usize {
        self.data.len() - self.position
    }

    /// Runs to the end, and returns what is built.
    pub fn run(&mut self) -> Result<Id, String> {
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

    fn take(&mut self, count: usize) -> Result<Range<usize>, String> {
        let end = self.position.checked_add(count).filter(|end| *end <= self.data.len());
        let end = end.ok_or_else(|| format!("it is cut off at byte {}", self.position))?;
        let range = self.position..end;
        self.position = end;
        Ok(range)
    }

    /// A little-endian number of this many bytes.
    fn number(&mut self, bytes: usize) -> Result<u64, String> {
        let range = self.take(bytes)?;
        Ok(self.data[range].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    /// As many bytes as a number of this many bytes says.
    fn counted(&mut self, bytes: usize) -> Result<Range<usize>, String> {
        let length = usize::try_from(self.number(bytes)?)
            .map_err(|_| format!("a length at byte {} is too large", self.position))?;
        self.take(length)
    }

    fn text(&mut self, bytes: usize) -> Result<(), String> {
        let range = self.counted(bytes)?;
        if std::str::from_utf8(&self.data[range.clone()]).is_err() {
            return Err(format!("a string before byte {} is not UTF-8", self.position));
        }
        self.push(Value::Str(ByteString::Range(range)))
    }

    /// The rest of a line, which protocols 0 and 1 write numbers and names in.
    fn line(&mut self) -> Result<&'a [u8], String> {
        let rest = &self.data[self.position..];
        let length = rest.iter().position(|&byte| byte == b'\n').ok_or("a line does not end")?;
        self.position += length + 1;
        Ok(&rest[..length])
    }

    fn text_line(&mut self) -> Result<&'a str, String> {
        std::str::from_utf8(self.line()?).map_err(|_| "a line is not UTF-8".to_owned())
    }

    fn pop(&mut self) -> Result<Id, String> {
        self.stack.pop().ok_or_else(|| format!("the stack is empty at byte {}", self.position))
    }

    fn push(&mut self, value: Value) -> Result<(), String> {
        self.push_known(self.values.len())?;
        self.values.push(value);
        Ok(())
    }

    fn push_known(&mut self, id: Id) -> Result<(), String> {
        let most = self.values.len().max(self.stack.len()).max(self.memo.len());
        if most >= self.most_values {
            return Err(
                "it makes more values than a file of its size should; if it is real, read it without limits \
                        (`--no-limits`, `LoadOptions::limits`)"
                    .into(),
            );
        }
        self.stack.push(id);
        Ok(())
    }

    /// Counts bytes that are about to be copied: of a real file, each part is copied once or twice.
    fn copy(&mut self, bytes: usize) -> Result<(), String> {
        self.copied = self.copied.saturating_add(bytes);
        if self.copied > COPIES_OF_FILE * self.data.len() + FREE_COPIES {
            return Err("it copies its own parts too often".into());
        }
        Ok(())
    }

    fn top(&self) -> Result<Id, String> {
        self.stack.last().copied().ok_or_else(|| format!("the stack is empty at byte {}", self.position))
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
        self.push(Value::Tuple(items))
    }

    fn remember(&mut self, index: u64) -> Result<(), String> {
        let id = self.top()?;
        if self.memo.len() >= self.most_values {
            return Err("it remembers more values than it makes".into());
        }
        self.memo.insert(index, id);
        Ok(())
    }

    fn recall(&mut self, index: u64) -> Result<(), String> {
        let id = self.memo.get(&index).ok_or_else(|| format!("nothing is remembered as {index}"))?;
        self.push_known(*id)
    }

    fn step(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            0x80 => self.take(1).map(drop), // PROTO
            0x95 => self.take(8).map(drop), // FRAME
            b'(' => self.push_known(MARK),
            b'N' => self.push_known(NONE),
            0x88 => self.push_known(TRUE),
            0x89 => self.push_known(FALSE),
            b'K' | b'M' | b'J' | b'I' | b'L' | b'G' | b'F' | 0x8a | 0x8b => self.number_value(opcode),
            b'X' => self.text(4),
            0x8c => self.text(1),
            0x8d => self.text(8),
            b'T' => self.counted(4).and_then(|range| self.push(Value::RawStr(ByteString::Range(range)))),
            b'U' => self.counted(1).and_then(|range| self.push(Value::RawStr(ByteString::Range(range)))),
            b'S' | b'V' => self.string_line(opcode),
            b'B' => self.counted(4).and_then(|range| self.push(Value::Bytes(ByteString::Range(range)))),
            b'C' => self.counted(1).and_then(|range| self.push(Value::Bytes(ByteString::Range(range)))),
            0x8e | 0x96 => {
                self.counted(8).and_then(|range| self.push(Value::Bytes(ByteString::Range(range))))
            }
            b'}' => self.push(Value::Dict(Box::default())),
            b']' => self.push(Value::List(Vec::new())),
            b')' => self.push(Value::Tuple(Vec::new())),
            b'd' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Dict(Box::default()))?;
                self.set_items(items)
            }
            b'l' => self.pop_to_mark().and_then(|items| self.push(Value::List(items))),
            b't' => self.pop_to_mark().and_then(|items| self.push(Value::Tuple(items))),
            0x85 => self.tuple(1),
            0x86 => self.tuple(2),
            0x87 => self.tuple(3),
            0x8f => self.push(Value::Unknown("set".into())), // EMPTY_SET
            0x90 => self.pop_to_mark().map(drop),            // ADDITEMS, to a set
            0x91 => {
                self.pop_to_mark()?; // FROZENSET
                self.push(Value::Unknown("frozenset".into()))
            }
            b'q' => self.number(1).and_then(|index| self.remember(index)),
            b'r' => self.number(4).and_then(|index| self.remember(index)),
            b'p' => self.memo_line().and_then(|index| self.remember(index)),
            0x94 => self.remember(self.memo.len() as u64),
            b'h' => self.number(1).and_then(|index| self.recall(index)),
            b'j' => self.number(4).and_then(|index| self.recall(index)),
            b'g' => self.memo_line().and_then(|index| self.recall(index)),
            b'0' => self.pop().map(drop),
            b'1' => self.pop_to_mark().map(drop),
            b'2' => self.top().and_then(|id| self.push_known(id)),
            b'a' => self.pop().and_then(|item| self.append(vec![item])),
            b'e' => self.pop_to_mark().and_then(|items| self.append(items)),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(vec![key, value])
            }
            b'u' => self.pop_to_mark().and_then(|items| self.set_items(items)),
            b'c' => {
                let (module, name) = (self.text_line()?, self.text_line()?);
                self.push(Value::Global(Global::named(module, name)))
            }
            0x93 => self.stack_global(),
            b'R' | 0x81 => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.push_made(function, arguments)
            }
            0x92 => {
                let (_keywords, arguments, class) = (self.pop()?, self.pop()?, self.pop()?); // NEWOBJ_EX
                self.push_made(class, arguments)
            }
            b'b' => self.build(),
            b'Q' if self.has_storages => self.pop().and_then(|id| self.push_storage(id)),
            b'P' | b'Q' => {
                Err("it refers to what is outside of it, as PyTorch's files do (PERSID); load it in \
                                PyTorch, and save its state_dict as safetensors"
                    .into())
            }
            opcode => Err(format!("the instruction {} is not one that is read", opcode_name(opcode))),
        }
    }

    /// The storage behind PyTorch's name for it: ("storage", its kind, its key, a device, its elements).
    fn push_storage(&mut self, name: Id) -> Result<(), String> {
        let values: Vec<&Value> =
            self.items(name).unwrap_or_default().iter().map(|&id| &self.values[id]).collect();
        if let [_, Value::Global(Global::Unknown(kind)), ..] = &values[..] {
            // Of quantised tensors, for one. Who makes a tensor of it is told.
            let why = format!("its storage is a {kind}");
            return self.push(Value::NoNumbers(why));
        }
        let [_, Value::Global(Global::Storage(dtype)), key, _, Value::Int(elements)] = &values[..] else {
            return Err("it refers to something beside it that is no storage of PyTorch's".into());
        };
        let key = key.text(self.data).ok_or("a storage has no key")?.as_ref().into();
        let elements = usize::try_from(*elements).map_err(|_| "a storage has no size")?;
        let dtype = *dtype;
        self.push(Value::Storage(Box::new(Storage { dtype, key, elements })))
    }

    fn memo_line(&mut self) -> Result<u64, String> {
        self.text_line()?.parse().map_err(|_| "a number is remembered by is none".to_owned())
    }

    fn number_value(&mut self, opcode: u8) -> Result<(), String> {
        let value = match opcode {
            b'K' => Value::Int(self.number(1)? as i64),
            b'M' => Value::Int(self.number(2)? as i64),
            b'J' => Value::Int(i64::from(self.number(4)? as u32 as i32)),
            0x8a => {
                let range = self.counted(1)?; // LONG1
                long(&self.data[range])
            }
            0x8b => {
                let range = self.counted(4)?; // LONG4
                long(&self.data[range])
            }
            b'G' => {
                let range = self.take(8)?;
                Value::Float(f64::from_be_bytes(self.data[range].try_into().unwrap_or_default()))
            }
            b'F' => Value::Float(self.text_line()?.parse().map_err(|_| "a number is none")?),
            // INT, which is also how protocols 0 and 1 write bools.
            b'I' | b'L' => match self.text_line()? {
                "00" if opcode == b'I' => return self.push_known(FALSE),
                "01" if opcode == b'I' => return self.push_known(TRUE),
                text => {
                    let digits = text.strip_suffix('L').unwrap_or(text);
                    let unsigned = digits.strip_prefix('-').unwrap_or(digits);
                    if unsigned.is_empty() || !unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
                        return Err("an integer is none".into());
                    }
                    digits.parse().map_or(Value::LargeInt, Value::Int)
                }
            },
            _ => return Err(format!("{} is no number", opcode_name(opcode))),
        };
        self.push(value)
    }

    /// STRING, in quotes and with Python's escapes; UNICODE, with escapes of its own.
    fn string_line(&mut self, opcode: u8) -> Result<(), String> {
        let line = self.line()?;
        let wrong = || "a string is not written as Python does".to_owned();
        let value = if opcode == b'S' {
            let quoted = match line {
                [b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"'] => inner,
                _ => return Err(wrong()),
            };
            Value::RawStr(ByteString::Decoded(unescape(quoted).ok_or_else(wrong)?.into()))
        } else {
            Value::Str(ByteString::Decoded(raw_unicode(line).ok_or_else(wrong)?.into_bytes().into()))
        };
        self.push(value)
    }

    fn stack_global(&mut self) -> Result<(), String> {
        let (name, module) = (self.pop()?, self.pop()?);
        match (self.values[module].text(self.data), self.values[name].text(self.data)) {
            (Some(module), Some(name)) => {
                let global = Global::named(&module, &name);
                self.push(Value::Global(global))
            }
            _ => Err("a global has no name".into()),
        }
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), String> {
        match self.stack.last().map(|&id| &mut self.values[id]) {
            Some(Value::List(list)) => {
                list.extend(items);
                Ok(())
            }
            Some(Value::Unknown(_)) => Ok(()),
            _ => Err("something is appended to what is no list".into()),
        }
    }

    fn set_items(&mut self, items: Vec<Id>) -> Result<(), String> {
        if !items.len().is_multiple_of(2) {
            return Err("a key has no value".into());
        }
        match self.stack.last().map(|&id| &mut self.values[id]) {
            Some(Value::Dict(dict)) => {
                dict.items.extend(items);
                Ok(())
            }
            Some(Value::Unknown(_)) => Ok(()),
            _ => Err("something is set in what is no dictionary".into()),
        }
    }

    /// The values of a tuple.
    fn items(&self, tuple: Id) -> Option<&[Id]> {
        match &self.values[tuple] {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// Pushes what the call of a function or class makes.
    fn push_made(&mut self, function: Id, arguments: Id) -> Result<(), String> {
        let Some(ids) = self.items(arguments).map(<[Id]>::to_vec) else {
            return Err("something is called without a tuple of arguments".into());
        };
        // What the call may copy: its arguments. Text and lists can be long.
        let argument_bytes = |&id: &Id| match &self.values[id] {
            Value::Str(content) | Value::RawStr(content) => content.of(self.data).len(),
            Value::List(items) => items.len() * size_of::<[Id; 2]>(),
            _ => size_of::<Id>(),
        };
        let bytes = ids.iter().map(argument_bytes).sum();
        self.copy(bytes)?;
        match self.call(function, &ids)? {
            Made::New(value) => self.push(value),
            Made::Same(id) => self.push_known(id),
        }
    }

    /// What the call of a function or class makes.
    fn call(&self, function: Id, ids: &[Id]) -> Result<Made, String> {
        let function = match &self.values[function] {
            Value::Global(function) => function,
            Value::Unknown(name) => return Ok(Made::New(Value::Unknown(name.clone()))),
            _ => return Err("something is called that is no function".into()),
        };
        // A dictionary in another type is that dictionary.
        if let (Global::Wrapper | Global::Python("dict"), [id]) = (function, ids)
            && matches!(self.values[*id], Value::Dict(_))
        {
            return Ok(Made::Same(*id));
        }
        // So is a tensor that is a parameter, and a tuple that is a shape.
        if let (Global::Parameter, [id, ..]) | (Global::Size, [id]) = (function, ids) {
            return Ok(Made::Same(*id));
        }
        if let (Global::FromType, [function, _, arguments, ..]) = (function, ids)
            && let (Value::Global(Global::Tensor | Global::TypedTensor), Some(ids)) =
                (&self.values[*function], self.items(*arguments))
        {
            return self.call(*function, ids);
        }
        self.new_value(function, ids).map(Made::New)
    }

    /// The value that a call makes anew.
    fn new_value(&self, function: &Global, ids: &[Id]) -> Result<Value, String> {
        let values: Vec<&Value> = ids.iter().map(|&id| &self.values[id]).collect();
        let text = |value: &Value| value.text(self.data).map(|text| text.into_owned());
        match (function, &values[..]) {
            (Global::Unknown(name), _) => Ok(Value::Unknown(name.clone())),
            (Global::Reconstruct, _) => Ok(Value::EmptyArray),
            (Global::JaxArray, [_, _, Value::Tuple(state), ..]) => self.array_of_state(state),
            (Global::OrderedDict, []) => {
                Ok(Value::Dict(Box::new(Dict { is_ordered: true, ..Dict::default() })))
            }
            // As Python 2 wrote it: with a list of pairs.
            (Global::OrderedDict, [Value::List(pairs)]) => {
                let pairs: Option<Vec<&[Id]>> = pairs
                    .iter()
                    .map(|&pair| match &self.values[pair] {
                        Value::Tuple(pair) | Value::List(pair) if pair.len() == 2 => Some(&pair[..]),
                        _ => None,
                    })
                    .collect();
                let items = pairs.ok_or("an OrderedDict is made of what are no pairs")?.concat();
                Ok(Value::Dict(Box::new(Dict { items, is_ordered: true })))
            }
            (Global::DefaultDict, _) | (Global::Python("dict"), []) => Ok(Value::Dict(Box::default())),
            (Global::Python("list"), []) => Ok(Value::List(Vec::new())),
            (Global::Python("bytes" | "bytearray"), []) => {
                Ok(Value::Bytes(ByteString::Decoded(Bytes::new())))
            }
            (Global::Python("bytes" | "bytearray"), [Value::Bytes(content)]) => {
                Ok(Value::Bytes(content.clone()))
            }
            (Global::Python("complex"), [Value::Float(real), Value::Float(imaginary)]) => {
                Ok(Value::Complex(*real, *imaginary))
            }
            (Global::Encode, [characters, encoding]) if text(encoding).as_deref() == Some("latin1") => {
                let characters = text(characters).ok_or("bytes are made of what is no text")?;
                // Every character stands for the byte of its number.
                let bytes: Option<Vec<u8>> =
                    characters.chars().map(|c| u8::try_from(c as u32).ok()).collect();
                let bytes = bytes.ok_or("bytes are written as characters that stand for none")?;
                Ok(Value::Bytes(ByteString::Decoded(bytes.into())))
            }
            (Global::DType, [Value::Global(Global::Extension(dtype)), ..]) => {
                Ok(Value::DType(dtype.name().to_owned()))
            }
            // Arrays of it are no numbers that are known.
            (Global::DType, [Value::Global(Global::Unknown(name)), ..]) => Ok(Value::DType(name.clone())),
            (Global::DType, [descr, ..]) if text(descr).is_some() => {
                Ok(Value::DType(text(descr).unwrap_or_default()))
            }
            (Global::Scalar, [Value::DType(descr), content]) => match content.bytes() {
                Some(content) => self.array(vec![], descr, content.clone(), false),
                None => Ok(Value::NoNumbers("it is a scalar that is no number".into())),
            },
            // Since NumPy 2.4: the array as it lies in memory, and the order of its dimensions.
            (
                Global::FromBuffer,
                [Value::Bytes(content), Value::DType(descr), Value::Tuple(shape), order, Value::Tuple(axes)],
            ) if text(order).as_deref() == Some("K") => {
                self.turned_array(&self.dims(shape)?, &self.dims(axes)?, descr, content.clone())
            }
            (
                Global::FromBuffer,
                [Value::Bytes(content), Value::DType(descr), Value::Tuple(shape), order]
                | [Value::Bytes(content), Value::DType(descr), Value::Tuple(shape), order, Value::None],
            ) => {
                let is_fortran_order = text(order).as_deref() == Some("F");
                self.array(self.dims(shape)?, descr, content.clone(), is_fortran_order)
            }
            (
                Global::Tensor,
                [Value::Storage(storage), offset, Value::Tuple(shape), Value::Tuple(strides), ..],
            ) => {
                let is_view = self.has_true(values.get(6));
                tensor(storage, None, offset, (self.dims(shape)?, self.dims(strides)?), is_view)
            }
            (
                Global::TypedTensor,
                [
                    Value::Storage(storage),
                    offset,
                    Value::Tuple(shape),
                    Value::Tuple(strides),
                    _,
                    _,
                    dtype,
                    ..,
                ],
            ) => {
                let dtype = match dtype {
                    Value::Global(Global::Extension(dtype)) => *dtype,
                    other => return Ok(Value::NoNumbers(format!("its elements are of {}", other.kind()))),
                };
                let is_view = self.has_true(values.get(7));
                tensor(storage, Some(dtype), offset, (self.dims(shape)?, self.dims(strides)?), is_view)
            }
            (Global::FromType, [_, Value::Global(class), ..]) => Ok(Value::Unknown(class.name().to_owned())),
            (Global::Reconstructor, [Value::Global(class), ..]) => Ok(self.object(class, &[])),
            (Global::OptaxState(_) | Global::TrainState | Global::JoblibArray, _) => {
                Ok(self.object(function, ids))
            }
            (function, _) => Err(format!("{} is called in a way that is not known", function.name())),
        }
    }

    /// Whether a dictionary has an entry that is true.
    fn has_true(&self, dict: Option<&&Value>) -> bool {
        let items = dict.and_then(|dict| if let Value::Dict(dict) = dict { Some(&dict.items) } else { None });
        items.is_some_and(|items| items.iter().any(|&id| self.values[id] == Value::Bool(true)))
    }

    fn object(&self, class: &Global, arguments: &[Id]) -> Value {
        if let Global::Unknown(name) = class {
            return Value::Unknown(name.clone());
        }
        let (class, arguments) = (class.clone(), arguments.to_vec());
        Value::Object(Box::new(Object { class, arguments, attributes: Vec::new() }))
    }

    /// BUILD: gives an object its state. What it makes takes the object's place, for all who refer to it.
    fn build(&mut self) -> Result<(), String> {
        let (state, object) = (self.pop()?, self.top()?);
        if let (Value::Object(known), Value::Dict(attributes)) = (&self.values[object], &self.values[state]) {
            self.copy((known.attributes.len() + attributes.items.len()) * size_of::<Id>())?;
        }
        let built = match (&self.values[object], &self.values[state]) {
            (Value::Unknown(_), _) => return Ok(()),
            (Value::EmptyArray, Value::Tuple(items)) => self.array_of_state(items)?,
            (Value::DType(descr), Value::Tuple(items)) => self.dtype_of_state(descr, items)?,
            (Value::Object(known), Value::Dict(attributes)) => {
                let mut built = known.clone();
                built.attributes.extend(&attributes.items);
                if built.class == Global::JoblibArray {
                    self.joblib_array(&built)?
                } else {
                    Value::Object(built)
                }
            }
            // Attributes of a container, such as a cached hash.
            (Value::Dict(_), _) => return Ok(()),
            _ => return Err("an object is given a state that is not known".into()),
        };
        self.values[object] = built;
        Ok(())
    }

    /// An array of the state that NumPy writes: (version, shape, type, is in Fortran's order, content).
    fn array_of_state(&self, state: &[Id]) -> Result<Value, String> {
        let values: Vec<&Value> = state.iter().map(|&id| &self.values[id]).collect();
        match &values[..] {
            [_, _, _, _, Value::List(_)] => Ok(Value::NoNumbers("it is an array of Python objects".into())),
            [Value::Int(_), Value::Tuple(shape), Value::DType(descr), Value::Bool(order), content] => {
                let content = content.bytes().ok_or("an array has no content")?;
                self.array(self.dims(shape)?, descr, content.clone(), *order)
            }
            _ => Err("an array is given a state that NumPy does not write".into()),
        }
    }

    /// A type of the state that NumPy writes: (version, byte order, …). The byte order is the first letter of the name.
    fn dtype_of_state(&self, descr: &str, state: &[Id]) -> Result<Value, String> {
        let order = state.get(1).and_then(|&id| self.values[id].text(self.data));
        let order = order.ok_or("a type is given a state that NumPy does not write")?;
        // The types of ml_dtypes have whole names, and no byte order.
        let is_named =
            DType::from_name(descr).is_some_and(|dtype| dtype.name() == descr) || descr.contains('.');
        let is_plain = descr.starts_with(['b', 'i', 'u', 'f', 'c', 'O', 'M', 'm', 'S', 'U']) && !is_named;
        Ok(Value::DType(if is_plain { format!("{order}{descr}") } else { descr.to_owned() }))
    }

    /// The array that joblib writes after the object that describes it: since joblib 1.3, a byte that counts the padding,
    /// the padding, and then the elements.
    fn joblib_array(&mut self, wrapper: &Object) -> Result<Value, String> {
        let attribute = |name: &str| {
            let mut pairs = wrapper.attributes.chunks_exact(2);
            let pair = pairs.find(|pair| self.values[pair[0]].text(self.data).as_deref() == Some(name));
            pair.map(|pair| &self.values[pair[1]])
        };
        let (Some(Value::Tuple(shape)), Some(Value::DType(descr))) = (attribute("shape"), attribute("dtype"))
        else {
            return Err("an array of joblib has no shape or type".into());
        };
        let order = attribute("order").and_then(|order| order.text(self.data));
        let (shape, descr, is_fortran_order) =
            (self.dims(shape)?, descr.clone(), order.as_deref() == Some("F"));
        let is_padded = matches!(attribute("numpy_array_alignment_bytes"), Some(Value::Int(_)));
        let dtype = dtype_of(&descr)
            .map_err(|problem| format!("an array of joblib cannot be read, since {problem}"))?;
        if is_padded {
            self.counted(1)?;
        }
        let bytes = ArraySpec::new(dtype, shape.clone()).host_bytes().map_err(|error| error.to_string())?;
        let content = ByteString::Range(self.take(bytes)?);
        self.array(shape, &descr, content, is_fortran_order)
    }

    fn dims(&self, shape: &[Id]) -> Result<Vec<usize>, String> {
        if shape.len() > MAX_RANK {
            return Err(format!("an array has more than {MAX_RANK} dimensions"));
        }
        let dim = |&id: &Id| match self.values[id] {
            Value::Int(dim) => usize::try_from(dim).ok(),
            _ => None,
        };
        shape.iter().map(dim).collect::<Option<_>>().ok_or_else(|| "a shape is not one of sizes".to_owned())
    }

    /// An array that lies in memory row-major in this shape, of which each dimension is the one that `axes` says.
    fn turned_array(
        &self,
        stored: &[usize],
        axes: &[usize],
        descr: &str,
        content: ByteString,
    ) -> Result<Value, String> {
        let mut sorted = axes.to_vec();
        sorted.sort_unstable();
        if !sorted.into_iter().eq(0..stored.len()) {
            return Err("an array is turned by what is no order of its dimensions".into());
        }
        let turned = |of: &[usize]| -> Vec<usize> { axes.iter().map(|&axis| of[axis]).collect() };
        let mut value = self.array(turned(stored), descr, content, false)?;
        if let Value::Array(array) = &mut value {
            array.encoding.strides = Some(turned(&row_major(stored)));
        }
        Ok(value)
    }

    fn array(
        &self,
        shape: Vec<usize>,
        descr: &str,
        content: ByteString,
        is_fortran_order: bool,
    ) -> Result<Value, String> {
        let dtype = match dtype_of(descr) {
            Ok(dtype) => dtype,
            Err(problem) => return Ok(Value::NoNumbers(problem)),
        };
        let spec = ArraySpec::new(dtype, shape);
        let expected = spec.host_bytes().map_err(|error| error.to_string())?;
        let length = content.of(self.data).len();
        if length != expected {
            return Err(format!("an array is {spec}, {expected} bytes, but has {length}"));
        }
        let encoding = npy::encoding_of(&spec, descr.starts_with('>'), is_fortran_order);
        Ok(Value::Array(Box::new(Array { spec, elements: Elements::Here(content), encoding })))
    }
}

/// The type behind NumPy's or ml_dtypes's name for it.
fn dtype_of(descr: &str) -> Result<DType, String> {
    match DType::from_name(descr).filter(|dtype| dtype.name() == descr) {
        Some(dtype) => Ok(dtype),
        None => npy::dtype_of(descr),
    }
}

/// An integer of any length: little-endian with a sign.
fn long(bytes: &[u8]) -> Value {
    if bytes.len() > 8 {
        return Value::LargeInt;
    }
    let raw = bytes.iter().rev().fold(0u64, |number, &byte| number << 8 | u64::from(byte));
    let unused = 64 - 8 * bytes.len() as u32;
    Value::Int(if bytes.is_empty() { 0 } else { ((raw << unused) as i64) >> unused })
}

/// The bytes behind Python's escapes.
fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let (&escape, after) = rest.split_first()?;
        rest = after;
        bytes.push(match escape {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'\\' | b'\'' | b'"' => escape,
            b'a' => 7,
            b'b' => 8,
            b'v' => 11,
            b'f' => 12,
            b'x' => {
                let (digits, after) = rest.split_at_checked(2)?;
                rest = after;
                u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?
            }
            _ => return None,
        });
    }
    Some(bytes)
}

/// The text behind Latin 1 with `\uXXXX` and `\UXXXXXXXX` for the other characters.
fn raw_unicode(text: &[u8]) -> Option<String> {
    let mut decoded = String::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let digits = match rest {
            [b'\\', b'u', ..] => 4,
            [b'\\', b'U', ..] => 8,
            _ => {
                decoded.push(char::from(*first));
                rest = after;
                continue;
            }
        };
        let number = std::str::from_utf8(rest.get(2..2 + digits)?).ok()?;
        decoded.push(char::from_u32(u32::from_str_radix(number, 16).ok()?)?);
        rest = &rest[2 + digits..];
    }
    Some(decoded)
}

/// The names of instructions that are not read, for the error.
fn opcode_name(opcode: u8) -> String {
    let name = match opcode {
        b'i' => "INST",
        b'o' => "OBJ",
        0x82..=0x84 => "EXT",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => return format!("0x{opcode:02x}"),
    };
    name.to_owned()
}
