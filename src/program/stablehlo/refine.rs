//! Refinement: a module with dimensions of unknown size becomes one in which every size is known.
//!
//! `main` is interpreted forwards from the types of its arguments. The arithmetic of sizes is computed, `jax.export`'s
//! assertions are held against it, operations whose sizes are operands become those whose sizes are attributes, and
//! functions are specialised by the types and the known values that they are called with. What remains is written.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use rustc_hash::FxHashMap;

use super::constant::{self, Constant, MAX_ELEMENTS, element_count};
use super::infer::Case;
use super::module::{AttributeId, Block, BlockArgument, Module, NameId, Operation, Region, TypeId, Value};
use super::tables::{Integer, Tables};

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

/// Operations that a refined module may have: hostile ones could double with every function.
const MAX_OPERATIONS: usize = 1 << 19;

/// How deep calls and regions may lie within each other.
const MAX_DEPTH: usize = 96;

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
    let main = *refiner.functions.get("main").ok_or(NO_MAIN)?;
    let types: Vec<TypeId> = body_of(main)?.arguments.iter().map(|argument| argument.r#type).collect();
    let sizes = |r#type| match refiner.tables.tensor(r#type) {
        None => Ok(None),
        Some(tensor) => match tensor.sizes() {
            Some(sizes) => Ok(Some(sizes)),
            None => Err("an argument of its `main` has unknown sizes".into()),
        },
    };
    types.into_iter().map(sizes).collect()
}

const NO_MAIN: &str = "it has no function `main`";

/// A value whose elements are known.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub constant: Rc<Constant>,
    /// The attribute that holds it, once that was needed: most are only on the way to others.
    attribute: Rc<Cell<Option<AttributeId>>>,
}

/// A value of these elements.
fn known(constant: Constant) -> Known {
    Known { constant: Rc::new(constant), attribute: Rc::default() }
}

/// What is known of a value.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub r#type: TypeId,
    pub known: Option<Known>,
    /// The value in the module that is written; `None` for one that is known and was not needed yet.
    pub value: Option<Value>,
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

pub(super) struct Refiner<'a> {
    module: &'a Module,
    /// The `builtin.module`, and what is in it.
    root: &'a Operation,
    pub tables: Tables,
    functions: HashMap<String, &'a Operation>,
    specialised: HashMap<Key, Rc<Specialised>>,
    /// The functions that are being specialised.
    calls: Vec<String>,
    /// How many regions and calls are around.
    depth: usize,
    written: Vec<Operation>,
    names: HashSet<String>,
    frame: Frame,
    /// The location of the operation that is interpreted.
    location: AttributeId,
    /// Sums of a value and a known one, by the value that they are.
    sums: FxHashMap<Value, (Value, Known)>,
    /// The names of operations of StableHLO without their versions, by those with them.
    kinds: FxHashMap<NameId, Option<Rc<str>>>,
    next: Value,
    operations: usize,
    variables: Vec<(String, i64)>,
    /// Whether the module's assertions are held.
    pub has_assertions: bool,
}

impl<'a> Refiner<'a> {
    fn new(module: &'a Module) -> Result<Refiner<'a>> {
        let tables = Tables::of(module)?;
        let [root] = &module.body.operations[..] else { return Err("it is not one module".into()) };
        let [Region { blocks }] = &root.regions[..] else {
            return Err("its module has no one region".into());
        };
        let [body] = &blocks[..] else { return Err("its module has no one block".into()) };
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
            variables: Vec::new(),
            has_assertions: true,
        };
        for operation in &body.operations {
            if refiner.tables.name(operation.name) != Some("func_v1") {
                refiner.written.push(refiner.copied(operation)?);
                continue;
            }
            let name = refiner.tables.attribute(operation, "sym_name")?;
            let name = refiner.tables.text(name).ok_or("a function has no name")?.to_owned();
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

    // Functions.

    fn specialise_main(
        &mut self,
        arguments: &[Option<Vec<usize>>],
        platform_index: Option<usize>,
    ) -> Result<Rc<Specialised>> {
        let main = *self.functions.get("main").ok_or(NO_MAIN)?;
        let declared = body_of(main)?.arguments.iter().map(|argument| argument.r#type).collect::<Vec<_>>();
        let indices = usize::from(platform_index.is_some());
        if declared.len() != arguments.len() + indices {
            return Err(format!(
                "its `main` takes {} arguments, not {}",
                declared.len(),
                arguments.len() + indices
            )
            .into());
        }
        let mut operands = Vec::new();
        if let Some(index) = platform_index {
            let known = self.known_scalar(index as i64, declared[0])?;
            operands.push((declared[0], Some(known)));
        }
        for (&declared, sizes) in declared[indices..].iter().zip(arguments) {
            let r#type = match sizes {
                Some(sizes) => self.refined_type(declared, sizes)?,
                None => declared,
            };
            operands.push((r#type, None));
        }
        self.specialise("main", operands)
    }

    /// A function for operands of these types, some of which are known.
    fn specialise(&mut self, name: &str, operands: Vec<(TypeId, Option<Known>)>) -> Result<Rc<Specialised>> {
        let mut key = (name.to_owned(), Vec::with_capacity(operands.len()));
        for (r#type, known) in &operands {
            let attribute = known.as_ref().map(|known| self.attribute_of(known, *r#type));
            key.1.push((*r#type, attribute));
        }
        if let Some(specialised) = self.specialised.get(&key) {
            return Ok(Rc::clone(specialised));
        }
        if self.calls.iter().any(|call| call == name) {
            return Err(format!("its function `{name}` calls itself").into());
        }
        let function = *self.functions.get(name).ok_or_else(|| format!("it has no function `{name}`"))?;
        self.calls.push(name.to_owned());
        let outer = (std::mem::take(&mut self.frame), self.location);
        let specialised = self.deeper(|refiner| refiner.write_function(name, function, operands));
        (self.frame, self.location) = outer;
        self.calls.pop();
        let specialised = Rc::new(specialised?);
        self.specialised.insert(key, Rc::clone(&specialised));
        Ok(specialised)
    }

    fn deeper<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth == MAX_DEPTH {
            return Err(format!("its calls and regions are nested deeper than {MAX_DEPTH} levels").into());
        }
        self.depth += 1;
        let result = work(self);
        self.depth -= 1;
        result
    }

    fn write_function(
        &mut self,
        name: &str,
        function: &'a Operation,
        operands: Vec<(TypeId, Option<Known>)>,
    ) -> Result<Specialised> {
        let body = body_of(function)?;
        if body.arguments.len() != operands.len() {
            return Err(format!("its function `{name}` is called with {} operands", operands.len()).into());
        }
        self.name_variables(function, &operands)?;
        // Its own place comes before those of the functions that it calls.
        let place = self.written.len();
        self.written.push(function.emptied());
        let is_kept = |(_, (_, known)): &(usize, &(TypeId, Option<Known>))| known.is_none();
        let kept: Vec<usize> =
            operands.iter().enumerate().filter(is_kept).map(|(position, _)| position).collect();
        let first_argument = self.fresh(kept.len())?;
        let mut arguments = Vec::new();
        for (position, (r#type, known)) in operands.iter().enumerate() {
            let mut value = None;
            if known.is_none() {
                value = Some(first_argument + arguments.len() as Value);
                arguments.push(BlockArgument { r#type: *r#type, ..body.arguments[position].clone() });
            }
            let slot = Slot { r#type: *r#type, known: known.clone(), value };
            self.frame.slots.insert(body.first_argument + position as Value, slot);
        }
        self.frame.scopes.push(Scope::default());
        let results = self.block(body)?;
        self.write_return(&results)?;
        let operations = self.frame.scopes.pop().unwrap_or_default().operations;
        let types: Vec<TypeId> = arguments.iter().map(|argument| argument.r#type).collect();
        let name = self.unique(name);
        let results_types: Vec<TypeId> = results.iter().map(|slot| slot.r#type).collect();
        let properties = self.function_properties(function, &name, &kept, &types, &results_types)?;
        let block = Block { first_argument, arguments, operations };
        let regions = vec![Region { blocks: vec![block] }];
        self.written[place] = Operation { properties: Some(properties), regions, ..function.emptied() };
        Ok(Specialised { name, kept, results, has_effects: self.frame.has_effects })
    }

    /// The name for the next copy of a function: the first keeps its own.
    fn unique(&mut self, name: &str) -> String {
        // The function's own name is reserved for its first copy.
        let own = format!("\0{name}");
        if self.names.insert(own) {
            return name.to_owned();
        }
        let mut number = 1;
        loop {
            let candidate = format!("{name}.{number}");
            if self.names.insert(candidate.clone()) {
                return candidate;
            }
            number += 1;
        }
    }

    fn function_properties(
        &mut self,
        function: &Operation,
        name: &str,
        kept: &[usize],
        arguments: &[TypeId],
        results: &[TypeId],
    ) -> Result<u32> {
        let [arg_attrs, _, res_attrs, _, visibility] = self.tables.attributes_of(function)?[..] else {
            return Err(format!("its function `{name}` has not the attributes of one").into());
        };
        let of_arguments = self.tables.array(arg_attrs).unwrap_or_default();
        let arg_attrs = if of_arguments.is_empty() {
            arg_attrs
        } else {
            let of_kept = kept.iter().map(|&position| of_arguments.get(position).copied());
            let of_kept = of_kept.collect::<Option<Vec<_>>>();
            self.tables.add_array(&of_kept.ok_or("a function has attributes of other arguments")?)
        };
        let r#type = self.tables.add_function_type(arguments, results);
        let r#type = self.tables.add_type_attribute(r#type);
        let name = self.tables.add_text(name);
        Ok(self.tables.add_properties(&[arg_attrs, r#type, res_attrs, name, visibility]))
    }

    /// Keeps the values of the arguments that are named after dimension variables.
    fn name_variables(&mut self, function: &Operation, operands: &[(TypeId, Option<Known>)]) -> Result<()> {
        let of_arguments = self.tables.attribute(function, "arg_attrs")?;
        for (dictionary, (_, known)) in
            self.tables.array(of_arguments).unwrap_or_default().into_iter().zip(operands)
        {
            let name =
                self.tables.entry(dictionary, "jax.global_constant").and_then(|name| self.tables.text(name));
            let value = known.as_ref().and_then(|known| known.constant.item());
            if let (Some(name), Some(value)) = (name, value.and_then(|value| i64::try_from(value).ok()))
                && !name.is_empty()
                && !name.starts_with('_')
                && self.variables.iter().all(|(known, _)| known != name)
            {
                let name = name.to_owned();
                self.variables.push((name, value));
            }
        }
        Ok(())
    }

    // Blocks.

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
        self.frame.scopes.push(Scope { is_isolated, ..Scope::default() });
        let results = self.deeper(|refiner| refiner.block(block))?;
        self.write_return(&results)?;
        let operations = self.frame.scopes.pop().unwrap_or_default().operations;
        Ok((Region { blocks: vec![Block { first_argument, arguments, operations }] }, results))
    }

    // Values.

    /// So many new values; the first of them.
    fn fresh(&mut self, count: usize) -> Result<Value> {
        let first = self.next;
        let next = u32::try_from(count).ok().and_then(|count| first.checked_add(count));
        self.next = next.ok_or("it has too many values")?;
        Ok(first)
    }

    fn slot(&self, value: Value) -> Result<Slot> {
        self.frame.slots.get(&value).cloned().ok_or_else(|| "a value of another function is used".into())
    }

    /// Says what the results of an operation are.
    pub fn define(&mut self, operation: &Operation, results: Vec<Slot>) -> Result<()> {
        if results.len() != operation.results.len() {
            return Err(format!("it has {} results, not {}", operation.results.len(), results.len()).into());
        }
        for (position, slot) in results.into_iter().enumerate() {
            self.frame.slots.insert(operation.first_result + position as Value, slot);
        }
        Ok(())
    }

    /// The value in the module that is written: of a known one, a constant.
    pub fn value(&mut self, slot: &Slot) -> Result<Value> {
        if let Some(value) = slot.value {
            return Ok(value);
        }
        let known = slot.known.as_ref().ok_or("a value is not there")?;
        let attribute = self.attribute_of(known, slot.r#type);
        for scope in self.frame.scopes.iter().rev() {
            if let Some(&value) = scope.constants.get(&attribute) {
                return Ok(value);
            }
            if scope.is_isolated {
                break;
            }
        }
        let name = self.tables.add_name("constant_v1");
        let value = self.write(name, &[attribute], Vec::new(), vec![slot.r#type])?;
        if let Some(scope) = self.frame.scopes.last_mut() {
            scope.constants.insert(attribute, value);
        }
        Ok(value)
    }

    pub fn values(&mut self, slots: &[Slot]) -> Result<Vec<Value>> {
        slots.iter().map(|slot| self.value(slot)).collect()
    }

    /// Writes an operation of StableHLO; returns its first result.
    pub fn write(
        &mut self,
        name: NameId,
        attributes: &[AttributeId],
        operands: Vec<Value>,
        results: Vec<TypeId>,
    ) -> Result<Value> {
        let properties =
            if attributes.is_empty() { None } else { Some(self.tables.add_properties(attributes)) };
        let operation = Operation {
            name,
            location: self.location,
            discardable: None,
            properties,
            first_result: 0,
            results,
            operands,
            regions: Vec::new(),
            is_isolated: false,
        };
        self.push(operation)
    }

    /// Writes an operation, whose results get new values; returns the first.
    pub fn push(&mut self, mut operation: Operation) -> Result<Value> {
        self.operations += 1;
        if self.operations > MAX_OPERATIONS {
            return Err(format!("refined, it has more than {MAX_OPERATIONS} operations").into());
        }
        operation.first_result = self.fresh(operation.results.len())?;
        let first = operation.first_result;
        self.frame.scopes.last_mut().ok_or("an operation is in no block")?.operations.push(operation);
        Ok(first)
    }

    fn write_return(&mut self, results: &[Slot]) -> Result<()> {
        let operands = self.values(results)?;
        let name = self.tables.add_name("return_v1");
        self.write(name, &[], operands, Vec::new()).map(drop)
    }

    /// Writes what an operation became, and says what its results are.
    pub fn replace(&mut self, original: &Operation, operation: Operation) -> Result<()> {
        let types = operation.results.clone();
        let first = self.push(operation)?;
        let slot = |(position, r#type)| Slot { r#type, known: None, value: Some(first + position as Value) };
        self.define(original, types.into_iter().enumerate().map(slot).collect())
    }

    // Types and known values.

    /// The sizes of a type of arrays, if it is one and all are known.
    pub fn sizes(&mut self, r#type: TypeId) -> Option<Vec<usize>> {
        self.tables.tensor(r#type)?.sizes()
    }

    /// A type that was declared with some sizes unknown, with these.
    pub fn refined_type(&mut self, declared: TypeId, sizes: &[usize]) -> Result<TypeId> {
        let tensor = self.tables.tensor(declared).ok_or("an array's type is none")?;
        let agrees = tensor.dims.len() == sizes.len()
            && tensor.dims.iter().zip(sizes).all(|(dim, size)| dim.is_none_or(|dim| dim == *size));
        if !agrees {
            let dims: Vec<String> =
                tensor.dims.iter().map(|dim| dim.map_or("?".into(), |dim| dim.to_string())).collect();
            return Err(format!("it has sizes {sizes:?}, and was declared with [{}]", dims.join(", ")).into());
        }
        if tensor.dims.iter().all(Option::is_some) {
            return Ok(declared);
        }
        element_count(sizes).filter(|count| i64::try_from(*count).is_ok()).ok_or("an array is too large")?;
        Ok(self.tables.add_tensor(sizes, tensor.element))
    }

    /// The type of integers that an array's elements have.
    fn integer_type(&mut self, r#type: TypeId) -> Option<Integer> {
        let element = self.tables.tensor(r#type)?.element;
        self.tables.integer_type(element)
    }

    fn known_scalar(&mut self, value: i64, r#type: TypeId) -> Result<Known> {
        let kind = self.integer_type(r#type).ok_or("a size is no integer")?;
        Ok(known(Constant::scalar(value, kind)))
    }

    /// The attribute that holds a known value of this type.
    fn attribute_of(&mut self, known: &Known, r#type: TypeId) -> AttributeId {
        if let Some(attribute) = known.attribute.get() {
            return attribute;
        }
        let attribute = self.tables.add_tensor_attribute(r#type, &known.constant.encode());
        known.attribute.set(Some(attribute));
        attribute
    }

    /// The slot of a value that is known.
    fn known_slot(&mut self, constant: Constant, declared: TypeId) -> Result<Slot> {
        let r#type = self.refined_type(declared, &constant.sizes)?;
        Ok(Slot { r#type, known: Some(known(constant)), value: None })
    }

    // Operations.

    fn operation(&mut self, operation: &'a Operation) -> Result<()> {
        let operands =
            operation.operands.iter().map(|&value| self.slot(value)).collect::<Result<Vec<_>>>()?;
        let Some(name) = self.kind(operation.name) else { return self.foreign(operation, &operands) };
        match &*name {
            "constant" => self.constant(operation),
            "get_dimension_size" => self.dimension_size(operation, &operands),
            "call" => self.call(operation, &operands),
            "custom_call" => self.custom_call(operation, &operands),
            "composite" => self.composite(operation, &operands),
            "case" | "if" => self.branch(operation, &name, &operands),
            "optimization_barrier" => self.barrier(operation, &operands),
            _ if self.rewrite(operation, &name, &operands)? => Ok(()),
            _ => self.ordinary(operation, &name, &operands),
        }
    }

    /// The name of an operation of StableHLO without its version; `None` for another dialect's.
    fn kind(&mut self, name: NameId) -> Option<Rc<str>> {
        let tables = &self.tables;
        let kind = self.kinds.entry(name).or_insert_with(|| {
            let full = tables.name(name)?;
            Some(full.rsplit_once("_v").map_or(full, |(kind, _)| kind).into())
        });
        kind.clone()
    }

    /// An operation of another dialect: passed on if its results are known in size.
    fn foreign(&mut self, operation: &'a Operation, operands: &[Slot]) -> Result<()> {
        if self.tables.full_name(operation.name) == "builtin.unrealized_conversion_cast" {
            return self.define(operation, operands.to_vec());
        }
        self.ordinary(operation, "", operands)
    }

    fn constant(&mut self, operation: &'a Operation) -> Result<()> {
        let attribute = self.tables.attribute(operation, "value")?;
        let r#type = *operation.results.first().ok_or("a constant has no result")?;
        let constant = (|| {
            let kind = self.integer_type(r#type)?;
            let sizes = self.sizes(r#type)?;
            let count = element_count(&sizes).filter(|count| *count <= MAX_ELEMENTS)?;
            let (_, data) = self.tables.tensor_attribute(attribute)?;
            Some(Constant::new(sizes, kind, constant::decode(data, kind, count)?))
        })();
        let Some(constant) = constant else { return self.ordinary(operation, "constant", &[]) };
        let known = Known { constant: Rc::new(constant), attribute: Rc::new(Cell::new(Some(attribute))) };
        self.define(operation, vec![Slot { r#type, known: Some(known), value: None }])
    }

    fn dimension_size(&mut self, operation: &Operation, operands: &[Slot]) -> Result<()> {
        let sizes = operands.first().and_then(|slot| self.sizes(slot.r#type));
        let sizes = sizes.ok_or("its operand is no array of known sizes")?;
        let size = super::infer::get(&sizes, self.tables.index(operation, "dimension")?)?;
        let r#type = *operation.results.first().ok_or("it has no result")?;
        let known = self.known_scalar(size as i64, r#type)?;
        self.define(operation, vec![Slot { r#type, known: Some(known), value: None }])
    }

    fn call(&mut self, operation: &Operation, operands: &[Slot]) -> Result<()> {
        let callee = self.tables.attribute(operation, "callee")?;
        let callee = self.tables.text(callee).ok_or("it calls no function")?.to_owned();
        self.write_call(operation, &callee, operands)
    }

    /// Calls a function in the place of an operation.
    fn write_call(&mut self, operation: &Operation, callee: &str, operands: &[Slot]) -> Result<()> {
        let given = operands.iter().map(|slot| (slot.r#type, slot.known.clone())).collect();
        let callee = self.specialise(callee, given)?;
        let mut results: Vec<Slot> =
            callee.results.iter().map(|slot| Slot { value: None, ..slot.clone() }).collect();
        if results.iter().any(|slot| slot.known.is_none()) || callee.has_effects {
            self.frame.has_effects |= callee.has_effects;
            let kept: Vec<Slot> = callee.kept.iter().map(|&position| operands[position].clone()).collect();
            let operands = self.values(&kept)?;
            let attribute = self.tables.add_text(&callee.name);
            let call = Operation {
                name: self.tables.add_name("call_v1"),
                properties: Some(self.tables.add_properties(&[attribute])),
                operands,
                results: results.iter().map(|slot| slot.r#type).collect(),
                regions: Vec::new(),
                ..operation.emptied()
            };
            let first = self.push(call)?;
            for (position, slot) in results.iter_mut().enumerate() {
                slot.value = Some(first + position as Value);
            }
        }
        self.define(operation, results)
    }

    fn composite(&mut self, operation: &'a Operation, operands: &[Slot]) -> Result<()> {
        let [attributes, decomposition, name, version] = self.tables.attributes_of(operation)?[..] else {
            return Err("it has not the attributes of a composite".into());
        };
        let function = self.tables.text(decomposition).ok_or("it has no decomposition")?.to_owned();
        let mut regions = Vec::new();
        for region in &operation.regions {
            match self.declared_arguments(region) {
                Some(types) => regions.push(self.region(region, &types, operation.is_isolated)?.0),
                // Its regions are part of what it says; its decomposition says the same.
                None => return self.write_call(operation, &function, operands),
            }
        }
        let types = operands.iter().map(|slot| (slot.r#type, None)).collect();
        let function = self.specialise(&function, types)?;
        self.frame.has_effects |= function.has_effects;
        let decomposition = self.tables.add_text(&function.name);
        let properties = self.tables.add_properties(&[attributes, decomposition, name, version]);
        let composite = Operation {
            name: if regions.is_empty() { self.tables.add_name("composite_v1") } else { operation.name },
            properties: Some(properties),
            operands: self.values(operands)?,
            results: function.results.iter().map(|slot| slot.r#type).collect(),
            regions,
            ..operation.emptied()
        };
        self.replace(operation, composite)
    }

    /// The types of a region's arguments, if all are known in size.
    fn declared_arguments(&mut self, region: &Region) -> Option<Vec<TypeId>> {
        let arguments = region.blocks.first().map(|block| &block.arguments[..]).unwrap_or_default();
        let types: Vec<TypeId> = arguments.iter().map(|argument| argument.r#type).collect();
        types.iter().all(|&r#type| self.is_static(r#type)).then_some(types)
    }

    /// Whether nothing of a type is unknown in size, as far as it is one of arrays.
    pub fn is_static(&mut self, r#type: TypeId) -> bool {
        self.tables.tensor(r#type).is_none_or(|tensor| tensor.dims.iter().all(Option::is_some))
    }

    /// A choice: where it is known, what was chosen takes its place.
    fn branch(&mut self, operation: &'a Operation, name: &str, operands: &[Slot]) -> Result<()> {
        let chosen = operands.first().and_then(|slot| slot.known.as_ref()?.constant.item());
        if let Some(chosen) = chosen {
            let last = operation.regions.len().checked_sub(1).ok_or("it has no branches")?;
            let index = match (name, usize::try_from(chosen)) {
                ("if", _) => usize::from(chosen == 0),
                (_, Ok(index)) => index.min(last),
                (_, Err(_)) => last,
            };
            let region = operation.regions.get(index).ok_or("it has too few branches")?;
            let [block] = &region.blocks[..] else { return Err("a branch is not one block".into()) };
            let results = self.deeper(|refiner| refiner.block(block))?;
            return self.define(operation, results);
        }
        let mut regions = Vec::new();
        let mut types: Option<Vec<TypeId>> = None;
        for region in &operation.regions {
            let (region, results) = self.region(region, &[], operation.is_isolated)?;
            regions.push(region);
            let found: Vec<TypeId> = results.iter().map(|slot| slot.r#type).collect();
            if types.get_or_insert_with(|| found.clone()) != &found {
                return Err("its branches return arrays of different sizes".into());
            }
        }
        let operands = self.values(operands)?;
        let results = types.ok_or("it has no branches")?;
        self.replace(operation, Operation { operands, results, regions, ..operation.emptied() })
    }

    /// What passes through keeps what is known of it.
    fn barrier(&mut self, operation: &'a Operation, operands: &[Slot]) -> Result<()> {
        let results = operands.iter().map(|slot| slot.r#type).collect();
        let values = self.values(operands)?;
        let first = self.push(Operation { operands: values, results, ..operation.emptied() })?;
        let slot = |(position, slot): (usize, &Slot)| Slot {
            value: Some(first + position as Value),
            ..slot.clone()
        };
        self.define(operation, operands.iter().enumerate().map(slot).collect())
    }

    /// An operation that remains what it is: it is computed where all is known, else written with the sizes of its results.
    fn ordinary(&mut self, operation: &'a Operation, name: &str, operands: &[Slot]) -> Result<()> {
        if let Some(slot) = self.folded(operation, name, operands)? {
            return self.define(operation, vec![slot]);
        }
        let mut results = Vec::new();
        for (position, &declared) in operation.results.iter().enumerate() {
            results.push(self.result_type(operation, name, operands, position, declared)?);
        }
        let regions = self.regions(operation, name, operands)?;
        let values = self.values(operands)?;
        let is_sum = name == "add" && operands.len() == 2;
        let mut written = Operation { operands: values.clone(), results, regions, ..operation.emptied() };
        self.use_older_version(&mut written)?;
        let effects = ["infeed", "outfeed", "send", "recv", "rng"];
        self.frame.has_effects |= effects.contains(&name);
        self.replace(operation, written)?;
        if is_sum {
            let sum = self.slot(operation.first_result)?.value;
            for (value, other) in [(values[0], &operands[1]), (values[1], &operands[0])] {
                if let (Some(sum), Some(known)) = (sum, &other.known) {
                    self.sums.insert(sum, (value, known.clone()));
                }
            }
        }
        Ok(())
    }

    /// The value and the known one that a sum is of.
    pub fn sum_of(&self, slot: &Slot) -> Option<&(Value, Known)> {
        self.sums.get(&slot.value?)
    }

    /// The result of an operation of which everything is known.
    pub fn folded(&mut self, operation: &Operation, name: &str, operands: &[Slot]) -> Result<Option<Slot>> {
        let &[declared] = &operation.results[..] else { return Ok(None) };
        if operands.is_empty() || !operation.regions.is_empty() {
            return Ok(None);
        }
        let constants: Option<Vec<Rc<Constant>>> =
            operands.iter().map(|slot| slot.known.as_ref().map(|known| Rc::clone(&known.constant))).collect();
        let Some(constants) = constants else { return Ok(None) };
        let constants: Vec<&Constant> = constants.iter().map(|constant| &**constant).collect();
        let (sizes, kind) = (self.sizes(declared), self.integer_type(declared));
        if kind.is_none() {
            return Ok(None);
        }
        let folded = constant::fold(&self.tables, operation, name, &constants, sizes.as_deref(), kind)?;
        folded.map(|constant| self.known_slot(constant, declared)).transpose()
    }

    fn result_type(
        &mut self,
        operation: &Operation,
        name: &str,
        operands: &[Slot],
        position: usize,
        declared: TypeId,
    ) -> Result<TypeId> {
        let Some(tensor) = self.tables.tensor(declared) else { return Ok(declared) };
        if tensor.dims.iter().all(Option::is_some) {
            return Ok(declared);
        }
        let operands = self.all_sizes(operands);
        let case = Case { tables: &self.tables, operation, name, operands: &operands };
        let sizes = case.sizes(position, &tensor)?.ok_or_else(|| {
            format!(
                "what it makes has unknown sizes, and it is not known how they follow from what it takes ({}); export the \
                 function with sizes, or without this operation",
                self.module.producer
            )
        })?;
        self.refined_type(declared, &sizes)
    }

    /// The regions of an operation.
    fn regions(&mut self, operation: &'a Operation, name: &str, operands: &[Slot]) -> Result<Vec<Region>> {
        let mut regions = Vec::new();
        for region in &operation.regions {
            let types = if name == "while" {
                operands.iter().map(|slot| slot.r#type).collect()
            } else {
                self.declared_arguments(region).ok_or("a region of it takes arrays of unknown sizes")?
            };
            let (region, results) = self.region(region, &types, operation.is_isolated)?;
            if name == "while" && regions.len() == 1 && !results.iter().map(|slot| slot.r#type).eq(types) {
                return Err("the sizes of what it carries change from one round to the next".into());
            }
            regions.push(region);
        }
        Ok(regions)
    }

    pub fn note_effects(&mut self) {
        self.frame.has_effects = true;
    }

    /// A function whose types are known in size and whose operands are not, for an operation that names it.
    pub fn keep_function(&mut self, name: &str) -> Result<String> {
        let function = *self.functions.get(name).ok_or_else(|| format!("it has no function `{name}`"))?;
        let types: Vec<TypeId> =
            body_of(function)?.arguments.iter().map(|argument| argument.r#type).collect();
        if !types.iter().all(|&r#type| self.is_static(r#type)) {
            return Err(format!("its function `{name}` takes arrays of unknown sizes").into());
        }
        let specialised = self.specialise(name, types.into_iter().map(|r#type| (r#type, None)).collect())?;
        Ok(specialised.name.clone())
    }

    /// A function's block as a region of an operation.
    pub fn function_region(&mut self, name: &str) -> Result<Region> {
        let body = body_of(self.functions.get(name).ok_or_else(|| format!("it has no function `{name}`"))?)?;
        let types: Vec<TypeId> = body.arguments.iter().map(|argument| argument.r#type).collect();
        if !types.iter().all(|&r#type| self.is_static(r#type)) {
            return Err(format!("its function `{name}` takes arrays of unknown sizes").into());
        }
        // An operation that is made of a custom call is written as one that is not isolated.
        Ok(self.block_region(body, &types, false)?.0)
    }

    /// A region of one block with arguments of these types, in which `write` writes, given the first of them.
    pub fn block_of(
        &mut self,
        types: &[TypeId],
        write: impl FnOnce(&mut Self, Value) -> Result<()>,
    ) -> Result<Region> {
        let first_argument = self.fresh(types.len())?;
        let argument = |&r#type| BlockArgument { r#type, location: Some(self.location) };
        let arguments = types.iter().map(argument).collect();
        self.frame.scopes.push(Scope::default());
        write(self, first_argument)?;
        let operations = self.frame.scopes.pop().unwrap_or_default().operations;
        Ok(Region { blocks: vec![Block { first_argument, arguments, operations }] })
    }
}

/// The block of a function.
fn body_of(function: &Operation) -> Result<&Block> {
    match &function.regions[..] {
        [Region { blocks }] if blocks.len() == 1 => Ok(&blocks[0]),
        _ => Err("a function has no body".into()),
    }
}
