//! The graphs of a model, as far as tensors are in them: initializers, constants, and the graphs within nodes.

use std::ops::Range;

use super::super::checkpoint::LeftOut;
use super::super::problem::Problem;
use super::Model;
use super::tensor::TensorProto;
use super::wire::{Field, Value};

/// How deep graphs are read that are within nodes of graphs.
const MAX_GRAPHS: usize = 32;

/// Why a tensor is left out that only says which of its elements are not 0.
const SPARSE: &str = "it is sparse, which is not read";

/// A node, as far as its constants and graphs need it.
#[derive(Default)]
struct Node {
    output: Option<String>,
    name: String,
    kind: String,
    attributes: Vec<Attribute>,
}

impl Node {
    /// Whether its attributes that are numbers are what it gives.
    fn is_constant(&self) -> bool {
        self.kind == "Constant"
    }
}

/// An attribute of a node that holds tensors or graphs.
#[derive(Default)]
struct Attribute {
    name: String,
    tensors: Vec<TensorProto>,
    /// What its numbers and texts are, if it is what a constant is.
    numbers: TensorProto,
    /// Where graphs are.
    graphs: Vec<Range<usize>>,
    has_sparse: bool,
}

impl Attribute {
    /// Whether it has anything of use.
    fn is_empty(&self) -> bool {
        self.tensors.is_empty() && self.graphs.is_empty() && !self.has_sparse && self.numbers.is_empty()
    }
}

/// `prefix` + `name`, and the place among several.
fn name_of(prefix: &str, name: &str, index: usize, count: usize) -> String {
    if count == 1 { format!("{prefix}{name}") } else { format!("{prefix}{name}.{index}") }
}

impl Model<'_> {
    /// `GraphProto`: 1 `node`, 5 `initializer`, 15 `sparse_initializer`. Names within it get the prefix.
    pub fn graph(&mut self, range: Range<usize>, prefix: &str, depth: usize) -> Result<(), Problem> {
        if depth > MAX_GRAPHS {
            return Err(format!("its graphs are nested deeper than {MAX_GRAPHS} levels").into());
        }
        self.count()?;
        let mut nodes = 0;
        self.message(range, |model, field| match field {
            Field { number: 1, value: Value::Bytes(range) } => {
                nodes += 1;
                model.node(range, prefix, nodes - 1, depth)
            }
            Field { number: 5, value: Value::Bytes(range) } => {
                let tensor = model.tensor(range)?;
                let name = format!("{prefix}{}", tensor.name);
                model.add(tensor, name)
            }
            Field { number: 15, value: Value::Bytes(range) } => model.sparse(range, prefix),
            _ => Ok(()),
        })
    }

    /// `SparseTensorProto`: 1 `values`, which has the name.
    fn sparse(&mut self, range: Range<usize>, prefix: &str) -> Result<(), Problem> {
        let mut name = String::new();
        self.message(range, |model, field| {
            if let Field { number: 1, value: Value::Bytes(range) } = field {
                name = model.tensor(range)?.name;
            }
            Ok(())
        })?;
        self.left_out.push(LeftOut::unreadable(format!("{prefix}{name}"), SPARSE));
        Ok(())
    }

    /// `FunctionProto`: 1 `name`, 7 `node`.
    pub fn function(&mut self, range: Range<usize>) -> Result<(), Problem> {
        let (mut name, mut nodes) = (String::new(), Vec::new());
        self.message(range, |model, field| {
            match field {
                Field { number: 1, value: Value::Bytes(range) } => name = model.name(range)?,
                Field { number: 7, value: Value::Bytes(range) } => {
                    model.count()?;
                    nodes.push(range);
                }
                _ => {}
            }
            Ok(())
        })?;
        let prefix = format!("{name}.");
        nodes.into_iter().enumerate().try_for_each(|(position, range)| self.node(range, &prefix, position, 0))
    }

    /// `TrainingInfoProto`: 1 `initialization`, 2 `algorithm`, which are graphs.
    pub fn training(&mut self, range: Range<usize>, position: usize) -> Result<(), Problem> {
        self.message(range, |model, field| match field {
            Field { number: 1, value: Value::Bytes(range) } => {
                model.graph(range, &format!("training_info.{position}.initialization."), 0)
            }
            Field { number: 2, value: Value::Bytes(range) } => {
                model.graph(range, &format!("training_info.{position}.algorithm."), 0)
            }
            _ => Ok(()),
        })
    }

    /// `NodeProto`: 2 `output`, 3 `name`, 4 `op_type`, 5 `attribute`.
    fn node(
        &mut self,
        range: Range<usize>,
        prefix: &str,
        position: usize,
        depth: usize,
    ) -> Result<(), Problem> {
        let mut node = Node::default();
        self.message(range, |model, field| {
            match field {
                Field { number: 2, value: Value::Bytes(range) } if node.output.is_none() => {
                    node.output = Some(model.name(range)?);
                }
                Field { number: 3, value: Value::Bytes(range) } => node.name = model.name(range)?,
                Field { number: 4, value: Value::Bytes(range) } => node.kind = model.name(range)?,
                Field { number: 5, value: Value::Bytes(range) } => {
                    let attribute = model.attribute(range)?;
                    if !attribute.is_empty() {
                        node.attributes.push(attribute);
                    }
                }
                _ => {}
            }
            Ok(())
        })?;
        if node.name.is_empty() {
            node.name = format!("{}_{position}", node.kind);
        }
        self.values(&mut node, prefix)?;
        for Attribute { name, graphs, .. } in node.attributes {
            let count = graphs.len();
            for (index, range) in graphs.into_iter().enumerate() {
                let name = name_of(&format!("{prefix}{}.", node.name), &name, index, count);
                self.graph(range, &format!("{name}."), depth + 1)?;
            }
        }
        Ok(())
    }

    /// Takes the tensors of a node's attributes, under the name of what it gives.
    fn values(&mut self, node: &mut Node, prefix: &str) -> Result<(), Problem> {
        let output = node.output.take().unwrap_or_else(|| node.name.clone());
        let is_constant = node.is_constant();
        let mut tensors = Vec::new();
        for attribute in &mut node.attributes {
            tensors.append(&mut attribute.tensors);
            let numbers = std::mem::take(&mut attribute.numbers);
            match is_constant && !numbers.is_empty() {
                true => tensors.push(numbers),
                false => self.count -= numbers.fields(),
            }
            if attribute.has_sparse {
                let name = match is_constant {
                    true => format!("{prefix}{output}"),
                    false => format!("{prefix}{}.{}", node.name, attribute.name),
                };
                self.left_out.push(LeftOut::unreadable(name, SPARSE));
            }
        }
        let count = tensors.len();
        for (index, tensor) in tensors.into_iter().enumerate() {
            self.add(tensor, name_of(prefix, &output, index, count))?;
        }
        Ok(())
    }

    /// `AttributeProto`: 1 `name`, 2 `f`, 3 `i`, 4 `s`, 5 `t`, 6 `g`, 7 `floats`, 8 `ints`, 9 `strings`, 10 `tensors`, 11
    /// `graphs`, 22 `sparse_tensor`, 23 `sparse_tensors`.
    fn attribute(&mut self, range: Range<usize>) -> Result<Attribute, Problem> {
        let mut attribute = Attribute::default();
        self.message(range, |model, field| {
            match field {
                Field { number: 1, value: Value::Bytes(range) } => attribute.name = model.name(range)?,
                Field { number: 5 | 10, value: Value::Bytes(range) } => {
                    attribute.tensors.push(model.tensor(range)?)
                }
                Field { number: 6 | 11, value: Value::Bytes(range) } => {
                    model.count()?;
                    attribute.graphs.push(range);
                }
                Field { number: 22 | 23, .. } => attribute.has_sparse = true,
                Field { number, value } => model.element(&mut attribute.numbers, number, value)?,
            }
            Ok(())
        })?;
        Ok(attribute)
    }
}
