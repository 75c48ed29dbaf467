//! The command line: one file a subcommand, each of which returns what it prints.

mod client;
mod convert;
mod devices;
mod diff;
mod doctor;
mod inspect;
pub mod interrupt;
mod load;
mod plugin;
mod probe;
mod progress;
mod run;
mod select;
mod stream;
mod transfer;
mod verify;
mod work_bar;

use std::io::IsTerminal;

use anyhow::Result;
use clap::{Args, CommandFactory, Parser, Subcommand};
use safejax::printable::Block;

/// What `--version` prints after the name.
const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("SAFEJAX_TARGET"),
    ", ",
    env!("SAFEJAX_PROFILE"),
    " build)"
);

/// JAX parameters between safetensors files and PJRT devices, and JAX functions run on them, without Python.
#[derive(Parser)]
#[command(version = VERSION, about, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Say more on stderr: -v what was chosen and why, -vv every step
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
}

#[derive(Subcommand)]
enum Command {
    /// Show a checkpoint as a tree: types, shapes, sizes, metadata
    Inspect(inspect::Inspect),
    /// Show a platform's devices, their memories, and what its plugin can do
    Devices(devices::Devices),
    /// List, install and find plugins
    #[command(subcommand)]
    Plugin(plugin::Plugin),
    /// Load a checkpoint onto a device, and report how fast and how
    Load(load::Load),
    /// Write a file anew: in another format, aligned, cast, renamed
    Convert(convert::Convert),
    /// Check a file: its rules, its tree, its digests
    Verify(verify::Verify),
    /// Compare two files: structure, types, shapes, values; exit code 1 when they differ
    Diff(diff::Diff),
    /// Run a program on arrays and checkpoints
    Run(run::Run),
    /// Print everything that a bug report needs
    Doctor(doctor::Doctor),
    /// Print a script that completes commands in a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, for `man -l -`
    Man,
}

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
    json: bool,
}

impl OutputArgs {
    /// The text, or the JSON if that was asked for.
    fn choose(self, text: impl FnOnce() -> String, json: impl FnOnce() -> serde_json::Value) -> String {
        stream::name_input(if self.json { json_text(&json()) } else { Block(&text()).to_string() })
    }
}

/// JSON as it is printed. Its own escapes leave control characters above 127 as they are, which a terminal may obey.
fn json_text(value: &serde_json::Value) -> String {
    let is_obeyed = |c: char| c.is_control() && c != '\n';
    let text = format!("{value:#}\n");
    if !text.contains(is_obeyed) {
        return text;
    }
    let escape = |c: char| if is_obeyed(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    text.chars().map(escape).collect()
}

impl Cli {
    /// Runs the command and returns what it prints.
    pub fn run(self) -> Result<Output> {
        log_to_stderr(self.verbose);
        interrupt::listen();
        let text = match self.command {
            Command::Inspect(command) => command.run(),
            Command::Devices(command) => command.run(),
            Command::Plugin(command) => command.run(),
            Command::Load(command) => command.run(),
            Command::Convert(command) => command.run(),
            Command::Doctor(command) => command.run(),
            Command::Verify(command) => return command.run(),
            Command::Diff(command) => return command.run(),
            Command::Run(command) => return command.run(),
            Command::Completions { shell } => Ok(completions(shell)),
            Command::Man => man(),
        };
        Ok(Output { text: text?, is_success: true })
    }
}

fn completions(shell: clap_complete::Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "safejax", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// The page of the command, and then those of its subcommands.
fn man() -> Result<String> {
    let mut command = Cli::command();
    command.build();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
        let title = format!("safejax {}", subcommand.get_name());
        clap_mangen::Man::new(subcommand.clone()).title(title).render(&mut page)?;
    }
    Ok(String::from_utf8_lossy(&page).into_owned())
}

fn log_to_stderr(verbose: u8) {
    use tracing_subscriber::EnvFilter;
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("SAFEJAX_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(has_colours())
        .without_time()
        .init();
}

/// Whether stderr is a terminal that is to have colours, by the conventions of `NO_COLOR`, `CLICOLOR` and
/// `CLICOLOR_FORCE` (no-color.org, bixense.com/clicolors).
fn has_colours() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_value = |name, value| std::env::var_os(name).is_some_and(|found| found == value);
    if is_set("NO_COLOR") {
        return false;
    }
    if is_set("CLICOLOR_FORCE") && !is_value("CLICOLOR_FORCE", "0") {
        return true;
    }
    std::io::stderr().is_terminal() && !is_value("CLICOLOR", "0") && !is_value("TERM", "dumb")
}

/// Removes what the command left in the temporary directory.
pub fn clean_up() {
    stream::clean_up();
}

/// The error and its causes, as they are printed.
pub fn failure(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error}\n");
    for cause in error.chain().skip(1) {
        text += &format!("  caused by: {}\n", cause.to_string().replace('\n', "\n  "));
    }
    stream::name_input(Block(&text).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
