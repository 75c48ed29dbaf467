//! Work in a process of its own: what ends or hangs there, as C++ exceptions through the C API make plugins do, takes only
//! that process with it.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Result;

/// How often it is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// How a process ended, and what it said.
pub struct Ended {
    /// `None` for one that was ended.
    pub status: Option<ExitStatus>,
    pub output: String,
    errors: String,
}

impl Ended {
    /// The error that our own command printed before it ended, if it did.
    pub fn error(&self) -> Option<&str> {
        self.errors.lines().rev().find_map(|line| line.strip_prefix("error: "))
    }

    /// The last line that it said beside its output.
    pub fn last_line(&self) -> &str {
        self.errors.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default()
    }

    /// What it said beside its output.
    pub fn errors(&self) -> &str {
        &self.errors
    }
}

/// Our own command, with nothing to read.
pub fn command() -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

/// Runs a process to its end, or until `is_over` says so, which ends it.
///
/// # Errors
/// When it cannot be started or watched.
pub fn run(mut command: Command, is_over: impl Fn() -> bool) -> Result<Ended> {
    let mut child = command.spawn()?;
    let (output, errors) = (read(child.stdout.take()), read(child.stderr.take()));
    let status = wait(&mut child, is_over)?;
    Ok(Ended { status, output: output.join().unwrap_or_default(), errors: errors.join().unwrap_or_default() })
}

fn wait(child: &mut Child, is_over: impl Fn() -> bool) -> Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if is_over() {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Reads what a process says, while it runs.
fn read(stream: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        // What cannot be read is missing in the report, and the status says the rest.
        let _ = stream.map(|mut stream| stream.read_to_end(&mut text));
        String::from_utf8_lossy(&text).into_owned()
    })
}
