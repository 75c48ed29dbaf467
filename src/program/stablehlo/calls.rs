//! What a module calls: its custom calls with their places, for what a compiler says of one that it does not have; and how often
//! it has each operation.

use std::collections::{BTreeMap, HashMap};

use super::Result;
use super::module::{AttributeId, Block, Module, Operation};
use super::tables::Tables;

/// A custom call: what it calls, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomCall {
    pub target: String,
    /// JAX's name of the operation, and its place in the Python source, where the module has them.
    pub place: Option<String>,
}

/// How many functions that call each other are gone back through for a place in the source.
const MAX_CALLERS: usize = 16;

/// The first call of each target, in no particular order.
///
/// # Errors
/// When the module's tables are damaged.
pub fn custom_calls(module: &Module) -> Result<Vec<CustomCall>> {
    let tables = Tables::of(module)?;
    let mut walk = Walk { tables: &tables, callers: HashMap::new(), found: Vec::new() };
    for operation in &module.root()?.1.operations {
        if let Some(name) = tables.function_name(operation)? {
            walk.function(operation, name);
        }
    }
    Ok(walk.calls())
}

/// How often each operation stands in a module, by its name with its version: `add_v1`.
///
/// # Errors
/// When the module's tables are damaged.
pub fn operation_counts(module: &Module) -> Result<BTreeMap<String, usize>> {
    let tables = Tables::of(module)?;
    let mut counts = BTreeMap::new();
    let mut blocks: Vec<&Block> = vec![module.root()?.1];
    while let Some(block) = blocks.pop() {
        for operation in &block.operations {
            blocks.extend(operation.regions.iter().flat_map(|region| &region.blocks));
            if let Some(name) = tables.name(operation.name) {
                *counts.entry(name.to_owned()).or_insert(0) += 1;
            }
        }
    }
    Ok(counts)
}

struct Walk<'a> {
    tables: &'a Tables,
    /// The first place that calls a function: its location, and the function that it is in.
    callers: HashMap<String, (AttributeId, String)>,
    /// What is called, where, and in which function.
    found: Vec<(String, AttributeId, String)>,
}

impl Walk<'_> {
    fn function(&mut self, function: &Operation, name: &str) {
        let mut blocks: Vec<&Block> = function.regions.iter().flat_map(|region| &region.blocks).collect();
        while let Some(block) = blocks.pop() {
            for operation in &block.operations {
                blocks.extend(operation.regions.iter().flat_map(|region| &region.blocks));
                self.operation(operation, name);
            }
        }
    }

    fn operation(&mut self, operation: &Operation, function: &str) {
        let text = |name| self.tables.attribute(operation, name).ok().and_then(|id| self.tables.text(id));
        let name = self.tables.name(operation.name).unwrap_or_default();
        if name == "call_v1" {
            let callee = text("callee").unwrap_or_default().to_owned();
            self.callers.entry(callee).or_insert((operation.location, function.to_owned()));
        } else if name.starts_with("custom_call_v")
            && let Some(target) = text("call_target_name")
            && !self.found.iter().any(|(known, ..)| known == target)
        {
            self.found.push((target.to_owned(), operation.location, function.to_owned()));
        }
    }

    fn calls(&self) -> Vec<CustomCall> {
        let call = |(target, location, function): &(String, AttributeId, String)| {
            let name = self.tables.location(*location);
            let place = match (name, self.source(*location, function)) {
                (Some(name), Some(source)) => Some(format!("{name}, {source}")),
                (name, source) => name.or(source),
            };
            CustomCall { target: target.clone(), place }
        };
        self.found.iter().map(call).collect()
    }

    /// The place in the source: its own, or else that of the call of its function.
    fn source(&self, location: AttributeId, function: &str) -> Option<String> {
        let (mut location, mut function) = (location, function);
        for _ in 0..MAX_CALLERS {
            if let Some(source) = self.tables.source(location) {
                return Some(source);
            }
            let (caller, within) = self.callers.get(function)?;
            (location, function) = (*caller, within);
        }
        None
    }
}
