//! Records what `--version` and bug reports say of this build: the target, the compiler and the commit.

use std::process::Command;

fn main() {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    println!("cargo::rustc-env=SAFEJAX_TARGET={}", variable("TARGET"));
    println!("cargo::rustc-env=SAFEJAX_PROFILE={}", variable("PROFILE"));
    println!(
        "cargo::rustc-env=SAFEJAX_RUSTC={}",
        first_line(Command::new(variable("RUSTC")).arg("--version"))
    );
    println!("cargo::rustc-env=SAFEJAX_COMMIT={}", commit());
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_XLA").is_some() {
        link_xla_extension();
    }
    // Grows with every commit.
    const REFLOG: &str = ".git/logs/HEAD";
    if std::path::Path::new(REFLOG).exists() {
        println!("cargo::rerun-if-changed={REFLOG}");
    }
}

/// The variable that says where the xla_extension is, by the `xla` crate's own build script.
const XLA_EXTENSION: &str = "XLA_EXTENSION_DIR";

/// For the feature `xla`: has the binaries of this package find the library at run time, which the crate's own build
/// script does only for its own. Stops the build with what to do where there is none.
fn link_xla_extension() {
    println!("cargo::rerun-if-env-changed={XLA_EXTENSION}");
    println!("cargo::rerun-if-env-changed=DOCS_RS");
    if std::env::var_os("DOCS_RS").is_some() {
        return; // Types are checked; nothing is linked.
    }
    let given = std::env::var_os(XLA_EXTENSION).map(std::path::PathBuf::from);
    match &given {
        Some(directory) if directory.join("lib").is_dir() && directory.join("include/xla").is_dir() => {
            println!("cargo::rustc-link-arg=-Wl,-rpath,{}", directory.join("lib").display());
        }
        other => {
            let found = other.as_ref().map_or("is not set".to_owned(), |directory| {
                format!("is {}, which has no lib and include/xla", directory.display())
            });
            println!(
                "cargo::error=the feature `xla` builds against an xla_extension, and {XLA_EXTENSION} {found}. Two ways \
                 to get one: `export {XLA_EXTENSION}=$(scripts/xla_extension.sh)` makes one for the CPU from packages \
                 (Debian x86_64); or unpack a released archive that the xla crate's README names, for CPU, CUDA or TPU, \
                 and set the variable to its absolute path. See docs/xla-rs.md. (DOCS_RS=1 checks types without one.)"
            );
            std::process::exit(1);
        }
    }
}

/// The commit that is built, from a checkout; empty from a package.
fn commit() -> String {
    if !std::path::Path::new(".git").exists() {
        return String::new();
    }
    first_line(Command::new("git").args(["rev-parse", "--short=12", "HEAD"]))
}

/// What a command prints first; empty if it does not run.
fn first_line(command: &mut Command) -> String {
    let output = command.output().ok().filter(|output| output.status.success());
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}
