//! Every exported program of the tests, compiled by the real compilers of TPUs and NVIDIA GPUs, of which none need be here.
//! Ignored unless asked for: the plugins (`tpu` and `cuda13-compiler`) take 1.6 GB.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};

use common::{data, safejax};
use safejax::Program;
use serde_json::Value;

/// What a program of one device is compiled for.
const ONE: [&str; 2] = ["v5e", "h100"];
/// What one of several is compiled for where the target has as many, and how many that is.
const SEVERAL: [(&str, usize); 3] = [("v5e:2x2", 4), ("v5e:2x4", 8), ("h100:8", 8)];

/// The targets that have the devices of a program.
fn targets_with(device_count: usize) -> Vec<&'static str> {
    if device_count == 1 {
        return ONE.to_vec();
    }
    if device_count > 8 {
        return vec!["v5e:8x8"];
    }
    SEVERAL.iter().filter(|(_, devices)| device_count <= *devices).map(|(target, _)| *target).collect()
}

/// What `compile --json` says of a program for each target.
fn compiled(program: &Path, targets: &[&str], options: &[&str]) -> Vec<Value> {
    let mut command = safejax();
    command.arg("compile").arg(program).arg("--json").args(options);
    targets.iter().for_each(|target| {
        command.args(["--for", target]);
    });
    let output = command.output().unwrap();
    let said: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}: {}", program.display(), String::from_utf8_lossy(&output.stderr)));
    said["targets"].as_array().unwrap().clone()
}

/// The exported programs of the tests' data, sorted.
fn programs() -> Vec<PathBuf> {
    let is_program = |path: &PathBuf| {
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        ["jaxexport", "bundle", "mlir", "stablehlo"].contains(&ending)
    };
    let mut found = Vec::new();
    let mut directories = vec![data("")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if is_program(&path) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The sizes at which a program is compiled: 4 of each dimension variable.
fn sizes(program: &Program) -> Option<String> {
    let exported = program.exported()?;
    if program.bundle().is_some() || !exported.has_symbolic_arguments() {
        return None;
    }
    let sizes: Vec<String> = exported.dimension_variables().iter().map(|name| format!("{name}=4")).collect();
    Some(sizes.join(","))
}

#[test]
#[ignore = "it needs the plugins tpu and cuda13-compiler"]
fn every_program_of_the_tests_compiles_for_a_tpu_and_a_gpu() {
    let programs = programs();
    assert!(programs.len() > 50, "{}", programs.len());
    let mut problems = Vec::new();
    for path in &programs {
        let program = Program::open(path).unwrap();
        let device_count = program.exported().map_or(1, |exported| exported.device_count);
        let is_sharded = device_count > 1;
        let mut options = vec!["--any-platform".to_owned()];
        options.extend(sizes(&program).map(|sizes| format!("--sizes={sizes}")));
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        for outcome in compiled(path, &targets_with(device_count), &options) {
            let target = outcome["target"].as_str().unwrap();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name == "decomposed.jaxexport" {
                // Neither has LAPACK.
                let error = outcome["error"].as_str().unwrap();
                assert!(error.contains("`lapack_sgeqrf_ffi` is called at geqrf, model.py:3"), "{error}");
                continue;
            }
            let needed = outcome["needed_bytes"].as_u64().unwrap_or(0);
            let has_layouts = outcome["outputs"].as_array().is_some_and(|outputs| {
                let has = |output: &Value| {
                    let is_scalar = output["type"].as_str().unwrap().ends_with("[]");
                    (is_scalar || output["layout"].is_string())
                        && (!is_sharded || output["sharding"].is_string())
                };
                !outputs.is_empty() && outputs.iter().all(has)
            });
            if outcome["compiles"] != true || outcome["fits"] != true || needed == 0 || !has_layouts {
                problems.push(format!("{name} for {target}: {outcome}"));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
#[ignore = "it needs the plugin tpu"]
fn the_numbers_are_those_of_jax() {
    let said: Value = serde_json::from_slice(&std::fs::read(data("ahead/numbers.json")).unwrap()).unwrap();
    let mut compared = 0;
    for (name, by_target) in said["cases"].as_object().unwrap() {
        let targets: Vec<&str> = by_target.as_object().unwrap().keys().map(String::as_str).collect();
        let path = data("ahead").join(format!("{name}.jaxexport"));
        for outcome in compiled(&path, &targets, &[]) {
            let expected = &by_target[outcome["target"].as_str().unwrap()];
            for bytes in ["argument_bytes", "output_bytes", "temp_bytes", "alias_bytes", "peak_bytes"] {
                assert_eq!(outcome["memory"][bytes], expected[bytes], "{name}: {bytes}: {outcome}");
            }
            for work in ["flops", "bytes"] {
                assert_eq!(outcome["cost"][work], expected[work], "{name}: {work}: {outcome}");
            }
            compared += 1;
        }
    }
    assert_eq!(compared, 19);
}

#[test]
#[ignore = "it needs the plugins tpu and cuda13-compiler"]
fn what_does_not_compile_says_why() {
    let mlp = data("ahead/mlp.jaxexport");
    let [slice] = &compiled(&mlp, &["v5e:3x5"], &[])[..] else { panic!("one target") };
    let error = slice["error"].as_str().unwrap();
    assert!(error.contains("the target `v5e:3x5` cannot be made: Topology layout"), "{error}");
    let [few] = &compiled(&data("ahead/sharded.jaxexport"), &["v5e"], &[])[..] else { panic!("one target") };
    let error = few["error"].as_str().unwrap();
    assert!(error.contains("runs on 4 devices, and the topology has 1; ask for as many: v5e:2x2"), "{error}");
    // libtpu would end the process.
    let [large] = &compiled(&mlp, &["v5e:100x100"], &[])[..] else { panic!("one target") };
    assert!(large["error"].as_str().unwrap().contains("the largest of v5e has 256"), "{large}");
    let only_cpu = data("exports/jax0120-mlp.jaxexport");
    let [other] = &compiled(&only_cpu, &["h100"], &[])[..] else { panic!("one target") };
    assert!(other["error"].as_str().unwrap().contains("--any-platform"));
}
