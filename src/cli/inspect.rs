//! `safejax inspect`: what is in a file. Loads no plugin.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use safejax::checkpoint::{DEFAULT_ALIGNMENT, TensorInfo};
use safejax::load::{Outline, outline};
use safejax::tree::record;
use safejax::{Checkpoint, LoadOptions, Program};
use serde_json::json;

use super::OutputArgs;

/// The characters of a metadata value that are shown.
const SHOWN_METADATA: usize = 100;

#[derive(Args)]
pub struct Inspect {
    /// A safetensors file, or a program (StableHLO text or bytecode, HLO proto)
    file: PathBuf,

    #[command(flatten)]
    output: OutputArgs,
}

impl Inspect {
    pub fn run(self) -> Result<String> {
        // A program is recognised by its content; all else is taken for the checkpoint that it should be.
        match Checkpoint::open(&self.file) {
            Ok(checkpoint) => self.checkpoint(&checkpoint),
            Err(no_checkpoint @ safejax::Error::Malformed { .. }) => match Program::open(&self.file) {
                Ok(program) => Ok(self.program(&program)),
                Err(no_program) => bail!("{no_checkpoint}\n{no_program}"),
            },
            Err(error) => Err(error.into()),
        }
    }

    fn checkpoint(&self, checkpoint: &Checkpoint) -> Result<String> {
        let outline = outline(checkpoint, &LoadOptions::default());
        if !self.output.json {
            return Ok(text(checkpoint, &outline?));
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

    fn program(&self, program: &Program) -> String {
        let version = program.stablehlo_version();
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
