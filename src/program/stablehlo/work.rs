//! The work of a module that its sizes tell: the products of matrices and convolutions.

use std::collections::{HashMap, HashSet};

use super::Result;
use super::module::{Block, Module, Operation, TypeId, Value};
use super::tables::Tables;

/// How deep functions and regions are followed.
const MAX_DEPTH: usize = 128;

/// `ComparisonDirectionV1` of VHLO: less than.
const LESS_THAN: u64 = 5;

/// The floating point operations of matrix products and convolutions: two for each pair that is multiplied and added.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct MatrixWork {
    /// How many, on all devices together.
    pub flops: f64,
    /// Whether these are all: the body of a loop whose rounds are not known counts once, and of a choice the least.
    pub is_complete: bool,
}

impl MatrixWork {
    const NONE: MatrixWork = MatrixWork { flops: 0.0, is_complete: true };

    fn and(self, other: MatrixWork) -> MatrixWork {
        MatrixWork { flops: self.flops + other.flops, is_complete: self.is_complete && other.is_complete }
    }

    fn or(self, other: MatrixWork) -> MatrixWork {
        let is_complete = self.is_complete && other.is_complete && self.flops == other.flops;
        MatrixWork { flops: self.flops.min(other.flops), is_complete }
    }
}

/// The work of a module whose sizes are known; the parts whose are not have none.
///
/// # Errors
/// When its tables are damaged.
pub fn matrix_work(module: &Module) -> Result<MatrixWork> {
    let mut counter = Counter {
        tables: Tables::of(module)?,
        functions: HashMap::new(),
        types: HashMap::new(),
        constants: HashMap::new(),
        counted: HashMap::new(),
        depth: 0,
    };
    let (_, body) = module.root()?;
    counter.learn(body)?;
    for operation in &body.operations {
        if let Some(name) = counter.tables.function_name(operation)?.map(str::to_owned) {
            counter.functions.insert(name, operation);
        }
    }
    Ok(counter.function("main"))
}

struct Counter<'a> {
    tables: Tables,
    functions: HashMap<String, &'a Operation>,
    types: HashMap<Value, TypeId>,
    /// The integers that are known.
    constants: HashMap<Value, i64>,
    /// Functions that were counted, or are being.
    counted: HashMap<String, MatrixWork>,
    depth: usize,
}

/// One dimension of a convolution.
struct Side {
    input: i64,
    kernel: i64,
    output: i64,
    stride: i64,
    base_dilation: i64,
    window_dilation: i64,
    padding: i64,
}

/// Pairs of output and kernel that are looked at one by one.
const MAX_PAIRS: i64 = 1 << 20;

impl Side {
    /// The pairs of an element of the output and one of the kernel that meet an element of the input, not padding.
    fn pairs(&self) -> f64 {
        if self.output.saturating_mul(self.kernel) > MAX_PAIRS {
            return self.output as f64 * self.kernel as f64;
        }
        let end = self.input.saturating_sub(1).saturating_mul(self.base_dilation);
        let meets = |(output, kernel): (i64, i64)| {
            let window = output.saturating_mul(self.stride).saturating_sub(self.padding);
            let position = window.saturating_add(kernel.saturating_mul(self.window_dilation));
            (0..=end).contains(&position) && position % self.base_dilation == 0
        };
        let all = (0..self.output).flat_map(|output| (0..self.kernel).map(move |kernel| (output, kernel)));
        all.filter(|&pair| meets(pair)).count() as f64
    }
}

impl<'a> Counter<'a> {
    /// Keeps the types of all values, and the constants among them.
    fn learn(&mut self, block: &Block) -> Result<()> {
        if self.depth == MAX_DEPTH {
            return Err("it is nested too deep".into());
        }
        self.depth += 1;
        for (position, argument) in block.arguments.iter().enumerate() {
            self.types.insert(block.first_argument + position as Value, argument.r#type);
        }
        for operation in &block.operations {
            for (position, &r#type) in operation.results.iter().enumerate() {
                self.types.insert(operation.first_result + position as Value, r#type);
            }
            if let Some(value) = self.integer_constant(operation) {
                self.constants.insert(operation.first_result, value);
            }
            operation
                .regions
                .iter()
                .flat_map(|region| &region.blocks)
                .try_for_each(|block| self.learn(block))?;
        }
        self.depth -= 1;
        Ok(())
    }

    /// The integer that an operation defines.
    fn integer_constant(&mut self, operation: &Operation) -> Option<i64> {
        if self.tables.name(operation.name)? != "constant_v1" {
            return None;
        }
        let tensor = self.tables.tensor(*operation.results.first()?)?;
        if !tensor.dims.is_empty() {
            return None;
        }
        let value = self.tables.attribute(operation, "value").ok()?;
        self.tables.elements(value)?.first().copied()
    }

    fn function(&mut self, name: &str) -> MatrixWork {
        if let Some(work) = self.counted.get(name) {
            return *work;
        }
        // One that calls itself has no end, and no work.
        self.counted.insert(name.to_owned(), MatrixWork::NONE);
        let work = match self.functions.get(name) {
            Some(function) if self.depth < MAX_DEPTH => {
                self.depth += 1;
                let work = self.regions(function);
                self.depth -= 1;
                work
            }
            _ => MatrixWork { flops: 0.0, is_complete: false },
        };
        self.counted.insert(name.to_owned(), work);
        work
    }

    /// The work of all regions of an operation, once each.
    fn regions(&mut self, operation: &Operation) -> MatrixWork {
        let blocks = operation.regions.iter().flat_map(|region| &region.blocks);
        blocks.fold(MatrixWork::NONE, |work, block| work.and(self.block(block)))
    }

    /// Equal operations on equal values count once: compilers find these.
    fn block(&mut self, block: &Block) -> MatrixWork {
        let mut seen = HashSet::new();
        let mut work = MatrixWork::NONE;
        for operation in &block.operations {
            let is_new = !operation.regions.is_empty()
                || seen.insert((operation.name, operation.properties, operation.operands.clone()));
            if is_new {
                work = work.and(self.operation(operation));
            }
        }
        work
    }

    fn operation(&mut self, operation: &Operation) -> MatrixWork {
        let name = self.tables.name(operation.name).unwrap_or_default().to_owned();
        let base = name.rsplit_once("_v").map_or(name.as_str(), |(base, _)| base);
        let of =
            |flops: Option<f64>| MatrixWork { flops: flops.unwrap_or(0.0), is_complete: flops.is_some() };
        match base {
            "dot_general" => of(self.product(operation)),
            "convolution" => of(self.convolution(operation)),
            "call" | "composite" => {
                let attribute = if base == "call" { "callee" } else { "decomposition" };
                let callee = self.tables.attribute(operation, attribute).ok();
                let callee = callee.and_then(|id| self.tables.text(id)).map(str::to_owned);
                callee.map_or(MatrixWork::NONE, |callee| self.function(&callee))
            }
            "while" => {
                let work = self.regions(operation);
                match self.rounds(operation) {
                    Some(rounds) => MatrixWork { flops: work.flops * rounds, ..work },
                    None => MatrixWork { is_complete: work.flops == 0.0, ..work },
                }
            }
            // One of its regions is run: the least of them is, in any case.
            "if" | "case" => {
                let mut least: Option<MatrixWork> = None;
                for region in &operation.regions {
                    let blocks = region.blocks.iter();
                    let work = blocks.fold(MatrixWork::NONE, |work, block| work.and(self.block(block)));
                    least = Some(least.map_or(work, |least| least.or(work)));
                }
                least.unwrap_or(MatrixWork::NONE)
            }
            _ => self.regions(operation),
        }
    }

    fn sizes(&mut self, value: Value) -> Option<Vec<usize>> {
        let r#type = *self.types.get(&value)?;
        self.tables.tensor(r#type)?.sizes()
    }

    fn result_elements(&mut self, operation: &Operation) -> Option<f64> {
        Some(self.sizes(operation.first_result)?.iter().map(|&size| size as f64).product())
    }

    fn product(&mut self, operation: &Operation) -> Option<f64> {
        let left = self.sizes(*operation.operands.first()?)?;
        let summed = self.tables.indices(operation, "lhs_contracting_dimensions").ok()?;
        let summed: Option<Vec<f64>> =
            summed.iter().map(|&dim| left.get(dim).map(|&size| size as f64)).collect();
        Some(2.0 * self.result_elements(operation)? * summed?.iter().product::<f64>())
    }

    /// Every element of the result is a sum over the kernel, but for its output features; what falls on padding is no work.
    fn convolution(&mut self, operation: &Operation) -> Option<f64> {
        let input = self.sizes(*operation.operands.first()?)?;
        let kernel = self.sizes(*operation.operands.get(1)?)?;
        let output = self.sizes(operation.first_result)?;
        let list = |name: &str| self.tables.indices(operation, name).ok();
        let index = |name: &str| self.tables.index(operation, name).ok();
        let others = [
            *output.get(index("output_batch_dimension")?)?,
            *output.get(index("output_feature_dimension")?)?,
            *kernel.get(index("kernel_input_feature_dimension")?)?,
        ];
        let (strides, base, window) = (list("window_strides")?, list("lhs_dilation")?, list("rhs_dilation")?);
        let padding = self.tables.integers(operation, "padding").ok()?;
        let (inputs, kernels, outputs) = (
            list("input_spatial_dimensions")?,
            list("kernel_spatial_dimensions")?,
            list("output_spatial_dimensions")?,
        );
        let mut pairs = 1.0;
        for dim in 0..inputs.len() {
            let side = Side {
                input: *input.get(*inputs.get(dim)?)? as i64,
                kernel: *kernel.get(*kernels.get(dim)?)? as i64,
                output: *output.get(*outputs.get(dim)?)? as i64,
                stride: *strides.get(dim)? as i64,
                base_dilation: (*base.get(dim)?).max(1) as i64,
                window_dilation: *window.get(dim)? as i64,
                padding: *padding.get(2 * dim)?,
            };
            pairs *= side.pairs();
        }
        Some(2.0 * pairs * others.iter().map(|&size| size as f64).product::<f64>())
    }

    /// The rounds of a loop that counts up to a constant, as `scan` and `fori_loop` make them.
    fn rounds(&mut self, operation: &Operation) -> Option<f64> {
        let [condition, body] = &operation.regions[..] else { return None };
        let (condition, body) = (condition.blocks.first()?, body.blocks.first()?);
        let is_less = condition.operations.iter().find(|inner| {
            condition.operations.last().and_then(|end| end.operands.first()) == Some(&inner.first_result)
        })?;
        let direction = self.tables.attribute(is_less, "comparison_direction").ok()?;
        if self.tables.enumeration(direction) != Some(LESS_THAN) {
            return None;
        }
        let [counter, limit] = is_less.operands[..] else { return None };
        let place = usize::try_from(counter.checked_sub(condition.first_argument)?).ok()?;
        let limit = self.constant_in(operation, condition, limit)?;
        let start = *self.constants.get(operation.operands.get(place)?)?;
        let next = *body.operations.last()?.operands.get(place)?;
        let added = body.operations.iter().find(|inner| inner.first_result == next)?;
        if self.tables.name(added.name)? != "add_v1" {
            return None;
        }
        let counter = body.first_argument + place as Value;
        let step = match added.operands[..] {
            [a, b] if a == counter => self.constant_in(operation, body, b)?,
            [a, b] if b == counter => self.constant_in(operation, body, a)?,
            _ => return None,
        };
        (step > 0).then(|| ((limit - start).max(0) as f64 / step as f64).ceil())
    }

    /// A constant, also one that is passed into the loop and out of it again as it is.
    fn constant_in(&self, operation: &Operation, block: &Block, value: Value) -> Option<i64> {
        if let Some(&constant) = self.constants.get(&value) {
            return Some(constant);
        }
        let place = usize::try_from(value.checked_sub(block.first_argument)?).ok()?;
        let body = operation.regions.get(1)?.blocks.first()?;
        let passed_on = *body.operations.last()?.operands.get(place)?;
        let is_kept = passed_on == body.first_argument + place as Value;
        self.constants.get(operation.operands.get(place)?).copied().filter(|_| is_kept)
    }
}
