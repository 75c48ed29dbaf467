//! What a pickle's instructions build.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::globals::Global;
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::format::encoding::Encoding;
use crate::format::problem::Problem;
use crate::store::SharedBlob;

/// A value, by its position among all that the file has made. What the file refers to twice is one value, so that what is
/// put into it later is seen from everywhere.
pub type Id = usize;

/// An array of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    pub spec: ArraySpec,
    pub elements: Elements,
    pub encoding: Encoding,
}

/// Where the elements of an array are.
#[derive(Debug, Clone, PartialEq)]
pub enum Elements {
    /// In the pickle.
    Here(ByteString),
    /// Bytes of a storage beside the pickle.
    Stored(Arc<str>, Range<usize>),
}

/// What PyTorch keeps beside its pickle: the elements of one tensor, or of several that share them.
#[derive(Debug, Clone, PartialEq)]
pub struct Storage {
    /// The type of its elements; of one without, its tensors say theirs.
    pub dtype: Option<DType>,
    pub key: Arc<str>,
    /// The position of its first element, or byte where it has no type, in what is stored by that key.
    pub first: usize,
    /// Its elements, or bytes where it has no type.
    pub elements: usize,
}

impl Storage {
    /// The bytes of an element.
    pub fn width(&self) -> usize {
        self.dtype.map_or(1, |dtype| dtype.bits().div_ceil(8))
    }
}

/// What is wrong with a string that is no text.
pub const NOT_UTF8: &str = "a string is not UTF-8";

/// Where bytes or characters are.
#[derive(Debug, Clone, PartialEq)]
pub enum ByteString {
    /// Part of the file.
    Range(Range<usize>),
    /// Decoded from it. Shared, since a file can refer to it again and again.
    Decoded(Bytes),
}

impl ByteString {
    /// The number of bytes.
    pub fn len(&self) -> usize {
        match self {
            ByteString::Range(range) => range.len(),
            ByteString::Decoded(bytes) => bytes.len(),
        }
    }

    /// The bytes themselves, read from the file if they are only there.
    pub fn read(&self, file: &SharedBlob) -> Result<Bytes, Problem> {
        match self {
            ByteString::Range(range) => Ok(file.read(range.clone())?),
            ByteString::Decoded(bytes) => Ok(bytes.clone()),
        }
    }
}

/// The values that the parser builds.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Complex(f64, f64),
    /// Text: UTF-8.
    Str(ByteString),
    /// Python 2's `str`, which is text or bytes: as text it is read as Latin 1.
    RawStr(ByteString),
    Bytes(ByteString),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Box<Dict>),
    /// A function or class.
    Global(Global),
    /// A type of elements: as NumPy writes it.
    DType(String),
    /// An array whose state has not come yet.
    EmptyArray,
    Array(Box<Array>),
    Storage(Box<Storage>),
    /// An object of a known class: what it was made of, and its attributes.
    Object(Box<Object>),
    /// An array that holds no numbers, and why.
    NoNumbers(String),
    /// An integer that does not fit into 64 bits.
    LargeInt,
    /// What a function or class made that is not known.
    Unknown(Box<Opaque>),
    Mark,
}

/// A dictionary.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Dict {
    /// Keys and values in turn.
    pub items: Vec<Id>,
    pub is_ordered: bool,
}

/// An object of a known class.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    pub class: Global,
    pub arguments: Vec<Id>,
    /// Names and values in turn.
    pub attributes: Vec<Id>,
}

/// What a function or class made that is not known.
#[derive(Debug, Clone, PartialEq)]
pub struct Opaque {
    /// The name of the function or class.
    pub name: String,
    /// All that it was given.
    pub parts: Vec<Id>,
}

impl Value {
    /// What a function or class of this name made of these values.
    pub fn unknown(name: impl Into<String>, parts: Vec<Id>) -> Value {
        Value::Unknown(Box::new(Opaque { name: name.into(), parts }))
    }

    /// The values that it has in it.
    pub fn parts(&self) -> impl Iterator<Item = Id> + '_ {
        let (some, more): (&[Id], &[Id]) = match self {
            Value::Tuple(items) | Value::List(items) => (items, &[]),
            Value::Dict(dict) => (&dict.items, &[]),
            Value::Object(object) => (&object.arguments, &object.attributes),
            Value::Unknown(opaque) => (&opaque.parts, &[]),
            _ => (&[], &[]),
        };
        some.iter().chain(more).copied()
    }

    /// What it is, for a message.
    pub fn kind(&self) -> String {
        match self {
            Value::None => "None".into(),
            Value::Bool(_) => "a bool".into(),
            Value::Int(_) | Value::LargeInt => "an integer".into(),
            Value::Float(_) | Value::Complex(..) => "a number".into(),
            Value::Str(_) | Value::RawStr(_) => "a string".into(),
            Value::Bytes(_) => "bytes".into(),
            Value::Tuple(_) => "a tuple".into(),
            Value::List(_) => "a list".into(),
            Value::Dict(_) => "a dictionary".into(),
            Value::Global(global) => format!("the function or class {}", global.name()),
            Value::DType(_) => "a type of elements".into(),
            Value::EmptyArray => "an array without content".into(),
            Value::Array(_) | Value::NoNumbers(_) => "an array".into(),
            Value::Storage(_) => "a storage without a tensor".into(),
            Value::Object(object) => format!("an object of {}", object.class.name()),
            Value::Unknown(opaque) => format!("an object of {}", opaque.name),
            Value::Mark => "a mark".into(),
        }
    }

    /// Its text, if it is a string of either kind that was read when it came, as every short one is: a name, a type.
    pub fn short_text(&self) -> Option<Cow<'_, str>> {
        match self {
            // It was checked when it was read.
            Value::Str(ByteString::Decoded(bytes)) => Some(String::from_utf8_lossy(bytes)),
            Value::RawStr(ByteString::Decoded(bytes)) => Some(latin1(bytes)),
            _ => None,
        }
    }

    /// Its text, if it is a string of either kind, read from the file if it is only there.
    pub fn read_text(&self, file: &SharedBlob) -> Result<Option<String>, Problem> {
        match self {
            Value::Str(content) => {
                let text = String::from_utf8(content.read(file)?.into());
                Ok(Some(text.map_err(|_| NOT_UTF8)?))
            }
            Value::RawStr(content) => Ok(Some(latin1(&content.read(file)?).into_owned())),
            _ => Ok(None),
        }
    }

    /// Its bytes, if it is bytes or a string of Python 2.
    pub fn bytes(&self) -> Option<&ByteString> {
        match self {
            Value::Bytes(content) | Value::RawStr(content) => Some(content),
            _ => None,
        }
    }
}

/// Bytes as text in which each stands for the character of its number.
fn latin1(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.is_ascii() => Cow::Borrowed(text),
        _ => Cow::Owned(bytes.iter().map(|&byte| char::from(byte)).collect()),
    }
}
