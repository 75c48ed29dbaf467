//! What a load will do, tensor by tensor: a pure computation over the header.

use std::fmt;
use std::ops::Range;

use super::Selected;
use super::names::loaded_dtype;
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::error::{Context, Result};

/// What the destination of a load can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// What host memory must be aligned to for the device to use it in place, in bytes; `None` where it
    /// does not, or must not.
    pub alias_alignment: Option<usize>,
}

/// How one tensor gets to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Route {
    /// The device uses the file's memory map in place.
    Alias,
    /// The device copies the bytes out of the memory map.
    Copy,
    /// Sub-byte elements are unpacked to a byte each, which the device copies.
    Unpack,
    /// Elements are cast from this type, and the device copies the result.
    Cast {
        /// Their type in the file.
        from: DType,
    },
}

/// One tensor of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its name on disk, after renaming.
    pub name: String,
    /// Its type and shape on the device.
    pub spec: ArraySpec,
    /// Its bytes, from the beginning of the file.
    pub range: Range<usize>,
    /// How they get to the device.
    pub route: Route,
}

/// What a load will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadPlan {
    /// The tensors, in the order of the tree's leaves.
    pub steps: Vec<Step>,
    /// The positions of the steps in the order of their bytes, in which they are carried out.
    pub order: Vec<usize>,
}

impl LoadPlan {
    /// Plans a load of these tensors from a file whose first byte is at `base_address` in memory.
    pub(crate) fn new(
        tensors: &[Selected<'_>],
        base_address: usize,
        target: Target,
        dtypes: &[(String, DType)],
    ) -> Result<LoadPlan> {
        let step = |(name, tensor): &Selected<'_>| -> Result<Step> {
            let from = tensor.spec.dtype;
            let dtype = loaded_dtype(&tensor.name, from, dtypes).for_tensor(&tensor.name)?;
            let route = match target.alias_alignment {
                _ if dtype != from => Route::Cast { from },
                _ if dtype.is_sub_byte() => Route::Unpack,
                Some(alignment)
                    if !tensor.range.is_empty()
                        && (base_address + tensor.range.start).is_multiple_of(alignment) =>
                {
                    Route::Alias
                }
                _ => Route::Copy,
            };
            let spec = ArraySpec::new(dtype, tensor.spec.shape.clone());
            Ok(Step { name: name.to_string(), spec, range: tensor.range.clone(), route })
        };
        let steps = tensors.iter().map(step).collect::<Result<Vec<_>>>()?;
        let mut order: Vec<usize> = (0..steps.len()).collect();
        order.sort_by_key(|&position| steps[position].range.start);
        Ok(LoadPlan { steps, order })
    }
}

impl fmt::Display for LoadPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.order.iter().map(|&position| &self.steps[position]).try_for_each(|step| {
            writeln!(
                f,
                "{:?} {}..{} {} {}",
                step.route, step.range.start, step.range.end, step.spec, step.name
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::TensorInfo;

    fn tensor(dtype: DType, range: Range<usize>) -> TensorInfo {
        TensorInfo { name: format!("{dtype}@{}", range.start), spec: ArraySpec::new(dtype, []), range }
    }

    fn plan(
        tensors: &[TensorInfo],
        base: usize,
        alignment: Option<usize>,
        dtypes: &[(String, DType)],
    ) -> LoadPlan {
        let selected: Vec<Selected<'_>> =
            tensors.iter().map(|tensor| (tensor.name.as_str().into(), tensor)).collect();
        LoadPlan::new(&selected, base, Target { alias_alignment: alignment }, dtypes).unwrap()
    }

    #[test]
    fn only_aligned_tensors_are_used_in_place_and_only_where_the_device_can() {
        let tensors = [
            tensor(DType::F4E2M1FN, 256..260),
            tensor(DType::F32, 128..192),
            tensor(DType::F32, 136..140),
            tensor(DType::F32, 192..192),
            tensor(DType::F64, 320..384),
        ];
        let cpu = plan(&tensors, 4096, Some(64), &[("float64*".into(), DType::BF16)]);
        insta::assert_snapshot!(cpu.to_string(), @r"
        Alias 128..192 float32[] float32@128
        Copy 136..140 float32[] float32@136
        Copy 192..192 float32[] float32@192
        Unpack 256..260 float4_e2m1fn[] float4_e2m1fn@256
        Cast { from: F64 } 320..384 bfloat16[] float64@320
        ");
        let gpu = plan(&tensors, 4096, None, &[]);
        assert!(gpu.steps.iter().all(|step| step.route != Route::Alias));
        // Bytes in memory need not begin at a page.
        assert_eq!(plan(&tensors, 4096 + 8, Some(64), &[]).steps[1].route, Route::Copy);
    }
}
