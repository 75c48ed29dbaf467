//! `safejax inspect`: what is in a file. Loads no plugin.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use safejax::tree::Node;
use safejax::{Checkpoint, KeyMap, Program};
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
        let keys = KeyMap::from_names(checkpoint.tensors().iter().map(|tensor| tensor.name.clone()));
        let aligned = checkpoint
            .tensors()
            .iter()
            .filter(|tensor| tensor.range.start % safejax::checkpoint::DEFAULT_ALIGNMENT == 0)
            .count();
        let summary = |tree: &Node| {
            format!(
                "{}: {}\n{aligned} of {} tensors aligned to {} bytes; data from byte {}\n",
                checkpoint.origin(),
                tree.summary,
                checkpoint.tensors().len(),
                safejax::checkpoint::DEFAULT_ALIGNMENT,
                checkpoint.data_start(),
            )
        };
        let text = || -> Result<String> {
            let keys = keys?;
            let specs: Vec<_> = keys
                .leaves()
                .iter()
                .map(|leaf| checkpoint.tensor(&leaf.name).map(|tensor| &tensor.spec))
                .collect::<Result<_, _>>()?;
            let tree = Node::build(keys.leaves().iter().zip(specs));
            Ok(format!("{}{}{tree}", summary(&tree), metadata_lines(checkpoint)))
        };
        if !self.output.json {
            return text();
        }
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
