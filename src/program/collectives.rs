//! What a program has its devices tell each other: the collectives of a StableHLO module, and those of a compiled program.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;

use super::artifact::Program;
use super::compilation::Compilation;
use super::hlo;
use super::stablehlo::{Module, operation_counts};

/// The operations in which devices exchange data, by StableHLO's names, with how often each stands in a program.
pub type Collectives = BTreeMap<String, usize>;

/// As StableHLO has them; XLA writes a hyphen in place of each underscore.
const NAMES: [&str; 7] = [
    "all_gather",
    "all_reduce",
    "all_to_all",
    "collective_broadcast",
    "collective_permute",
    "ragged_all_to_all",
    "reduce_scatter",
];

impl Program {
    /// The collectives that the program is written with, as by `shard_map`; `None` for what is no StableHLO bytecode. The partitioner
    /// adds those that the shardings ask for: [`Compilation::collectives`].
    pub fn collectives(&self) -> Option<Collectives> {
        let counts = operation_counts(&Module::read(self.code()).ok()?).ok()?;
        // `all_gather_v2` is the second version of the operation.
        Some(named(counts, |name| name.rsplit_once("_v").map_or(name, |(name, _)| name).to_owned()))
    }
}

impl Compilation {
    /// The collectives of the compiled program; `None` where the plugin does not say what it made.
    pub fn collectives(&self) -> Option<Collectives> {
        let program = self.executable().optimized_program().ok()?;
        let body = Body::decode(hlo::module_within(&Bytes::from(program.code))?).ok()?;
        let mut counts = Collectives::new();
        let instructions = body.computations.into_iter().flat_map(|computation| computation.instructions);
        for instruction in instructions {
            *counts.entry(instruction.opcode).or_default() += 1;
        }
        // One that goes on beside other work has a beginning and an end.
        Some(named(counts, |name| name.strip_suffix("-start").unwrap_or(name).replace('-', "_")))
    }
}

/// Those of the operations that are collectives, under the names that `rename` gives them.
fn named(counts: Collectives, rename: impl Fn(&str) -> String) -> Collectives {
    let mut found = Collectives::new();
    for (name, count) in counts {
        let name = rename(&name);
        if NAMES.contains(&&*name) {
            *found.entry(name).or_default() += count;
        }
    }
    found
}

/// `xla.HloModuleProto`, for its instructions.
#[derive(Clone, PartialEq, Message)]
struct Body {
    #[prost(message, repeated, tag = "3")]
    computations: Vec<Computation>,
}

/// `xla.HloComputationProto`.
#[derive(Clone, PartialEq, Message)]
struct Computation {
    #[prost(message, repeated, tag = "2")]
    instructions: Vec<Instruction>,
}

/// `xla.HloInstructionProto`.
#[derive(Clone, PartialEq, Message)]
struct Instruction {
    #[prost(string, tag = "2")]
    opcode: String,
}
