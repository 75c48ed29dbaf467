//! What a load will do, tensor by tensor: a pure computation over the header.

use std::fmt;
use std::ops::Range;

use crate::array::ArraySpec;
use crate::checkpoint::TensorInfo;

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
}

/// One tensor of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its name in the file.
    pub name: String,
    /// Its type and shape.
    pub spec: ArraySpec,
    /// Its bytes, from the beginning of the file.
    pub range: Range<usize>,
    /// How they get to the device.
    pub route: Route,
}

/// What a load will do, in the order of the file's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadPlan {
    /// The tensors.
    pub steps: Vec<Step>,
}

impl LoadPlan {
    /// Plans a load of these tensors from a file whose first byte is at `base_address` in memory.
    pub fn new(tensors: &[TensorInfo], base_address: usize, target: Target) -> LoadPlan {
        let steps = tensors.iter().map(|tensor| Step {
            name: tensor.name.clone(),
            spec: tensor.spec.clone(),
            range: tensor.range.clone(),
            route: route(tensor, base_address, target),
        });
        LoadPlan { steps: steps.collect() }
    }
}

fn route(tensor: &TensorInfo, base_address: usize, target: Target) -> Route {
    if tensor.spec.dtype.is_sub_byte() {
        return Route::Unpack;
    }
    match target.alias_alignment {
        Some(alignment)
            if !tensor.range.is_empty() && (base_address + tensor.range.start).is_multiple_of(alignment) =>
        {
            Route::Alias
        }
        _ => Route::Copy,
    }
}

impl fmt::Display for LoadPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps.iter().try_for_each(|step| {
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
    use crate::dtype::DType;

    fn tensor(dtype: DType, range: Range<usize>) -> TensorInfo {
        TensorInfo { name: format!("{dtype}@{}", range.start), spec: ArraySpec::new(dtype, []), range }
    }

    #[test]
    fn only_aligned_tensors_are_used_in_place_and_only_where_the_device_can() {
        let tensors = [
            tensor(DType::F32, 128..192),
            tensor(DType::F32, 136..140),
            tensor(DType::F32, 192..192),
            tensor(DType::F4E2M1FN, 256..260),
        ];
        let cpu = LoadPlan::new(&tensors, 4096, Target { alias_alignment: Some(64) });
        insta::assert_snapshot!(cpu.to_string(), @r"
        Alias 128..192 float32[] float32@128
        Copy 136..140 float32[] float32@136
        Copy 192..192 float32[] float32@192
        Unpack 256..260 float4_e2m1fn[] float4_e2m1fn@256
        ");
        let gpu = LoadPlan::new(&tensors, 4096, Target { alias_alignment: None });
        assert!(gpu.steps.iter().all(|step| step.route != Route::Alias));
        // Bytes in memory need not begin at a page.
        let off = LoadPlan::new(&tensors, 4096 + 8, Target { alias_alignment: Some(64) });
        assert_eq!(off.steps[0].route, Route::Copy);
    }
}
