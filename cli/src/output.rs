//! What a command prints: its output as text or JSON, and its error.

use std::path::Path;

use anyhow::{Result, bail};
use clap::Args;
use safejax::printable::{Block, File};

use crate::stream;

/// What a command prints, and whether it found what it was to find.
pub struct Output {
    pub text: String,
    pub is_success: bool,
}

/// What every command that prints something takes.
#[derive(Args, Clone, Copy)]
pub struct OutputArgs {
    /// Print JSON, for scripts
    #[arg(long)]
    pub json: bool,
}

impl OutputArgs {
    /// The text, or the JSON if that was asked for.
    pub fn choose(self, text: impl FnOnce() -> String, json: impl FnOnce() -> serde_json::Value) -> String {
        stream::name_input(if self.json { json_text(&json()) } else { Block(&text()).to_string() })
    }
}

/// JSON as it is printed. Its own escapes leave control characters above 127 as they are, which a terminal may obey.
pub fn json_text(value: &serde_json::Value) -> String {
    let is_obeyed = |c: char| c.is_control() && c != '\n';
    let text = format!("{value:#}\n");
    if !text.contains(is_obeyed) {
        return text;
    }
    let escape = |c: char| if is_obeyed(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    text.chars().map(escape).collect()
}

/// Refuses a file whose directory is not there, before it is made.
pub fn check_directory(option: &str, path: &Path) -> Result<()> {
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(directory) if !directory.is_dir() => {
            bail!("{option} {}: there is no such directory", File(path))
        }
        _ => Ok(()),
    }
}

/// A warning, as it is printed.
pub fn warning(text: &str) -> String {
    stream::name_input(Block(&format!("warning: {text}\n")).to_string())
}

/// The error and its causes, as they are printed.
pub fn failure(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error}\n");
    for cause in error.chain().skip(1) {
        text += &format!("  caused by: {}\n", cause.to_string().replace('\n', "\n  "));
    }
    stream::name_input(Block(&text).to_string())
}

/// Ends the process as one that was called wrongly.
pub fn wrong_usage(problem: &str) -> ! {
    use clap::CommandFactory;
    crate::cli::Cli::command().error(clap::error::ErrorKind::ArgumentConflict, problem).exit()
}
