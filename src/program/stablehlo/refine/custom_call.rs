//! Custom calls: the assertions of `jax.export`, StableHLO's dynamic operations, and those that are told their results' sizes.

use super::{Refiner, Refusal, Result, Slot};
use crate::program::stablehlo::constant::Constant;
use crate::program::stablehlo::infer::Case;
use crate::program::stablehlo::module::{AttributeId, Operation, Region, TypeId};
use crate::program::stablehlo::schema;
use crate::program::stablehlo::tables::Integer;

/// The discardable attribute that says which operands are the sizes of the results.
const SHAPE_OPERANDS: &str = "indices_of_shape_operands";

/// Custom calls whose result has the sizes of their operand.
const LIKE_OPERAND: [&str; 4] =
    ["Sharding", "annotate_device_placement", "xla.sdy.FuncResultSharding", "LayoutConstraint"];

impl<'a> Refiner<'a> {
    pub(super) fn custom_call(&mut self, operation: &'a Operation, operands: &[Slot]) -> Result<()> {
        let target = self.tables.attribute(operation, "call_target_name")?;
        let target = self.tables.text(target).ok_or("it has no target")?.to_owned();
        match &target[..] {
            "shape_assertion" => self.assertion(operation, operands),
            "stablehlo.dynamic_reduce_window" => self.reduce_window(operation, operands),
            "stablehlo.dynamic_rng_bit_generator" => self.random_bits(operation, operands),
            "stablehlo.dynamic_top_k" => self.top_k(operation, operands),
            "stablehlo.dynamic_approx_top_k" => self.approx_top_k(operation, operands),
            _ => {
                let results = self.custom_results(operation, &target, operands)?;
                match self.shape_operands(operation) {
                    Some(indices) => self.without_shapes(operation, operands, &indices, results),
                    None => self.plain_call(operation, operands, results),
                }
            }
        }
    }

    /// Holds the sizes against what they were exported for.
    fn assertion(&mut self, operation: &Operation, operands: &[Slot]) -> Result<()> {
        if !self.has_assertions {
            return self.define(operation, Vec::new());
        }
        let message = self.discardable(operation, "error_message");
        let message =
            message.and_then(|message| self.tables.text(message)).ok_or("an assertion has no message")?;
        let mut message = message.to_owned();
        let [condition, values @ ..] = operands else { return Err("an assertion has no condition".into()) };
        let item = |slot: &Slot| slot.known.as_ref().and_then(|known| known.constant.item());
        match item(condition) {
            None => Err("an assertion depends on data, not on sizes alone".into()),
            Some(0) => {
                for (position, slot) in values.iter().enumerate() {
                    let value = item(slot).map_or("?".into(), |value| value.to_string());
                    message = message.replace(&format!("{{{position}}}"), &value);
                }
                Err(Refusal::Assertion(message))
            }
            Some(_) => self.define(operation, Vec::new()),
        }
    }

    /// An attribute of an operation that its dialect does not know.
    fn discardable(&self, operation: &Operation, name: &str) -> Option<AttributeId> {
        self.tables.entry(operation.discardable?, name)
    }

    /// The operands that are the sizes of the results, one each.
    fn shape_operands(&self, operation: &Operation) -> Option<Vec<usize>> {
        let indices = self.tables.elements(self.discardable(operation, SHAPE_OPERANDS)?)?;
        indices.into_iter().map(|index| usize::try_from(index).ok()).collect()
    }

    /// The types of a custom call's results.
    fn custom_results(
        &mut self,
        operation: &Operation,
        target: &str,
        operands: &[Slot],
    ) -> Result<Vec<TypeId>> {
        let shapes = self.shape_operands(operation);
        let mut results = Vec::new();
        for (position, &declared) in operation.results.iter().enumerate() {
            if let Some(indices) = &shapes {
                let slot = indices.get(position).and_then(|&index| operands.get(index));
                let sizes = self.shape(slot.ok_or("it lacks the sizes of a result")?, declared)?;
                results.push(self.refined_type(declared, &sizes)?);
                continue;
            }
            if self.is_static(declared) {
                results.push(declared);
                continue;
            }
            let like_operand = LIKE_OPERAND.contains(&target)
                || (operands.len() == 1 && (target.starts_with("mhlo.") || target.starts_with("chlo.")));
            let sizes = operands.first().filter(|_| like_operand).and_then(|slot| self.sizes(slot.r#type));
            let mut sizes = sizes.ok_or_else(|| {
                format!(
                    "what the custom call `{target}` makes has unknown sizes, and it is not known how they follow from what \
                     it takes; export the function with sizes, or without it"
                )
            })?;
            if target.ends_with(".topk") || target.ends_with(".top_k") {
                let k = self.discardable(operation, "mhlo.attributes");
                let k = k.and_then(|attributes| self.tables.entry(attributes, "k"));
                let k = k.and_then(|k| self.tables.integer(k)).and_then(|k| usize::try_from(k).ok());
                *sizes.last_mut().ok_or("its operand has no dimensions")? =
                    k.ok_or("its `k` is not there")?;
            }
            results.push(self.refined_type(declared, &sizes)?);
        }
        Ok(results)
    }

    /// A custom call with its operands as they are.
    fn plain_call(&mut self, operation: &Operation, operands: &[Slot], results: Vec<TypeId>) -> Result<()> {
        let operands = self.values(operands)?;
        let mut written = Operation { operands, results, ..operation.emptied() };
        self.keep_called(&mut written)?;
        self.write_custom_call(operation, written)
    }

    /// Keeps the functions that a custom call names.
    fn keep_called(&mut self, operation: &mut Operation) -> Result<()> {
        let called = self.tables.attribute(operation, "called_computations")?;
        let called = self.tables.array(called).unwrap_or_default();
        if called.is_empty() {
            return Ok(());
        }
        let mut kept = Vec::new();
        for function in called {
            let name = self
                .tables
                .text(function)
                .ok_or("it names a function in a way that is not known")?
                .to_owned();
            let name = self.keep_function(&name)?;
            kept.push(self.tables.add_text(&name));
        }
        let kept = self.tables.add_array(&kept);
        self.set_attribute(operation, "called_computations", kept)
    }

    fn set_attribute(&mut self, operation: &mut Operation, name: &str, attribute: AttributeId) -> Result<()> {
        let before = self.tables.attribute(operation, name)?;
        let attributes = self.tables.attributes_of(operation)?;
        let names = self.tables.name(operation.name).and_then(schema::attributes).unwrap_or_default();
        let set =
            attributes.iter().zip(names).map(|(&old, &other)| if other == name { attribute } else { old });
        let set: Vec<AttributeId> = set.collect();
        if before != attribute {
            operation.properties = Some(self.tables.add_properties(&set));
        }
        Ok(())
    }

    fn write_custom_call(&mut self, original: &Operation, mut written: Operation) -> Result<()> {
        let effect = self.tables.attribute(&written, "has_side_effect")?;
        if self.tables.boolean(effect).unwrap_or(true) {
            self.frame.has_effects = true;
        }
        self.use_older_version(&mut written)?;
        self.replace(original, written)
    }

    /// A custom call without the operands that were the sizes of its results.
    fn without_shapes(
        &mut self,
        operation: &Operation,
        operands: &[Slot],
        shapes: &[usize],
        results: Vec<TypeId>,
    ) -> Result<()> {
        let is_kept = |position: &usize| !shapes.contains(position);
        let kept: Vec<usize> = (0..operands.len()).filter(is_kept).collect();
        let slots: Vec<Slot> = kept.iter().map(|&position| operands[position].clone()).collect();
        let mut written = Operation { operands: self.values(&slots)?, results, ..operation.emptied() };
        written.discardable = self.discardable_without(operation, &[SHAPE_OPERANDS])?;
        let layouts = self.tables.attribute(operation, "operand_layouts")?;
        let layouts = self.tables.array(layouts).unwrap_or_default();
        if !layouts.is_empty() {
            let layouts = kept.iter().map(|&position| layouts.get(position).copied());
            let layouts = layouts.collect::<Option<Vec<_>>>().ok_or("it has layouts of other operands")?;
            let layouts = self.tables.add_array(&layouts);
            self.set_attribute(&mut written, "operand_layouts", layouts)?;
        }
        self.keep_called(&mut written)?;
        self.write_custom_call(operation, written)
    }

    /// The attributes that a dialect does not know, without those of these names.
    fn discardable_without(&mut self, operation: &Operation, names: &[&str]) -> Result<Option<AttributeId>> {
        let Some(dictionary) = operation.discardable else { return Ok(None) };
        let entries = self.tables.dictionary(dictionary).ok_or("its attributes are no dictionary")?;
        let is_kept = |(name, _): &(AttributeId, AttributeId)| {
            self.tables.text(*name).is_none_or(|name| !names.contains(&name))
        };
        let kept: Vec<_> = entries.into_iter().filter(is_kept).collect();
        Ok(self.tables.add_discardable(&kept)?)
    }

    /// `n` arrays and initial values, then the sizes, strides, dilations and padding of windows.
    fn reduce_window(&mut self, operation: &'a Operation, operands: &[Slot]) -> Result<()> {
        const WINDOW_OPERANDS: usize = 5;
        let arrays = operands.len().checked_sub(WINDOW_OPERANDS).ok_or("it has too few operands")?;
        let (arrays, windows) = operands.split_at(arrays);
        let lists =
            windows.iter().map(|slot| self.constant_of(slot, "window")).collect::<Result<Vec<_>>>()?;
        let [dimensions, strides, base, dilations, padding] = &lists[..] else {
            return Err("no windows".into());
        };
        let sizes = |list: &Constant| list.to_sizes().ok_or("the size of a window would be negative");
        let integers = |list: &Constant| list.to_integers().ok_or("the size of a window is too large");
        let mut results = Vec::new();
        for (slot, &declared) in arrays.iter().zip(&operation.results) {
            let operand = self.sizes(slot.r#type).ok_or("its operand is no array")?;
            let case = Case { tables: &self.tables, operation, name: "reduce_window", operands: &[] };
            let sizes = case.windows(
                &operand,
                &sizes(dimensions)?,
                &sizes(strides)?,
                &sizes(base)?,
                &sizes(dilations)?,
                &integers(padding)?,
            )?;
            results.push(self.refined_type(declared, &sizes)?);
        }
        let called = self.tables.attribute(operation, "called_computations")?;
        let called = self.tables.array(called).unwrap_or_default();
        let [function] = called[..] else { return Err("it names not one function".into()) };
        let function = self.tables.text(function).ok_or("it names no function")?.to_owned();
        let region = self.function_region(&function)?;
        let padding = self.tables.add_integer_array(&[padding.values.len() / 2, 2], &integers(padding)?);
        let [base, dilations, dimensions, strides] =
            [base, dilations, dimensions, strides].map(|list| integers(list));
        let lists = [base?, dilations?, dimensions?, strides?].map(|list| self.tables.add_integers(&list));
        let [base, dilations, dimensions, strides] = lists;
        let properties = self.tables.add_properties(&[base, padding, dilations, dimensions, strides]);
        let written = Operation {
            name: self.tables.add_name("reduce_window_v1"),
            discardable: None,
            properties: Some(properties),
            operands: self.values(arrays)?,
            results,
            regions: vec![region],
            ..operation.emptied()
        };
        self.replace(operation, written)
    }

    fn random_bits(&mut self, operation: &Operation, operands: &[Slot]) -> Result<()> {
        let ([state, shape], [state_type, bits_type]) = (operands, &operation.results[..]) else {
            return Err("it has not two operands and results".into());
        };
        let sizes = self.shape(shape, *bits_type)?;
        let results = vec![*state_type, self.refined_type(*bits_type, &sizes)?];
        let algorithm = self.discardable(operation, "rng_algorithm").ok_or("it has no algorithm")?;
        let written = Operation {
            name: self.tables.add_name("rng_bit_generator_v1"),
            properties: Some(self.tables.add_properties(&[algorithm])),
            discardable: self.discardable_without(operation, &["rng_algorithm"])?,
            operands: self.values(std::slice::from_ref(state))?,
            results,
            ..operation.emptied()
        };
        self.replace(operation, written)
    }

    /// The `k` of a selection.
    fn k_of(&self, slot: &Slot) -> Result<usize> {
        let k = self.constant_of(slot, "`k`")?.item();
        Ok(k.and_then(|k| usize::try_from(k).ok()).ok_or("its `k` is no size")?)
    }

    /// A stable sort of the values and their positions, of which the first `k` are taken: a pattern that XLA knows.
    fn top_k(&mut self, operation: &Operation, operands: &[Slot]) -> Result<()> {
        let ([values, k], [values_type, positions_type]) = (operands, &operation.results[..]) else {
            return Err("it has not two operands and results".into());
        };
        let k = self.k_of(k)?;
        let sizes = self.sizes(values.r#type).ok_or("its operand is no array")?;
        let last = sizes.len().checked_sub(1).ok_or("its operand has no dimensions")?;
        if k > sizes[last] {
            return Err(format!("the largest {k} of {} values are asked for", sizes[last]).into());
        }
        let index = self.tables.tensor(*positions_type).ok_or("its positions are no array")?.element;
        let all_positions = self.tables.add_tensor(&sizes, index);
        let dimension = self.tables.add_integer(last as i64);
        let iota = self.tables.add_name("iota_v1");
        let positions = self.write(iota, &[dimension], Vec::new(), vec![all_positions])?;
        let value = self.value(values)?;
        let sorted = self.sort(operation, (value, values.r#type), (positions, all_positions), dimension)?;
        let slice = self.tables.add_name("slice_v1");
        let mut taken = sizes.clone();
        taken[last] = k;
        let as_list = |list: &[usize]| list.iter().map(|&size| size as i64).collect::<Vec<i64>>();
        let (zeros, ones) = (vec![0; sizes.len()], vec![1; sizes.len()]);
        let attributes = [as_list(&taken), zeros, ones].map(|list| self.tables.add_integers(&list));
        let mut results = Vec::new();
        for (position, &declared) in [values_type, positions_type].into_iter().enumerate() {
            let r#type = self.refined_type(declared, &taken)?;
            let part = self.write(slice, &attributes, vec![sorted + position as u32], vec![r#type])?;
            results.push(Slot { r#type, known: None, value: Some(part) });
        }
        self.define(operation, results)
    }

    /// `k` is an attribute of XLA's, and the rest as for the others.
    fn approx_top_k(&mut self, operation: &Operation, operands: &[Slot]) -> Result<()> {
        let shapes = self.shape_operands(operation).ok_or("it lacks the sizes of its results")?;
        let first_shape = shapes.iter().min().copied().ok_or("it has no results")?;
        let k_place = first_shape.checked_sub(1).ok_or("it has no `k`")?;
        let k = self.k_of(operands.get(k_place).ok_or("it has no `k`")?)?;
        let results = self.custom_results(operation, "ApproxTopK", operands)?;
        let backend = self.discardable(operation, "mhlo.backend_config").ok_or("it has no configuration")?;
        let mut backend = self.tables.dictionary(backend).ok_or("its configuration is no dictionary")?;
        let (name, value) = (self.tables.add_text("top_k"), self.tables.add_integer(k as i64));
        backend.push((name, value));
        // Dictionaries are sorted by their keys.
        backend.sort_by_key(|(key, _)| self.tables.text(*key).unwrap_or_default().to_owned());
        let backend = self.tables.add_dictionary(&backend);
        let dictionary = operation.discardable.ok_or("it has no attributes")?;
        let entries = self.tables.dictionary(dictionary).ok_or("its attributes are no dictionary")?;
        let with_backend = entries.into_iter().map(|(key, value)| {
            let is_backend = self.tables.text(key) == Some("mhlo.backend_config");
            (key, if is_backend { backend } else { value })
        });
        let with_backend: Vec<_> = with_backend.collect();
        let target = self.tables.add_text("ApproxTopK");
        let mut renamed =
            Operation { discardable: self.tables.add_discardable(&with_backend)?, ..operation.clone() };
        self.set_attribute(&mut renamed, "call_target_name", target)?;
        // `define` is by the results, which are those of the operation itself.
        self.without_shapes(&renamed, operands, &[&shapes[..], &[k_place]].concat(), results)
    }

    /// Sorts values, the largest first, and their positions with them; returns the first result.
    fn sort(
        &mut self,
        operation: &Operation,
        (values, values_type): (u32, TypeId),
        (positions, positions_type): (u32, TypeId),
        dimension: AttributeId,
    ) -> Result<u32> {
        let mut types = Vec::new();
        for r#type in [values_type, positions_type] {
            let element = self.tables.tensor(r#type).ok_or("what is sorted is no array")?.element;
            let scalar = self.tables.add_tensor(&[], element);
            types.extend([scalar, scalar]);
        }
        let element = self.tables.tensor(values_type).ok_or("what is sorted is no array")?.element;
        let kind = self.tables.integer_type(element);
        let region = self.comparator(&types, kind)?;
        let stable = self.tables.add_boolean(true);
        let sort = Operation {
            name: self.tables.add_name("sort_v1"),
            discardable: None,
            properties: Some(self.tables.add_properties(&[dimension, stable])),
            operands: vec![values, positions],
            results: vec![values_type, positions_type],
            regions: vec![region],
            ..operation.emptied()
        };
        self.push(sort)
    }

    /// Whether the first of four values is larger than the second.
    fn comparator(&mut self, types: &[TypeId], kind: Option<Integer>) -> Result<Region> {
        /// The numbers of the enumerations, and of their values.
        const DIRECTION: u64 = 3;
        const GREATER: u64 = 3;
        const COMPARISON: u64 = 4;
        const TOTAL_ORDER: u64 = 2;
        const SIGNED: u64 = 3;
        const UNSIGNED: u64 = 4;
        let order = match kind {
            None => TOTAL_ORDER,
            Some(Integer { is_signed: true, .. }) => SIGNED,
            Some(_) => UNSIGNED,
        };
        let compare_type = self.tables.add_enumeration(COMPARISON, order);
        let direction = self.tables.add_enumeration(DIRECTION, GREATER);
        let bool_type = self.tables.add_integer_type(1);
        let result = self.tables.add_tensor(&[], bool_type);
        let (compare, end) = (self.tables.add_name("compare_v1"), self.tables.add_name("return_v1"));
        self.block_of(types, |refiner, first| {
            let is_larger =
                refiner.write(compare, &[compare_type, direction], vec![first, first + 1], vec![result])?;
            refiner.write(end, &[], vec![is_larger], Vec::new()).map(drop)
        })
    }
}
