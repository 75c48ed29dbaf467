//! A module in memory.

use bytes::Bytes;

use super::Result;

/// Positions in a module's tables.
pub type StringId = u32;
pub type AttributeId = u32;
pub type TypeId = u32;
pub type NameId = u32;
pub type PropertiesId = u32;

/// A value, by a number that no other of the module has.
pub type Value = u32;

/// A StableHLO module as its bytecode holds it.
#[derive(Debug, Clone)]
pub struct Module {
    /// What wrote it, such as `StableHLO_v1.18.0`.
    pub producer: String,
    pub strings: Vec<Bytes>,
    pub dialects: Vec<Dialect>,
    /// The names of operations.
    pub names: Vec<Name>,
    pub attributes: Vec<Entry>,
    pub types: Vec<Entry>,
    pub properties: Vec<Bytes>,
    /// The sections that are passed on as they are, by their numbers.
    pub resources: Vec<(u8, Bytes)>,
    /// The `builtin.module`, alone.
    pub body: Block,
    /// One more than the largest value.
    pub values: u32,
}

#[derive(Debug, Clone)]
pub struct Dialect {
    pub name: StringId,
    /// The content of its version's section, where it has one.
    pub version: Option<Bytes>,
}

/// The name of an operation, without that of its dialect.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name {
    pub dialect: u32,
    pub name: StringId,
    /// Whether its dialect knew it, so that it has properties.
    pub is_registered: bool,
}

/// An attribute or a type. What it is made of it refers to by positions in the tables, so that equal ones have equal bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    pub dialect: u32,
    /// Whether its dialect encoded it; else it is assembly.
    pub is_encoded: bool,
    pub bytes: Bytes,
}

#[derive(Debug, Clone, Default)]
pub struct Region {
    pub blocks: Vec<Block>,
}

#[derive(Debug, Clone, Default)]
pub struct Block {
    /// The value of the first argument; those of the others follow.
    pub first_argument: Value,
    pub arguments: Vec<BlockArgument>,
    pub operations: Vec<Operation>,
}

#[derive(Debug, Clone)]
pub struct BlockArgument {
    pub r#type: TypeId,
    pub location: Option<AttributeId>,
}

#[derive(Debug, Clone)]
pub struct Operation {
    pub name: NameId,
    pub location: AttributeId,
    /// The dictionary of attributes that its dialect does not know.
    pub discardable: Option<AttributeId>,
    pub properties: Option<PropertiesId>,
    /// The value of the first result; those of the others follow.
    pub first_result: Value,
    /// The types of its results.
    pub results: Vec<TypeId>,
    pub operands: Vec<Value>,
    pub regions: Vec<Region>,
    /// Whether its regions see no values from outside.
    pub is_isolated: bool,
}

impl Operation {
    /// An operation that takes and makes nothing yet.
    pub fn new(name: NameId, location: AttributeId) -> Operation {
        Operation {
            name,
            location,
            discardable: None,
            properties: None,
            first_result: 0,
            results: Vec::new(),
            operands: Vec::new(),
            regions: Vec::new(),
            is_isolated: false,
        }
    }

    /// The same operation without operands, results and regions.
    pub fn emptied(&self) -> Operation {
        Operation { operands: Vec::new(), results: Vec::new(), regions: Vec::new(), ..*self }
    }
}

impl Module {
    /// Whether anything of it is of this dialect.
    pub fn has_dialect(&self, name: &str) -> bool {
        self.dialects.iter().any(|dialect| self.strings[dialect.name as usize] == name)
    }

    /// The `builtin.module`, and the block in it that has the functions.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn root(&self) -> Result<(&Operation, &Block)> {
        let [root] = &self.body.operations[..] else { return Err("it is not one module".into()) };
        let [Region { blocks }] = &root.regions[..] else {
            return Err("its module has no one region".into());
        };
        let [body] = &blocks[..] else { return Err("its module has no one block".into()) };
        Ok((root, body))
    }

    /// The same tables, without operations.
    pub fn emptied(&self) -> Module {
        Module {
            producer: self.producer.clone(),
            strings: self.strings.clone(),
            dialects: self.dialects.clone(),
            names: self.names.clone(),
            attributes: self.attributes.clone(),
            types: self.types.clone(),
            properties: self.properties.clone(),
            resources: self.resources.clone(),
            body: Block::default(),
            values: 0,
        }
    }
}

impl Region {
    /// The values that its own blocks define, without those of regions within it.
    pub fn own_values(&self) -> usize {
        self.blocks.iter().map(Block::own_values).sum()
    }
}

impl Block {
    pub fn argument_types(&self) -> Vec<TypeId> {
        self.arguments.iter().map(|argument| argument.r#type).collect()
    }

    pub fn own_values(&self) -> usize {
        self.arguments.len() + self.operations.iter().map(|operation| operation.results.len()).sum::<usize>()
    }
}
