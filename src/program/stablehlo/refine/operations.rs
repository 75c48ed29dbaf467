//! Operations: computed where all is known, else written with the sizes of what they make.

use std::cell::Cell;
use std::rc::Rc;

use super::{Known, MAX_INTERPRETED, Refiner, Result, Slot, body_of};
use crate::program::stablehlo::constant::{self, Constant, MAX_ELEMENTS, element_count};
use crate::program::stablehlo::infer::{self, Case};
use crate::program::stablehlo::module::{Block, BlockArgument, NameId, Operation, Region, TypeId, Value};

impl<'a> Refiner<'a> {
    pub(super) fn operation(&mut self, operation: &'a Operation) -> Result<()> {
        self.interpreted += 1;
        if self.interpreted > MAX_INTERPRETED {
            return Err(
                format!("its functions call each other for more than {MAX_INTERPRETED} operations").into()
            );
        }
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
        self.count_elements(constant.values.len())?;
        let known = Known { constant: Rc::new(constant), attribute: Rc::new(Cell::new(Some(attribute))) };
        self.define(operation, vec![Slot { r#type, known: Some(known), value: None }])
    }

    fn dimension_size(&mut self, operation: &Operation, operands: &[Slot]) -> Result<()> {
        let sizes = operands.first().and_then(|slot| self.sizes(slot.r#type));
        let sizes = sizes.ok_or("its operand is no array of known sizes")?;
        let size = infer::get(&sizes, self.tables.index(operation, "dimension")?)?;
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
        let types = region.blocks.first().map(Block::argument_types).unwrap_or_default();
        types.iter().all(|&r#type| self.is_static(r#type)).then_some(types)
    }

    /// Whether nothing of a type is unknown in size, as far as it is one of arrays.
    pub(super) fn is_static(&mut self, r#type: TypeId) -> bool {
        self.tables.tensor(r#type).is_none_or(|tensor| tensor.is_static())
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
    pub(super) fn sum_of(&self, slot: &Slot) -> Option<&(Value, Known)> {
        self.sums.get(&slot.value?)
    }

    /// The result of an operation of which everything is known.
    pub(super) fn folded(
        &mut self,
        operation: &Operation,
        name: &str,
        operands: &[Slot],
    ) -> Result<Option<Slot>> {
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
        if tensor.is_static() {
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

    /// A function whose arguments are all known in size, for an operation that names it: its block, and the types of those.
    fn static_function(&mut self, name: &str) -> Result<(&'a Block, Vec<TypeId>)> {
        let body = body_of(self.function(name)?)?;
        let types = body.argument_types();
        if !types.iter().all(|&r#type| self.is_static(r#type)) {
            return Err(format!("its function `{name}` takes arrays of unknown sizes").into());
        }
        Ok((body, types))
    }

    /// Keeps a function that an operation names; returns its name.
    pub(super) fn keep_function(&mut self, name: &str) -> Result<String> {
        let (_, types) = self.static_function(name)?;
        let specialised = self.specialise(name, types.into_iter().map(|r#type| (r#type, None)).collect())?;
        Ok(specialised.name.clone())
    }

    /// A function's block as a region of an operation.
    pub(super) fn function_region(&mut self, name: &str) -> Result<Region> {
        let (body, types) = self.static_function(name)?;
        // An operation that is made of a custom call is written as one that is not isolated.
        Ok(self.block_region(body, &types, false)?.0)
    }

    /// A region of one block with arguments of these types, in which `write` writes, given the first of them.
    pub(super) fn block_of(
        &mut self,
        types: &[TypeId],
        write: impl FnOnce(&mut Self, Value) -> Result<()>,
    ) -> Result<Region> {
        let first_argument = self.fresh(types.len())?;
        let argument = |&r#type| BlockArgument { r#type, location: Some(self.location) };
        let arguments = types.iter().map(argument).collect();
        let (operations, ()) = self.in_scope(false, |refiner| write(refiner, first_argument))?;
        Ok(Region { blocks: vec![Block { first_argument, arguments, operations }] })
    }
}
