//! The tables of a module: what their entries mean, and entries that are added.
//!
//! The numbers of attributes and types are those of StableHLO's `VhloBytecode.cpp` and MLIR's `BuiltinDialectBytecode.td`.

use std::collections::HashMap;
use std::rc::Rc;

use bytes::Bytes;

use super::Result;
use super::encoding::{Input, Output};
use super::module::{AttributeId, Entry, Module, Name, NameId, Operation, PropertiesId, StringId, TypeId};
use super::schema;

/// A dimension of unknown size, as bytecode has it.
const UNKNOWN: i64 = i64::MIN;

/// The numbers of VHLO's attributes that are read or made.
mod attribute {
    pub const ARRAY: u64 = 1;
    pub const BOOLEAN: u64 = 2;
    pub const DICTIONARY: u64 = 6;
    pub const INTEGER: u64 = 9;
    pub const STRING: u64 = 14;
    pub const TENSOR: u64 = 15;
    pub const TYPE: u64 = 17;
    pub const RESULT_ACCURACY: u64 = 20;
}

/// The numbers of builtin's attributes that are read.
mod builtin {
    pub const DICTIONARY: u64 = 1;
    pub const STRING: u64 = 2;
    pub const CALL_SITE: u64 = 10;
    pub const FILE_LINE_COLUMN: u64 = 11;
    pub const NAME_LOCATION: u64 = 14;
    pub const FILE_LINE_COLUMN_RANGE: u64 = 22;
}

/// How deep types are followed.
const MAX_TYPE_DEPTH: usize = 8;

/// How far a name is looked for in a location.
const MAX_LOCATION_DEPTH: usize = 16;

/// The numbers of VHLO's types that are read or made.
mod r#type {
    pub const BOOL: u64 = 0;
    pub const COMPLEX: u64 = 1;
    pub const FUNCTION: u64 = 8;
    pub const RANKED_TENSOR: u64 = 20;
}

/// A type of arrays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// `None` for a size that is not known.
    pub dims: Vec<Option<usize>>,
    pub element: TypeId,
}

impl Tensor {
    /// The sizes, if all are known.
    pub fn sizes(&self) -> Option<Vec<usize>> {
        self.dims.iter().copied().collect()
    }

    /// Whether all sizes are known.
    pub fn is_static(&self) -> bool {
        self.dims.iter().all(Option::is_some)
    }
}

/// A type of integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Integer {
    /// 1 for a bool.
    pub bits: u32,
    pub is_signed: bool,
}

/// What an attribute is, for people.
pub enum Shown {
    Text(String),
    Number(i64),
    Boolean(bool),
    Type(TypeId),
    Array(Vec<AttributeId>),
    Dictionary(Vec<(AttributeId, AttributeId)>),
    /// The type of an array of integers, and its elements.
    Elements(TypeId, Vec<i64>),
    /// The type of another array, and its bytes.
    Bytes(TypeId, Vec<u8>),
    /// The name of what it is, or of its value.
    Other(String),
}

/// A module without its operations, and with what its entries are found by.
pub struct Tables {
    pub module: Module,
    strings: HashMap<Bytes, StringId>,
    names: HashMap<Name, NameId>,
    attributes: HashMap<Entry, AttributeId>,
    types: HashMap<Entry, TypeId>,
    properties: HashMap<Bytes, PropertiesId>,
    /// The types of arrays that were decoded, by their numbers; `None` within for a type of something else.
    tensors: Vec<Option<Option<Rc<Tensor>>>>,
    vhlo: u32,
    builtin: Option<u32>,
}

impl Tables {
    /// The tables of a module.
    pub fn of(module: &Module) -> Result<Tables> {
        let module = module.emptied();
        fn by<T: Clone + Eq + std::hash::Hash>(table: &[T]) -> HashMap<T, u32> {
            // Of equal ones, the first.
            table.iter().enumerate().rev().map(|(index, entry)| (entry.clone(), index as u32)).collect()
        }
        let dialect = |name: &str| {
            let found =
                module.dialects.iter().position(|dialect| module.strings[dialect.name as usize] == name);
            found.map(|index| index as u32)
        };
        let (vhlo, builtin) =
            (dialect("vhlo").ok_or("it has no operations of StableHLO")?, dialect("builtin"));
        Ok(Tables {
            strings: by(&module.strings),
            names: by(&module.names),
            attributes: by(&module.attributes),
            types: by(&module.types),
            properties: by(&module.properties),
            tensors: Vec::new(),
            vhlo,
            builtin,
            module,
        })
    }

    // What entries mean.

    /// A string that is text; of another, nothing.
    pub fn string(&self, id: StringId) -> &str {
        std::str::from_utf8(&self.module.strings[id as usize]).unwrap_or_default()
    }

    /// The name of an operation, with that of its dialect: `vhlo.add_v1`.
    pub fn full_name(&self, id: NameId) -> String {
        let name = &self.module.names[id as usize];
        let dialect = self.module.dialects[name.dialect as usize].name;
        format!("{}.{}", self.string(dialect), self.string(name.name))
    }

    /// The name of an operation of StableHLO, such as `add_v1`.
    pub fn name(&self, id: NameId) -> Option<&str> {
        let name = &self.module.names[id as usize];
        (name.dialect == self.vhlo).then(|| self.string(name.name))
    }

    /// The number of a VHLO attribute, and its fields.
    fn vhlo_attribute(&self, id: AttributeId) -> Option<(u64, Input<'_>)> {
        let entry = self.module.attributes.get(id as usize)?;
        let mut input = Input::new(&entry.bytes);
        (entry.dialect == self.vhlo && entry.is_encoded).then_some(())?;
        Some((input.number().ok()?, input))
    }

    /// The fields of a VHLO attribute of this number.
    fn fields(&self, id: AttributeId, code: u64) -> Option<Input<'_>> {
        self.vhlo_attribute(id).filter(|(found, _)| *found == code).map(|(_, input)| input)
    }

    fn list(&self, input: &mut Input<'_>) -> Option<Vec<u32>> {
        let count = input.count().ok()?;
        (0..count).map(|_| u32::try_from(input.number().ok()?).ok()).collect()
    }

    /// A string attribute.
    pub fn text(&self, id: AttributeId) -> Option<&str> {
        let entry = self.module.attributes.get(id as usize)?;
        let mut input = Input::new(&entry.bytes);
        let code = input.number().ok()?;
        let is_string = (entry.dialect == self.vhlo && code == attribute::STRING)
            || (Some(entry.dialect) == self.builtin && code == builtin::STRING);
        let index = input.number().ok()?;
        let is_known = is_string && entry.is_encoded && index < self.module.strings.len() as u64;
        if is_known { std::str::from_utf8(&self.module.strings[index as usize]).ok() } else { None }
    }

    /// An integer attribute.
    pub fn integer(&self, id: AttributeId) -> Option<i64> {
        let mut input = self.fields(id, attribute::INTEGER)?;
        let kind = self.integer_type(u32::try_from(input.number().ok()?).ok()?)?;
        if kind.bits <= 8 { Some(i64::from(input.byte().ok()? as i8)) } else { input.signed().ok() }
    }

    pub fn boolean(&self, id: AttributeId) -> Option<bool> {
        Some(self.fields(id, attribute::BOOLEAN)?.number().ok()? != 0)
    }

    /// The value of an enumeration's attribute: its number among the enumerations, and the value's.
    pub fn enumeration(&self, id: AttributeId) -> Option<u64> {
        self.vhlo_attribute(id)?.1.number().ok()
    }

    pub fn array(&self, id: AttributeId) -> Option<Vec<AttributeId>> {
        let mut input = self.fields(id, attribute::ARRAY)?;
        self.list(&mut input)
    }

    /// The names and values of a dictionary, of either dialect.
    pub fn dictionary(&self, id: AttributeId) -> Option<Vec<(AttributeId, AttributeId)>> {
        let entry = self.module.attributes.get(id as usize)?;
        let mut input = Input::new(&entry.bytes);
        let code = input.number().ok()?;
        let is_dictionary = (entry.dialect == self.vhlo && code == attribute::DICTIONARY)
            || (Some(entry.dialect) == self.builtin && code == builtin::DICTIONARY);
        if !is_dictionary || !entry.is_encoded {
            return None;
        }
        let count = input.count().ok()?;
        let mut index = || u32::try_from(input.number().ok()?).ok();
        (0..count).map(|_| Some((index()?, index()?))).collect()
    }

    /// An entry of a dictionary.
    pub fn entry(&self, dictionary: AttributeId, name: &str) -> Option<AttributeId> {
        let entries = self.dictionary(dictionary)?;
        entries.into_iter().find(|(key, _)| self.text(*key) == Some(name)).map(|(_, value)| value)
    }

    /// The type and the bytes of an attribute that is an array of elements.
    pub fn tensor_attribute(&self, id: AttributeId) -> Option<(TypeId, &[u8])> {
        let mut input = self.fields(id, attribute::TENSOR)?;
        let r#type = u32::try_from(input.number().ok()?).ok()?;
        let size = input.count().ok()?;
        let start = self.module.attributes[id as usize].bytes.len() - input.rest().len();
        Some((r#type, self.module.attributes[id as usize].bytes.get(start..start + size)?))
    }

    /// Whether an attribute asks for no accuracy of results but the usual one.
    pub fn is_usual_accuracy(&self, id: AttributeId) -> bool {
        let read = || {
            let mut input = self.fields(id, attribute::RESULT_ACCURACY)?;
            let zeros = [input.signed().ok()?, input.signed().ok()?, input.signed().ok()?] == [0; 3];
            let mode = u32::try_from(input.number().ok()?).ok()?;
            Some(zeros && self.enumeration(mode)? == 0)
        };
        read().unwrap_or(false)
    }

    fn vhlo_type(&self, id: TypeId) -> Option<(u64, Input<'_>)> {
        let entry = self.module.types.get(id as usize)?;
        let mut input = Input::new(&entry.bytes);
        (entry.dialect == self.vhlo && entry.is_encoded).then_some(())?;
        Some((input.number().ok()?, input))
    }

    /// A type of arrays; `None` for a type of something else.
    pub fn tensor(&mut self, id: TypeId) -> Option<Rc<Tensor>> {
        if let Some(Some(known)) = self.tensors.get(id as usize) {
            return known.clone();
        }
        let decoded = self.decode_tensor(id).map(Rc::new);
        if self.tensors.len() < self.module.types.len() {
            self.tensors.resize(self.module.types.len(), None);
        }
        if let Some(place) = self.tensors.get_mut(id as usize) {
            *place = Some(decoded.clone());
        }
        decoded
    }

    fn decode_tensor(&self, id: TypeId) -> Option<Tensor> {
        let (code, mut input) = self.vhlo_type(id)?;
        if code != r#type::RANKED_TENSOR {
            return None;
        }
        let count = input.count().ok()?;
        let dim = |dim: i64| match dim {
            UNKNOWN => Some(None),
            size => usize::try_from(size).ok().map(Some),
        };
        let dims = (0..count).map(|_| dim(input.signed().ok()?)).collect::<Option<_>>()?;
        Some(Tensor { dims, element: u32::try_from(input.number().ok()?).ok()? })
    }

    /// A type of integers or bools.
    pub fn integer_type(&self, id: TypeId) -> Option<Integer> {
        let (code, _) = self.vhlo_type(id)?;
        let integer = |bits, is_signed| Some(Integer { bits, is_signed });
        match code {
            r#type::BOOL => integer(1, false),
            10..=14 => integer([4, 8, 16, 32, 64][code as usize - 10], true),
            15..=19 => integer([4, 8, 16, 32, 64][code as usize - 15], false),
            31 => integer(2, true),
            32 => integer(2, false),
            _ => None,
        }
    }

    /// The attributes of an operation that is known, in the order of their names.
    pub fn attributes_of(&self, operation: &Operation) -> Result<Vec<AttributeId>> {
        let Some(properties) = operation.properties else { return Ok(Vec::new()) };
        let mut input = Input::new(&self.module.properties[properties as usize]);
        let mut attributes = Vec::new();
        while !input.is_empty() {
            attributes.push(input.index("attribute", self.module.attributes.len())?);
        }
        Ok(attributes)
    }

    /// An attribute of an operation by its name.
    pub fn attribute(&self, operation: &Operation, name: &str) -> Result<AttributeId> {
        let full_name = || self.full_name(operation.name);
        let names = self.name(operation.name).and_then(schema::attributes);
        let position = names.and_then(|names| names.iter().position(|other| *other == name));
        let position = position.ok_or_else(|| format!("`{}` has no attribute `{name}`", full_name()))?;
        let attribute = self.attributes_of(operation)?.get(position).copied();
        attribute.ok_or_else(|| format!("`{}` lacks its attribute `{name}`", full_name()))
    }

    /// The integers of an attribute of an operation that is a list of them.
    pub fn integers(&self, operation: &Operation, name: &str) -> Result<Vec<i64>> {
        let id = self.attribute(operation, name)?;
        self.elements(id)
            .ok_or_else(|| format!("`{name}` of `{}` is no list of integers", self.full_name(operation.name)))
    }

    /// As [`Tables::integers`], of which none is negative.
    pub fn indices(&self, operation: &Operation, name: &str) -> Result<Vec<usize>> {
        let integers = self.integers(operation, name)?.into_iter();
        integers
            .map(|number| {
                usize::try_from(number).map_err(|_| {
                    format!("`{name}` of `{}` has {number} in it", self.full_name(operation.name))
                })
            })
            .collect()
    }

    /// An attribute of an operation that is an integer and not negative.
    pub fn index(&self, operation: &Operation, name: &str) -> Result<usize> {
        let id = self.attribute(operation, name)?;
        let number = self.integer(id).and_then(|number| usize::try_from(number).ok());
        number.ok_or_else(|| format!("`{name}` of `{}` is no size", self.full_name(operation.name)))
    }

    /// The integers of an attribute that is an array of them.
    pub fn elements(&self, id: AttributeId) -> Option<Vec<i64>> {
        let (r#type, data) = self.tensor_attribute(id)?;
        let tensor = self.decode_tensor(r#type)?;
        let kind = self.integer_type(tensor.element)?;
        let count = super::constant::element_count(&tensor.sizes()?)?;
        let values = super::constant::decode(data, kind, count)?;
        values.into_iter().map(|value| i64::try_from(value).ok()).collect()
    }

    /// The name of the function that an operation is; `None` for any other operation.
    pub fn function_name(&self, operation: &Operation) -> Result<Option<&str>> {
        if self.name(operation.name) != Some("func_v1") {
            return Ok(None);
        }
        let name = self.text(self.attribute(operation, "sym_name")?);
        name.map(Some).ok_or_else(|| "a function has no name".into())
    }

    /// The name in a location, if it has one.
    pub fn location(&self, id: AttributeId) -> Option<String> {
        self.location_within(id, 0)
    }

    fn location_within(&self, id: AttributeId, depth: usize) -> Option<String> {
        let entry = self.module.attributes.get(id as usize)?;
        let mut input = Input::new(&entry.bytes);
        let code = input.number().ok()?;
        if Some(entry.dialect) != self.builtin || !entry.is_encoded || depth > MAX_LOCATION_DEPTH {
            return None;
        }
        let mut index = || u32::try_from(input.number().ok()?).ok();
        match code {
            builtin::NAME_LOCATION => self.text(index()?).map(str::to_owned),
            builtin::CALL_SITE => self.location_within(index()?, depth + 1),
            _ => None,
        }
    }

    /// The file and line in a location, `model.py:3`, if it has them: of calls within each other, those of the innermost.
    pub fn source(&self, id: AttributeId) -> Option<String> {
        self.source_within(id, 0)
    }

    fn source_within(&self, id: AttributeId, depth: usize) -> Option<String> {
        let entry = self.module.attributes.get(id as usize)?;
        let mut input = Input::new(&entry.bytes);
        if Some(entry.dialect) != self.builtin || !entry.is_encoded || depth > MAX_LOCATION_DEPTH {
            return None;
        }
        let mut number = || input.number().ok();
        match number()? {
            builtin::FILE_LINE_COLUMN => {
                let (file, line) = (u32::try_from(number()?).ok()?, number()?);
                Some(format!("{}:{line}", self.text(file)?))
            }
            builtin::FILE_LINE_COLUMN_RANGE => {
                let (file, _count, line) = (u32::try_from(number()?).ok()?, number()?, number()?);
                Some(format!("{}:{line}", self.text(file)?))
            }
            builtin::NAME_LOCATION => {
                number()?;
                self.source_within(u32::try_from(number()?).ok()?, depth + 1)
            }
            builtin::CALL_SITE => self.source_within(u32::try_from(number()?).ok()?, depth + 1),
            _ => None,
        }
    }

    /// What an attribute is, for people.
    pub fn shown(&self, id: AttributeId) -> Shown {
        if let Some(text) = self.text(id) {
            return Shown::Text(text.to_owned());
        }
        if let Some(entries) = self.dictionary(id) {
            return Shown::Dictionary(entries);
        }
        if let Some(elements) = self.elements(id)
            && let Some((r#type, _)) = self.tensor_attribute(id)
        {
            return Shown::Elements(r#type, elements);
        }
        let shown = || {
            Some(match self.vhlo_attribute(id)?.0 {
                attribute::ARRAY => Shown::Array(self.array(id)?),
                attribute::BOOLEAN => Shown::Boolean(self.boolean(id)?),
                attribute::INTEGER => Shown::Number(self.integer(id)?),
                attribute::TENSOR => {
                    let (r#type, data) = self.tensor_attribute(id)?;
                    Shown::Bytes(r#type, data.to_vec())
                }
                attribute::TYPE => {
                    let (_, mut input) = self.vhlo_attribute(id)?;
                    Shown::Type(u32::try_from(input.number().ok()?).ok()?)
                }
                code => Shown::Other(schema::enumeration(code, self.enumeration(id)?)),
            })
        };
        shown().unwrap_or_else(|| Shown::Other("…".into()))
    }

    /// A type as StableHLO writes it.
    pub fn type_text(&self, id: TypeId) -> String {
        self.type_text_within(id, 0).unwrap_or_else(|| "…".into())
    }

    fn type_text_within(&self, id: TypeId, depth: usize) -> Option<String> {
        let (code, mut input) = self.vhlo_type(id)?;
        if depth > MAX_TYPE_DEPTH {
            return None;
        }
        let within = |id: u32| self.type_text_within(id, depth + 1);
        let list =
            |ids: Vec<TypeId>| Some(ids.into_iter().map(within).collect::<Option<Vec<_>>>()?.join(", "));
        Some(match code {
            r#type::RANKED_TENSOR => {
                let tensor = self.decode_tensor(id)?;
                let dims: String =
                    tensor.dims.iter().map(|dim| dim.map_or("?x".into(), |dim| format!("{dim}x"))).collect();
                format!("tensor<{dims}{}>", within(tensor.element)?)
            }
            r#type::FUNCTION => {
                let (inputs, outputs) = (self.list(&mut input)?, self.list(&mut input)?);
                format!("({}) -> ({})", list(inputs)?, list(outputs)?)
            }
            r#type::COMPLEX => format!("complex<{}>", within(u32::try_from(input.number().ok()?).ok()?)?),
            code => schema::type_name(code)?.to_owned(),
        })
    }

    // Entries that are added.

    pub fn add_string(&mut self, text: &str) -> StringId {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        add(&mut self.module.strings, &mut self.strings, bytes)
    }

    /// The name of an operation of StableHLO.
    pub fn add_name(&mut self, name: &str) -> NameId {
        let name = Name { dialect: self.vhlo, name: self.add_string(name), is_registered: true };
        add(&mut self.module.names, &mut self.names, name)
    }

    fn add_attribute(&mut self, code: u64, write: impl FnOnce(&mut Output)) -> AttributeId {
        let entry = self.vhlo_entry(code, write);
        add(&mut self.module.attributes, &mut self.attributes, entry)
    }

    fn vhlo_entry(&self, code: u64, write: impl FnOnce(&mut Output)) -> Entry {
        let mut output = Output::default();
        output.number(code);
        write(&mut output);
        Entry { dialect: self.vhlo, is_encoded: true, bytes: output.0.into() }
    }

    pub fn add_text(&mut self, text: &str) -> AttributeId {
        let text = self.add_string(text);
        self.add_attribute(attribute::STRING, |output| output.number(text.into()))
    }

    pub fn add_array(&mut self, items: &[AttributeId]) -> AttributeId {
        self.add_attribute(attribute::ARRAY, |output| {
            output.number(items.len() as u64);
            items.iter().for_each(|&item| output.number(item.into()));
        })
    }

    pub fn add_dictionary(&mut self, entries: &[(AttributeId, AttributeId)]) -> AttributeId {
        self.add_attribute(attribute::DICTIONARY, |output| write_entries(output, entries))
    }

    /// A dictionary of attributes that an operation's dialect does not know; `None` for an empty one.
    pub fn add_discardable(&mut self, entries: &[(AttributeId, AttributeId)]) -> Result<Option<AttributeId>> {
        if entries.is_empty() {
            return Ok(None);
        }
        let mut output = Output::default();
        output.number(builtin::DICTIONARY);
        write_entries(&mut output, entries);
        let dialect = self.builtin.ok_or("it has no attributes of the builtin dialect")?;
        let entry = Entry { dialect, is_encoded: true, bytes: output.0.into() };
        Ok(Some(add(&mut self.module.attributes, &mut self.attributes, entry)))
    }

    pub fn add_boolean(&mut self, value: bool) -> AttributeId {
        self.add_attribute(attribute::BOOLEAN, |output| output.number(value.into()))
    }

    pub fn add_type_attribute(&mut self, r#type: TypeId) -> AttributeId {
        self.add_attribute(attribute::TYPE, |output| output.number(r#type.into()))
    }

    /// An integer of 64 bits.
    pub fn add_integer(&mut self, value: i64) -> AttributeId {
        let r#type = self.add_integer_type(64);
        self.add_attribute(attribute::INTEGER, |output| {
            output.number(r#type.into());
            output.signed(value);
        })
    }

    pub fn add_tensor_attribute(&mut self, r#type: TypeId, data: &[u8]) -> AttributeId {
        self.add_attribute(attribute::TENSOR, |output| {
            output.number(r#type.into());
            output.number(data.len() as u64);
            output.bytes(data);
        })
    }

    /// A list of integers, as operations have them.
    pub fn add_integers(&mut self, values: &[i64]) -> AttributeId {
        self.add_integer_array(&[values.len()], values)
    }

    /// An array of integers of 64 bits.
    pub fn add_integer_array(&mut self, sizes: &[usize], values: &[i64]) -> AttributeId {
        let element = self.add_integer_type(64);
        let r#type = self.add_tensor(sizes, element);
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.add_tensor_attribute(r#type, &data)
    }

    /// An enumeration's value, by the number of the enumeration.
    pub fn add_enumeration(&mut self, code: u64, value: u64) -> AttributeId {
        self.add_attribute(code, |output| output.number(value))
    }

    fn add_type(&mut self, code: u64, write: impl FnOnce(&mut Output)) -> TypeId {
        let entry = self.vhlo_entry(code, write);
        add(&mut self.module.types, &mut self.types, entry)
    }

    /// The type of integers with a sign of 32 or 64 bits, or of bools.
    pub fn add_integer_type(&mut self, bits: u32) -> TypeId {
        let code = match bits {
            1 => r#type::BOOL,
            32 => 13,
            _ => 14,
        };
        self.add_type(code, |_| {})
    }

    pub fn add_tensor(&mut self, sizes: &[usize], element: TypeId) -> TypeId {
        self.add_type(r#type::RANKED_TENSOR, |output| {
            output.number(sizes.len() as u64);
            sizes.iter().for_each(|&size| output.signed(size as i64));
            output.number(element.into());
        })
    }

    pub fn add_function_type(&mut self, inputs: &[TypeId], outputs: &[TypeId]) -> TypeId {
        self.add_type(r#type::FUNCTION, |output| {
            for list in [inputs, outputs] {
                output.number(list.len() as u64);
                list.iter().for_each(|&item| output.number(item.into()));
            }
        })
    }

    pub fn add_properties(&mut self, attributes: &[AttributeId]) -> PropertiesId {
        let mut output = Output::default();
        attributes.iter().for_each(|&attribute| output.number(attribute.into()));
        add(&mut self.module.properties, &mut self.properties, output.0.into())
    }
}

fn write_entries(output: &mut Output, entries: &[(AttributeId, AttributeId)]) {
    output.number(entries.len() as u64);
    for &(key, value) in entries {
        output.number(key.into());
        output.number(value.into());
    }
}

/// Where an entry is in a table, to which it is added if it is new.
fn add<T: Clone + Eq + std::hash::Hash>(table: &mut Vec<T>, by: &mut HashMap<T, u32>, entry: T) -> u32 {
    *by.entry(entry).or_insert_with_key(|entry| {
        table.push(entry.clone());
        table.len() as u32 - 1
    })
}
