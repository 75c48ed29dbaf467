//! What a compiler made of a program's outputs: their layout in a device's memory, and their parts on each device.

use std::fmt;

use super::hlo::{self, HloModule, LayoutMessage, Shape};
use super::sharding;
use crate::array::ArraySpec;
use crate::pjrt::OptimizedProgram;
use crate::sharding::Sharding;

/// An output of a compiled program, on one device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompiledOutput {
    /// Its type and its shape on one device.
    pub spec: ArraySpec,
    /// How its elements lie in the device's memory; `None` where the compiler does not say.
    pub layout: Option<Layout>,
    /// How the whole is laid over the devices; `None` where there is one, or the compiler does not say.
    pub sharding: Option<Sharding>,
}

/// How an array's elements lie in a device's memory. It is written as XLA does: `{1,0:T(8,128)}`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Layout {
    /// The dimensions from the one whose elements are side by side to the outermost.
    pub minor_to_major: Vec<i64>,
    /// The tiles that the array is cut into, the outermost first; none where it is not.
    pub tiles: Vec<Vec<i64>>,
}

impl Layout {
    fn of(message: &LayoutMessage) -> Layout {
        let tiles = message.tiles.iter().map(|tile| tile.dimensions.clone());
        Layout { minor_to_major: message.minor_to_major.clone(), tiles: tiles.collect() }
    }

    /// Whether it is that of C arrays: the last dimension side by side, and no tiles.
    pub fn is_row_major(&self) -> bool {
        let rank = self.minor_to_major.len() as i64;
        self.tiles.is_empty() && self.minor_to_major.iter().copied().eq((0..rank).rev())
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |numbers: &[i64]| numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
        write!(f, "{{{}", list(&self.minor_to_major))?;
        for (index, tile) in self.tiles.iter().enumerate() {
            write!(f, "{}({})", if index == 0 { ":T" } else { "" }, list(tile))?;
        }
        write!(f, "}}")
    }
}

/// The outputs of these types, with what the compiler's own program says of them.
pub(super) fn outputs_of(specs: Vec<ArraySpec>, program: Option<&OptimizedProgram>) -> Vec<CompiledOutput> {
    let module = program.and_then(hlo::decode_optimized);
    let layouts = module.as_ref().map(layouts).filter(|layouts| layouts.len() == specs.len());
    let shardings = module.as_ref().map(|module| shardings(module).outputs);
    let shardings = shardings.filter(|shardings| shardings.len() == specs.len());
    let (mut layouts, mut shardings) = (layouts.into_iter().flatten(), shardings.into_iter().flatten());
    let output = |spec| CompiledOutput {
        spec,
        layout: layouts.next().flatten(),
        sharding: shardings.next().flatten(),
    };
    specs.into_iter().map(output).collect()
}

fn layouts(module: &HloModule) -> Vec<Option<Layout>> {
    let result = module.host_program_shape.as_ref().and_then(|shape| shape.result.as_ref());
    let layout = |shape: &Shape| shape.layout.as_ref().map(Layout::of);
    result.map_or_else(Vec::new, |result| match &result.tuple_shapes[..] {
        [] if result.element_type != hlo::TUPLE => vec![layout(result)],
        outputs => outputs.iter().map(layout).collect(),
    })
}

/// How a module's parameters and outputs are laid over its devices; empty where it does not say.
#[derive(Debug, Default)]
pub(super) struct Shardings {
    pub parameters: Vec<Option<Sharding>>,
    pub outputs: Vec<Option<Sharding>>,
}

pub(super) fn shardings(module: &HloModule) -> Shardings {
    let sharding = |proto| sharding::of_op(proto).ok();
    let outputs =
        module.spmd_output_sharding.as_ref().map_or_else(
            Vec::new,
            |proto| match &proto.tuple_shardings[..] {
                [] => vec![sharding(proto)],
                outputs => outputs.iter().map(sharding).collect(),
            },
        );
    Shardings { parameters: module.spmd_parameters_shardings.iter().map(sharding).collect(), outputs }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_written_as_xla_writes_them() {
        let layout = |minor_to_major: &[i64], tiles: &[&[i64]]| Layout {
            minor_to_major: minor_to_major.to_vec(),
            tiles: tiles.iter().map(|tile| tile.to_vec()).collect(),
        };
        assert_eq!(layout(&[1, 0], &[]).to_string(), "{1,0}");
        assert_eq!(layout(&[0, 1], &[&[8, 128], &[2, 1]]).to_string(), "{0,1:T(8,128)(2,1)}");
        assert!(layout(&[1, 0], &[]).is_row_major());
        assert!(!layout(&[0, 1], &[]).is_row_major());
        assert!(!layout(&[1, 0], &[&[8, 128]]).is_row_major());
    }
}
