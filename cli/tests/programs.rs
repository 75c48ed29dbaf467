//! Programs in every format, on a real plugin, through the library and through `safejax run`.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::process::Command;

use common::{client, data, digits, fails, on_device, safejax, succeeds, tolerance};
use safejax::format::npy;
use safejax::pjrt::ProgramFormat;
use safejax::{Buffer, Client, Error, ErrorCode, HostArray, HostSemantics, Params, Placement, Program};

fn upload(client: &Client, array: &HostArray) -> Buffer {
    let to = Placement::from(&client.device(0).unwrap());
    client.buffer_from_host(array.spec(), array.bytes().clone(), &to, HostSemantics::Copy).unwrap()
}

fn array(shape: &[usize], values: &[f32]) -> HostArray {
    HostArray::from_slice(shape, values).unwrap()
}

/// `safejax run` of the digits' forward pass on its params and images.
fn run_digits() -> Command {
    let mut command = safejax();
    command.arg("run").arg(digits("forward.stablehlo"));
    command.arg("--arg").arg(format!("0={}", digits("params.safetensors").display()));
    command.arg("--arg").arg(format!("1={}", digits("images.npy").display()));
    command
}

#[test]
fn every_format_computes_the_same() {
    let w = upload(client(), &array(&[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
    let x = upload(client(), &array(&[4, 3], &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]));
    let b = upload(client(), &array(&[2], &[0.5, -0.5]));
    for (file, format) in [
        ("affine.mlir", ProgramFormat::Mlir),
        ("affine.stablehlo", ProgramFormat::Mlir),
        ("affine.hlo.pb", ProgramFormat::Hlo),
    ] {
        let program = Program::open(data(file)).unwrap();
        assert_eq!(program.format(), format, "{file}");
        let function = client().compile(&program).unwrap();
        let signature = function.signature().unwrap();
        let expected: Vec<String> = signature.parameters.iter().map(|p| p.aval.to_string()).collect();
        assert_eq!(expected, ["float32[3,2]", "float32[4,3]", "float32[2]"], "{file}");
        // JAX sorts the keys of a dictionary: norm, then y.
        let outputs = function.call(&[&w, &x, &b]).unwrap();
        let [norm, y] = &outputs[..] else { panic!("{file}: {outputs:?}") };
        let norm = norm.to_vec::<f32>().unwrap();
        assert!((norm[0] - 6f32.sqrt()).abs() < 1e-6, "{file}: {norm:?}");
        assert_eq!(y.to_vec::<f32>().unwrap(), [1.5, 1.5, 3.5, 3.5, 5.5, 5.5, 9.5, 11.5], "{file}");
    }
}

#[test]
fn a_tree_followed_by_an_input_gives_jaxs_logits() {
    let params = Params::load(client(), digits("params.safetensors")).unwrap();
    let forward = client().compile(&Program::open(digits("forward.stablehlo")).unwrap()).unwrap();
    let images = upload(client(), &npy::read(digits("images.npy"), None).unwrap());
    let logits = forward.call(&[&params, &images]).unwrap().single().unwrap().to_vec::<f32>().unwrap();
    let expected = npy::read(digits("logits.npy"), None).unwrap().to_vec::<f32>().unwrap();
    let difference = logits.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference <= tolerance(), "{difference}");
}

#[test]
fn arguments_that_do_not_fit_are_listed_by_name_before_anything_runs() {
    let params = Params::load(client(), digits("params.safetensors")).unwrap();
    let forward = client().compile(&Program::open(digits("forward.stablehlo")).unwrap()).unwrap();
    let wrong = upload(client(), &HostArray::from_slice(&[360, 8], &[0i32; 360 * 8]).unwrap());
    let error = forward.call(&[&params, &wrong]).unwrap_err();
    assert!(matches!(&error, Error::Arguments { problems, .. } if problems.len() == 1));
    insta::assert_snapshot!(error.to_string(), @r"
    the arguments do not fit `jit_forward`:
      argument 8: float32[360,8,8] was expected, but int32[360,8] was given
    ");
    let dense = params.subtree("params.Dense_1").unwrap();
    let error = forward.call(&[&dense]).unwrap_err().to_string();
    assert!(
        error.contains("argument 0 (`bias`): float32[16] was expected, but float32[10] was given"),
        "{error}"
    );
    assert!(error.contains("argument 8: float32[360,8,8] was expected, but nothing was given"), "{error}");
}

#[test]
fn a_program_that_does_not_parse_is_an_error_of_the_compiler() {
    let program = Program::from_bytes(&b"module @broken { nonsense }"[..]).unwrap();
    let error = client().compile(&program).unwrap_err().to_string();
    assert!(error.contains("PJRT_Client_Compile failed: the program in memory"), "{error}");
    let mut artifact = std::fs::read(data("affine.stablehlo")).unwrap();
    for length in [10, artifact.len() / 2, artifact.len() - 1] {
        let program = Program::from_bytes(artifact[..length].to_vec()).unwrap();
        assert!(client().compile(&program).is_err(), "cut to {length} bytes");
    }
    let middle = artifact.len() / 2;
    artifact[middle..].fill(0xff);
    assert!(client().compile(&Program::from_bytes(artifact).unwrap()).is_err());
}

#[test]
fn a_custom_call_that_the_plugin_lacks_is_named() {
    let program = Program::from_bytes(
        &br#"module @cholesky {
  func.func public @main(%x: tensor<2x2xf32>) -> tensor<2x2xf32> {
    %0 = stablehlo.custom_call @no_such_custom_call(%x) {api_version = 4 : i32, backend_config = {}} : (tensor<2x2xf32>) -> tensor<2x2xf32>
    return %0 : tensor<2x2xf32>
  }
}
"#[..],
    )
    .unwrap();
    let error = client().compile(&program).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NotFound), "{error}");
    assert!(error.to_string().contains("no_such_custom_call"), "{error}");
}

#[test]
fn a_part_of_a_checkpoint_is_an_argument() {
    let (params, images) = (digits("params.safetensors"), digits("images.npy"));
    let run = |part: String| {
        let mut command = safejax();
        command.arg("run").arg(digits("forward.jaxexport")).args(on_device());
        command.args(["--arg", &part, "--arg", &format!("1={}", images.display())]);
        command.arg("--expect").arg(digits("logits.npy")).args(["--tolerance", &tolerance().to_string()]);
        command
    };
    succeeds(&mut run(format!("0.params={}#params", params.display())));
    // What is below the name is one level too high for the function.
    let error = fails(&mut run(format!("0={}#params", params.display())));
    assert!(error.contains("the function looks for its leaves below `params`"), "{error}");
    let error = fails(&mut run(format!("0.params={}#parms", params.display())));
    assert!(error.contains("parms.*") && error.contains("did you mean"), "{error}");
    // Two trees of one shape: the params are meant, and the other is named.
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state.safetensors");
    let whole = Params::load(client(), &params).unwrap();
    let both = whole.iter().flat_map(|(name, array)| {
        [(name.to_owned(), array.clone()), (format!("moments.{name}"), array.clone())]
    });
    Params::from_arrays(both).unwrap().save(&state).unwrap();
    succeeds(&mut run(format!("0={}#moments", state.display())));
}

#[test]
fn run_takes_files_and_writes_them() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("logits.npy");
    let run = |out: &std::path::Path| {
        let mut command = run_digits();
        command.arg("--out").arg(out).args(on_device());
        command
    };
    let printed = succeeds(&mut run(&out));
    assert!(printed.contains("output 0: float32[360,10]"), "{printed}");
    let expected = npy::read(digits("logits.npy"), None).unwrap().to_vec::<f32>().unwrap();
    let logits = npy::read(&out, None).unwrap().to_vec::<f32>().unwrap();
    assert!(logits.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= tolerance()));
    let tree = directory.path().join("logits.safetensors");
    succeeds(&mut run(&tree));
    for name in ["logits.npz", "logits.msgpack"] {
        let other = directory.path().join(name);
        succeeds(&mut run(&other));
        // The same program, once more: the same bits.
        let converted = directory.path().join(format!("converted-{name}"));
        succeeds(safejax().arg("convert").args([&tree, &converted]));
        succeeds(safejax().arg("diff").args([&other, &converted]));
    }
    let params = Params::load(client(), &tree).unwrap();
    assert_eq!(params.get("0").unwrap().to_vec::<f32>().unwrap(), logits);
}

#[test]
fn run_reads_numpys_untyped_bytes_as_what_the_program_expects() {
    let directory = tempfile::tempdir().unwrap();
    let (x, y) = (directory.path().join("x.npy"), directory.path().join("y.npy"));
    let halves: Vec<half::bf16> = [1.0, 2.0, -3.0, 0.5].map(half::bf16::from_f32).to_vec();
    npy::write(&x, &HostArray::from_slice(&[2, 2], &halves).unwrap()).unwrap();
    succeeds(
        safejax()
            .arg("run")
            .arg(data("double_bf16.stablehlo"))
            .arg("--arg")
            .arg(format!("0={}", x.display()))
            .arg("--out")
            .arg(&y)
            .args(on_device()),
    );
    let doubled = npy::read(&y, None).unwrap().to_vec::<half::bf16>().unwrap();
    assert_eq!(doubled, [2.0, 4.0, -6.0, 1.0].map(half::bf16::from_f32));
}

#[test]
fn run_refuses_a_target_before_it_computes() {
    let run = |out: &str| {
        let mut command = safejax();
        command.arg("run").arg(data("affine.mlir")).args(on_device()).args(["--out", out]);
        fails(&mut command)
    };
    assert!(run("y.npy").contains("has 2 outputs"));
    assert!(run("y.txt").contains("does not end in .npy, .safetensors, .npz or .msgpack"));
    assert!(run("/nonexistent/y.safetensors").contains("there is no such directory"));
}

#[test]
fn run_says_which_argument_is_missing_given_twice_or_unreadable() {
    let run = |arguments: &[&str]| {
        let mut command = safejax();
        command.arg("run").arg(data("affine.mlir")).args(on_device());
        arguments.iter().for_each(|argument| {
            command.args(["--arg", argument]);
        });
        fails(&mut command)
    };
    assert!(run(&["1=x.npy"]).contains("--arg 0 is missing"));
    assert!(run(&["0=a.npy", "0=b.npy"]).contains("--arg 0 was given twice"));
    let error = run(&["0=/nonexistent.npy"]);
    assert!(error.contains("argument 0 cannot be loaded") && error.contains("/nonexistent.npy"), "{error}");
    assert!(run(&[]).contains("argument 0: float32[3,2] was expected, but nothing was given"));
    assert!(run(&["x=a.npy"]).contains("only jax.export artifacts have named arguments"));
    let usage = safejax().args(["run", "x", "--arg", "zero"]).output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn a_program_is_compiled_once_and_a_damaged_entry_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let cache = directory.path().join("executables");
    let run = |cache: &std::ffi::OsStr| {
        let mut command = run_digits();
        command.env("SAFEJAX_CACHE", cache).env("SAFEJAX_CACHE_MIN_SECONDS", "0");
        let output = command.args(on_device()).args(["-vv", "--json"]).output().unwrap();
        assert!(output.status.success(), "{}", common::stderr(&output));
        common::stderr(&output)
    };
    let run_with = |arguments: &[&str], variables: &[(&str, &str)]| {
        let mut command = run_digits();
        command
            .env("SAFEJAX_CACHE", &cache)
            .env("SAFEJAX_CACHE_MIN_SECONDS", "0")
            .envs(variables.iter().copied())
            .args(on_device());
        let output = command.args(arguments).args(["-vv", "--json"]).output().unwrap();
        assert!(output.status.success(), "{}\n{}", output.status, common::stderr(&output));
        common::stderr(&output)
    };
    let entries =
        || -> Vec<_> { std::fs::read_dir(&cache).into_iter().flatten().map(|e| e.unwrap().path()).collect() };

    assert!(!run("off".as_ref()).contains("executable"));
    assert!(entries().is_empty());
    assert!(run(cache.as_os_str()).contains("kept an executable"));
    assert_eq!(entries().len(), 1);
    assert!(run(cache.as_os_str()).contains("took an executable from the cache"));
    // Another compiler's flags, or another client's, are another program's.
    if common::is_cpu() {
        let log = run_with(&["--option", "asynchronous=false"], &[]);
        assert!(log.contains("kept an executable"), "{log}");
    }
    let log = run_with(&[], &[("LIBTPU_INIT_ARGS", "--anything")]);
    assert!(log.contains("kept an executable"), "{log}");
    std::fs::remove_dir_all(&cache).unwrap();
    assert!(run(cache.as_os_str()).contains("kept an executable"));
    let whole = std::fs::read(&entries()[0]).unwrap();
    std::fs::write(&entries()[0], &whole[..whole.len() - 1]).unwrap();
    let log = run(cache.as_os_str());
    assert!(log.contains("is damaged and is made again") && log.contains("kept an executable"), "{log}");
    assert!(run(cache.as_os_str()).contains("took an executable from the cache"));
}

#[test]
fn outputs_are_printed_checked_and_passed_on() {
    let affine = common::data("affine.mlir");
    let run = |arguments: &[&str]| {
        let mut command = safejax();
        command.arg("run").arg(&affine).args(on_device());
        command.args(["--arg", "0=[[1,2],[3,4],[5,6]]", "--arg", "1=[[1,0,0],[0,1,0],[0,0,1],[1,1,1]]"]);
        command.args(["--arg", "2=[0.5,-0.5]"]).args(arguments);
        command
    };
    let printed = succeeds(&mut run(&[]));
    assert!(printed.contains("float32[4,2] = [1.5, 1.5, 3.5, 3.5, 5.5, 5.5, 9.5, 11.5]"), "{printed}");
    let directory = tempfile::tempdir().unwrap();
    let (kept, other) = (directory.path().join("kept.safetensors"), directory.path().join("other.npz"));
    succeeds(&mut run(&["--out", kept.to_str().unwrap()]));
    let printed = succeeds(&mut run(&["--expect", kept.to_str().unwrap()]));
    assert!(printed.contains("the outputs are as expected"), "{printed}");
    // Of another format, and of other values.
    succeeds(safejax().arg("convert").args([&kept, &other]));
    succeeds(&mut run(&["--expect", other.to_str().unwrap()]));
    let mut changed = safejax();
    changed.arg("run").arg(&affine).args(on_device());
    changed.args(["--arg", "0=[[1,2],[3,4],[5,6]]", "--arg", "1=[[1,0,0],[0,1,0],[0,0,1],[1,1,1]]"]);
    changed.args(["--arg", "2=[0.501,-0.5]", "--expect", other.to_str().unwrap()]);
    let output = changed.output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(printed.contains("4 of 8 elements differ, by at most 1.0"), "{printed}");
    // To standard output, as a file.
    let output = run(&["--out", "-"]).output().unwrap();
    let written = safejax::Checkpoint::from_bytes(output.stdout).unwrap();
    assert_eq!(written.tensors().len(), 2);
    let wrong = fails(&mut run(&["--expect", digits("labels.npy").to_str().unwrap()]));
    assert!(wrong.contains("several outputs"), "{wrong}");
}
