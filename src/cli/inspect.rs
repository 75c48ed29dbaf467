//! `safejax inspect`: what is in a file. Loads no plugin.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use safejax::checkpoint::{DEFAULT_ALIGNMENT, TensorInfo};
use safejax::convert::{Source, SourceFormat, open, sniff};
use safejax::load::{Outline, outline};
use safejax::program::{BUNDLE_KEY, Bucket, Bundle, Exported};
use safejax::tree::{Node, record};
use safejax::{Checkpoint, LoadOptions, Program};
use serde_json::json;

use super::OutputArgs;

/// The characters of a metadata value that are shown.
const SHOWN_METADATA: usize = 100;

#[derive(Args)]
pub struct Inspect {
    /// A safetensors, Flax msgpack, npz, npy or pickle file, or a program (StableHLO text or bytecode, HLO proto)
    file: PathBuf,

    #[command(flatten)]
    output: OutputArgs,
}

impl Inspect {
    pub fn run(self) -> Result<String> {
        match sniff(&self.file)? {
            Some(SourceFormat::Safetensors) => {
                let checkpoint = Checkpoint::open(&self.file)?;
                if checkpoint.metadata().contains_key(BUNDLE_KEY) {
                    return Ok(self.program(&Program::open(&self.file)?));
                }
                self.checkpoint(&checkpoint)
            }
            // An artifact can begin like a map of msgpack by chance.
            Some(SourceFormat::Msgpack) if is_artifact(&self.file) => {
                Ok(self.program(&Program::open(&self.file)?))
            }
            Some(_) => Ok(self.source(&*open(&self.file, &LoadOptions::default())?)),
            // Nothing that holds arrays begins like this; a damaged checkpoint still might.
            None => match (Program::open(&self.file), Checkpoint::open(&self.file)) {
                (Ok(program), _) => Ok(self.program(&program)),
                (_, Ok(checkpoint)) => self.checkpoint(&checkpoint),
                (Err(no_program), Err(no_checkpoint)) => bail!("{no_checkpoint}\n{no_program}"),
            },
        }
    }

    fn checkpoint(&self, checkpoint: &Checkpoint) -> Result<String> {
        let outline = outline(checkpoint, &LoadOptions::default());
        if !self.output.json {
            return Ok(match outline {
                Ok(outline) => text(checkpoint, &outline),
                Err(error) => flat(checkpoint, &error),
            });
        }
        // What is broken about the tree is told beside the tensors, which are there all the same.
        let (tree, error) = match &outline {
            Ok(outline) => (Some(record::to_json(outline.keys.def())), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let tensors: Vec<_> = checkpoint
            .tensors()
            .iter()
            .map(|tensor| {
                json!({
                    "name": tensor.name,
                    "dtype": tensor.spec.dtype,
                    "shape": tensor.spec.shape,
                    "offset": tensor.range.start,
                    "bytes": tensor.bytes(),
                })
            })
            .collect();
        Ok(format!(
            "{:#}\n",
            json!({
                "file": checkpoint.origin(),
                "format": "safetensors",
                "file_bytes": checkpoint.file_bytes(),
                "data_start": checkpoint.data_start(),
                "metadata": checkpoint.metadata(),
                "framework": outline.as_ref().ok().map(|outline| outline.framework),
                "tree": tree,
                "tree_error": error,
                "tensors": tensors,
            })
        ))
    }

    fn source(&self, source: &dyn Source) -> String {
        let tree = Node::build(source.keys().def(), &mut source.specs().iter());
        self.output.choose(
            || format!("{}: {}, {}\n{tree}", source.origin(), source.format(), tree.summary),
            || {
                let leaves = source.keys().leaves().iter().zip(source.specs());
                let leaf = |(leaf, spec): (&safejax::tree::Leaf, &safejax::ArraySpec)| {
                    json!({"name": leaf.name, "dtype": spec.dtype, "shape": spec.shape})
                };
                json!({
                    "file": source.origin(),
                    "format": source.format(),
                    "tree": record::to_json(source.keys().def()),
                    "tensors": leaves.map(leaf).collect::<Vec<_>>(),
                })
            },
        )
    }

    fn program(&self, program: &Program) -> String {
        let version = program.stablehlo_version();
        if let (Some(exported), Some(signature)) = (program.exported(), program.signature_text()) {
            return self.exported(program, exported, &signature, version);
        }
        self.output.choose(
            || {
                let version =
                    version.as_ref().map_or(String::new(), |version| format!(", StableHLO {version}"));
                format!(
                    "{}: a program ({}{version}), {} bytes\n",
                    program.origin(),
                    program.format().name(),
                    program.code().len()
                )
            },
            || {
                json!({
                    "file": program.origin(),
                    "format": program.format().name(),
                    "stablehlo_version": version,
                    "bytes": program.code().len(),
                })
            },
        )
    }
}

impl Inspect {
    fn exported(
        &self,
        program: &Program,
        exported: &Exported,
        signature: &str,
        version: Option<String>,
    ) -> String {
        let text = || {
            let version = version.as_deref().unwrap_or("an unknown version");
            let mut text = format!("{}: `{}`, exported", program.origin(), exported.function_name);
            // Writing to a string cannot fail.
            if let Some(jax) = &exported.jax_version {
                let _ = write!(text, " by jax {jax}");
            }
            let _ = writeln!(
                text,
                " for {} on {} device{}; StableHLO {version}, {} bytes",
                exported.platforms.join(", "),
                exported.device_count,
                if exported.device_count == 1 { "" } else { "s" },
                program.code().len()
            );
            let symbolic = exported.symbolic_dimensions();
            if let Some(bundle) = program.bundle() {
                let _ =
                    writeln!(text, "a bundle of {} at {}", symbolic.join(", "), buckets(bundle).join("; "));
            } else if !symbolic.is_empty() {
                let _ = writeln!(text, "symbolic dimensions: {}", symbolic.join(", "));
            }
            let effects: Vec<&str> = exported
                .ordered_effects
                .iter()
                .chain(&exported.unordered_effects)
                .map(String::as_str)
                .collect();
            if !effects.is_empty() {
                let _ = writeln!(text, "side effects: {}", effects.join(", "));
            }
            if !exported.disabled_checks.is_empty() {
                let _ = writeln!(text, "checks switched off: {}", exported.disabled_checks.join(", "));
            }
            if exported.vjp.is_some() {
                text += "with its gradient\n";
            }
            text + "takes\n" + signature
        };
        let avals = |avals: &[safejax::program::exported::Aval]| -> Vec<String> {
            avals.iter().map(ToString::to_string).collect()
        };
        let json = || {
            json!({
                "file": program.origin(),
                "format": "jax.export",
                "function": exported.function_name,
                "jax_version": exported.jax_version,
                "serialization_version": exported.serialization_version,
                "calling_convention_version": exported.calling_convention_version,
                "stablehlo_version": version,
                "platforms": exported.platforms,
                "device_count": exported.device_count,
                "in_tree": record::to_json(&exported.in_tree),
                "in_avals": avals(&exported.in_avals),
                "kept": exported.kept,
                "out_tree": record::to_json(&exported.out_tree),
                "out_avals": avals(&exported.out_avals),
                "buckets": program.bundle().map(buckets),
                "disabled_checks": exported.disabled_checks,
                "symbolic_dimensions": exported.symbolic_dimensions(),
                "ordered_effects": exported.ordered_effects,
                "unordered_effects": exported.unordered_effects,
                "has_vjp": exported.vjp.is_some(),
            })
        };
        self.output.choose(text, json)
    }
}

/// The sizes of each bucket, such as `1, 16`, in the order of the dimensions.
fn buckets(bundle: &Bundle) -> Vec<String> {
    let text = |bucket: &Bucket| bucket.sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    bundle.buckets.iter().map(text).collect()
}

fn is_artifact(file: &Path) -> bool {
    Program::open(file).is_ok_and(|program| program.exported().is_some())
}

fn text(checkpoint: &Checkpoint, outline: &Outline) -> String {
    let is_aligned = |tensor: &&TensorInfo| tensor.range.start.is_multiple_of(DEFAULT_ALIGNMENT);
    let aligned = checkpoint.tensors().iter().filter(is_aligned).count();
    let tree = outline.tree();
    format!(
        "{}: {}\n{aligned} of {} tensors aligned to {DEFAULT_ALIGNMENT} bytes; data from byte {}\n\
         names as {} has them; structure from {}\n{}{tree}",
        checkpoint.origin(),
        tree.summary,
        checkpoint.tensors().len(),
        checkpoint.data_start(),
        outline.framework,
        if outline.has_record { "its record in the metadata" } else { "the names" },
        metadata_lines(checkpoint),
    )
}

/// The tensors one by one, where they make no tree, and why they do not.
fn flat(checkpoint: &Checkpoint, error: &safejax::Error) -> String {
    let mut text = format!("{}: {} tensors\n", checkpoint.origin(), checkpoint.tensors().len());
    // Writing to a string cannot fail.
    let _ = writeln!(text, "no tree: {error}");
    text += &metadata_lines(checkpoint);
    for tensor in checkpoint.tensors() {
        let _ = writeln!(text, "{}  {}  {} B", tensor.name.escape_debug(), tensor.spec, tensor.bytes());
    }
    text
}

/// The metadata, one line a string, long ones cut.
fn metadata_lines(checkpoint: &Checkpoint) -> String {
    let line = |(key, value): (&String, &String)| {
        let mut shown: String = value.chars().take(SHOWN_METADATA).collect();
        if shown.len() < value.len() {
            shown += "…";
        }
        format!("metadata {} = {}\n", key.escape_debug(), shown.escape_debug())
    };
    checkpoint.metadata().iter().map(line).collect()
}
