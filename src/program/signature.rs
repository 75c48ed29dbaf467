//! What a function takes: every leaf of its arguments, with its place, type and shape.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use super::compiled_output;
use super::exported::{Aval, Exported};
use super::hlo::{self, HloModule};
use crate::pjrt::Executable;
use crate::sharding::Sharding;
use crate::tree::{KeyPath, TreeDef};

/// The arguments of a function.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Signature {
    /// The leaves of all arguments, in JAX's order.
    pub parameters: Vec<Parameter>,
    /// The arguments that the leaves belong to; empty for a program that is no `jax.export` artifact, which takes
    /// a plain list of leaves.
    pub arguments: Vec<ArgumentTree>,
}

/// One leaf of the arguments.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Parameter {
    /// Where it is, as JAX writes it: `args[0]['w']`, `kwargs['scale']`.
    pub place: String,
    /// Its type and shape.
    pub aval: Aval,
    /// Whether the program uses it; it need not be given if not.
    pub is_used: bool,
    /// Whether an output takes its memory if it is donated. Known once the program is compiled.
    pub is_donatable: bool,
    /// The position of the output that takes its memory then, among the leaves of the outputs.
    pub donated_into: Option<usize>,
    /// How it is laid over the devices, where the artifact says so.
    pub sharding: Option<Sharding>,
}

/// One argument of an exported function.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ArgumentTree {
    /// Its position or name.
    pub key: ArgumentKey,
    /// Its tree.
    pub def: TreeDef,
    /// Its leaves in [`Signature::parameters`].
    pub leaves: Range<usize>,
    /// The names of its leaves within it.
    pub names: Vec<String>,
}

/// Which argument.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArgumentKey {
    /// The one at this position.
    Position(usize),
    /// The one of this name.
    Name(String),
}

impl From<usize> for ArgumentKey {
    fn from(position: usize) -> ArgumentKey {
        ArgumentKey::Position(position)
    }
}

impl From<&str> for ArgumentKey {
    fn from(name: &str) -> ArgumentKey {
        ArgumentKey::Name(name.to_owned())
    }
}

impl fmt::Display for ArgumentKey {
    /// As JAX writes it: `args[0]`, `kwargs['x']`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArgumentKey::Position(position) => write!(f, "args[{position}]"),
            ArgumentKey::Name(name) => write!(f, "kwargs['{name}']"),
        }
    }
}

impl Signature {
    /// The signature of an exported function. Which leaves can be donated is not known yet.
    pub(super) fn of_exported(exported: &Exported) -> Signature {
        let mut arguments: Vec<ArgumentTree> = Vec::new();
        let mut parameters = Vec::new();
        let TreeDef::Tuple(parts) = &exported.in_tree else { return Signature { parameters, arguments } };
        let kept: HashSet<usize> = exported.kept.iter().copied().collect();
        let by_position = parts[0].children().into_iter().enumerate();
        let by_position = by_position.map(|(position, (_, def))| (ArgumentKey::Position(position), def));
        let by_name = parts[1].children().into_iter();
        let by_name = by_name.map(|(key, def)| (ArgumentKey::Name(key.to_name()), def));
        for (key, def) in by_position.chain(by_name) {
            let start = parameters.len();
            let paths = def.paths();
            for path in &paths {
                let index = parameters.len();
                parameters.push(Parameter {
                    place: format!("{key}{path}"),
                    aval: exported.in_avals[index].clone(),
                    is_used: kept.contains(&index),
                    is_donatable: false,
                    donated_into: None,
                    sharding: exported.in_shardings.get(index).cloned().flatten(),
                });
            }
            let names = paths.iter().map(KeyPath::to_name).collect();
            arguments.push(ArgumentTree { key, def: def.clone(), leaves: start..parameters.len(), names });
        }
        Signature { parameters, arguments }
    }

    /// The signature of a program that is no artifact, as the compiler tells it; `None` from a plugin that does
    /// not return the optimised program, or returns it in a form that is not known here.
    pub(super) fn of_compiled(interface: Option<&Interface>) -> Option<Signature> {
        let interface = interface?;
        let parameter = |(position, aval): (usize, &Aval)| Parameter {
            place: format!("argument {position}"),
            aval: aval.clone(),
            is_used: true,
            is_donatable: interface.donated_into(position).is_some(),
            donated_into: interface.donated_into(position),
            sharding: None,
        };
        let parameters = interface.parameters.iter().enumerate().map(parameter).collect();
        Some(Signature { parameters, arguments: Vec::new() })
    }

    /// The positions of the leaves whose memory an output can take.
    pub fn donatable(&self) -> Vec<usize> {
        let donatable = self.parameters.iter().enumerate().filter(|(_, parameter)| parameter.is_donatable);
        donatable.map(|(position, _)| position).collect()
    }
}

impl fmt::Display for Signature {
    /// One line a leaf.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for parameter in &self.parameters {
            write!(f, "  {}  {}", parameter.place, parameter.aval)?;
            if let Some(sharding) = &parameter.sharding {
                write!(f, "  {sharding}")?;
            }
            let used = if parameter.is_used { "" } else { "  (not used)" };
            let donatable = if parameter.is_donatable { "  (can be donated)" } else { "" };
            writeln!(f, "{used}{donatable}")?;
        }
        Ok(())
    }
}

/// The exported function's signature as a person would write it, one line a leaf.
pub(super) fn text(exported: &Exported) -> String {
    let mut text = Signature::of_exported(exported).to_string() + "returns\n";
    for (index, (path, aval)) in exported.out_tree.paths().iter().zip(&exported.out_avals).enumerate() {
        let place = match path.keys() {
            [] => String::new(),
            _ => format!("{path}  "),
        };
        let sharding = exported.out_shardings.get(index).and_then(Option::as_ref);
        let sharding = sharding.map_or(String::new(), |sharding| format!("  {sharding}"));
        text += &format!("  {place}{aval}{sharding}\n");
    }
    text
}

/// What `main` of a compiled program takes, by position, as one device sees it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Interface {
    /// The parameters.
    pub parameters: Vec<Aval>,
    /// The positions of those whose memory an output can take if they are donated, sorted, and the outputs'.
    pub donations: Vec<(usize, usize)>,
    /// How the parameters are laid over the devices, by position; empty where that is not said.
    pub parameter_shardings: Vec<Option<Sharding>>,
    /// The same of the outputs.
    pub output_shardings: Vec<Option<Sharding>>,
}

impl Interface {
    /// Asks the executable.
    pub fn of(executable: &Executable) -> Option<Interface> {
        let program = match executable.optimized_program() {
            Ok(program) => program,
            Err(error) => {
                tracing::debug!(%error, "the plugin does not say what the program takes");
                return None;
            }
        };
        hlo::decode_optimized(&program).as_ref().and_then(Interface::of_module)
    }

    fn of_module(module: &HloModule) -> Option<Interface> {
        let shapes = &module.host_program_shape.as_ref()?.parameters;
        let aval = |shape: &hlo::Shape| shape.to_spec().map(|spec| Aval::from(&spec));
        let parameters: Vec<Aval> = match &shapes[..] {
            // A program whose arguments are passed as one tuple still takes a list of buffers.
            [tuple] if !tuple.tuple_shapes.is_empty() => {
                tuple.tuple_shapes.iter().map(aval).collect::<Option<_>>()?
            }
            shapes => shapes.iter().map(aval).collect::<Option<_>>()?,
        };
        let aliases = module.input_output_alias.iter().flat_map(|alias| &alias.entries);
        let donation = |entry: &hlo::AliasEntry| {
            let output = entry.output_shape_index.first().copied().unwrap_or(0);
            Some((usize::try_from(entry.parameter_number).ok()?, usize::try_from(output).ok()?))
        };
        let mut donations: Vec<(usize, usize)> = aliases.filter_map(donation).collect();
        donations.sort_unstable();
        donations.dedup_by_key(|(parameter, _)| *parameter);
        let shardings = compiled_output::shardings(module);
        Some(Interface {
            parameters,
            donations,
            parameter_shardings: shardings.parameters,
            output_shardings: shardings.outputs,
        })
    }

    /// The output that takes the memory of the parameter at this position, if it is donated.
    fn donated_into(&self, position: usize) -> Option<usize> {
        let found = self.donations.binary_search_by_key(&position, |(parameter, _)| *parameter);
        found.ok().map(|place| self.donations[place].1)
    }
}
