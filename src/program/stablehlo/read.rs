//! Reading bytecode. Every index and count is checked, and everything takes memory in proportion to its bytes.

use bytes::Bytes;

use super::Result;
use super::encoding::{Input, Section};
use super::module::{Block, BlockArgument, Dialect, Entry, Module, Name, Operation, Region, Value};
use crate::program::version::MLIR_BYTECODE_MAGIC;

/// The version of the format that StableHLO 0.15 and later write.
pub const BYTECODE_VERSION: u64 = 6;

/// The numbers of the sections.
pub mod section {
    pub const STRINGS: u8 = 0;
    pub const DIALECTS: u8 = 1;
    pub const ENTRIES: u8 = 2;
    pub const OFFSETS: u8 = 3;
    pub const IR: u8 = 4;
    pub const RESOURCES: u8 = 5;
    pub const RESOURCE_OFFSETS: u8 = 6;
    pub const DIALECT_VERSIONS: u8 = 7;
    pub const PROPERTIES: u8 = 8;
}

/// What an operation has, as bits of its mask.
pub mod has {
    pub const ATTRIBUTES: u8 = 0x01;
    pub const RESULTS: u8 = 0x02;
    pub const OPERANDS: u8 = 0x04;
    pub const SUCCESSORS: u8 = 0x08;
    pub const REGIONS: u8 = 0x10;
    pub const USE_ORDERS: u8 = 0x20;
    pub const PROPERTIES: u8 = 0x40;
}

/// How deep regions may lie within each other.
const MAX_REGION_DEPTH: usize = 64;

/// The sections of a file, those that are read.
#[derive(Default)]
struct Sections<'a>([Option<Input<'a>>; 9]);

impl<'a> Sections<'a> {
    fn get(&self, id: u8, what: &str) -> Result<Input<'a>> {
        self.0[usize::from(id)].clone().ok_or_else(|| format!("it has no section of {what}"))
    }
}

impl Module {
    /// Reads a module.
    pub fn read(file: &Bytes) -> Result<Module> {
        let mut input = Input::new(file);
        if input.take(MLIR_BYTECODE_MAGIC.len())? != MLIR_BYTECODE_MAGIC {
            return Err("it is no MLIR bytecode".into());
        }
        let version = input.number()?;
        if version != BYTECODE_VERSION {
            return Err(format!(
                "its bytecode has version {version}, and {BYTECODE_VERSION} is read, which StableHLO has written since \
                 0.15; export it again with a newer jax"
            ));
        }
        let producer = String::from_utf8(input.text()?.to_vec()).map_err(|_| "its producer is no text")?;
        let mut sections = Sections::default();
        let mut resources = Vec::new();
        while !input.is_empty() {
            let Section { id, content } = input.section()?;
            if matches!(id, section::RESOURCES | section::RESOURCE_OFFSETS) {
                resources.push((id, file.slice_ref(content.rest())));
            }
            match sections.0.get_mut(usize::from(id)) {
                Some(place @ None) => *place = Some(content),
                Some(Some(_)) => return input.problem(format_args!("it has two sections {id}")),
                None => return input.problem(format_args!("it has a section {id}, which is not known")),
            }
        }
        let strings = strings(sections.get(section::STRINGS, "strings")?, file)?;
        let (dialects, names) = dialects(sections.get(section::DIALECTS, "dialects")?, file, strings.len())?;
        let offsets = sections.get(section::OFFSETS, "offsets")?;
        let entries = sections.get(section::ENTRIES, "attributes and types")?;
        let (attributes, types) = entries_of(offsets, entries, file, dialects.len())?;
        let properties = match sections.0[usize::from(section::PROPERTIES)].clone() {
            Some(input) => properties(input, file)?,
            None => Vec::new(),
        };
        let body = Block::default();
        let mut module = Module {
            producer,
            strings,
            dialects,
            names,
            attributes,
            types,
            properties,
            resources,
            body,
            values: 0,
        };
        let mut reader = IrReader { module: &module, scope: Vec::new(), next: 0 };
        let mut ir = sections.get(section::IR, "operations")?;
        let body = reader.block(&mut ir, 0)?;
        if !ir.is_empty() {
            return ir.problem("something follows its operations");
        }
        module.values = reader.next;
        module.body = body;
        Ok(module)
    }
}

/// The lengths, the last string's first and each with its NUL, and the strings.
fn strings(mut input: Input<'_>, file: &Bytes) -> Result<Vec<Bytes>> {
    let count = input.count()?;
    let mut lengths = Vec::with_capacity(count);
    for _ in 0..count {
        lengths.push(input.count()?);
    }
    let mut strings = Vec::with_capacity(count);
    for length in lengths.into_iter().rev() {
        match input.take(length)? {
            // A kernel in a custom call is a string, too, and no text.
            [content @ .., 0] => strings.push(file.slice_ref(content)),
            _ => return input.problem("a string has no end"),
        }
    }
    if input.is_empty() { Ok(strings) } else { input.problem("something follows the strings") }
}

/// The dialects, and the names of operations.
fn dialects(mut input: Input<'_>, file: &Bytes, strings: usize) -> Result<(Vec<Dialect>, Vec<Name>)> {
    let count = input.count()?;
    let mut dialects = Vec::with_capacity(count);
    for _ in 0..count {
        let (name, has_version) = input.flagged()?;
        let name = input.check_index(name, "string", strings)?;
        let mut version = None;
        if has_version {
            let Section { id, content } = input.section()?;
            if id != section::DIALECT_VERSIONS {
                return input.problem(format_args!("the version of a dialect is in a section {id}"));
            }
            version = Some(file.slice_ref(content.rest()));
        }
        dialects.push(Dialect { name, version });
    }
    let count = input.count()?;
    let mut names = Vec::with_capacity(count);
    while !input.is_empty() {
        let dialect = input.index("dialect", dialects.len())?;
        for _ in 0..input.count()? {
            let (name, is_registered) = input.flagged()?;
            let name = input.check_index(name, "string", strings)?;
            names.push(Name { dialect, name, is_registered });
        }
    }
    if names.len() == count {
        Ok((dialects, names))
    } else {
        input.problem(format_args!("it has {} names of operations, not {count}", names.len()))
    }
}

/// The attributes and the types.
fn entries_of(
    mut offsets: Input<'_>,
    mut data: Input<'_>,
    file: &Bytes,
    dialects: usize,
) -> Result<(Vec<Entry>, Vec<Entry>)> {
    let (attributes, types) = (offsets.count()?, offsets.count()?);
    let mut read = |count: usize| {
        let mut entries = Vec::with_capacity(count);
        while entries.len() < count {
            let dialect = offsets.index("dialect", dialects)?;
            let group = offsets.count()?;
            if group == 0 || group > count - entries.len() {
                return offsets.problem(format_args!("a group has {group} attributes or types"));
            }
            for _ in 0..group {
                let (size, is_encoded) = offsets.flagged()?;
                let size = data.check_count(size)?;
                entries.push(Entry { dialect, is_encoded, bytes: file.slice_ref(data.take(size)?) });
            }
        }
        Ok(entries)
    };
    let (attributes, types) = (read(attributes)?, read(types)?);
    if !offsets.is_empty() || !data.is_empty() {
        return data.problem("something follows the attributes and types");
    }
    Ok((attributes, types))
}

fn properties(mut input: Input<'_>, file: &Bytes) -> Result<Vec<Bytes>> {
    let count = input.count()?;
    let mut properties = Vec::with_capacity(count);
    for _ in 0..count {
        let size = input.count()?;
        properties.push(file.slice_ref(input.take(size)?));
    }
    if input.is_empty() { Ok(properties) } else { input.problem("something follows the properties") }
}

/// Reads operations. In a file, values are numbered within the nearest isolated region; here, each has a number of its own.
struct IrReader<'a> {
    module: &'a Module,
    /// The values of the regions around, by their numbers in the file; `None` where they are not defined yet.
    scope: Vec<Option<Value>>,
    /// The next value.
    next: Value,
}

impl IrReader<'_> {
    fn block(&mut self, input: &mut Input<'_>, depth: usize) -> Result<Block> {
        self.block_in(input, depth, &mut 0)
    }

    /// Gives so many values their numbers: in the file's count from `own` on, and in ours.
    fn define(&mut self, input: &Input<'_>, own: &mut usize, count: usize) -> Result<Value> {
        let first = self.next;
        let places = self.scope.get_mut(*own..*own + count);
        let Some(places) = places else {
            return input.problem("a region defines more values than it announces");
        };
        for place in places {
            *place = Some(self.next);
            self.next = self.next.checked_add(1).ok_or("it has too many values")?;
        }
        *own += count;
        Ok(first)
    }

    /// A block whose values begin at `own` in the file's count.
    fn block_in(&mut self, input: &mut Input<'_>, depth: usize, own: &mut usize) -> Result<Block> {
        let (count, has_arguments) = input.flagged()?;
        let count = input.check_count(count)?;
        let mut arguments = Vec::new();
        let mut has_use_orders = 0;
        if has_arguments {
            for _ in 0..input.count()? {
                let (index, has_location) = input.flagged()?;
                let r#type = input.check_index(index, "type", self.module.types.len())?;
                let location = match has_location {
                    true => Some(self.attribute(input)?),
                    false => None,
                };
                arguments.push(BlockArgument { r#type, location });
            }
            has_use_orders = input.byte()?;
        }
        let first_argument = self.define(input, own, arguments.len())?;
        if has_use_orders != 0 {
            skip_use_orders(input, arguments.len())?;
        }
        let mut operations = Vec::with_capacity(count);
        for _ in 0..count {
            operations.push(self.operation(input, depth, own)?);
        }
        Ok(Block { first_argument, arguments, operations })
    }

    fn attribute(&self, input: &mut Input<'_>) -> Result<u32> {
        input.index("attribute", self.module.attributes.len())
    }

    fn operation(&mut self, input: &mut Input<'_>, depth: usize, own: &mut usize) -> Result<Operation> {
        let module = self.module;
        let name = input.index("name of an operation", module.names.len())?;
        let (mask, location) = (input.byte()?, self.attribute(input)?);
        let has = |bit: u8| mask & bit != 0;
        let discardable = has(has::ATTRIBUTES).then(|| self.attribute(input)).transpose()?;
        let properties =
            has(has::PROPERTIES).then(|| input.index("properties", module.properties.len())).transpose()?;
        let mut results = Vec::new();
        if has(has::RESULTS) {
            for _ in 0..input.count()? {
                results.push(input.index("type", module.types.len())?);
            }
        }
        let mut operands = Vec::new();
        if has(has::OPERANDS) {
            for _ in 0..input.count()? {
                let number = input.number()?;
                let value = usize::try_from(number).ok().and_then(|number| *self.scope.get(number)?);
                match value {
                    Some(value) => operands.push(value),
                    None => return input.problem(format_args!("value {number} is used before it is there")),
                }
            }
        }
        if has(has::SUCCESSORS) {
            return input.problem("an operation has successors, which StableHLO has none of");
        }
        if has(has::USE_ORDERS) {
            skip_use_orders(input, results.len())?;
        }
        let operation = Operation::new(name, location);
        let mut operation = Operation { discardable, properties, results, operands, ..operation };
        if has(has::REGIONS) {
            self.regions(input, depth, &mut operation)?;
        }
        operation.first_result = self.define(input, own, operation.results.len())?;
        Ok(operation)
    }

    fn regions(&mut self, input: &mut Input<'_>, depth: usize, operation: &mut Operation) -> Result<()> {
        if depth == MAX_REGION_DEPTH {
            return input
                .problem(format_args!("its regions are nested deeper than {MAX_REGION_DEPTH} levels"));
        }
        let (count, is_isolated) = input.flagged()?;
        let count = input.check_count(count)?;
        operation.is_isolated = is_isolated;
        if !is_isolated {
            for _ in 0..count {
                operation.regions.push(self.region(input, depth + 1)?);
            }
            return Ok(());
        }
        let Section { id, mut content } = input.section()?;
        if id != section::IR {
            return input.problem(format_args!("isolated regions are in a section {id}"));
        }
        let outer = std::mem::take(&mut self.scope);
        for _ in 0..count {
            operation.regions.push(self.region(&mut content, depth + 1)?);
        }
        self.scope = outer;
        if content.is_empty() { Ok(()) } else { content.problem("something follows isolated regions") }
    }

    fn region(&mut self, input: &mut Input<'_>, depth: usize) -> Result<Region> {
        let count = input.count()?;
        if count == 0 {
            return Ok(Region::default());
        }
        let values = input.count()?;
        let mut own = self.scope.len();
        let outer = own;
        self.scope.resize(outer + values, None);
        let mut blocks = Vec::with_capacity(count);
        for _ in 0..count {
            blocks.push(self.block_in(input, depth, &mut own)?);
        }
        if own != outer + values {
            return input.problem("a region defines fewer values than it announces");
        }
        self.scope.truncate(outer);
        Ok(Region { blocks })
    }
}

/// Passes over the orders in which a compiler had the uses of values: they mean nothing.
fn skip_use_orders(input: &mut Input<'_>, values: usize) -> Result<()> {
    let entries = if values > 1 { input.count()? } else { 1 };
    for _ in 0..entries {
        if values > 1 {
            input.number()?;
        }
        let (count, _) = input.flagged()?;
        for _ in 0..input.check_count(count)? {
            input.number()?;
        }
    }
    Ok(())
}
