//! The options that choose, rename and place tensors.

use clap::Args;
use safejax::load::Selection;
use safejax::{Framework, Limits};

/// Which tensors, under which names.
#[derive(Args)]
pub struct SelectArgs {
    /// Only tensors whose names match (* and ? stand for any characters and any one)
    #[arg(long, value_name = "PATTERN")]
    include: Vec<String>,

    /// Not the tensors whose names match
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,

    /// Replace the beginning FROM of names by TO
    #[arg(long, value_name = "FROM=TO", value_parser = parse_rename)]
    rename: Vec<(String, String)>,

    /// The framework whose names these are: plain, flax, haiku, objax, nnx, flat (no tree), vit (split at /), alphafold
    /// (at //) or graphcast (at :) [default: as recorded or recognised]
    #[arg(long, value_name = "FRAMEWORK")]
    framework: Option<Framework>,

    /// Split names at SEPARATOR to make a tree of them; given again, the parts are split further
    #[arg(long, value_name = "SEPARATOR", conflicts_with = "framework", value_parser = parse_separator)]
    split: Vec<String>,

    /// Refuse a file that holds something besides arrays, text and bytes, rather than leave it out
    #[arg(long)]
    strict: bool,

    /// Read whatever the file describes, however large it is; for files that you trust
    #[arg(long)]
    no_limits: bool,
}

fn parse_separator(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("it is empty".into()) } else { Ok(text.to_owned()) }
}

fn parse_rename(text: &str) -> Result<(String, String), String> {
    let (from, to) = text.split_once('=').ok_or("it is not FROM=TO")?;
    Ok((from.to_owned(), to.to_owned()))
}

impl SelectArgs {
    /// What they select.
    pub fn selection(&self) -> Selection {
        let mut selection = Selection::default();
        selection.include = self.include.clone();
        selection.exclude = self.exclude.clone();
        selection.framework = self.framework;
        selection.split = self.split.clone();
        selection.strict = self.strict;
        selection.limits = self.limits();
        self.rename.iter().fold(selection, |selection, (from, to)| selection.rename(from, to))
    }

    /// What a file may ask for.
    pub fn limits(&self) -> Limits {
        if self.no_limits { Limits::none() } else { Limits::default() }
    }
}
