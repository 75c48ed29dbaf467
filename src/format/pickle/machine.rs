//! The stack machine that a pickle is a program for. Instructions have the names of Python's `pickletools`.

use std::collections::HashMap;

use super::escapes::{raw_unicode, unescape};
use super::globals::Global;
use super::values::{ByteString, Id, NOT_UTF8, Storage, Value};
use crate::format::problem::Problem;
use crate::limits::Limits;
use crate::store::{Cursor, SharedBlob};

type Result<T> = std::result::Result<T, Problem>;

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

/// The longest line, in bytes: an array of half a gigabyte, written with escapes.
const MAX_LINE_BYTES: usize = 2 << 30;

/// The longest string that is read when it comes, in bytes. A longer one is mostly the content of an array.
const SHORT_BYTES: usize = 4096;

pub struct Machine {
    pub bytes: Cursor,
    pub values: Vec<Value>,
    stack: Vec<Id>,
    memo: HashMap<u64, Id>,
    most_values: usize,
    /// Whether there are storages beside it, to which it refers.
    has_storages: bool,
    /// Bytes that were copied, of strings that are decoded and of containers that are made of others. A file can ask for
    /// the same copy again and again.
    copied: usize,
    /// What was given to arrays and containers beside what is in them: attributes, by what has them.
    pub attributes: Vec<(Id, Id)>,
}

impl Machine {
    pub fn new(blob: SharedBlob, limits: Limits, has_storages: bool) -> Machine {
        let most_values =
            limits.nodes.saturating_mul(VALUES_PER_NODE).saturating_add(blob.size() / BYTES_PER_VALUE);
        let (values, stack, memo) = (SHARED.to_vec(), Vec::new(), HashMap::new());
        let (bytes, copied, attributes) = (Cursor::new(blob), 0, Vec::new());
        Machine { bytes, values, stack, memo, most_values, has_storages, copied, attributes }
    }

    /// Runs to the end of a pickle, and returns what is built. The values of those that were run before stay.
    pub fn run(&mut self) -> Result<Id> {
        self.stack.clear();
        self.memo.clear();
        loop {
            let start = self.bytes.position();
            let [opcode] = self.bytes.array()?;
            if opcode == b'.' {
                return self.pop();
            }
            self.step(opcode).map_err(|problem| problem.at(format!("at byte {start}")))?;
        }
    }

    /// A little-endian number.
    fn number<const N: usize>(&mut self) -> Result<u64> {
        Ok(self.bytes.array::<N>()?.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    /// As many bytes as a number says, which are not read.
    fn counted<const N: usize>(&mut self) -> Result<ByteString> {
        let length = self.length::<N>()?;
        Ok(ByteString::Range(self.bytes.skip(length)?))
    }

    fn length<const N: usize>(&mut self) -> Result<usize> {
        let length = usize::try_from(self.number::<N>()?);
        Ok(length.map_err(|_| format!("a length at byte {} is too large", self.bytes.position()))?)
    }

    /// As many bytes as a number says, which are read if they are few.
    fn string<const N: usize>(&mut self) -> Result<ByteString> {
        let length = self.length::<N>()?;
        if length <= SHORT_BYTES {
            Ok(ByteString::Decoded(self.bytes.read_vec(length)?.into()))
        } else {
            Ok(ByteString::Range(self.bytes.skip(length)?))
        }
    }

    fn text<const N: usize>(&mut self) -> Result<()> {
        let content = self.string::<N>()?;
        if let ByteString::Decoded(bytes) = &content
            && std::str::from_utf8(bytes).is_err()
        {
            return Err(NOT_UTF8.into());
        }
        self.push(Value::Str(content))
    }

    /// The rest of a line, which protocols 0 and 1 write numbers and names in.
    fn line(&mut self) -> Result<Vec<u8>> {
        Ok(self.bytes.read_until(b'\n', MAX_LINE_BYTES)?.ok_or("a line does not end")?)
    }

    fn text_line(&mut self) -> Result<String> {
        Ok(String::from_utf8(self.line()?).map_err(|_| "a line is not UTF-8")?)
    }

    pub(super) fn pop(&mut self) -> Result<Id> {
        Ok(self.stack.pop().ok_or("the stack is empty")?)
    }

    pub(super) fn push(&mut self, value: Value) -> Result<()> {
        self.push_known(self.values.len())?;
        self.values.push(value);
        Ok(())
    }

    pub(super) fn push_known(&mut self, id: Id) -> Result<()> {
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
    pub(super) fn copy(&mut self, bytes: usize) -> Result<()> {
        self.copied = self.copied.saturating_add(bytes);
        if self.copied > COPIES_OF_FILE * self.bytes.blob().size() + FREE_COPIES {
            return Err("it copies its own parts too often".into());
        }
        Ok(())
    }

    pub(super) fn top(&self) -> Result<Id> {
        Ok(self.stack.last().copied().ok_or("the stack is empty")?)
    }

    /// The values above the last mark, which goes.
    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.stack.iter().rposition(|&id| id == MARK);
        let mark = mark.ok_or("there is no mark")?;
        let values = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(values)
    }

    fn tuple(&mut self, count: usize) -> Result<()> {
        let start = self.stack.len().checked_sub(count).ok_or("the stack is too short for a tuple")?;
        let items = self.stack.split_off(start);
        self.push(Value::Tuple(items))
    }

    fn remember(&mut self, index: u64) -> Result<()> {
        let id = self.top()?;
        if self.memo.len() >= self.most_values {
            return Err("it remembers more values than it makes".into());
        }
        self.memo.insert(index, id);
        Ok(())
    }

    fn recall(&mut self, index: u64) -> Result<()> {
        let id = *self.memo.get(&index).ok_or_else(|| format!("nothing is remembered as {index}"))?;
        self.push_known(id)
    }

    fn step(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            0x80 => self.number::<1>().map(drop), // PROTO
            0x95 => self.number::<8>().map(drop), // FRAME
            b'(' => self.push_known(MARK),
            b'N' => self.push_known(NONE),
            0x88 => self.push_known(TRUE),
            0x89 => self.push_known(FALSE),
            b'K' | b'M' | b'J' | b'I' | b'L' | b'G' | b'F' | 0x8a | 0x8b => self.number_value(opcode),
            b'X' => self.text::<4>(),
            0x8c => self.text::<1>(),
            0x8d => self.text::<8>(),
            b'T' => self.string::<4>().and_then(|content| self.push(Value::RawStr(content))),
            b'U' => self.string::<1>().and_then(|content| self.push(Value::RawStr(content))),
            b'S' | b'V' => self.string_line(opcode),
            b'B' => self.counted::<4>().and_then(|content| self.push(Value::Bytes(content))),
            b'C' => self.counted::<1>().and_then(|content| self.push(Value::Bytes(content))),
            0x8e | 0x96 => self.counted::<8>().and_then(|content| self.push(Value::Bytes(content))),
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
            0x8f => self.push(Value::unknown("set", Vec::new())), // EMPTY_SET
            0x90 => self.pop_to_mark().and_then(|items| self.append(items)), // ADDITEMS, to a set
            0x91 => {
                let items = self.pop_to_mark()?; // FROZENSET
                self.push(Value::unknown("frozenset", items))
            }
            b'q' => self.number::<1>().and_then(|index| self.remember(index)),
            b'r' => self.number::<4>().and_then(|index| self.remember(index)),
            b'p' => self.memo_line().and_then(|index| self.remember(index)),
            0x94 => self.remember(self.memo.len() as u64),
            b'h' => self.number::<1>().and_then(|index| self.recall(index)),
            b'j' => self.number::<4>().and_then(|index| self.recall(index)),
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
                self.push(Value::Global(Global::named(&module, &name)))
            }
            0x93 => self.stack_global(),
            b'R' | 0x81 => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.push_made(function, arguments)
            }
            0x92 => {
                let (keywords, arguments, class) = (self.pop()?, self.pop()?, self.pop()?); // NEWOBJ_EX
                self.push_made(class, arguments)?;
                if let Some(Value::Unknown(opaque)) = self.stack.last().map(|&id| &mut self.values[id]) {
                    opaque.parts.push(keywords);
                }
                Ok(())
            }
            b'b' => self.build(),
            b'Q' if self.has_storages => self.pop().and_then(|id| self.push_storage(id)),
            b'P' | b'Q' => {
                Err("it refers to what is outside of it, as PyTorch's files do (PERSID); load it in \
                                PyTorch, and save its state_dict as safetensors"
                    .into())
            }
            opcode => Err(format!("the instruction {} is not one that is read", opcode_name(opcode)).into()),
        }
    }

    /// The storage behind PyTorch's name for it: ("storage", its kind, its key, a device, its elements). Before PyTorch 1.6,
    /// also: `None`, or the part of it that is meant (a key, its first element, its elements).
    fn push_storage(&mut self, name: Id) -> Result<()> {
        let values: Vec<&Value> =
            self.items(name).unwrap_or_default().iter().map(|&id| &self.values[id]).collect();
        if let [what, Value::Global(_), ..] = &values[..]
            && what.short_text().as_deref() == Some("module")
            && let Some(&[_, class, ..]) = self.items(name)
        {
            // Before PyTorch 1.6, the class of a module came with its source.
            return self.push_known(class);
        }
        if let [_, Value::Global(Global::Unknown(kind)), ..] = &values[..] {
            // Of quantised tensors, for one. Who makes a tensor of it is told.
            let why = format!("its storage is a {kind}");
            return self.push(Value::NoNumbers(why));
        }
        let [_, Value::Global(Global::Storage(dtype)), key, _, Value::Int(elements), part @ ..] = &values[..]
        else {
            return Err("it refers to something beside it that is no storage of PyTorch's".into());
        };
        let key = key.short_text().ok_or("a storage has no key")?.as_ref().into();
        let elements = usize::try_from(*elements).map_err(|_| "a storage has no size")?;
        let (first, elements) = match part {
            [] | [Value::None] => (0, elements),
            [Value::Tuple(part)] => {
                let part = self.dims(part.get(1..).unwrap_or_default())?;
                match part[..] {
                    [first, count] if first <= elements && count <= elements - first => (first, count),
                    _ => return Err("a part of a storage is not within it".into()),
                }
            }
            _ => return Err("a storage is named in a way that is not known".into()),
        };
        let dtype = *dtype;
        self.push(Value::Storage(Box::new(Storage { dtype, key, first, elements })))
    }

    fn memo_line(&mut self) -> Result<u64> {
        Ok(self.text_line()?.parse().map_err(|_| "a number that is remembered by is none")?)
    }

    /// An integer of so many bytes: little-endian with a sign.
    fn long(&mut self, bytes: usize) -> Result<Value> {
        if bytes > 8 {
            self.bytes.skip(bytes)?;
            return Ok(Value::LargeInt);
        }
        let raw = self
            .bytes
            .read_vec(bytes)?
            .iter()
            .rev()
            .fold(0u64, |number, &byte| number << 8 | u64::from(byte));
        let unused = 64 - 8 * bytes as u32;
        Ok(Value::Int(if bytes == 0 { 0 } else { ((raw << unused) as i64) >> unused }))
    }

    fn number_value(&mut self, opcode: u8) -> Result<()> {
        let value = match opcode {
            b'K' => Value::Int(self.number::<1>()? as i64),
            b'M' => Value::Int(self.number::<2>()? as i64),
            b'J' => Value::Int(i64::from(self.number::<4>()? as u32 as i32)),
            0x8a => self.length::<1>().and_then(|length| self.long(length))?, // LONG1
            0x8b => self.length::<4>().and_then(|length| self.long(length))?, // LONG4
            b'G' => Value::Float(f64::from_be_bytes(self.bytes.array()?)),
            b'F' => Value::Float(self.text_line()?.parse().map_err(|_| "a number is none")?),
            // INT, which is also how protocols 0 and 1 write bools.
            b'I' | b'L' => match self.text_line()?.as_str() {
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
            _ => return Err(format!("{} is no number", opcode_name(opcode)).into()),
        };
        self.push(value)
    }

    /// STRING, in quotes and with Python's escapes; UNICODE, with escapes of its own.
    fn string_line(&mut self, opcode: u8) -> Result<()> {
        let line = self.line()?;
        let wrong = || Problem::from("a string is not written as Python does");
        let value = if opcode == b'S' {
            let quoted = match &line[..] {
                [b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"'] => inner,
                _ => return Err(wrong()),
            };
            Value::RawStr(ByteString::Decoded(unescape(quoted).ok_or_else(wrong)?.into()))
        } else {
            Value::Str(ByteString::Decoded(raw_unicode(&line).ok_or_else(wrong)?.into_bytes().into()))
        };
        self.push(value)
    }

    fn stack_global(&mut self) -> Result<()> {
        let (name, module) = (self.pop()?, self.pop()?);
        match (self.values[module].short_text(), self.values[name].short_text()) {
            (Some(module), Some(name)) => {
                let global = Global::named(&module, &name);
                self.push(Value::Global(global))
            }
            _ => Err("a global has no name".into()),
        }
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        match self.stack.last().map(|&id| &mut self.values[id]) {
            Some(Value::List(list)) => {
                list.extend(items);
                Ok(())
            }
            Some(Value::Unknown(opaque)) => {
                opaque.parts.extend(items);
                Ok(())
            }
            _ => Err("something is appended to what is no list".into()),
        }
    }

    fn set_items(&mut self, items: Vec<Id>) -> Result<()> {
        if !items.len().is_multiple_of(2) {
            return Err("a key has no value".into());
        }
        match self.stack.last().map(|&id| &mut self.values[id]) {
            Some(Value::Dict(dict)) => {
                dict.items.extend(items);
                Ok(())
            }
            Some(Value::Unknown(opaque)) => {
                opaque.parts.extend(items);
                Ok(())
            }
            _ => Err("something is set in what is no dictionary".into()),
        }
    }

    /// The values of a tuple.
    pub(super) fn items(&self, tuple: Id) -> Option<&[Id]> {
        match &self.values[tuple] {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }
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
