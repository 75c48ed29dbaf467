//! What the integration tests share: a CPU client, the digits, files made to order, and the binary.

#![allow(dead_code)] // Every test binary uses a part of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use safejax::plugins::{Package, Wheel, install_into};
use safejax::{ArraySpec, Client, DType};

pub mod packages;

/// The CPU client that a test binary shares. Installs the plugin on the first run.
pub fn client() -> &'static Client {
    static CLIENT: LazyLock<Client> = LazyLock::new(|| Client::cpu().unwrap());
    &CLIENT
}

/// A file of examples/digits.
pub fn digits(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/digits").join(name)
}

/// A file of tests/data.
pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// The binary, to be given arguments.
pub fn safejax() -> Command {
    Command::new(env!("CARGO_BIN_EXE_safejax"))
}

/// A run of the binary that must succeed; returns what it printed.
#[track_caller]
pub fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// A run of the binary that must fail with exit code 1 and say so; returns its error.
#[track_caller]
pub fn fails(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{command:?}: {}", stderr(&output));
    let error = stderr(&output);
    assert!(error.contains("error: "), "{error}");
    assert!(!error.contains("panicked"), "{error}");
    error
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A safetensors file with this header and data, valid or not.
pub fn raw_file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A valid safetensors file of these tensors, as the official crate writes it. Their bytes count up.
pub fn official_file(tensors: &[(&str, DType, &[usize])]) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, dtype, shape)| counting(ArraySpec::new(*dtype, *shape).packed_bytes().unwrap()))
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, dtype, shape), bytes)| {
        let dtype = dtype.to_safetensors().unwrap();
        (*name, safetensors::tensor::TensorView::new(dtype, shape.to_vec(), bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

/// Bytes that count up; no element of them is a NaN of any type that matters, or a bool but 0 and 1.
pub fn counting(count: usize) -> Vec<u8> {
    (0..count).map(|index| (index % 2) as u8).collect()
}
