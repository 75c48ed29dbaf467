//! Programs, as `safejax inspect` shows them.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use safejax::Plugin;
use safejax::printable::{File, Line};
use safejax::program::Aval;
use safejax::program::{Bucket, Bundle, Exported, Parameter};
use safejax::sharding::Sharding;
use safejax::{Client, Function, Program, plugins};
use serde_json::{Value, json};

use crate::client::with_devices;
use crate::compile::collectives_text;
use crate::output::OutputArgs;

/// Shows a program, which was refined for these sizes if there are any, and whether a plugin reads it if one is named.
pub fn show(
    program: &Program,
    sizes: &[(&str, usize)],
    plugin: Option<&str>,
    output: OutputArgs,
) -> Result<String> {
    let reader = plugin.map(|name_or_path| Reader::new(program, name_or_path)).transpose()?;
    let text = || {
        let shown = match program.exported() {
            Some(exported) => exported_text(program, exported, sizes),
            None => plain_text(program),
        };
        shown + &reader.as_ref().map(|reader| reader.text(program)).unwrap_or_default()
    };
    let json = || {
        let mut shown = match program.exported() {
            Some(exported) => exported_json(program, exported),
            None => plain_json(program),
        };
        if !sizes.is_empty() {
            shown["sizes"] = sizes.iter().copied().collect();
        }
        if let Some(reader) = &reader {
            shown["plugin"] = reader.json();
        }
        shown
    };
    Ok(output.choose(text, json))
}

/// A plugin that may read the program.
struct Reader {
    library: PathBuf,
    minimum: Option<String>,
    maximum: Option<String>,
    is_able: Option<bool>,
    /// The arguments that the program can be given, and the positions of the outputs that take their memory; why that is
    /// not known, if the plugin cannot compile it here.
    donations: Result<Vec<(String, usize)>, String>,
}

impl Reader {
    fn new(program: &Program, name_or_path: &str) -> Result<Reader> {
        let library = plugins::library(name_or_path)?;
        let plugin = Plugin::open(&library)?;
        Ok(Reader {
            donations: donations(program, &library),
            library: plugin.path().to_owned(),
            minimum: plugin.stablehlo_minimum_version(),
            maximum: plugin.stablehlo_version(),
            is_able: program.is_readable_by(&plugin),
        })
    }

    fn text(&self, program: &Program) -> String {
        let (minimum, maximum) = (self.minimum.as_deref(), self.maximum.as_deref());
        let range = match (minimum, maximum) {
            (Some(minimum), Some(maximum)) => format!("{minimum} to {maximum}"),
            (None, Some(maximum)) => format!("up to {maximum}"),
            _ => "it does not say which".into(),
        };
        let verdict = match self.is_able {
            Some(true) => "it is among those that the plugin reads",
            Some(false) => {
                "it is not among those that the plugin reads; use another plugin (`safejax plugin list`), or export \
                 the function with a jax of the plugin's age"
            }
            None => "whether the plugin reads it is not known before it is compiled",
        };
        let library = File(&self.library);
        format!("StableHLO version: {verdict} ({range}; {library})\n{}", self.donations_text(program))
    }

    fn donations_text(&self, program: &Program) -> String {
        let outputs: Vec<String> = program
            .exported()
            .map(|exported| exported.out_tree.paths().iter().map(ToString::to_string).collect())
            .unwrap_or_default();
        let output = |position: usize| match outputs.get(position).map(String::as_str) {
            Some("") | None if position == 0 && outputs.len() <= 1 => "the output".to_owned(),
            Some(path) => format!("the output {path}"),
            None => format!("output {position}"),
        };
        match &self.donations {
            Ok(donations) if donations.is_empty() => "donates nothing\n".into(),
            Ok(donations) => donations
                .iter()
                .map(|(argument, position)| format!("donates {} to {}\n", Line(argument), output(*position)))
                .collect(),
            Err(why) => format!("what it donates is not known: {}\n", Line(why)),
        }
    }

    fn json(&self) -> Value {
        json!({
            "path": self.library,
            "stablehlo_minimum_version": self.minimum,
            "stablehlo_version": self.maximum,
            "reads_this_version": self.is_able,
            "donations": self.donations.as_ref().ok(),
        })
    }
}

/// What the program donates, as the plugin's compiler says.
fn donations(program: &Program, library: &Path) -> Result<Vec<(String, usize)>, String> {
    let devices = program.exported().map_or(1, |exported| exported.device_count);
    let compile = || -> safejax::Result<Function> {
        with_devices(Client::from_plugin(library)?, devices, |builder| builder)?.compile(program)
    };
    let function = compile().map_err(|error| error.to_string())?;
    let signature = function.signature().ok_or("the plugin does not say")?;
    let donation = |parameter: &Parameter| Some((parameter.place.clone(), parameter.donated_into?));
    Ok(signature.parameters.iter().filter_map(donation).collect())
}

fn plain_text(program: &Program) -> String {
    let version =
        program.stablehlo_version().map_or(String::new(), |version| format!(", StableHLO {version}"));
    format!(
        "{}: a program ({}{version}), {} bytes\n",
        program.origin(),
        program.format().name(),
        program.code().len()
    )
}

fn plain_json(program: &Program) -> Value {
    json!({
        "file": program.origin(),
        "format": program.format().name(),
        "stablehlo_version": program.stablehlo_version(),
        "bytes": program.code().len(),
    })
}

fn exported_text(program: &Program, exported: &Exported, sizes: &[(&str, usize)]) -> String {
    let version = program.stablehlo_version();
    let mut text = format!("{}: `{}`, exported", Line(program.origin()), Line(&exported.function_name));
    // Writing to a string cannot fail.
    if let Some(jax) = &exported.jax_version {
        let _ = write!(text, " by jax {jax}");
    }
    let _ = writeln!(
        text,
        " for {} on {} device{}; StableHLO {}, {} bytes",
        exported.platforms.join(", "),
        exported.device_count,
        if exported.device_count == 1 { "" } else { "s" },
        version.as_deref().unwrap_or("an unknown version"),
        program.code().len()
    );
    if !sizes.is_empty() {
        let _ = writeln!(text, "at {}", crate::sizes::text(sizes, ", "));
    }
    let symbolic = exported.symbolic_dimensions();
    if let Some(bundle) = program.bundle() {
        let _ = writeln!(text, "a bundle of {} at {}", symbolic.join(", "), buckets(bundle).join("; "));
    } else if !symbolic.is_empty() {
        let _ = writeln!(text, "dimension variables: {}", exported.dimension_variables().join(", "));
        let constraints = program.constraints();
        if !constraints.is_empty() {
            let _ = writeln!(text, "constraints: {}", Line(&constraints.join(", ")));
        }
    }
    let effects = exported.ordered_effects.iter().chain(&exported.unordered_effects);
    let effects: Vec<&str> = effects.map(String::as_str).collect();
    if !effects.is_empty() {
        let _ = writeln!(text, "side effects: {}", effects.join(", "));
    }
    if !exported.disabled_checks.is_empty() {
        let _ = writeln!(text, "checks switched off: {}", exported.disabled_checks.join(", "));
    }
    if exported.vjp.is_some() {
        text += "with its gradient\n";
    }
    if exported.device_count > 1
        && let Some(collectives) = program.collectives()
    {
        let _ = writeln!(
            text,
            "collectives written in it: {}; `safejax compile` says what the shardings add",
            collectives_text(&collectives)
        );
    }
    text + "takes\n" + &program.signature_text().unwrap_or_default()
}

fn exported_json(program: &Program, exported: &Exported) -> Value {
    let avals = |avals: &[Aval]| avals.iter().map(ToString::to_string).collect::<Vec<_>>();
    let shardings = |shardings: &[Option<Sharding>]| {
        shardings.iter().map(|sharding| sharding.as_ref().map(ToString::to_string)).collect::<Vec<_>>()
    };
    json!({
        "file": program.origin(),
        "format": "jax.export",
        "function": exported.function_name,
        "jax_version": exported.jax_version,
        "serialization_version": exported.serialization_version,
        "calling_convention_version": exported.calling_convention_version,
        "stablehlo_version": program.stablehlo_version(),
        "platforms": exported.platforms,
        "device_count": exported.device_count,
        "collectives": program.collectives(),
        "in_tree": exported.in_tree,
        "in_avals": avals(&exported.in_avals),
        "in_shardings": shardings(&exported.in_shardings),
        "kept": exported.kept,
        "out_tree": exported.out_tree,
        "out_avals": avals(&exported.out_avals),
        "out_shardings": shardings(&exported.out_shardings),
        "buckets": program.bundle().map(buckets),
        "disabled_checks": exported.disabled_checks,
        "symbolic_dimensions": exported.symbolic_dimensions(),
        "dimension_variables": exported.dimension_variables(),
        "constraints": program.constraints(),
        "ordered_effects": exported.ordered_effects,
        "unordered_effects": exported.unordered_effects,
        "has_vjp": exported.vjp.is_some(),
    })
}

/// The sizes of each bucket, such as `1, 16`, in the order of the dimensions.
fn buckets(bundle: &Bundle) -> Vec<String> {
    let text = |bucket: &Bucket| bucket.sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    bundle.buckets.iter().map(text).collect()
}
