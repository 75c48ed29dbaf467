//! `safejax verify`: whether a file is what it says. Loads no plugin.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use safejax::Error;
use safejax::compare::{NonFinite, non_finite};
use safejax::convert::open;
use safejax::printable::{Count, Line, Name};
use safejax::store::{Digest, DigestState};
use serde_json::json;

use crate::output::{Output, OutputArgs};
use crate::select::SelectArgs;
use crate::work_bar::WorkBar;

#[derive(Args)]
pub struct Verify {
    /// A checkpoint of any format that is read; of one in several files, the index, one of them or the directory
    file: PathBuf,

    #[command(flatten)]
    select: SelectArgs,

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
        self.file = self.select.input(&self.file)?;
        // Opening checks the header's rules, and the tree against the names.
        let source = open(&self.file, &self.select.selection()?)?;
        let recorded = source.checkpoint().digests()?;
        let mut problems = Vec::new();
        let mut hashes = BTreeMap::new();
        for name in recorded.keys().filter(|name| source.checkpoint().tensor(name).is_err()) {
            problems.push(format!("a digest of `{name}` is recorded, but there is no such tensor"));
        }
        let mut bar = WorkBar::new(source.tensors().iter().map(|tensor| tensor.bytes() as u64).sum());
        for (index, tensor) in source.tensors().iter().enumerate() {
            let digest = source.recorded_digest(index);
            if !self.hash && !self.finite && digest.is_none() && tensor.is_plain() {
                bar.advance(&tensor.name, 0)?;
                continue;
            }
            let (mut sum, mut found) = (DigestState::default(), NonFinite::default());
            let mut check = digest.map(Digest::begin);
            let read = source.checkpoint().read_parts(&tensor.name, check.as_mut(), |part| -> Result<()> {
                if self.hash {
                    sum.update(part);
                }
                if self.finite {
                    found = found + non_finite(tensor.spec.dtype, part);
                }
                Ok(bar.advance(&tensor.name, part.len() as u64)?)
            });
            if let Err(error) = read {
                match error.downcast_ref::<Error>() {
                    Some(Error::Malformed { .. }) => {
                        problems.push(format!("`{}` cannot be read: {error}", tensor.name));
                        continue;
                    }
                    _ => return Err(error),
                }
            }
            if check.is_some_and(|check| check.finish().is_err()) {
                let kind = if matches!(digest, Some(Digest::Crc32(_) | Digest::Crc32c(_))) {
                    "checksum"
                } else {
                    "sha256"
                };
                problems.push(format!(
                    "`{}` is not what was written: its {kind} is not the recorded one",
                    tensor.name
                ));
            }
            if self.hash {
                hashes.insert(tensor.name.as_str(), sum.finish());
            }
            if found.nan + found.infinite > 0 {
                problems.push(format!(
                    "`{}` has {} NaN and {} infinite elements",
                    tensor.name, found.nan, found.infinite
                ));
            }
        }
        drop(bar);
        source.warn_if_changed();
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
                Line(source.origin()),
                Count(source.tensors().len(), "tensor"),
                source.framework(),
                if source.has_record() { "structure recorded" } else { "no structure record" },
                if recorded.is_empty() {
                    "no digests to check against".to_owned()
                } else {
                    Count(recorded.len(), "digest").to_string()
                },
                match (problems.is_empty(), recorded.is_empty()) {
                    (true, true) => "; all of it can be read",
                    (true, false) => "; no problems",
                    (false, _) => "",
                }
            );
            text
        };
        let json = || {
            json!({
                "file": source.origin(),
                "tensors": source.tensors().len(),
                "framework": source.framework(),
                "has_record": source.has_record(),
                "recorded_digests": recorded.len(),
                "sha256": if self.hash { Some(&hashes) } else { None },
                "problems": problems,
            })
        };
        Ok(Output { text: self.output.choose(text, json), is_success: problems.is_empty() })
    }
}
