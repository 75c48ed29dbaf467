//! The options that choose, rename and place tensors.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use safejax::load::Selection;
use safejax::printable::File;
use safejax::{Framework, Limits};

use crate::{stream, template};

/// Which tensors, under which names.
#[derive(Args)]
pub struct SelectArgs {
    /// Of a checkpoint of Orbax, the step: a number [default: the newest finished one]
    #[arg(long, value_name = "STEP")]
    step: Option<u64>,

    /// Of a checkpoint of Orbax, the item, by its name [default: `default` or `state`, or the only one with arrays]
    #[arg(long, value_name = "NAME")]
    item: Option<String>,

    /// Only tensors whose names match (* and ? stand for any characters and any one)
    #[arg(long, value_name = "PATTERN")]
    include: Vec<String>,

    /// Not the tensors whose names match
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,

    /// Replace the beginning FROM of names by TO
    #[arg(long, value_name = "FROM=TO", value_parser = parse_rename)]
    rename: Vec<(String, String)>,

    /// The framework whose names these are: plain, flax, haiku, objax, nnx, equinox, flat (no tree), vit (split at /),
    /// alphafold (at //) or graphcast (at :) [default: as recorded or recognised]
    #[arg(long, value_name = "FRAMEWORK")]
    framework: Option<Framework>,

    /// Split names at SEPARATOR to make a tree of them; given again, the parts are split further
    #[arg(long, value_name = "SEPARATOR", conflicts_with = "framework", value_parser = parse_separator)]
    split: Vec<String>,

    /// The tree that it must be, with types and shapes: that of another checkpoint (FILE, or FILE#NAME for a part of it), or of
    /// what an exported function takes (FILE#0 for its argument 0). Lists become tuples where it has those, and leaves
    /// without names get them
    #[arg(long, value_name = "FILE[#NAME]")]
    template: Option<String>,

    /// Refuse a file that holds something besides arrays, text and bytes, rather than leave it out
    #[arg(long)]
    strict: bool,

    /// Read whatever the file describes, however large it is; for files that you trust
    #[arg(long)]
    no_limits: bool,
}

fn parse_separator(text: &str) -> std::result::Result<String, String> {
    if text.is_empty() { Err("it is empty".into()) } else { Ok(text.to_owned()) }
}

fn parse_rename(text: &str) -> std::result::Result<(String, String), String> {
    let (from, to) = text.split_once('=').ok_or("it is not FROM=TO")?;
    Ok((from.to_owned(), to.to_owned()))
}

impl SelectArgs {
    /// The checkpoint to read: the path itself, what comes from standard input, or the step and item within it.
    ///
    /// # Errors
    /// When it cannot be read, or has no such step or item.
    pub fn input(&self, path: &Path) -> Result<PathBuf> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some((_, part)) = name.split_once('#')
            && !path.exists()
        {
            bail!(
                "there is no file {}; a part of a checkpoint is chosen by `--include '{part}.*'`",
                File(path)
            );
        }
        if self.step.is_none() && self.item.is_none() {
            return stream::input(path);
        }
        if !path.is_dir() {
            bail!("--step and --item are for directories of Orbax; {} is none", File(path));
        }
        Ok(safejax::format::orbax_item(path, self.step, self.item.as_deref())?)
    }

    /// What they select.
    ///
    /// # Errors
    /// When the template cannot be read.
    pub fn selection(&self) -> Result<Selection> {
        let mut selection = Selection::default();
        selection.include = self.include.clone();
        selection.exclude = self.exclude.clone();
        selection.framework = self.framework;
        selection.split = self.split.clone();
        selection.strict = self.strict;
        selection.limits = self.limits();
        let template = self.template.as_deref().map(|text| template::read(text, self.limits()));
        selection.template = template.transpose()?;
        Ok(self.rename.iter().fold(selection, |selection, (from, to)| selection.rename(from, to)))
    }

    /// What a file may ask for.
    pub fn limits(&self) -> Limits {
        if self.no_limits { Limits::none() } else { Limits::default() }
    }
}
