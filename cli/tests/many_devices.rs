//! `load --mesh` and `run` on several devices of the CPU plugin.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::path::PathBuf;

use common::{data, digits, fails, safejax, succeeds};
use serde_json::Value;

fn load(options: &[&str]) -> std::process::Command {
    let mut command = safejax();
    command.args(["load", "--plugin", "cpu"]).arg(digits("params.safetensors")).args(options);
    command
}

fn spmd(name: &str) -> PathBuf {
    data("spmd").join(name)
}

#[test]
fn a_mesh_is_explained_drawn_and_loaded_onto() {
    if !common::is_cpu() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (rules, svg) = (directory.path().join("rules.toml"), directory.path().join("picture.svg"));
    let text = "[[rule]]\nmatch = \"*Dense_0.kernel\"\nspec = \"P(None, 'model')\"\n\n[[rule]]\nmatch = \"*\"\nspec = \"P()\"\n";
    std::fs::write(&rules, text).unwrap();
    let with_rules = ["--mesh", "data=2,model=2", "--rules", rules.to_str().unwrap()];
    let explained = succeeds(load(&with_rules).arg("--explain").args(["--svg", svg.to_str().unwrap()]));
    for line in [
        "mesh data=2, model=2 on devices 0, 1, 2, 3",
        "params.Dense_0.kernel  float32[512,64]  P(None, 'model')",
        "  [0:512, 0:32]  on cpu:0, cpu:2",
        "  [0:512, 32:64] on cpu:1, cpu:3",
        "cpu:3: 87592 bytes",
    ] {
        assert!(explained.contains(&format!("{line}\n")), "{line}: {explained}");
    }
    let picture = std::fs::read_to_string(&svg).unwrap();
    assert!(picture.starts_with("<svg ") && picture.contains("params.Dense_0.kernel"), "{picture}");
    let json: Value =
        serde_json::from_str(&succeeds(load(&with_rules).args(["--explain", "--json"]))).unwrap();
    assert_eq!(json["bytes"], serde_json::json!([87592, 87592, 87592, 87592]));
    let loaded: Value = serde_json::from_str(&succeeds(load(&with_rules).arg("--json"))).unwrap();
    assert_eq!((&loaded["report"]["tensors"], &loaded["report"]["bytes"]), (&8.into(), &153128.into()));
    let grown = succeeds(&mut load(&[
        "--mesh",
        "x=2",
        "--devices",
        "4,5",
        "--rule",
        "*Dense_1.kernel = P(x)",
        "--svg",
        "-",
    ]));
    assert!(grown.starts_with("<svg ") && grown.contains("on devices 4, 5"), "{grown}");
    let chosen = succeeds(
        load(&["--mesh", "x=2", "--devices", "3,1", "--rule", "*Dense_1.kernel=P(x)"])
            .args(["--option", "cpu_device_count=4"]),
    );
    assert!(chosen.contains("onto x=2 on devices 3, 1 in"), "{chosen}");
}

#[test]
fn wrong_meshes_and_rules_are_told_of() {
    if !common::is_cpu() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let rules = directory.path().join("rules.toml");
    let usage = [
        &["--mesh", "data"][..],
        &["--mesh", "a=2,a=2"],
        &["--mesh", "a=2", "--rule", "x"],
        &["--rule", "*=P()"],
        &["--mesh", "a=2", "--device", "0"],
    ];
    for wrong in usage {
        assert_eq!(load(wrong).output().unwrap().status.code(), Some(2), "{wrong:?}");
    }
    let error = fails(&mut load(&["--mesh", "a=2", "--rule", "*.bias=P(a, a)"]));
    assert!(error.contains("names the axis `a` twice"), "{error}");
    let error = fails(&mut load(&["--mesh", "a=3", "--rule", "*Dense_1.bias=P(a)"]));
    assert!(error.contains("params.Dense_1.bias") && error.contains("would be cut into 3 parts"), "{error}");
    let error = fails(load(&["--mesh", "a=4", "--option", "cpu_device_count=2"]).args(["--rule", "*=P()"]));
    assert!(error.contains("the mesh a=4 is of 4 devices, and the client has 2"), "{error}");
    let error = fails(&mut load(&["--mesh", "a=2", "--devices", "0,-7"]));
    assert!(error.contains("there is no device -7; there are 0, 1"), "{error}");
    for (text, said) in [
        ("x", "is no file of rules"),
        ("rule = 1", "is no file of rules"),
        ("[[rule]]\nmatch = \"*\"\nspec = \"Q()\"", "the rule for `*`"),
    ] {
        std::fs::write(&rules, text).unwrap();
        let error = fails(&mut load(&["--mesh", "a=2", "--rules", rules.to_str().unwrap()]));
        assert!(error.contains(said) && error.contains("rules.toml"), "{error}");
    }
}

#[test]
fn a_function_of_several_devices_takes_and_gives_whole_arrays() {
    if !common::is_cpu() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    for case in
        ["jax0438-attention", "jax0102-attention", "jax0102gspmd-free", "jax0102-free", "jax0102-axes"]
    {
        let all = spmd(&format!("{case}.safetensors"));
        let file = |name: &str| directory.path().join(format!("{case}-{name}.safetensors"));
        let part = |prefix: &str, name: &str| {
            let include = format!("{prefix}*");
            succeeds(
                safejax()
                    .arg("convert")
                    .arg(&all)
                    .arg(file(name))
                    .args(["--include", &include, "--rename"])
                    .arg(format!("{prefix}=")),
            );
            file(name)
        };
        let mut command = safejax();
        command.args(["run", "--plugin", "cpu"]).arg(spmd(&format!("{case}.jaxexport")));
        if case.ends_with("attention") {
            command.arg("--arg").arg(format!("0={}", part("args.0.", "params").display()));
            let x = directory.path().join(format!("{case}.npy"));
            succeeds(safejax().arg("convert").arg(&all).arg(&x).args(["--include", "args.1"]));
            command.arg("--arg").arg(format!("1={}", x.display()));
        } else if case.ends_with("axes") {
            command.arg("--arg").arg(format!("0={}", part("args.0.", "params").display()));
        } else {
            for index in ["0", "1"] {
                let array = directory.path().join(format!("{case}-{index}.npy"));
                succeeds(
                    safejax()
                        .arg("convert")
                        .arg(&all)
                        .arg(&array)
                        .args(["--include", &format!("args.{index}")]),
                );
                command.arg("--arg").arg(format!("{index}={}", array.display()));
            }
        }
        let expected = part("out.", "out");
        let out = directory.path().join("out.safetensors");
        command.args([
            "--out",
            out.to_str().unwrap(),
            "--expect",
            expected.to_str().unwrap(),
            "--tolerance",
            "1e-5",
        ]);
        let text = succeeds(&mut command);
        assert!(text.contains("the outputs are as expected"), "{case}: {text}");
        assert!(out.exists());
    }
    let mut command = safejax();
    command.args(["run", "--plugin", "cpu"]).arg(spmd("jax0102-free.jaxexport"));
    let error = fails(command.args(["--device", "2"]));
    assert!(error.contains("name them with --devices"), "{error}");
    let mut command = safejax();
    command.args(["run", "--plugin", "cpu"]).arg(spmd("jax0102-free.jaxexport"));
    let error = fails(command.args(["--devices", "0,1"]));
    assert!(error.contains("the program runs on 4 devices, and there are 2 for it"), "{error}");
}

#[test]
fn what_devices_tell_each_other_is_shown() {
    let shown = succeeds(safejax().arg("inspect").arg(spmd("jax0102-collectives.jaxexport")));
    let written = "collectives written in it: all_gather, 2 all_reduce, all_to_all, collective_permute, reduce_scatter;";
    assert!(shown.contains(written), "{shown}");
    let gradients = spmd("jax0438-fsdp.jaxexport");
    let shown = succeeds(safejax().arg("inspect").arg(&gradients).args(["--plugin", "cpu"]));
    assert!(shown.contains("collectives written in it: none;"), "{shown}");
    assert!(shown.contains("donates args[0]['w'] to the output [1]['w']"), "{shown}");
    let compiled = succeeds(safejax().arg("compile").arg(&gradients).args(["--for", "cpu", "--json"]));
    let said: Value = serde_json::from_str(&compiled).unwrap();
    // The gradients of what all devices have a part of are summed up.
    assert!(said["targets"][0]["collectives"]["all_reduce"].as_u64() > Some(0), "{said}");
}
