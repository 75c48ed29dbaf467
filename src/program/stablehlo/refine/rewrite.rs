//! Operations whose sizes are operands become those whose sizes are attributes; and operations are written in the oldest
//! version that says the same, so that older plugins read them.

use std::rc::Rc;

use super::{Refiner, Result, Slot};
use crate::program::stablehlo::constant::Constant;
use crate::program::stablehlo::infer::{self, Case};
use crate::program::stablehlo::module::{Operation, TypeId};
use crate::program::stablehlo::schema;

impl<'a> Refiner<'a> {
    /// Writes a dynamic operation as the static one that it is now; false for any other.
    pub(super) fn rewrite(
        &mut self,
        operation: &'a Operation,
        name: &str,
        operands: &[Slot],
    ) -> Result<bool> {
        match name {
            "dynamic_broadcast_in_dim" => {
                let dims = self.tables.attribute(operation, "broadcast_dimensions")?;
                self.with_shape(operation, operands, 1, "broadcast_in_dim", &[dims])?;
            }
            "dynamic_reshape" => self.with_shape(operation, operands, 1, "reshape", &[])?,
            "dynamic_iota" => {
                let dim = self.tables.attribute(operation, "iota_dimension")?;
                self.with_shape(operation, operands, 0, "iota", &[dim])?;
            }
            "dynamic_pad" => self.pad(operation, operands)?,
            "dynamic_gather" => self.gather(operation, operands)?,
            "dynamic_conv" => self.convolution(operation, operands)?,
            "real_dynamic_slice" => self.real_slice(operation, operands)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The elements of an operand, which must be known.
    pub(super) fn constant_of(&self, slot: &Slot, what: &str) -> Result<Rc<Constant>> {
        let known =
            slot.known.as_ref().ok_or_else(|| format!("its {what} depends on data, not on sizes alone"))?;
        Ok(Rc::clone(&known.constant))
    }

    /// The integers of an operand, which must be known.
    fn integers(&self, slot: &Slot, what: &str) -> Result<Vec<i64>> {
        let integers = self.constant_of(slot, what)?.to_integers();
        Ok(integers.ok_or_else(|| format!("its {what} is too large"))?)
    }

    /// The sizes that an operand says, or that the result was declared with.
    pub(super) fn shape(&mut self, slot: &Slot, declared: TypeId) -> Result<Vec<usize>> {
        if let Some(known) = &slot.known {
            let sizes = known.constant.to_sizes();
            return Ok(sizes.ok_or_else(|| format!("a size would be negative: {:?}", known.constant.values))?);
        }
        let sizes = self.sizes(declared);
        Ok(sizes.ok_or("the sizes of what it makes depend on data, not on sizes alone")?)
    }

    /// An operation whose operand at `shape` says the sizes of its result.
    fn with_shape(
        &mut self,
        operation: &Operation,
        operands: &[Slot],
        shape: usize,
        name: &str,
        attributes: &[u32],
    ) -> Result<()> {
        let [declared] = operation.results[..] else { return Err("it has not one result".into()) };
        let slot = operands.get(shape).ok_or("it lacks an operand")?;
        let sizes = self.shape(slot, declared)?;
        let result = self.refined_type(declared, &sizes)?;
        let full = self.tables.add_name(&format!("{name}_v1"));
        let properties = (!attributes.is_empty()).then(|| self.tables.add_properties(attributes));
        let mut written = Operation { name: full, properties, results: vec![result], ..operation.emptied() };
        if let Some(slot) = self.folded(&written, name, &operands[..shape])? {
            return self.define(operation, vec![slot]);
        }
        written.operands = self.values(&operands[..shape])?;
        self.replace(operation, written)
    }

    /// Writes an operation in the place of another: with these operands, attributes and result.
    fn write_as(
        &mut self,
        operation: &Operation,
        name: &str,
        attributes: &[u32],
        operands: &[Slot],
        sizes: &[usize],
    ) -> Result<()> {
        let [declared] = operation.results[..] else { return Err("it has not one result".into()) };
        let result = self.refined_type(declared, sizes)?;
        let written = Operation {
            name: self.tables.add_name(name),
            properties: Some(self.tables.add_properties(attributes)),
            operands: self.values(operands)?,
            results: vec![result],
            ..operation.emptied()
        };
        self.replace(operation, written)
    }

    /// The sizes of what operands are.
    pub(super) fn all_sizes(&mut self, operands: &[Slot]) -> Vec<Option<Vec<usize>>> {
        operands.iter().map(|slot| self.sizes(slot.r#type)).collect()
    }

    fn pad(&mut self, operation: &Operation, operands: &[Slot]) -> Result<()> {
        let [operand, value, low, high, interior] = operands else {
            return Err("it has not five operands".into());
        };
        let low = self.integers(low, "padding")?;
        let (high, interior) = (self.integers(high, "padding")?, self.integers(interior, "padding")?);
        let sizes = self.all_sizes(operands);
        let case = Case { tables: &self.tables, operation, name: "pad", operands: &sizes };
        let sizes = case.padded(&low, &high, &interior)?;
        let attributes = [&high, &low, &interior].map(|list| self.tables.add_integers(list));
        self.write_as(operation, "pad_v1", &attributes, &[operand.clone(), value.clone()], &sizes)
    }

    fn gather(&mut self, operation: &Operation, operands: &[Slot]) -> Result<()> {
        let [operand, starts, slice_sizes] = operands else { return Err("it has not three operands".into()) };
        let known =
            slice_sizes.known.as_ref().ok_or("the sizes of its slices depend on data, not on sizes alone")?;
        let slice_sizes = known.constant.to_sizes().ok_or("the size of a slice would be negative")?;
        let sizes = self.all_sizes(operands);
        let case = Case { tables: &self.tables, operation, name: "gather", operands: &sizes };
        let sizes = case.gathered(&slice_sizes)?;
        let mut attributes = self.tables.attributes_of(operation)?;
        let version =
            self.tables.name(operation.name).unwrap_or_default().rsplit_once("_v").map_or("1", |(_, v)| v);
        let name = format!("gather_v{version}");
        let slice_sizes: Vec<i64> = slice_sizes.iter().map(|&size| size as i64).collect();
        let slice_sizes = self.tables.add_integers(&slice_sizes);
        self.insert_attribute(&name, "slice_sizes", slice_sizes, &mut attributes)?;
        self.write_as(operation, &name, &attributes, &[operand.clone(), starts.clone()], &sizes)
    }

    /// Puts an attribute where an operation of this name has it.
    fn insert_attribute(
        &self,
        operation: &str,
        name: &str,
        attribute: u32,
        attributes: &mut Vec<u32>,
    ) -> Result<()> {
        let names = schema::attributes(operation).unwrap_or_default();
        let place = names.iter().position(|other| *other == name).filter(|place| *place <= attributes.len());
        attributes.insert(place.ok_or_else(|| format!("`{operation}` is not known"))?, attribute);
        Ok(())
    }

    fn convolution(&mut self, operation: &Operation, operands: &[Slot]) -> Result<()> {
        let [input, kernel, padding] = operands else { return Err("it has not three operands".into()) };
        let padding = self.integers(padding, "padding")?;
        let sizes = self.all_sizes(operands);
        let case = Case { tables: &self.tables, operation, name: "convolution", operands: &sizes };
        let sizes = case.convolved(&padding)?;
        let mut attributes = self.tables.attributes_of(operation)?;
        let padding = self.tables.add_integer_array(&[padding.len() / 2, 2], &padding);
        self.insert_attribute("convolution_v1", "padding", padding, &mut attributes)?;
        self.write_as(operation, "convolution_v1", &attributes, &[input.clone(), kernel.clone()], &sizes)
    }

    fn real_slice(&mut self, operation: &Operation, operands: &[Slot]) -> Result<()> {
        let [operand, starts, limits, strides] = operands else {
            return Err("it has not four operands".into());
        };
        let strides = self.integers(strides, "stride")?;
        if starts.known.is_none() || limits.known.is_none() {
            return self.moving_slice(operation, operand, starts, limits, &strides);
        }
        let (starts, limits) = (self.integers(starts, "start")?, self.integers(limits, "limit")?);
        let size = |((&start, &limit), &stride): ((&i64, &i64), &i64)| {
            let [start, limit, stride] = [start, limit, stride].map(|number| infer::size_of(number.into()));
            infer::sliced(start?, limit?, stride?)
        };
        let sizes = starts
            .iter()
            .zip(&limits)
            .zip(&strides)
            .map(size)
            .collect::<crate::program::stablehlo::Result<Vec<_>>>()?;
        let all = self.sizes(operand.r#type).unwrap_or_default();
        if limits.iter().zip(&all).any(|(&limit, &size)| limit > size as i64) {
            return Err(format!("it takes a slice up to {limits:?} of an array of sizes {all:?}").into());
        }
        let attributes = [&limits, &starts, &strides].map(|list| self.tables.add_integers(list));
        self.write_as(operation, "slice_v1", &attributes, std::slice::from_ref(operand), &sizes)
    }

    /// A slice whose start is data and whose size is known.
    fn moving_slice(
        &mut self,
        operation: &Operation,
        operand: &Slot,
        starts: &Slot,
        limits: &Slot,
        strides: &[i64],
    ) -> Result<()> {
        let from = self.value(starts)?;
        let sum = self.sum_of(limits).filter(|(value, _)| *value == from);
        let sizes = sum.and_then(|(_, known)| known.constant.to_sizes());
        let sizes = sizes.ok_or("the size of its slice depends on data, not on sizes alone")?;
        if strides.iter().any(|&stride| stride != 1) {
            return Err("its slice begins where data says, and has strides".into());
        }
        let element = self.tables.tensor(starts.r#type).ok_or("its start is no array")?.element;
        let (one, scalar) = (self.tables.add_tensor(&[1], element), self.tables.add_tensor(&[], element));
        let (slice, reshape) = (self.tables.add_name("slice_v1"), self.tables.add_name("reshape_v1"));
        let mut operands = vec![operand.clone()];
        for dim in 0..sizes.len() as i64 {
            let attributes = [dim + 1, dim, 1].map(|number| self.tables.add_integers(&[number]));
            let part = self.write(slice, &attributes, vec![from], vec![one])?;
            let value = self.write(reshape, &[], vec![part], vec![scalar])?;
            operands.push(Slot { r#type: scalar, known: None, value: Some(value) });
        }
        let slice_sizes: Vec<i64> = sizes.iter().map(|&size| size as i64).collect();
        let attributes = [self.tables.add_integers(&slice_sizes)];
        self.write_as(operation, "dynamic_slice_v1", &attributes, &operands, &sizes)
    }

    /// Writes an operation in the oldest version that says the same.
    pub(super) fn use_older_version(&mut self, operation: &mut Operation) -> Result<()> {
        const WITH_ACCURACY: [&str; 12] = [
            "cbrt_v2",
            "cosine_v2",
            "exponential_v2",
            "exponential_minus_one_v2",
            "log_v2",
            "log_plus_one_v2",
            "logistic_v2",
            "rsqrt_v2",
            "sine_v2",
            "sqrt_v2",
            "tan_v2",
            "tanh_v2",
        ];
        let Some(name) = self.tables.name(operation.name) else { return Ok(()) };
        if WITH_ACCURACY.contains(&name) {
            let older = name.replace("_v2", "_v1");
            if let [accuracy] = self.tables.attributes_of(operation)?[..]
                && self.tables.is_usual_accuracy(accuracy)
            {
                operation.name = self.tables.add_name(&older);
                operation.properties = None;
            }
        } else if name == "custom_call_v2" {
            let attributes = self.tables.attributes_of(operation)?;
            if let [kept @ .., tilings] = &attributes[..]
                && self.tables.array(*tilings).is_some_and(|tilings| tilings.is_empty())
            {
                operation.name = self.tables.add_name("custom_call_v1");
                operation.properties = Some(self.tables.add_properties(kept));
            }
        }
        Ok(())
    }
}
