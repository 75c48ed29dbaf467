//! A real plugin that refuses now and then: nothing hangs, nothing is freed too early, and errors say what was refused.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{client, digits, is_skipped};
use safejax::load::{Delivery, Staging};
use safejax::{Client, HostArray, LoadOptions, Params};

/// The environment variable that has a process of these tests use the plugin at this path.
const PLUGIN: &str = "FAULTY_PLUGIN";

/// A plugin that is the tested one but for the faults that the environment's FAULT names.
fn build(directory: &Path) -> PathBuf {
    let header = common::packages::installed(&common::packages::cpu_0_81()).with_file_name("include");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/faulty.c");
    let library = directory.join("faulty.so");
    let plugin = format!("-DPLUGIN=\"{}\"", client().plugin().path().display());
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let mut command = Command::new(compiler);
    command.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(format!("-I{}", header.display()));
    assert!(command.arg(plugin).arg(source).arg("-ldl").status().unwrap().success());
    library
}

/// Runs a test of this binary in a process of its own, on a plugin with these faults; it must end.
fn with_faults(fault: &str, test: &str) {
    if is_skipped(common::Only::Cpu, "the plugin that is wrapped is the CPU's") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let library = build(directory.path());
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]);
    command.env(PLUGIN, library).env("FAULT", fault).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("with {fault}, it hangs: {}", common::stderr(&child.wait_with_output().unwrap()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "with {fault}: {}", common::stderr(&output));
}

#[test]
#[ignore = "run by the tests below, in a process of its own"]
fn child_loads_calls_and_saves() {
    let client = Client::from_plugin(std::env::var_os(PLUGIN).unwrap()).unwrap();
    let original = std::fs::read(digits("params.safetensors")).unwrap();
    for delivery in [Delivery::Auto, Delivery::Stream, Delivery::Whole] {
        // A ring that is smaller than the file, so that chunks have to come back.
        let options = LoadOptions::default().delivery(delivery).staging(Staging::new(2, 64 << 10));
        for _ in 0..3 {
            let (params, _) = Params::load_with(&client, digits("params.safetensors"), &options).unwrap();
            params.wait().unwrap();
            let saved = safejax::serialize(&params).unwrap();
            let (saved, original) = (
                safetensors::SafeTensors::deserialize(&saved).unwrap(),
                safetensors::SafeTensors::deserialize(&original).unwrap(),
            );
            for (name, view) in original.tensors() {
                assert_eq!(saved.tensor(&name).unwrap(), view);
            }
            let forward =
                client.compile(&safejax::Program::open(digits("forward.stablehlo")).unwrap()).unwrap();
            let images = safejax::format::npy::read(digits("images.npy"), None).unwrap();
            let logits = forward.call(&[&params, &images]).unwrap();
            logits.single().unwrap().start_to_host().unwrap().wait().unwrap();
            drop(logits.single().unwrap().start_to_host().unwrap());
        }
    }
}

#[test]
#[ignore = "run by the test below, in a process of its own"]
fn child_awaits_a_copy_that_never_says_when_it_ends() {
    let client = Client::from_plugin(std::env::var_os(PLUGIN).unwrap()).unwrap();
    // So large that its memory leaves the process when it is freed: what is written there later ends the process.
    let array = HostArray::from_slice(&[64 << 20], &vec![7u8; 64 << 20]).unwrap();
    let buffer = client.put(&array).unwrap();
    for _ in 0..2 {
        common::block_on(buffer.start_to_host().unwrap().into_future()).unwrap_err();
        buffer.start_to_host().unwrap().wait().unwrap_err();
        drop(buffer.start_to_host().unwrap());
        drop(buffer.start_to_host().unwrap().into_future());
    }
    std::thread::sleep(Duration::from_millis(500));
}

#[test]
fn memory_stays_where_a_plugin_will_not_say_that_it_is_done_with_it() {
    with_faults("on_ready await never_says writes_late", "child_awaits_a_copy_that_never_says_when_it_ends");
}

#[test]
fn a_plugin_without_faults_is_the_one_behind_it() {
    with_faults("none", "child_loads_calls_and_saves");
}

#[test]
fn a_load_ends_where_a_plugin_takes_no_callbacks() {
    with_faults("on_ready", "child_loads_calls_and_saves");
}

#[test]
fn work_is_over_when_it_is_and_not_when_a_plugin_does_not_wait_for_it() {
    with_faults("await", "child_loads_calls_and_saves");
    with_faults("await on_ready", "child_loads_calls_and_saves");
}
