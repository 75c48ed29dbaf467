//! The `safejax` command: one file a subcommand, each of which returns what it prints.

mod child;
mod cli;
mod client;
mod compile;
mod convert;
mod devices;
mod diff;
mod doctor;
mod inspect;
mod interrupt;
mod load;
mod logging;
mod mesh;
mod output;
mod plugin;
mod probe;
mod progress;
mod run;
mod select;
mod sizes;
mod stream;
mod template;
mod transfer;
mod verify;
mod work_bar;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let code = run_command();
    stream::clean_up();
    code
}

/// Lets the process open as many files as it may: a checkpoint can be in thousands.
fn allow_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where that is refused, an error says when there are too many.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

fn run_command() -> ExitCode {
    let command = cli::Cli::parse();
    allow_many_files();
    match command.run() {
        Ok(output) => {
            let mut stdout = std::io::stdout().lock();
            match stdout.write_all(output.text.as_bytes()).and_then(|()| stdout.flush()) {
                // A reader that has seen enough, such as `head`, is not a failure.
                Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                    eprintln!("error: the output cannot be written: {error}");
                    ExitCode::FAILURE
                }
                _ if output.is_success => ExitCode::SUCCESS,
                _ => ExitCode::FAILURE,
            }
        }
        Err(error) => {
            interrupt::end_if_interrupted();
            eprint!("{}", output::failure(&error));
            ExitCode::FAILURE
        }
    }
}
