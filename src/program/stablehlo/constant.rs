//! Small arrays of integers and bools whose elements are known, and what operations make of them.
//!
//! Sizes are computed by ordinary operations on them: what is known is computed here, as the compiler would.

use super::Result;
use super::module::Operation;
use super::tables::{Integer, Tables};

/// The largest array whose elements are kept, in elements. Shapes have a few.
pub const MAX_ELEMENTS: usize = 4096;

/// An array of integers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constant {
    pub sizes: Vec<usize>,
    pub kind: Integer,
    /// Row-major, each within the range of its type.
    pub values: Vec<i128>,
}

/// The number of elements of an array of these sizes.
pub fn element_count(sizes: &[usize]) -> Option<usize> {
    sizes.iter().try_fold(1usize, |count, &size| count.checked_mul(size))
}

/// The elements of an array of so many, as an attribute holds them: little-endian, bools a bit each, or one for all.
pub fn decode(data: &[u8], kind: Integer, count: usize) -> Option<Vec<i128>> {
    if count > MAX_ELEMENTS {
        return None;
    }
    if kind.bits == 1 {
        let bit = |index: usize| i128::from(data[index / 8] >> (index % 8) & 1);
        return match data {
            [all] if count > 8 => Some(vec![i128::from(*all != 0); count]),
            _ if data.len() == count.div_ceil(8) => Some((0..count).map(bit).collect()),
            _ if data.len() == count => Some(data.iter().map(|byte| i128::from(*byte != 0)).collect()),
            _ => None,
        };
    }
    let width = (kind.bits as usize).div_ceil(8);
    let element = |bytes: &[u8]| {
        let raw = bytes.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
        wrap(i128::from(raw), kind)
    };
    if data.len() == width {
        Some(vec![element(data); count])
    } else if data.len() == count.checked_mul(width)? {
        Some(data.chunks_exact(width).map(element).collect())
    } else {
        None
    }
}

/// A number as a type of integers holds it.
fn wrap(value: i128, kind: Integer) -> i128 {
    let modulus = 1i128 << kind.bits;
    let wrapped = value.rem_euclid(modulus);
    if kind.is_signed && wrapped >= modulus / 2 { wrapped - modulus } else { wrapped }
}

impl Constant {
    pub fn new(sizes: Vec<usize>, kind: Integer, values: Vec<i128>) -> Constant {
        let values = values.into_iter().map(|value| wrap(value, kind)).collect();
        Constant { sizes, kind, values }
    }

    /// One integer of 32 bits.
    pub fn scalar(value: i64, kind: Integer) -> Constant {
        Constant::new(Vec::new(), kind, vec![i128::from(value)])
    }

    /// The elements as an attribute holds them.
    pub fn encode(&self) -> Vec<u8> {
        if self.kind.bits == 1 {
            let mut bytes = vec![0; self.values.len().div_ceil(8)];
            for (index, value) in self.values.iter().enumerate() {
                bytes[index / 8] |= u8::from(*value != 0) << (index % 8);
            }
            // One byte of some bits would be all of them, or none.
            if self.values.len() < 8 && self.values.iter().all(|value| *value != 0) && !self.values.is_empty()
            {
                bytes[0] = 0xff;
            }
            return bytes;
        }
        let width = (self.kind.bits as usize).div_ceil(8);
        self.values.iter().flat_map(|value| value.to_le_bytes().into_iter().take(width)).collect()
    }

    /// The elements as sizes; `None` if one is negative.
    pub fn to_sizes(&self) -> Option<Vec<usize>> {
        self.values.iter().map(|&value| usize::try_from(value).ok()).collect()
    }

    /// The elements, if all have 64 bits.
    pub fn to_integers(&self) -> Option<Vec<i64>> {
        self.values.iter().map(|&value| i64::try_from(value).ok()).collect()
    }

    /// The only element.
    pub fn item(&self) -> Option<i128> {
        match self.values[..] {
            [value] => Some(value),
            _ => None,
        }
    }

    /// The element at each place, given the place that it has here.
    fn gathered(&self, sizes: &[usize], place: impl Fn(&[usize]) -> usize) -> Option<Constant> {
        let count = element_count(sizes).filter(|count| *count <= MAX_ELEMENTS)?;
        let mut index = vec![0; sizes.len()];
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            values.push(*self.values.get(place(&index))?);
            for (position, size) in index.iter_mut().zip(sizes).rev() {
                *position += 1;
                if *position < *size {
                    break;
                }
                *position = 0;
            }
        }
        Some(Constant { sizes: sizes.to_vec(), kind: self.kind, values })
    }

    /// How far elements lie apart along each dimension.
    fn strides(&self) -> Vec<usize> {
        (0..self.sizes.len()).map(|dim| self.sizes[dim + 1..].iter().product()).collect()
    }
}

fn place(index: &[usize], strides: &[usize]) -> usize {
    index.iter().zip(strides).map(|(index, stride)| index * stride).sum()
}

/// The result of an operation, without its version, whose operands are all known; `None` where it is not computed here.
pub fn fold(
    tables: &Tables,
    operation: &Operation,
    name: &str,
    operands: &[&Constant],
    sizes: Option<&[usize]>,
    kind: Option<Integer>,
) -> Result<Option<Constant>> {
    let unary = |function: &dyn Fn(i128) -> i128| match operands {
        [a] => Some(Constant::new(a.sizes.clone(), a.kind, a.values.iter().map(|&a| function(a)).collect())),
        _ => None,
    };
    let binary = |function: &dyn Fn(i128, i128) -> Option<i128>| match operands {
        [a, b] if a.sizes == b.sizes && a.kind == b.kind => {
            let values = a.values.iter().zip(&b.values).map(|(&a, &b)| function(a, b));
            Some(Constant::new(a.sizes.clone(), a.kind, values.collect::<Option<_>>()?))
        }
        _ => None,
    };
    Ok(match name {
        "add" => binary(&|a, b| Some(if operands[0].kind.bits == 1 { a | b } else { a + b })),
        "subtract" => binary(&|a, b| Some(a - b)),
        "multiply" => binary(&|a, b| Some(if operands[0].kind.bits == 1 { a & b } else { a * b })),
        // Towards zero; what is divided by zero is the compiler's matter.
        "divide" => binary(&|a, b| a.checked_div(b)),
        "remainder" => binary(&|a, b| a.checked_rem(b)),
        "maximum" => binary(&|a, b| Some(a.max(b))),
        "minimum" => binary(&|a, b| Some(a.min(b))),
        "and" => binary(&|a, b| Some(a & b)),
        "or" => binary(&|a, b| Some(a | b)),
        "xor" => binary(&|a, b| Some(a ^ b)),
        "not" => unary(&|a| if operands[0].kind.bits == 1 { 1 - a } else { !a }),
        "sign" => unary(&|a| a.signum()),
        "negate" => unary(&|a| -a),
        "abs" => unary(&|a| a.abs()),
        "convert" => match (operands, kind) {
            ([a], Some(kind)) if kind.bits == 1 => {
                let values = a.values.iter().map(|&value| i128::from(value != 0)).collect();
                Some(Constant::new(a.sizes.clone(), kind, values))
            }
            ([a], Some(kind)) => Some(Constant::new(a.sizes.clone(), kind, a.values.clone())),
            _ => None,
        },
        "compare" => compare(tables, operation, operands)?,
        "select" => select(operands),
        "clamp" => clamp(operands),
        "reshape" => match (operands, sizes) {
            ([a], Some(sizes)) if element_count(sizes) == Some(a.values.len()) => {
                Some(Constant { sizes: sizes.to_vec(), ..(*a).clone() })
            }
            _ => None,
        },
        "concatenate" => concatenate(operands, tables.index(operation, "dimension")?),
        "broadcast_in_dim" => match (operands, sizes) {
            ([a], Some(sizes)) => broadcast(a, sizes, &tables.indices(operation, "broadcast_dimensions")?),
            _ => None,
        },
        "slice" => match (operands, sizes) {
            ([a], Some(sizes)) => slice(
                a,
                sizes,
                &tables.indices(operation, "start_indices")?,
                &tables.indices(operation, "strides")?,
            ),
            _ => None,
        },
        "dynamic_slice" => match (operands, sizes) {
            ([a, starts @ ..], Some(sizes)) => dynamic_slice(a, sizes, starts),
            _ => None,
        },
        "transpose" => match (operands, sizes) {
            ([a], Some(sizes)) => transpose(a, sizes, &tables.indices(operation, "permutation")?),
            _ => None,
        },
        _ => None,
    })
}

/// EQ, NE, GE, GT, LE, LT, in the order of their numbers.
fn compare(tables: &Tables, operation: &Operation, operands: &[&Constant]) -> Result<Option<Constant>> {
    let [a, b] = operands else { return Ok(None) };
    let direction = tables.enumeration(tables.attribute(operation, "comparison_direction")?);
    let compare: fn(&i128, &i128) -> bool = match direction {
        Some(0) => i128::eq,
        Some(1) => i128::ne,
        Some(2) => i128::ge,
        Some(3) => i128::gt,
        Some(4) => i128::le,
        Some(5) => i128::lt,
        _ => return Ok(None),
    };
    if a.sizes != b.sizes || a.kind != b.kind {
        return Ok(None);
    }
    let values = a.values.iter().zip(&b.values).map(|(a, b)| i128::from(compare(a, b))).collect();
    Ok(Some(Constant::new(a.sizes.clone(), Integer { bits: 1, is_signed: false }, values)))
}

/// Of a constant, the element at a place; of one without dimensions, its only one.
fn at(constant: &Constant, index: usize) -> i128 {
    if constant.sizes.is_empty() { constant.values[0] } else { constant.values[index] }
}

fn select(operands: &[&Constant]) -> Option<Constant> {
    let [condition, a, b] = operands else { return None };
    let is_fitting = condition.sizes.is_empty() || condition.sizes == a.sizes;
    if !is_fitting || a.sizes != b.sizes || a.kind != b.kind {
        return None;
    }
    let value = |index| if at(condition, index) != 0 { a.values[index] } else { b.values[index] };
    Some(Constant::new(a.sizes.clone(), a.kind, (0..a.values.len()).map(value).collect()))
}

fn clamp(operands: &[&Constant]) -> Option<Constant> {
    let [low, a, high] = operands else { return None };
    if [low, high]
        .iter()
        .any(|bound| bound.kind != a.kind || !(bound.sizes.is_empty() || bound.sizes == a.sizes))
    {
        return None;
    }
    let value = |index: usize| a.values[index].max(at(low, index)).min(at(high, index));
    Some(Constant::new(a.sizes.clone(), a.kind, (0..a.values.len()).map(value).collect()))
}

fn concatenate(operands: &[&Constant], dimension: usize) -> Option<Constant> {
    let first = operands.first()?;
    let along: usize =
        operands.iter().map(|operand| operand.sizes.get(dimension).copied()).sum::<Option<_>>()?;
    let mut sizes = first.sizes.clone();
    sizes[dimension] = along;
    element_count(&sizes).filter(|count| *count <= MAX_ELEMENTS)?;
    let outer: usize = sizes[..dimension].iter().product();
    let mut values = Vec::new();
    for row in 0..outer {
        for operand in operands {
            let is_fitting = operand.sizes.len() == sizes.len()
                && operand.kind == first.kind
                && operand.sizes[..dimension] == sizes[..dimension]
                && operand.sizes[dimension + 1..] == sizes[dimension + 1..];
            is_fitting.then_some(())?;
            let length = operand.values.len() / outer;
            values.extend_from_slice(&operand.values[row * length..(row + 1) * length]);
        }
    }
    Some(Constant { sizes, kind: first.kind, values })
}

fn broadcast(a: &Constant, sizes: &[usize], dims: &[usize]) -> Option<Constant> {
    let is_fitting = dims.len() == a.sizes.len()
        && dims
            .iter()
            .zip(&a.sizes)
            .all(|(&dim, &size)| sizes.get(dim).is_some_and(|&to| size == 1 || size == to));
    is_fitting.then_some(())?;
    let strides = a.strides();
    a.gathered(sizes, |index| {
        let along = |(dim, (size, stride)): (&usize, (&usize, &usize))| {
            if *size == 1 { 0 } else { index[*dim] * stride }
        };
        dims.iter().zip(a.sizes.iter().zip(&strides)).map(along).sum()
    })
}

fn slice(a: &Constant, sizes: &[usize], starts: &[usize], steps: &[usize]) -> Option<Constant> {
    if [sizes.len(), starts.len(), steps.len()] != [a.sizes.len(); 3] {
        return None;
    }
    for dim in 0..sizes.len() {
        let last = sizes[dim].saturating_sub(1).checked_mul(steps[dim])?.checked_add(starts[dim])?;
        (sizes[dim] == 0 || last < a.sizes[dim]).then_some(())?;
    }
    let strides = a.strides();
    let start = place(starts, &strides);
    let strides: Vec<usize> = strides.iter().zip(steps).map(|(stride, step)| stride * step).collect();
    a.gathered(sizes, |index| start + place(index, &strides))
}

fn dynamic_slice(a: &Constant, sizes: &[usize], starts: &[&Constant]) -> Option<Constant> {
    if [sizes.len(), starts.len()] != [a.sizes.len(); 2] {
        return None;
    }
    let mut from = Vec::new();
    for (start, (size, all)) in starts.iter().zip(sizes.iter().zip(&a.sizes)) {
        let most = all.checked_sub(*size)?;
        from.push(start.item()?.clamp(0, most as i128) as usize);
    }
    slice(a, sizes, &from, &vec![1; sizes.len()])
}

fn transpose(a: &Constant, sizes: &[usize], permutation: &[usize]) -> Option<Constant> {
    let strides = a.strides();
    let turned = permutation.iter().map(|&dim| strides.get(dim).copied()).collect::<Option<Vec<_>>>()?;
    let is_fitting = permutation.iter().zip(sizes).all(|(&dim, size)| a.sizes[dim] == *size);
    (is_fitting && permutation.len() == sizes.len()).then_some(())?;
    a.gathered(sizes, |index| place(index, &turned))
}

#[cfg(test)]
mod tests {
    use super::*;

    const I32: Integer = Integer { bits: 32, is_signed: true };
    const BOOL: Integer = Integer { bits: 1, is_signed: false };

    fn list(values: &[i128]) -> Constant {
        Constant::new(vec![values.len()], I32, values.to_vec())
    }

    #[test]
    fn elements_are_decoded_as_they_were_encoded() {
        for kind in [BOOL, I32, Integer { bits: 4, is_signed: true }, Integer { bits: 64, is_signed: false }]
        {
            for count in [0usize, 1, 3, 8, 9, 100] {
                let values = (0..count as i128).map(|value| value * 0x1234_5678_9abc).collect();
                let constant = Constant::new(vec![count], kind, values);
                assert_eq!(
                    decode(&constant.encode(), kind, count),
                    Some(constant.values),
                    "{kind:?} {count}"
                );
            }
        }
        assert_eq!(decode(&[0xff], BOOL, 20), Some(vec![1; 20]));
        assert_eq!(decode(&[5, 0, 0, 0], I32, 3), Some(vec![5; 3]));
        assert_eq!(decode(&[5, 0], I32, 3), None);
    }

    #[test]
    fn parts_are_found_where_they_are() {
        let a = Constant::new(vec![2, 3], I32, (0..6).collect());
        assert_eq!(transpose(&a, &[3, 2], &[1, 0]).unwrap().values, [0, 3, 1, 4, 2, 5]);
        assert_eq!(slice(&a, &[2, 2], &[0, 0], &[1, 2]).unwrap().values, [0, 2, 3, 5]);
        assert_eq!(slice(&a, &[2, 2], &[0, 1], &[1, 2]), None);
        assert_eq!(broadcast(&list(&[7, 8]), &[2, 2], &[0]).unwrap().values, [7, 7, 8, 8]);
        assert_eq!(concatenate(&[&a, &a], 1).unwrap().values, [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]);
        let starts = [Constant::scalar(9, I32), Constant::scalar(-4, I32)];
        assert_eq!(dynamic_slice(&a, &[1, 2], &[&starts[0], &starts[1]]).unwrap().values, [3, 4]);
    }
}
