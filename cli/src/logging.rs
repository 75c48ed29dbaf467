//! What the library tells `tracing`, on stderr.

use std::io::IsTerminal;

/// Prints what happens on stderr: what is worrying, with `verbose` 1 what was chosen and why, from 2 every step. The
/// variable `SAFEJAX_LOG` says it more finely.
pub fn log_to_stderr(verbose: u8) {
    use tracing_subscriber::EnvFilter;
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let chosen = EnvFilter::try_from_env("SAFEJAX_LOG").ok();
    // Which module it is matters to those who look into it.
    let has_modules = verbose > 0 || chosen.is_some();
    let filter = chosen.unwrap_or_else(|| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(has_modules)
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
