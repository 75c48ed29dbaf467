//! `-`: standard input and output in the place of files.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use tempfile::TempPath;

/// What stands for standard input or output.
const DASH: &str = "-";

/// What came from standard input, as a file: formats are recognised and read by their ends, too.
static INPUT: OnceLock<TempPath> = OnceLock::new();

/// Whether a path stands for standard input or output.
pub fn is_dash(path: &Path) -> bool {
    path.as_os_str() == DASH
}

/// The file to read: the path itself, or what comes from standard input.
///
/// # Errors
/// When it cannot be read, or is asked for twice.
pub fn input(path: &Path) -> Result<PathBuf> {
    if !is_dash(path) {
        return Ok(path.to_owned());
    }
    let (mut file, temporary) = tempfile::NamedTempFile::new()?.into_parts();
    std::io::copy(&mut std::io::stdin().lock(), &mut file).context("standard input cannot be read")?;
    let path = temporary.to_path_buf();
    if INPUT.set(temporary).is_err() {
        bail!("`-` can stand for standard input only once");
    }
    Ok(path)
}

/// Text in which what came from standard input is called so.
pub fn name_input(text: String) -> String {
    match INPUT.get().and_then(|path| path.to_str()) {
        Some(path) => text.replace(path, "standard input"),
        None => text,
    }
}

/// Removes what came from standard input: statics are not dropped.
pub fn clean_up() {
    if let Some(path) = INPUT.get() {
        // The system removes what is in its temporary directory sooner or later.
        let _ = std::fs::remove_file(path);
    }
}

/// Has `write` make a file, and passes it on to standard output if that was asked for.
///
/// # Errors
/// Those of `write`; when standard output cannot be written.
pub fn output<T>(path: &Path, write: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    if !is_dash(path) {
        return write(path);
    }
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("output");
    let written = write(&file)?;
    let mut content = Vec::new();
    std::fs::File::open(&file)?.read_to_end(&mut content)?;
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&content).and_then(|()| stdout.flush()).context("standard output cannot be written")?;
    Ok(written)
}
