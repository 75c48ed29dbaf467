//! The command line as clap reads it, and the way to each command.

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

use crate::output::Output;
use crate::{
    compile, convert, devices, diff, doctor, inspect, interrupt, load, logging, plugin, run, verify,
};

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
#[command(name = "safejax", version = VERSION, about, arg_required_else_help = true)]
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
    Inspect(Box<inspect::Inspect>),
    /// Show a platform's devices, their memories, and what its plugin can do
    Devices(devices::Devices),
    /// List, install and find plugins
    #[command(subcommand)]
    Plugin(plugin::Plugin),
    /// Load a checkpoint onto a device, and report how fast and how
    Load(Box<load::Load>),
    /// Write a file anew: in another format, aligned, cast, renamed
    Convert(Box<convert::Convert>),
    /// Check a file: its rules, its tree, its digests
    Verify(verify::Verify),
    /// Compare two files: structure, types, shapes, values; exit code 1 when they differ
    Diff(Box<diff::Diff>),
    /// Run a program on arrays and checkpoints
    Run(Box<run::Run>),
    /// Compile a program for devices that need not be here: does it compile, does it fit, how fast could it be
    Compile(compile::Compile),
    #[command(hide = true)]
    CompileOne(compile::CompileOne),
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

impl Cli {
    /// Runs the command and returns what it prints.
    pub fn run(self) -> Result<Output> {
        logging::log_to_stderr(self.verbose);
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
            Command::Compile(command) => return command.run(),
            Command::CompileOne(command) => command.run(),
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
    for subcommand in command
        .get_subcommands()
        .filter(|subcommand| subcommand.get_name() != "help" && !subcommand.is_hide_set())
    {
        let title = format!("safejax {}", subcommand.get_name());
        clap_mangen::Man::new(subcommand.clone()).title(title).render(&mut page)?;
    }
    Ok(String::from_utf8_lossy(&page).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
