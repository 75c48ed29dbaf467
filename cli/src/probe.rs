//! A plugin is tried in a process of its own before it is used here for the first time.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use safejax::plugins::{self, FoundIn};
use safejax::printable::File;
use safejax::store::sha256;
use serde_json::Value;

use crate::child;

/// How long a plugin may take to make a client.
const PROBE_TIME: Duration = Duration::from_secs(60);

/// Set in the process that tries a plugin: it does not try it in another one.
const PROBE_VARIABLE: &str = "SAFEJAX_PROBE";

/// The pinned plugins that are known to work, or to say what is missing (`docs/plugins.md`).
const KNOWN: [&str; 5] = ["cpu", "cuda13", "cuda13-compiler", "cuda12", "tpu"];

/// Tries a plugin that was not used before, and remembers one that works.
///
/// # Errors
/// When its process ended, or did not in time. What a plugin reports as an error is none here: it is told where the plugin
/// is used.
pub fn try_if_new(library: &Path) -> Result<()> {
    let is_probe = std::env::var_os(PROBE_VARIABLE).is_some();
    let is_known = plugins::discover().iter().any(|found| {
        found.path == library && found.source == FoundIn::Cache && KNOWN.contains(&found.name.as_str())
    });
    let Some(mark) = mark(library).filter(|mark| !is_probe && !is_known && !mark.exists()) else {
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
    let mut command = child::command()?;
    command.args(["devices", "--json"]).args(arguments);
    command.env(plugins::OFFLINE_VARIABLE, "1").env(PROBE_VARIABLE, "1");
    let start = Instant::now();
    let ended = child::run(command, || start.elapsed() > PROBE_TIME)?;
    let Some(status) = ended.status else {
        return Err(Ended(format!("it did not answer within {} seconds", PROBE_TIME.as_secs())).into());
    };
    if status.success() {
        return Ok(serde_json::from_str(&ended.output)?);
    }
    match ended.error() {
        Some(error) => bail!("{error}"),
        None => Err(Ended(format!("its process ended with {status}: {}", ended.last_line())).into()),
    }
}
