//! For the feature `xla`: links the xla_extension that the `xla` crate builds against.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_XLA").is_some() {
        link_xla_extension();
    }
}

/// The variable that says where the xla_extension is, by the `xla` crate's own build script.
const XLA_EXTENSION: &str = "XLA_EXTENSION_DIR";

/// Has the binaries of this package find the library at run time, which the crate's own build
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
