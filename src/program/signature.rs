//! What a compiled program takes, read from the compiler's own account of it.

use super::hlo::{self, HloModule};
use crate::array::ArraySpec;
use crate::pjrt::LoadedExecutable;

/// The arguments of a program, by position.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Signature {
    /// Their types and shapes, as one device sees them.
    pub parameters: Vec<ArraySpec>,
    /// The positions of those whose memory an output can take, if they are donated.
    pub donatable: Vec<usize>,
}

impl Signature {
    /// Asks the executable; `None` from a plugin that does not return the optimised program, or returns it
    /// in a form that is not known here.
    pub(super) fn of(executable: &LoadedExecutable) -> Option<Signature> {
        let program = match executable.optimized_program() {
            Ok(program) => program,
            Err(error) => {
                tracing::debug!(%error, "the plugin does not say what the program takes");
                return None;
            }
        };
        let module = match program.format.as_str() {
            "hlo_with_config" => hlo::decode_module_with_config(&program.code),
            "hlo" => hlo::decode_module(&program.code),
            _ => None,
        };
        module.as_ref().and_then(Signature::of_module)
    }

    fn of_module(module: &HloModule) -> Option<Signature> {
        let shapes = &module.host_program_shape.as_ref()?.parameters;
        let parameters: Vec<ArraySpec> = match &shapes[..] {
            // A program whose arguments are passed as one tuple still takes a list of buffers.
            [tuple] if !tuple.tuple_shapes.is_empty() => {
                tuple.tuple_shapes.iter().map(hlo::Shape::to_spec).collect::<Option<_>>()?
            }
            shapes => shapes.iter().map(hlo::Shape::to_spec).collect::<Option<_>>()?,
        };
        let aliases = module.input_output_alias.iter().flat_map(|alias| &alias.entries);
        let mut donatable: Vec<usize> =
            aliases.filter_map(|entry| usize::try_from(entry.parameter_number).ok()).collect();
        donatable.sort_unstable();
        donatable.dedup();
        Some(Signature { parameters, donatable })
    }
}
