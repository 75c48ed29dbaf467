//! The structs of `ffi.rs` against the real C header, compiled by the C compiler of this machine.
//!
//! The header is the one that the PyPI package `xla-cpu-pjrt` ships (C API 0.81). The test installs it
//! into the build directory on its first run.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use super::{API_LAYOUT, LAYOUTS, Layout};

/// Prints `struct field offset` for every field, and `struct = STRUCT_SIZE sizeof` for every struct.
fn c_program() -> String {
    let mut code = String::from("#include <stdio.h>\n#include \"pjrt_c_api.h\"\nint main(void) {\n");
    for Layout { name, fields, .. } in LAYOUTS.iter().chain([&API_LAYOUT]) {
        let _ =
            writeln!(code, "  printf(\"{name} = %zu %zu\\n\", (size_t){name}_STRUCT_SIZE, sizeof({name}));");
        for (field, _) in *fields {
            let field = c_field(name, field);
            let _ = writeln!(code, "  printf(\"{name} {field} %zu\\n\", offsetof({name}, {field}));");
        }
    }
    code + "  return 0;\n}\n"
}

/// Our name of a field as C has it: a keyword of Rust's has lost its underscore, and a union that C leaves
/// without a name is called by its first member.
fn c_field(name: &str, field: &str) -> String {
    match (name, field) {
        ("PJRT_NamedValue", "value") => "string_value".into(),
        ("PJRT_Buffer_MemoryLayout", "layout") => "tiled".into(),
        _ => field.trim_end_matches('_').into(),
    }
}

/// What the C program must print.
fn expected() -> String {
    let mut text = String::new();
    for Layout { name, struct_size, size, fields } in LAYOUTS.iter().chain([&API_LAYOUT]) {
        let _ = writeln!(text, "{name} = {struct_size} {size}");
        for (field, offset) in *fields {
            let _ = writeln!(text, "{name} {} {offset}", c_field(name, field));
        }
    }
    text
}

fn header_directory() -> PathBuf {
    let package = crate::plugins::test_packages::cpu_0_81();
    let library = crate::plugins::test_packages::installed(&package);
    library.with_file_name("include")
}

#[test]
fn every_struct_and_the_table_are_laid_out_as_the_c_header_has_them() {
    let directory = tempfile::tempdir().unwrap();
    let (source, program) = (directory.path().join("layout.c"), directory.path().join("layout"));
    std::fs::write(&source, c_program()).unwrap();
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let status = Command::new(compiler)
        .arg(format!("-I{}", header_directory().display()))
        .args([&source, &PathBuf::from("-o"), &program])
        .status()
        .expect("a C compiler is needed for this test, as it is for linking Rust");
    assert!(status.success());
    let output = Command::new(&program).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    for (line, expected) in printed.lines().zip(expected().lines()) {
        assert_eq!(line, expected);
    }
    assert_eq!(printed.lines().count(), expected().lines().count());
    assert!(LAYOUTS.len() > 90);
}
