//! `safejax verify`: whether a file is what it says. Loads no plugin.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use safejax::checkpoint::{DigestState, read_digests};
use safejax::compare::{NonFinite, non_finite};
use safejax::load::outline;
use safejax::printable::{Count, Line, Name};
use safejax::{Checkpoint, LoadOptions};
use serde_json::json;

use super::work_bar::WorkBar;
use super::{Output, OutputArgs, stream};

#[derive(Args)]
pub struct Verify {
    /// A safetensors file
    file: PathBuf,

    /// Also look for elements that are NaN or infinite
    #[arg(long)]
    finite: bool,

    /// Print the sha256 of every tensor
    #[arg(long)]
    hash: bool,

    #[command(flatten)]
    output: OutputArgs,
}

impl Verify {
    pub fn run(mut self) -> Result<Output> {
        self.file = stream::input(&self.file)?;
        // Opening checks the header's rules, the outline the tree against the names.
        let checkpoint = Checkpoint::open(&self.file)?;
        let outline = outline(&checkpoint, &LoadOptions::default())?;
        let recorded = read_digests(checkpoint.metadata())?;
        let mut problems = Vec::new();
        let mut hashes = BTreeMap::new();
        for name in recorded.keys().filter(|name| checkpoint.tensor(name).is_err()) {
            problems.push(format!("a digest of `{name}` is recorded, but there is no such tensor"));
        }
        let mut bar = WorkBar::new(checkpoint.tensors().iter().map(|tensor| tensor.bytes() as u64).sum());
        for tensor in checkpoint.tensors() {
            bar.advance(&tensor.name, 0)?;
            if !self.hash && !self.finite && !recorded.contains_key(&tensor.name) {
                continue;
            }
            let is_hashed = self.hash || recorded.contains_key(&tensor.name);
            let (mut digest, mut found) = (DigestState::default(), NonFinite::default());
            checkpoint.read_parts(&tensor.name, |part| -> Result<()> {
                if is_hashed {
                    digest.update(part);
                }
                if self.finite {
                    found = found + non_finite(tensor.spec.dtype, part);
                }
                Ok(bar.advance(&tensor.name, part.len() as u64)?)
            })?;
            if is_hashed {
                hashes.insert(tensor.name.as_str(), digest.finish());
            }
            if let Some(expected) = recorded.get(&tensor.name)
                && hashes.get(tensor.name.as_str()) != Some(expected)
            {
                problems.push(format!(
                    "`{}` is not what was written: its sha256 is not the recorded one",
                    tensor.name
                ));
            }
            if found.nan + found.infinite > 0 {
                problems.push(format!(
                    "`{}` has {} NaN and {} infinite elements",
                    tensor.name, found.nan, found.infinite
                ));
            }
        }
        drop(bar);
        checkpoint.warn_if_changed();
        let text = || {
            let mut text = String::new();
            if self.hash {
                for (name, hash) in &hashes {
                    let _ = writeln!(text, "{hash}  {}", Name(name));
                }
            }
            for problem in &problems {
                let _ = writeln!(text, "{}", Line(problem));
            }
            let _ = writeln!(
                text,
                "{}: {}, names as {} has them, {}, {}{}",
                Line(checkpoint.origin()),
                Count(checkpoint.tensors().len(), "tensor"),
                outline.framework,
                if outline.has_record { "structure recorded" } else { "no structure record" },
                Count(recorded.len(), "digest"),
                if problems.is_empty() { "; no problems" } else { "" }
            );
            text
        };
        let json = || {
            json!({
                "file": checkpoint.origin(),
                "tensors": checkpoint.tensors().len(),
                "framework": outline.framework,
                "has_record": outline.has_record,
                "recorded_digests": recorded.len(),
                "sha256": if self.hash { Some(&hashes) } else { None },
                "problems": problems,
            })
        };
        Ok(Output { text: self.output.choose(text, json), is_success: problems.is_empty() })
    }
}
