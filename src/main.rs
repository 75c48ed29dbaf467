//! The `safejax` command.

mod cli;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let code = run();
    cli::clean_up();
    code
}

fn run() -> ExitCode {
    let command = cli::Cli::parse();
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
            cli::interrupt::end_if_interrupted();
            eprint!("{}", cli::failure(&error));
            ExitCode::FAILURE
        }
    }
}
