//! A plugin is tried in a process of its own before it is used here for the first time: one that aborts or hangs, as C++
//! exceptions through the C API make it, takes only that process with it.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use safejax::plugins::{self, FoundIn};
use safejax::printable::File;
use safejax::store::sha256;
use serde_json::Value;

/// How long a plugin may take to make a client.
const PROBE_TIME: Duration = Duration::from_secs(60);

/// Set in the process that tries a plugin: it does not try it in another one.
const PROBE_VARIABLE: &str = "SAFEJAX_PROBE";

/// Tries a plugin that was not used before, and remembers one that works. The pinned ones are known to.
///
/// # Errors
/// When its process ended, or did not in time. What a plugin reports as an error is none here: it is told where the plugin
/// is used.
pub fn try_if_new(library: &Path) -> Result<()> {
    let is_probe = std::env::var_os(PROBE_VARIABLE).is_some();
    let is_pinned =
        plugins::discover().iter().any(|found| found.path == library && found.source == FoundIn::Cache);
    let Some(mark) = mark(library).filter(|mark| !is_probe && !is_pinned && !mark.exists()) else {
        return Ok(());
    };
    tracing::info!(library = %File(library), "trying a new plugin in a process of its own");
    match probe(&["--plugin".as_ref(), library.as_os_str()]) {
        Err(error) if error.downcast_ref::<Ended>().is_some() => {
            Err(error).with_context(|| format!("the plugin {} does not work", File(library)))
        }
        _ => {
            // That it cannot be remembered costs the next start a second.
            if let Some(directory) = mark.parent() {
                let _ = std::fs::create_dir_all(directory).and_then(|()| std::fs::write(&mark, ""));
            }
            Ok(())
        }
    }
}

/// The file that says that a library worked: for this content, by its size and time.
fn mark(library: &Path) -> Option<PathBuf> {
    let path = library.canonicalize().ok()?;
    let metadata = path.metadata().ok()?;
    let identity = format!("{} {} {:?}", path.display(), metadata.len(), metadata.modified().ok()?);
    Some(plugins::home_dir().ok()?.join("tried").join(sha256(identity.as_bytes())))
}

/// The process that tried a plugin ended without an answer.
#[derive(Debug)]
struct Ended(String);

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Ended {}

/// What `safejax devices` says with these arguments, in a process of its own: a plugin that aborts or hangs
/// does not take this report with it.
pub fn probe(arguments: &[&OsStr]) -> Result<Value> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["devices", "--json"])
        .args(arguments)
        .env(plugins::OFFLINE_VARIABLE, "1")
        .env(PROBE_VARIABLE, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let read = |stream: &mut dyn Read| {
        let mut text = String::new();
        // What cannot be read is missing in the report, and the status says the rest.
        let _ = stream.read_to_string(&mut text);
        text
    };
    let output = std::thread::spawn(move || stdout.as_mut().map(|stream| read(stream)).unwrap_or_default());
    let errors = std::thread::spawn(move || stderr.as_mut().map(|stream| read(stream)).unwrap_or_default());
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > PROBE_TIME {
            child.kill()?;
            child.wait()?;
            return Err(Ended(format!("it did not answer within {} seconds", PROBE_TIME.as_secs())).into());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let join = |thread: std::thread::JoinHandle<String>| thread.join().unwrap_or_default();
    let (output, errors) = (join(output), join(errors));
    if status.success() {
        return Ok(serde_json::from_str(&output)?);
    }
    match errors.lines().rev().find_map(|line| line.strip_prefix("error: ")) {
        Some(error) => bail!("{error}"),
        None => {
            let last = errors.lines().last().unwrap_or_default();
            Err(Ended(format!("its process ended with {status}: {last}")).into())
        }
    }
}
