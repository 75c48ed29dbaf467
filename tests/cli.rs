//! The command line as a person and as a script see it.

mod common;

use common::{digits, safejax, succeeds};
use safejax::{Checkpoint, DType};
use serde_json::Value;

#[test]
fn inspect_draws_the_tree_and_loads_no_plugin() {
    let printed = succeeds(
        safejax()
            .current_dir(digits(""))
            .args(["inspect", "params.safetensors"])
            .env("SAFEJAX_PLUGIN", "/nonexistent/would/fail.so"),
    );
    insta::assert_snapshot!(printed);
}

#[test]
fn every_command_has_json() {
    let json = |arguments: &[&str]| -> Value {
        let printed = succeeds(safejax().current_dir(digits("")).args(arguments).arg("--json"));
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{arguments:?}: {error}\n{printed}"))
    };
    let inspected = json(&["inspect", "params.safetensors"]);
    assert_eq!(inspected["tensors"].as_array().unwrap().len(), 8);
    assert_eq!(json(&["inspect", "forward.stablehlo"])["format"], "mlir");
    let devices = json(&["devices", "--plugin", "cpu"]);
    assert_eq!(devices["platform"], "cpu");
    assert_eq!(devices["devices"][0]["memories"][0]["kind"], "device");
    let report = json(&["load", "params.safetensors", "--device", "cpu:1"]);
    assert_eq!(report["device"], "cpu:1");
    assert_eq!(report["report"]["bytes"], 153128);
    assert!(json(&["plugin", "list"])["packages"].as_array().unwrap().len() >= 5);
    assert_eq!(json(&["plugin", "path", "cpu"])["name"], "cpu");
    assert!(json(&["doctor"])["client"]["devices"].is_array());
}

#[test]
fn convert_aligns_and_casts_and_can_write_over_its_input() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("params.safetensors");
    std::fs::copy(digits("params.safetensors"), &path).unwrap();
    let printed = succeeds(safejax().arg("convert").args([&path, &path]).args(["--dtype", "bf16"]));
    assert!(printed.contains("8 tensors") && printed.contains("8 cast"), "{printed}");
    let (new, old) =
        (Checkpoint::open(&path).unwrap(), Checkpoint::open(digits("params.safetensors")).unwrap());
    assert_eq!(new.data_start() % 64, 0);
    for tensor in new.tensors() {
        assert_eq!(tensor.spec.dtype, DType::BF16);
        let halves: Vec<half::bf16> = bytemuck::pod_collect_to_vec(&new.bytes(tensor));
        let floats: Vec<f32> = bytemuck::pod_collect_to_vec(&old.bytes(old.tensor(&tensor.name).unwrap()));
        let rounded: Vec<half::bf16> = floats.into_iter().map(half::bf16::from_f32).collect();
        assert!(halves == rounded, "{}", tensor.name);
    }
}

#[test]
fn the_version_says_what_was_built() {
    let printed = succeeds(safejax().arg("--version"));
    assert!(printed.starts_with(concat!("safejax ", env!("CARGO_PKG_VERSION"), " (")), "{printed}");
}

#[test]
fn a_reader_that_stops_early_is_not_an_error() {
    let command = format!(
        "{} inspect {} | head -n 1",
        env!("CARGO_BIN_EXE_safejax"),
        digits("params.safetensors").display()
    );
    let output = std::process::Command::new("sh").args(["-c", &command]).output().unwrap();
    assert!(output.status.success());
    assert_eq!(common::stderr(&output), "");
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for arguments in [&["no-such-command"][..], &["inspect"], &["convert", "a", "b", "--dtype", "float23"]] {
        assert_eq!(safejax().args(arguments).output().unwrap().status.code(), Some(2), "{arguments:?}");
    }
}
