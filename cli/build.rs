//! Records what `--version` and bug reports say of this build: the target, the compiler and the commit.

use std::path::Path;
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
    // Grows with every commit.
    const REFLOG: &str = "../.git/logs/HEAD";
    if Path::new(REFLOG).exists() {
        println!("cargo::rerun-if-changed={REFLOG}");
    }
}

/// The commit that is built, from a checkout; empty from a package.
fn commit() -> String {
    if !Path::new("../.git").exists() {
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
