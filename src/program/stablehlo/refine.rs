//! Refinement: a module with dimensions of unknown size becomes one in which every size is known.
//!
//! `main` is interpreted forwards from the types of its arguments. The arithmetic of sizes is computed, `jax.export`'s
//! assertions are held against it, operations whose sizes are operands become those whose sizes are attributes, and
//! functions are specialised by the types and the known values that they are called with. What remains is written.

mod custom_call;
mod functions;
mod operations;
mod rewrite;
mod values;

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use rustc_hash::FxHashMap;

use super::constant::Constant;
use super::module::{AttributeId, Block, BlockArgument, Module, NameId, Operation, Region, TypeId, Value};
use super::tables::Tables;

/// Why a module is not refined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The sizes are not those that it was exported for: the text of its assertion.
    Assertion(String),
    /// What of it is not known, or is wrong.
    Module(String),
}

impl From<String> for Refusal {
    fn from(problem: String) -> Refusal {
        Refusal::Module(problem)
    }
}

impl From<&str> for Refusal {
    fn from(problem: &str) -> Refusal {
        Refusal::Module(problem.to_owned())
    }
}

pub type Result<T> = std::result::Result<T, Refusal>;

/// Operations that a refined module may have, at most; beyond some, in times of the values that it had: hostile ones could
/// double with every function.
const MAX_OPERATIONS: usize = 1 << 19;
const OPERATIONS_PER_VALUE: usize = 64;
const FREE_OPERATIONS: usize = 1 << 16;

/// Operations that may be gone through, those included of which nothing is left.
const MAX_INTERPRETED: usize = 1 << 20;

/// Elements of known values that may be computed: sizes have a few each.
const MAX_COMPUTED_ELEMENTS: usize = 1 << 22;

/// A module whose sizes are all known.
#[derive(Debug)]
pub struct Refined {
    pub module: Module,
    /// The sizes of the outputs of `main`; `None` of what is no array.
    pub outputs: Vec<Option<Vec<usize>>>,
    /// The dimension variables and their values, by name, where the module names them.
    pub variables: Vec<(String, i64)>,
}

/// Refines a module for arguments of these sizes, `None` for one that is no array. The index of the platform among those that
/// it was exported for is given where `main` takes one, which it then does no more. Without assertions, those of the module
/// are left out.
pub fn refine(
    module: &Module,
    arguments: &[Option<Vec<usize>>],
    platform_index: Option<usize>,
    has_assertions: bool,
) -> Result<Refined> {
    let mut refiner = Refiner::new(module)?;
    refiner.has_assertions = has_assertions;
    let main = refiner.specialise_main(arguments, platform_index)?;
    let outputs = main.results.iter().map(|slot| refiner.sizes(slot.r#type)).collect();
    let variables = std::mem::take(&mut refiner.variables);
    Ok(Refined { module: refiner.finish(), outputs, variables })
}

/// The sizes of the arguments of `main`, as they are declared; `None` of what is no array.
pub fn declared_sizes(module: &Module) -> Result<Vec<Option<Vec<usize>>>> {
    let mut refiner = Refiner::new(module)?;
    let types = body_of(refiner.function("main")?)?.argument_types();
    let sizes = |r#type| match refiner.tables.tensor(r#type) {
        None => Ok(None),
        Some(tensor) => match tensor.sizes() {
            Some(sizes) => Ok(Some(sizes)),
            None => Err("an argument of its `main` has unknown sizes".into()),
        },
    };
    types.into_iter().map(sizes).collect()
}

/// A value whose elements are known.
#[derive(Debug, Clone)]
struct Known {
    constant: Rc<Constant>,
    /// The attribute that holds it, once that was needed: most are only on the way to others.
    attribute: Rc<Cell<Option<AttributeId>>>,
}

/// A value of these elements.
fn known(constant: Constant) -> Known {
    Known { constant: Rc::new(constant), attribute: Rc::default() }
}

/// What is known of a value.
#[derive(Debug, Clone)]
struct Slot {
    r#type: TypeId,
    known: Option<Known>,
    /// The value in the module that is written; `None` for one that is known and was not needed yet.
    value: Option<Value>,
}

/// A block that is written.
#[derive(Default)]
struct Scope {
    operations: Vec<Operation>,
    /// The constants that are defined in it.
    constants: FxHashMap<AttributeId, Value>,
    /// Whether it sees no values from outside.
    is_isolated: bool,
}

/// A function that is being written.
#[derive(Default)]
struct Frame {
    /// What the values of the module that is read are.
    slots: FxHashMap<Value, Slot>,
    /// The blocks around, the innermost last.
    scopes: Vec<Scope>,
    has_effects: bool,
}

/// A function for operands of certain types and known values.
struct Specialised {
    name: String,
    /// The positions of the operands that it still takes.
    kept: Vec<usize>,
    results: Vec<Slot>,
    has_effects: bool,
}

type Key = (String, Vec<(TypeId, Option<AttributeId>)>);

struct Refiner<'a> {
    module: &'a Module,
    /// The `builtin.module`, and what is in it.
    root: &'a Operation,
    tables: Tables,
    functions: HashMap<String, &'a Operation>,
    specialised: HashMap<Key, Rc<Specialised>>,
    /// The functions that are being specialised.
    calls: Vec<String>,
    /// How many regions and calls are around.
    depth: usize,
    written: Vec<Operation>,
    names: HashSet<String>,
    /// The copies that there are of a function, by its name.
    copies: HashMap<String, usize>,
    frame: Frame,
    /// The location of the operation that is interpreted.
    location: AttributeId,
    /// Sums of a value and a known one, by the value that they are.
    sums: FxHashMap<Value, (Value, Known)>,
    /// The names of operations of StableHLO without their versions, by those with them.
    kinds: FxHashMap<NameId, Option<Rc<str>>>,
    next: Value,
    /// Operations that were written, those that were gone through, and elements that were computed.
    operations: usize,
    most_operations: usize,
    interpreted: usize,
    computed: usize,
    variables: Vec<(String, i64)>,
    /// Whether the module's assertions are held.
    has_assertions: bool,
}

impl<'a> Refiner<'a> {
    fn new(module: &'a Module) -> Result<Refiner<'a>> {
        let tables = Tables::of(module)?;
        let (root, body) = module.root()?;
        let mut refiner = Refiner {
            module,
            root,
            tables,
            functions: HashMap::new(),
            specialised: HashMap::new(),
            calls: Vec::new(),
            depth: 0,
            written: Vec::new(),
            names: HashSet::new(),
            frame: Frame::default(),
            location: root.location,
            sums: FxHashMap::default(),
            kinds: FxHashMap::default(),
            next: 0,
            operations: 0,
            most_operations: (module.values as usize)
                .saturating_mul(OPERATIONS_PER_VALUE)
                .saturating_add(FREE_OPERATIONS)
                .min(MAX_OPERATIONS),
            interpreted: 0,
            computed: 0,
            copies: HashMap::new(),
            variables: Vec::new(),
            has_assertions: true,
        };
        for operation in &body.operations {
            let Some(name) = refiner.tables.function_name(operation)?.map(str::to_owned) else {
                refiner.written.push(refiner.copied(operation)?);
                continue;
            };
            refiner.names.insert(name.clone());
            if refiner.functions.insert(name.clone(), operation).is_some() {
                return Err(format!("it has two functions `{name}`").into());
            }
        }
        Ok(refiner)
    }

    /// An operation beside the functions, which has no values.
    fn copied(&self, operation: &Operation) -> Result<Operation> {
        if operation.regions.is_empty() && operation.results.is_empty() && operation.operands.is_empty() {
            return Ok(operation.clone());
        }
        Err(format!("`{}` stands beside its functions", self.tables.full_name(operation.name)).into())
    }

    fn finish(self) -> Module {
        let block = Block { operations: self.written, ..Block::default() };
        let root = Operation { regions: vec![Region { blocks: vec![block] }], ..self.root.emptied() };
        let body = Block { operations: vec![root], ..Block::default() };
        Module { body, values: self.next, ..self.tables.module }
    }

    /// The function of this name.
    fn function(&self, name: &str) -> Result<&'a Operation> {
        Ok(*self.functions.get(name).ok_or_else(|| format!("it has no function `{name}`"))?)
    }

    /// What is written into a block of its own meanwhile.
    fn in_scope<T>(
        &mut self,
        is_isolated: bool,
        write: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<(Vec<Operation>, T)> {
        self.frame.scopes.push(Scope { is_isolated, ..Scope::default() });
        let written = write(self)?;
        Ok((self.frame.scopes.pop().unwrap_or_default().operations, written))
    }

    /// As [`Refiner::block`], and writes its end.
    fn block_to_end(&mut self, block: &'a Block) -> Result<Vec<Slot>> {
        let results = self.block(block)?;
        self.write_return(&results)?;
        Ok(results)
    }

    /// Interprets a block; returns what it ends with.
    fn block(&mut self, block: &'a Block) -> Result<Vec<Slot>> {
        let (last, operations) = block.operations.split_last().ok_or("a block of it is empty")?;
        for operation in operations {
            self.location = operation.location;
            self.operation(operation).map_err(|refusal| self.placed(refusal, operation))?;
        }
        if self.tables.name(last.name) != Some("return_v1") {
            return Err(format!("a block ends with `{}`", self.tables.full_name(last.name)).into());
        }
        self.location = last.location;
        last.operands.iter().map(|&value| self.slot(value)).collect()
    }

    /// The refusal with the operation that it is about, if it is the innermost.
    fn placed(&self, refusal: Refusal, operation: &Operation) -> Refusal {
        match refusal {
            Refusal::Module(problem) if !problem.starts_with("operation `") => {
                let place = self.tables.location(operation.location);
                let place = place.map_or(String::new(), |place| format!(" at {place}"));
                let name = self.tables.full_name(operation.name);
                Refusal::Module(format!("operation `{name}`{place}: {problem}"))
            }
            refusal => refusal,
        }
    }

    /// A region whose block has arguments of these types, written; and what it returns.
    fn region(
        &mut self,
        region: &'a Region,
        types: &[TypeId],
        is_isolated: bool,
    ) -> Result<(Region, Vec<Slot>)> {
        let [block] = &region.blocks[..] else {
            if region.blocks.is_empty() {
                return Ok((Region::default(), Vec::new()));
            }
            return Err("a region has several blocks".into());
        };
        self.block_region(block, types, is_isolated)
    }

    /// As [`Refiner::region`], of its block.
    fn block_region(
        &mut self,
        block: &'a Block,
        types: &[TypeId],
        is_isolated: bool,
    ) -> Result<(Region, Vec<Slot>)> {
        if block.arguments.len() != types.len() {
            return Err(
                format!("a region takes {} values, not {}", block.arguments.len(), types.len()).into()
            );
        }
        let first_argument = self.fresh(types.len())?;
        let mut arguments = Vec::new();
        for (position, (argument, &r#type)) in block.arguments.iter().zip(types).enumerate() {
            arguments.push(BlockArgument { r#type, ..argument.clone() });
            let slot = Slot { r#type, known: None, value: Some(first_argument + position as Value) };
            self.frame.slots.insert(block.first_argument + position as Value, slot);
        }
        let (operations, results) =
            self.in_scope(is_isolated, |refiner| refiner.deeper(|refiner| refiner.block_to_end(block)))?;
        Ok((Region { blocks: vec![Block { first_argument, arguments, operations }] }, results))
    }
}

/// The block of a function.
fn body_of(function: &Operation) -> Result<&Block> {
    match &function.regions[..] {
        [Region { blocks }] if blocks.len() == 1 => Ok(&blocks[0]),
        _ => Err("a function has no body".into()),
    }
}
