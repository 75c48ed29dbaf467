//! Functions, written for the types and the known values that they are called with.

use std::rc::Rc;

use super::{Known, Refiner, Result, Slot, Specialised, body_of};
use crate::program::stablehlo::module::{Block, BlockArgument, Operation, Region, TypeId, Value};

/// How deep calls and regions may lie within each other.
const MAX_DEPTH: usize = 96;

impl<'a> Refiner<'a> {
    pub(super) fn specialise_main(
        &mut self,
        arguments: &[Option<Vec<usize>>],
        platform_index: Option<usize>,
    ) -> Result<Rc<Specialised>> {
        let declared = body_of(self.function("main")?)?.argument_types();
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
    pub(super) fn specialise(
        &mut self,
        name: &str,
        operands: Vec<(TypeId, Option<Known>)>,
    ) -> Result<Rc<Specialised>> {
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
        let function = self.function(name)?;
        self.calls.push(name.to_owned());
        let outer = (std::mem::take(&mut self.frame), self.location);
        let specialised = self.deeper(|refiner| refiner.write_function(name, function, operands));
        (self.frame, self.location) = outer;
        self.calls.pop();
        let specialised = Rc::new(specialised?);
        self.specialised.insert(key, Rc::clone(&specialised));
        Ok(specialised)
    }

    pub(super) fn deeper<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
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
        let (operations, results) = self.in_scope(false, |refiner| refiner.block_to_end(body))?;
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
        let copies = self.copies.entry(name.to_owned()).or_default();
        loop {
            let candidate = if *copies == 0 { name.to_owned() } else { format!("{name}.{copies}") };
            *copies += 1;
            // Its own name is among those that there are, and the first copy's.
            if *copies == 1 || self.names.insert(candidate.clone()) {
                return candidate;
            }
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
}
