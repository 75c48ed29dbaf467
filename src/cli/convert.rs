//! `safejax convert`: a safetensors file written anew.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use safejax::convert::{ConvertOptions, convert};
use safejax::{Checkpoint, DType};
use serde_json::json;

use super::OutputArgs;

#[derive(Args)]
pub struct Convert {
    /// The safetensors file to read
    input: PathBuf,

    /// The safetensors file to write; it may be the one that is read
    file: PathBuf,

    /// Cast floating point tensors to this type: f16, bf16, f32 or f64
    #[arg(long, value_name = "DTYPE", value_parser = parse_dtype)]
    dtype: Option<DType>,

    /// What tensors are aligned to where they can be, in bytes: a power of two, 8 to 4096
    #[arg(long, default_value_t = safejax::checkpoint::DEFAULT_ALIGNMENT)]
    align: usize,

    #[command(flatten)]
    output: OutputArgs,
}

fn parse_dtype(name: &str) -> Result<DType, String> {
    DType::from_name(name).ok_or_else(|| "there is no such type; try bf16 or float32".to_owned())
}

impl Convert {
    pub fn run(self) -> Result<String> {
        let input = Checkpoint::open(&self.input)?;
        let mut options = ConvertOptions::default();
        options.dtype = self.dtype;
        options.alignment = self.align;
        let report = convert(&input, &self.file, &options)?;
        let text = || {
            let mut text = format!(
                "{}: {} tensors, {} bytes; {} cast, {} not aligned\n",
                self.file.display(),
                report.tensors,
                report.file_bytes,
                report.cast_tensors,
                report.unaligned_tensors
            );
            for (name, count) in &report.overflows {
                let _ =
                    writeln!(text, "warning: {count} elements of `{name}` are too large and became infinite");
            }
            text
        };
        Ok(self.output.choose(text, || json!({"file": self.file, "report": report})))
    }
}
