//! The command line as a person and as a script see it.

#[path = "../../tests/common/mod.rs"]
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
        let halves: Vec<half::bf16> = bytemuck::pod_collect_to_vec(&new.bytes(&tensor.name).unwrap());
        let floats: Vec<f32> = bytemuck::pod_collect_to_vec(&old.bytes(&tensor.name).unwrap());
        let rounded: Vec<half::bf16> = floats.into_iter().map(half::bf16::from_f32).collect();
        assert!(halves == rounded, "{}", tensor.name);
    }
}

#[test]
fn diff_finds_what_was_changed_and_says_so_by_its_exit_code() {
    let directory = tempfile::tempdir().unwrap();
    let half = directory.path().join("half.safetensors");
    let back = directory.path().join("back.safetensors");
    succeeds(
        safejax()
            .arg("convert")
            .arg(digits("params.safetensors"))
            .arg(&half)
            .args(["--dtype", "*kernel=bf16"]),
    );
    succeeds(safejax().arg("convert").args([&half, &back]).args(["--dtype", "f32", "--digests"]));
    let differ = |other: &std::path::Path, options: &[&str]| {
        let output = safejax()
            .arg("diff")
            .arg(digits("params.safetensors"))
            .arg(other)
            .args(options)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = differ(&half, &[]);
    assert_eq!(code, Some(1));
    assert!(
        text.contains(
            "params.Conv_0.kernel: float32[3,3,1,16] in the first, bfloat16[3,3,1,16] in the second"
        ),
        "{text}"
    );
    assert!(text.contains("4 tensors are equal"), "{text}");
    let (code, text) = differ(&back, &[]);
    assert_eq!(code, Some(1));
    assert!(
        text.contains("params.Dense_0.kernel: ") && text.contains("elements differ, by at most"),
        "{text}"
    );
    assert_eq!(differ(&back, &["--tolerance", "0.01"]).0, Some(0));
    let same = digits("params.safetensors");
    assert_eq!(differ(&same, &[]), (Some(0), "8 tensors are equal\n".to_owned()));
}

#[test]
fn verify_checks_digests_and_numbers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.safetensors");
    succeeds(safejax().arg("convert").arg(digits("params.safetensors")).arg(&path).arg("--digests"));
    let printed = succeeds(safejax().arg("verify").arg(&path).args(["--finite", "--hash"]));
    assert!(printed.contains("8 digests; no problems"), "{printed}");
    assert!(printed.contains("  params.Dense_0.kernel\n"), "{printed}");
    // A NaN where a number was.
    let tensor = Checkpoint::open(&path).unwrap().tensor("params.Dense_1.bias").unwrap().clone();
    let mut file = std::fs::read(&path).unwrap();
    file[tensor.extents()[0].range.start..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, file).unwrap();
    let output = safejax().arg("verify").arg(&path).arg("--finite").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.contains("`params.Dense_1.bias` is not what was written"), "{printed}");
    assert!(printed.contains("`params.Dense_1.bias` has 1 NaN"), "{printed}");
    assert!(common::fails(safejax().arg("load").arg(&path).arg("--verify")).contains("params.Dense_1.bias"));
}

#[test]
fn files_go_from_format_to_format_and_back() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let convert =
        |from: &std::path::Path, to: &std::path::Path| succeeds(safejax().arg("convert").args([from, to]));
    let original = digits("params.safetensors");
    for name in ["a.msgpack", "a.npz"] {
        convert(&original, &file(name));
        let back = file(name).with_extension("back.safetensors");
        convert(&file(name), &back);
        succeeds(safejax().arg("diff").args([&original, &back]));
        succeeds(safejax().arg("diff").args([&file(name), &original]));
        assert!(succeeds(safejax().arg("inspect").arg(file(name))).contains("38,282 parameters"));
    }
    convert(&original, &file("a.json"));
    let json: Value = serde_json::from_str(&std::fs::read_to_string(file("a.json")).unwrap()).unwrap();
    assert_eq!(json["leaves"]["params.Conv_0.bias"]["shape"], serde_json::json!([16]));
    succeeds(
        safejax().arg("convert").arg(&original).arg(file("one.npy")).args(["--include", "*Conv_0.bias"]),
    );
    let error = common::fails(safejax().arg("convert").args([&original, &file("many.npy")]));
    assert!(error.contains("an .npy file holds one array"), "{error}");
    // Chosen and renamed, from any format.
    for from in ["a.msgpack", "a.npz"] {
        let mut command = safejax();
        command.arg("convert").arg(file(from)).arg(file("some.safetensors"));
        succeeds(command.args(["--include", "*.bias", "--exclude", "*Dense*", "--rename", "params.=model."]));
        let names: Vec<String> = Checkpoint::open(file("some.safetensors"))
            .unwrap()
            .tensors()
            .iter()
            .map(|t| t.name.clone())
            .collect();
        assert_eq!(names, ["model.Conv_0.bias", "model.Conv_1.bias"], "{from}");
    }
    // The hub's way: several files and an index of them.
    for (part, pattern) in
        [("flax_model-00001-of-00002.msgpack", "*Conv*"), ("flax_model-00002-of-00002.msgpack", "*Dense*")]
    {
        succeeds(safejax().arg("convert").arg(&original).arg(file(part)).args(["--include", pattern]));
    }
    let index = serde_json::json!({"metadata": {"total_size": 153128}, "weight_map": {
        "params/Conv_0/bias": "flax_model-00001-of-00002.msgpack",
        "params/Dense_1/bias": "flax_model-00002-of-00002.msgpack",
    }});
    let index_path = file("flax_model.msgpack.index.json");
    std::fs::write(&index_path, format!("{index:#}")).unwrap();
    succeeds(safejax().arg("diff").args([&index_path, &original]));
    std::fs::write(&index_path, index.to_string().replace("flax_model-00002", "../flax_model-00002"))
        .unwrap();
    let error = common::fails(safejax().arg("inspect").arg(&index_path));
    assert!(error.contains("is not the name of a file beside it"), "{error}");
    // Renamed, and a file of a name without a known ending.
    succeeds(
        safejax()
            .arg("convert")
            .arg(&original)
            .arg(file("r.safetensors"))
            .args(["--rename", "params.=model."]),
    );
    assert!(Checkpoint::open(file("r.safetensors")).unwrap().tensor("model.Conv_0.bias").is_ok());
}

#[test]
fn what_a_pickle_shares_is_whole_wherever_it_stands() {
    let directory = tempfile::tempdir().unwrap();
    let flat = directory.path().join("flat.safetensors");
    for protocol in [2, 4, 5] {
        let pickle = common::data(&format!("shared.pickle{protocol}"));
        succeeds(safejax().arg("convert").args([&pickle, &flat]));
        let (ours, theirs) =
            (Checkpoint::open(&flat).unwrap(), Checkpoint::open(common::data("shared.safetensors")).unwrap());
        assert_eq!(ours.tensors().len(), theirs.tensors().len());
        for tensor in theirs.tensors() {
            assert_eq!(ours.tensor(&tensor.name).unwrap().spec, tensor.spec);
            assert_eq!(
                ours.bytes(&tensor.name).unwrap(),
                theirs.bytes(&tensor.name).unwrap(),
                "{}",
                tensor.name
            );
        }
    }
}

#[test]
fn convert_writes_no_new_digests_over_a_changed_byte() {
    let directory = tempfile::tempdir().unwrap();
    let (file, out) = (directory.path().join("a.safetensors"), directory.path().join("out.safetensors"));
    succeeds(safejax().arg("convert").arg(digits("params.safetensors")).arg(&file).arg("--digests"));
    succeeds(safejax().arg("convert").args([&file, &out]).arg("--digests"));
    let range =
        Checkpoint::open(&file).unwrap().tensor("params.Dense_0.kernel").unwrap().extents()[0].range.clone();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[range.end - 1] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let before = std::fs::read(&out).unwrap();
    for arguments in [&["--digests"][..], &[], &["--rename", "params.=model."], &["--dtype", "bf16"]] {
        let error = common::fails(safejax().arg("convert").args([&file, &out]).args(arguments));
        assert!(error.contains("Dense_0.kernel`") && error.contains("was recorded"), "{error}");
        assert_eq!(std::fs::read(&out).unwrap(), before);
    }
    let npz = directory.path().join("a.npz");
    assert!(common::fails(safejax().arg("convert").args([&file, &npz])).contains("was recorded"));
    // What is not converted is not read.
    succeeds(safejax().arg("convert").args([&file, &out]).args(["--exclude", "*Dense_0.kernel"]));
}

#[test]
fn diff_checks_a_cast_within_a_tolerance_and_no_infinity_is_near() {
    let directory = tempfile::tempdir().unwrap();
    let (half, odd) = (directory.path().join("half.safetensors"), directory.path().join("odd.safetensors"));
    succeeds(safejax().arg("convert").arg(digits("params.safetensors")).arg(&half).args(["--dtype", "bf16"]));
    let diff = |second: &std::path::Path, arguments: &[&str]| {
        let output =
            safejax().arg("diff").arg(digits("params.safetensors")).arg(second).args(arguments).output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(diff(&half, &["--tolerance", "0.01"]), (Some(0), "8 tensors are equal\n".into()));
    assert!(diff(&half, &[]).1.contains("float32[16] in the first, bfloat16[16] in the second"));
    assert_eq!(diff(&half, &["--tolerance", "0.00001"]).0, Some(1));
    assert_eq!(diff(&half, &["--tolerance", "-1"]).0, Some(2));
    let mut bytes = std::fs::read(digits("params.safetensors")).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    std::fs::write(&odd, bytes).unwrap();
    let (code, printed) = diff(&odd, &["--tolerance", "1e30"]);
    assert_eq!(code, Some(1));
    assert!(printed.contains("; 1 where one is infinite or NaN"), "{printed}");
}

#[test]
fn a_selection_of_nothing_leaves_the_target_alone() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("a.safetensors");
    std::fs::copy(digits("params.safetensors"), &target).unwrap();
    let msgpack = directory.path().join("a.msgpack");
    succeeds(safejax().arg("convert").args([&target, &msgpack]));
    let before = std::fs::read(&target).unwrap();
    for source in [&digits("params.safetensors"), &msgpack] {
        for wrong in [
            ["--include", "parms.*"],
            ["--exclude", "*.kernl"],
            ["--rename", "parms.=foo."],
            ["--dtype", "*.kernl=bf16"],
        ] {
            let error = common::fails(safejax().arg("convert").arg(source).arg(&target).args(wrong));
            assert!(
                error.contains("there is no tensor whose name") && error.contains("did you mean"),
                "{error}"
            );
            assert_eq!(std::fs::read(&target).unwrap(), before);
        }
    }
    for wrong in [["--threads", "0"], ["--staging", "0x0"], ["--staging", "1x8"]] {
        let output = safejax().arg("load").arg(&target).args(wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn names_that_make_no_tree_are_listed_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.safetensors");
    std::fs::write(&path, common::official_file(&[("w", DType::U8, &[2]), ("w.absmax", DType::F32, &[1])]))
        .unwrap();
    let printed = succeeds(safejax().arg("inspect").arg(&path));
    assert!(
        printed.contains("names as flat has them") && printed.contains("w.absmax  float32[1]  4 B"),
        "{printed}"
    );
    let printed = succeeds(safejax().args(["inspect", "--framework", "plain"]).arg(&path));
    assert!(printed.contains("no tree: ") && printed.contains("w.absmax  float32[1]  4 B"), "{printed}");
    // Nor is that a reason for other commands to refuse them.
    let copy = directory.path().join("b.safetensors");
    succeeds(safejax().arg("convert").args([&path, &copy]));
    succeeds(safejax().arg("diff").args([&path, &copy]));
    succeeds(safejax().arg("load").arg(&copy));
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
        common::binary().display(),
        digits("params.safetensors").display()
    );
    let output = std::process::Command::new("sh").args(["-c", &command]).output().unwrap();
    assert!(output.status.success());
    assert_eq!(common::stderr(&output), "");
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let wrong = [
        &["no-such-command"][..],
        &["inspect"],
        &["convert", "a", "b", "--dtype", "float23"],
        &["convert", "a", "b.npz", "--max-shard-size", "1GB"],
        &["convert", "a", "b.npz", "--digests"],
        &["convert", "a", "-"],
    ];
    for arguments in wrong {
        assert_eq!(safejax().args(arguments).output().unwrap().status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_dash_is_standard_input_and_output() {
    use std::io::Write;
    use std::process::Stdio;
    let piped = |arguments: &[&str], input: &[u8]| {
        let mut command = safejax();
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A command that is called wrongly ends before it reads.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    };
    let params = std::fs::read(digits("params.safetensors")).unwrap();
    let inspected = piped(&["inspect", "-"], &params).stdout;
    assert!(String::from_utf8(inspected).unwrap().starts_with("standard input: 38,282 parameters"));
    let converted = piped(&["convert", "-", "-", "--to", "npz"], &params);
    assert!(converted.status.success() && converted.stdout.starts_with(b"PK"));
    let back = piped(&["convert", "-", "-", "--to", "safetensors"], &converted.stdout).stdout;
    assert_eq!(Checkpoint::from_bytes(back).unwrap().tensors().len(), 8);
    let same = piped(&["diff", "-", digits("params.safetensors").to_str().unwrap()], &params);
    assert!(same.status.success());
    let error = piped(&["verify", "-"], b"junk");
    assert!(common::stderr(&error).contains("standard input is not a valid safetensors file"));
    let error = piped(&["diff", "-", "-"], &params);
    assert!(common::stderr(&error).contains("only once"));
    let error = piped(&["convert", "-", "-"], &params);
    assert!(common::stderr(&error).contains("--to"));
}

#[test]
fn shells_and_man_get_what_they_read() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(succeeds(safejax().args(["completions", shell])).contains("inspect"), "{shell}");
    }
    let page = succeeds(safejax().arg("man"));
    assert!(page.contains(".TH") && page.contains("safejax convert"), "{page}");
}
