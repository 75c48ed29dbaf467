//! The sizes of what an operation makes, by those of what it takes. Rules of the StableHLO specification.

use super::Result;
use super::module::Operation;
use super::tables::{Tables, Tensor};

/// An operation whose results have unknown sizes, and what it takes.
pub struct Case<'a> {
    pub tables: &'a Tables,
    pub operation: &'a Operation,
    /// Its name without its version.
    pub name: &'a str,
    /// The sizes of what it takes; `None` of what is no array.
    pub operands: &'a [Option<Vec<usize>>],
}

impl Case<'_> {
    fn operand(&self, index: usize) -> Result<Vec<usize>> {
        let sizes = self.operands.get(index).and_then(Clone::clone);
        sizes.ok_or_else(|| format!("its operand {index} is no array"))
    }

    /// The sizes of the result at this position, which was declared so; `None` where there is no rule.
    pub fn sizes(&self, result: usize, declared: &Tensor) -> Result<Option<Vec<usize>>> {
        let Case { tables, operation, .. } = self;
        Ok(Some(match self.name {
            "abs"
            | "add"
            | "and"
            | "atan2"
            | "cbrt"
            | "ceil"
            | "cholesky"
            | "compare"
            | "complex"
            | "convert"
            | "cosine"
            | "count_leading_zeros"
            | "divide"
            | "dynamic_update_slice"
            | "exponential"
            | "exponential_minus_one"
            | "floor"
            | "imag"
            | "is_finite"
            | "log"
            | "log_plus_one"
            | "logistic"
            | "maximum"
            | "minimum"
            | "multiply"
            | "negate"
            | "not"
            | "or"
            | "popcnt"
            | "power"
            | "real"
            | "reduce_precision"
            | "remainder"
            | "reverse"
            | "round_nearest_afz"
            | "round_nearest_even"
            | "rsqrt"
            | "select_and_scatter"
            | "shift_left"
            | "shift_right_arithmetic"
            | "shift_right_logical"
            | "sign"
            | "sine"
            | "sqrt"
            | "subtract"
            | "tan"
            | "tanh"
            | "xor" => self.operand(0)?,
            "select" | "clamp" | "triangular_solve" => self.operand(1)?,
            "sort" | "optimization_barrier" | "while" | "scatter" => self.operand(result)?,
            "bitcast_convert" => self.bitcast(declared)?,
            "transpose" => {
                let operand = self.operand(0)?;
                let permutation = tables.indices(operation, "permutation")?;
                permutation.iter().map(|&dim| get(&operand, dim)).collect::<Result<_>>()?
            }
            "concatenate" => self.concatenated()?,
            "reduce" => without(&self.operand(result)?, &tables.indices(operation, "dimensions")?),
            "slice" => self.sliced()?,
            "pad" => self.padded(
                &tables.integers(operation, "edge_padding_low")?,
                &tables.integers(operation, "edge_padding_high")?,
                &tables.integers(operation, "interior_padding")?,
            )?,
            "dot_general" => self.dot_general()?,
            "gather" => {
                let sizes = tables.indices(operation, "slice_sizes")?;
                self.gathered(&sizes)?
            }
            "reduce_window" => self.reduce_window(result)?,
            "convolution" => {
                let padding = tables.integers(operation, "padding")?;
                self.convolved(&padding)?
            }
            "fft" => self.fft()?,
            _ => return Ok(None),
        }))
    }

    fn bitcast(&self, declared: &Tensor) -> Result<Vec<usize>> {
        let mut sizes = self.operand(0)?;
        if declared.dims.len() > sizes.len() {
            let last = declared.dims.last().copied().flatten();
            sizes.push(last.ok_or("the last size of a bitcast is not known")?);
        } else if declared.dims.len() < sizes.len() {
            sizes.pop();
        }
        Ok(sizes)
    }

    fn concatenated(&self) -> Result<Vec<usize>> {
        let dimension = self.tables.index(self.operation, "dimension")?;
        let mut sizes = self.operand(0)?;
        get(&sizes, dimension)?;
        sizes[dimension] = 0;
        for index in 0..self.operands.len() {
            let size = get(&self.operand(index)?, dimension)?;
            sizes[dimension] = sum(&[sizes[dimension], size])?;
        }
        Ok(sizes)
    }

    fn sliced(&self) -> Result<Vec<usize>> {
        let (starts, limits, steps) = (
            self.tables.indices(self.operation, "start_indices")?,
            self.tables.indices(self.operation, "limit_indices")?,
            self.tables.indices(self.operation, "strides")?,
        );
        let rank = self.operand(0)?.len();
        (0..rank).map(|dim| sliced(get(&starts, dim)?, get(&limits, dim)?, get(&steps, dim)?)).collect()
    }

    /// With so many elements below, above and between those that there are, along each dimension.
    pub fn padded(&self, low: &[i64], high: &[i64], interior: &[i64]) -> Result<Vec<usize>> {
        let operand = self.operand(0)?;
        if [low.len(), high.len(), interior.len()] != [operand.len(); 3] {
            return Err("its padding is not one for each dimension".into());
        }
        let size = |(dim, &size): (usize, &usize)| {
            let gaps = i128::from(size.saturating_sub(1) as u64);
            let padded = size as i128
                + i128::from(low[dim])
                + i128::from(high[dim])
                + gaps * i128::from(interior[dim]);
            size_of(padded)
        };
        operand.iter().enumerate().map(size).collect()
    }

    fn dot_general(&self) -> Result<Vec<usize>> {
        let (left, right) = (self.operand(0)?, self.operand(1)?);
        let dims = |name: &str| self.tables.indices(self.operation, name);
        let (left_batch, right_batch) = (dims("lhs_batching_dimensions")?, dims("rhs_batching_dimensions")?);
        let (left_sum, right_sum) =
            (dims("lhs_contracting_dimensions")?, dims("rhs_contracting_dimensions")?);
        for (a, b) in left_batch.iter().zip(&right_batch).chain(left_sum.iter().zip(&right_sum)) {
            let (a_size, b_size) = (get(&left, *a)?, get(&right, *b)?);
            if a_size != b_size {
                return Err(format!(
                    "dimension {a} of its left side has {a_size}, and {b} of its right side {b_size}"
                ));
            }
        }
        let mut sizes = left_batch.iter().map(|&dim| get(&left, dim)).collect::<Result<Vec<_>>>()?;
        sizes.extend(without(&left, &[left_batch, left_sum].concat()));
        sizes.extend(without(&right, &[right_batch, right_sum].concat()));
        Ok(sizes)
    }

    /// The sizes of what is gathered in slices of these sizes.
    pub fn gathered(&self, slice_sizes: &[usize]) -> Result<Vec<usize>> {
        let dims = |name: &str| self.tables.indices(self.operation, name);
        let has_batching = self.tables.name(self.operation.name).is_some_and(|name| name.ends_with("_v2"));
        let batching = if has_batching { dims("operand_batching_dims")? } else { Vec::new() };
        let gone = [dims("collapsed_slice_dims")?, batching].concat();
        let mut slices = without(slice_sizes, &gone).into_iter();
        let mut batch =
            without(&self.operand(1)?, &[self.tables.index(self.operation, "index_vector_dim")?]).into_iter();
        let offsets = dims("offset_dims")?;
        let rank = slices.len() + batch.len();
        let next = |dim| if offsets.contains(&dim) { slices.next() } else { batch.next() };
        (0..rank).map(next).collect::<Option<_>>().ok_or_else(|| "its dimensions do not fit together".into())
    }

    fn reduce_window(&self, result: usize) -> Result<Vec<usize>> {
        let list = |name: &str| self.tables.indices(self.operation, name);
        let padding = self.tables.integers(self.operation, "padding")?;
        self.windows(
            &self.operand(result)?,
            &list("window_dimensions")?,
            &list("window_strides")?,
            &list("base_dilations")?,
            &list("window_dilations")?,
            &padding,
        )
    }

    /// How many windows there are along each dimension.
    pub fn windows(
        &self,
        sizes: &[usize],
        windows: &[usize],
        strides: &[usize],
        base_dilations: &[usize],
        window_dilations: &[usize],
        padding: &[i64],
    ) -> Result<Vec<usize>> {
        let rank = sizes.len();
        if [windows.len(), strides.len(), base_dilations.len(), window_dilations.len()] != [rank; 4]
            || padding.len() != 2 * rank
        {
            return Err("its windows are not one for each dimension".into());
        }
        let count = |dim: usize| {
            let dilated = |size: usize, dilation: usize| match size {
                0 => 0,
                size => (size as i128 - 1) * dilation as i128 + 1,
            };
            let size = dilated(sizes[dim], base_dilations[dim])
                + i128::from(padding[2 * dim])
                + i128::from(padding[2 * dim + 1]);
            let window = dilated(windows[dim], window_dilations[dim]);
            if strides[dim] == 0 {
                return Err("its windows have a stride of zero".to_owned());
            }
            size_of(if size < window { 0 } else { (size - window) / strides[dim] as i128 + 1 })
        };
        (0..rank).map(count).collect()
    }

    /// The sizes of a convolution with this padding.
    pub fn convolved(&self, padding: &[i64]) -> Result<Vec<usize>> {
        let (input, kernel) = (self.operand(0)?, self.operand(1)?);
        let list = |name: &str| self.tables.indices(self.operation, name);
        let index = |name: &str| self.tables.index(self.operation, name);
        let pick = |sizes: &[usize], dims: Vec<usize>| {
            dims.into_iter().map(|dim| get(sizes, dim)).collect::<Result<Vec<_>>>()
        };
        let spatial = self.windows(
            &pick(&input, list("input_spatial_dimensions")?)?,
            &pick(&kernel, list("kernel_spatial_dimensions")?)?,
            &list("window_strides")?,
            &list("lhs_dilation")?,
            &list("rhs_dilation")?,
            padding,
        )?;
        let groups = index("batch_group_count")?.max(1);
        let batch = get(&input, index("input_batch_dimension")?)?;
        if !batch.is_multiple_of(groups) {
            return Err(format!("its batch of {batch} is not divided by its {groups} groups"));
        }
        let mut sizes = vec![0; input.len()];
        let mut put = |dim: usize, size: usize| match sizes.get_mut(dim) {
            Some(place) => {
                *place = size;
                Ok(())
            }
            None => Err(format!("it has no dimension {dim}")),
        };
        put(index("output_batch_dimension")?, batch / groups)?;
        put(index("output_feature_dimension")?, get(&kernel, index("kernel_output_feature_dimension")?)?)?;
        for (dim, size) in list("output_spatial_dimensions")?.into_iter().zip(spatial) {
            put(dim, size)?;
        }
        Ok(sizes)
    }

    /// Real ones have half of the last dimension.
    fn fft(&self) -> Result<Vec<usize>> {
        const RFFT: u64 = 2;
        const IRFFT: u64 = 3;
        let mut sizes = self.operand(0)?;
        let kind = self.tables.enumeration(self.tables.attribute(self.operation, "fft_type")?);
        let lengths = self.tables.indices(self.operation, "fft_length")?;
        if let (Some(last), Some(&length)) = (sizes.last_mut(), lengths.last()) {
            match kind {
                Some(RFFT) => *last = length / 2 + 1,
                Some(IRFFT) => *last = length,
                _ => {}
            }
        }
        Ok(sizes)
    }
}

/// The element at a position that a module names.
pub fn get(list: &[usize], position: usize) -> Result<usize> {
    list.get(position).copied().ok_or_else(|| format!("it names dimension {position} of {}", list.len()))
}

/// The list without the elements at these positions.
fn without(list: &[usize], positions: &[usize]) -> Vec<usize> {
    let kept = list.iter().enumerate().filter(|(position, _)| !positions.contains(position));
    kept.map(|(_, &item)| item).collect()
}

fn sum(sizes: &[usize]) -> Result<usize> {
    let sum = sizes.iter().try_fold(0usize, |sum, &size| sum.checked_add(size));
    sum.ok_or_else(|| "a size is too large".into())
}

/// A number as a size.
pub fn size_of(number: i128) -> Result<usize> {
    usize::try_from(number).ok().filter(|size| i64::try_from(*size).is_ok()).ok_or_else(|| {
        if number < 0 { format!("a size would be {number}") } else { "a size is too large".into() }
    })
}

/// How many elements there are from one position to another, in steps.
pub fn sliced(start: usize, limit: usize, step: usize) -> Result<usize> {
    if step == 0 {
        return Err("it goes in steps of zero".into());
    }
    let length = limit.checked_sub(start).ok_or_else(|| format!("it goes from {start} to {limit}"))?;
    Ok(length.div_ceil(step))
}
