//! Values: what is known of them, and what stands for them in the module that is written.

use super::{Known, MAX_COMPUTED_ELEMENTS, Refiner, Result, Slot, known};
use crate::program::stablehlo::constant::{Constant, element_count};
use crate::program::stablehlo::module::{AttributeId, NameId, Operation, TypeId, Value};
use crate::program::stablehlo::tables::Integer;

impl Refiner<'_> {
    /// So many new values; the first of them.
    pub(super) fn fresh(&mut self, count: usize) -> Result<Value> {
        let first = self.next;
        let next = u32::try_from(count).ok().and_then(|count| first.checked_add(count));
        self.next = next.ok_or("it has too many values")?;
        Ok(first)
    }

    pub(super) fn slot(&self, value: Value) -> Result<Slot> {
        self.frame.slots.get(&value).cloned().ok_or_else(|| "a value of another function is used".into())
    }

    /// Says what the results of an operation are.
    pub(super) fn define(&mut self, operation: &Operation, results: Vec<Slot>) -> Result<()> {
        if results.len() != operation.results.len() {
            return Err(format!("it has {} results, not {}", operation.results.len(), results.len()).into());
        }
        for (position, slot) in results.into_iter().enumerate() {
            self.frame.slots.insert(operation.first_result + position as Value, slot);
        }
        Ok(())
    }

    /// The value in the module that is written: of a known one, a constant.
    pub(super) fn value(&mut self, slot: &Slot) -> Result<Value> {
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

    pub(super) fn values(&mut self, slots: &[Slot]) -> Result<Vec<Value>> {
        slots.iter().map(|slot| self.value(slot)).collect()
    }

    /// Writes an operation of StableHLO; returns its first result.
    pub(super) fn write(
        &mut self,
        name: NameId,
        attributes: &[AttributeId],
        operands: Vec<Value>,
        results: Vec<TypeId>,
    ) -> Result<Value> {
        let properties =
            if attributes.is_empty() { None } else { Some(self.tables.add_properties(attributes)) };
        let operation = Operation::new(name, self.location);
        self.push(Operation { properties, operands, results, ..operation })
    }

    /// Writes an operation, whose results get new values; returns the first.
    pub(super) fn push(&mut self, mut operation: Operation) -> Result<Value> {
        self.operations += 1;
        if self.operations > self.most_operations {
            return Err(format!("refined, it has more than {} operations", self.most_operations).into());
        }
        operation.first_result = self.fresh(operation.results.len())?;
        let first = operation.first_result;
        self.frame.scopes.last_mut().ok_or("an operation is in no block")?.operations.push(operation);
        Ok(first)
    }

    pub(super) fn write_return(&mut self, results: &[Slot]) -> Result<()> {
        let operands = self.values(results)?;
        let name = self.tables.add_name("return_v1");
        self.write(name, &[], operands, Vec::new()).map(drop)
    }

    /// Writes what an operation became, and says what its results are.
    pub(super) fn replace(&mut self, original: &Operation, operation: Operation) -> Result<()> {
        let types = operation.results.clone();
        let first = self.push(operation)?;
        let slot = |(position, r#type)| Slot { r#type, known: None, value: Some(first + position as Value) };
        self.define(original, types.into_iter().enumerate().map(slot).collect())
    }

    /// The sizes of a type of arrays, if it is one and all are known.
    pub(super) fn sizes(&mut self, r#type: TypeId) -> Option<Vec<usize>> {
        self.tables.tensor(r#type)?.sizes()
    }

    /// A type that was declared with some sizes unknown, with these.
    pub(super) fn refined_type(&mut self, declared: TypeId, sizes: &[usize]) -> Result<TypeId> {
        let tensor = self.tables.tensor(declared).ok_or("an array's type is none")?;
        let agrees = tensor.dims.len() == sizes.len()
            && tensor.dims.iter().zip(sizes).all(|(dim, size)| dim.is_none_or(|dim| dim == *size));
        if !agrees {
            let dims: Vec<String> =
                tensor.dims.iter().map(|dim| dim.map_or("?".into(), |dim| dim.to_string())).collect();
            return Err(format!("it has sizes {sizes:?}, and was declared with [{}]", dims.join(", ")).into());
        }
        if tensor.is_static() {
            return Ok(declared);
        }
        element_count(sizes).filter(|count| i64::try_from(*count).is_ok()).ok_or("an array is too large")?;
        Ok(self.tables.add_tensor(sizes, tensor.element))
    }

    /// The type of integers that an array's elements have.
    pub(super) fn integer_type(&mut self, r#type: TypeId) -> Option<Integer> {
        let element = self.tables.tensor(r#type)?.element;
        self.tables.integer_type(element)
    }

    pub(super) fn known_scalar(&mut self, value: i64, r#type: TypeId) -> Result<Known> {
        let kind = self.integer_type(r#type).ok_or("a size is no integer")?;
        Ok(known(Constant::scalar(value, kind)))
    }

    /// The attribute that holds a known value of this type.
    pub(super) fn attribute_of(&mut self, known: &Known, r#type: TypeId) -> AttributeId {
        if let Some(attribute) = known.attribute.get() {
            return attribute;
        }
        let attribute = self.tables.add_tensor_attribute(r#type, &known.constant.encode());
        known.attribute.set(Some(attribute));
        attribute
    }

    /// Counts elements that are about to be kept of a known value.
    pub(super) fn count_elements(&mut self, count: usize) -> Result<()> {
        self.computed = self.computed.saturating_add(count);
        if self.computed > MAX_COMPUTED_ELEMENTS {
            return Err(format!("more than {MAX_COMPUTED_ELEMENTS} elements of sizes are computed").into());
        }
        Ok(())
    }

    /// The slot of a value that is known.
    pub(super) fn known_slot(&mut self, constant: Constant, declared: TypeId) -> Result<Slot> {
        self.count_elements(constant.values.len())?;
        let r#type = self.refined_type(declared, &constant.sizes)?;
        Ok(Slot { r#type, known: Some(known(constant)), value: None })
    }
}
