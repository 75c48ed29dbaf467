//! Where installed plugins and other things worth keeping live.

use std::path::PathBuf;

use crate::error::{Error, Result};

/// The directory of everything that safejax keeps: `$SAFEJAX_HOME`, or `safejax` in the user's cache
/// directory (`$XDG_CACHE_HOME`, `~/Library/Caches` on macOS, else `~/.cache`).
///
/// # Errors
/// [`Error::InvalidArgument`] when none of the variables is set.
pub fn home_dir() -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(home) = variable("SAFEJAX_HOME") {
        return Ok(home);
    }
    if let Some(cache) = variable("XDG_CACHE_HOME") {
        return Ok(cache.join("safejax"));
    }
    let caches = if cfg!(target_os = "macos") { "Library/Caches/safejax" } else { ".cache/safejax" };
    variable("HOME").map(|home| home.join(caches)).ok_or_else(|| {
        Error::InvalidArgument(
            "there is no cache directory: set SAFEJAX_HOME to a directory of your choice".into(),
        )
    })
}

/// The directory of installed plugins, `plugins` in [`home_dir`].
///
/// # Errors
/// As for [`home_dir`].
pub fn install_dir() -> Result<PathBuf> {
    Ok(home_dir()?.join("plugins"))
}
