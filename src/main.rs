//! The `safejax` command.

mod cli;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let command = cli::Cli::parse();
    match command.run() {
        // A reader that has seen enough, such as `head`, is not a failure.
        Ok(output) => {
            let _ = std::io::stdout().write_all(output.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprint!("{}", cli::failure(&error));
            ExitCode::FAILURE
        }
    }
}
