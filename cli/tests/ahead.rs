//! Programs compiled ahead, and files of executables, on the CPU plugin; `compilers.rs` has the TPU's and the GPU's.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Log, Only, client, data, fails, fails_with, is_skipped, safejax, succeeds};
use safejax::store::WriteOptions;
use safejax::{
    Argument, Compilation, CompileOptions, Donate, Error, ExecutableFile, HostArray, Params, Program, Target,
};
use serde_json::Value;

fn opened(name: &str) -> Program {
    Program::open(data(name)).unwrap()
}

/// Compiled for the client's own devices, and loaded nowhere.
fn compiled(program: &Program) -> Compilation {
    program.compile_for(&client().topology().unwrap(), &CompileOptions::default()).unwrap()
}

/// A file with the executable of a program, and the program if it is wanted.
fn written(directory: &Path, program: &Program, with_program: bool) -> PathBuf {
    let path = directory.join("executables");
    let executables = [("cpu".to_owned(), compiled(program))];
    let program = Some(program).filter(|_| with_program);
    ExecutableFile::write(&path, &executables, program, WriteOptions::default()).unwrap();
    path
}

fn load(path: &Path) -> safejax::Result<safejax::Function> {
    client().load_executable(&ExecutableFile::open(path)?)
}

/// The command that compiles a program.
fn command_for(program: &Path, options: &[&str]) -> Command {
    let mut command = safejax();
    command.arg("compile").arg(program).args(options);
    command
}

/// What an error says when nothing can be loaded.
fn refused(path: &Path) -> String {
    load(path).unwrap_err().to_string()
}

fn mlp() -> (Program, Params) {
    let recorded = Params::load(client(), data("exports/jax0120-mlp.safetensors")).unwrap();
    (opened("exports/jax0120-mlp.jaxexport"), recorded)
}

#[test]
fn a_compilation_says_what_it_takes_and_is_not_loaded() {
    if is_skipped(Only::Cpu, "it compiles for the CPU") {
        return;
    }
    let (program, _) = mlp();
    let compilation = compiled(&program);
    assert_eq!(compilation.executable().name(), "jit_mlp");
    let memory = compilation.executable().memory_stats().unwrap();
    assert_eq!((memory.argument_bytes, memory.output_bytes), (348, 60));
    assert_eq!(compilation.topology().devices()[0].kind(), "cpu");
    // Two products of matrices: 5 by 4 by 8, and 5 by 8 by 3.
    let work = compilation.matrix_work().unwrap();
    assert_eq!((work.flops, work.is_complete), (2.0 * 5.0 * (4.0 * 8.0 + 8.0 * 3.0), true));
    let identity = compilation.identity().unwrap();
    assert!(identity.differences(client()).unwrap().is_empty());
    // One by one, and with a topology that was written and read.
    let topology = client().topology().unwrap();
    let again = client().plugin().deserialize_topology(&topology.serialize().unwrap()).unwrap();
    assert_eq!(again.devices(), topology.devices());
    assert!(client().plugin().topology("nothing", &[]).is_err());
}

#[test]
fn an_executable_that_was_loaded_is_a_function_as_any_other() {
    if is_skipped(Only::Cpu, "it compiles for the CPU") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (program, recorded) = mlp();
    let path = written(directory.path(), &program, false);
    let function = load(&path).unwrap();
    let (params, x) = (recorded.subtree("args.0").unwrap(), recorded.get("args.1").unwrap());
    let compiled = client().compile(&program).unwrap();
    let bits = |function: &safejax::Function| {
        function.call(&[&params, x]).unwrap().single().unwrap().to_host().unwrap()
    };
    assert_eq!(bits(&function), bits(&compiled));
    assert_eq!(function.signature().unwrap().to_string(), compiled.signature().unwrap().to_string());
    let bound = function.bind(&[&params]).unwrap();
    assert_eq!(bound.call(&[x]).unwrap().single().unwrap().to_host().unwrap(), bits(&function));
    // Donation.
    let donated = opened("exports/jax0120-donated.jaxexport");
    let function = load(&written(directory.path(), &donated, false)).unwrap();
    assert_eq!(
        function.signature().unwrap().donatable(),
        client().compile(&donated).unwrap().signature().unwrap().donatable()
    );
    let recorded = Params::load(client(), data("exports/jax0120-donated.safetensors")).unwrap();
    let state = recorded.subtree("args.0").unwrap();
    let rest: Vec<Params> =
        (1..3).filter_map(|index| recorded.subtree(&format!("args.{index}")).ok()).collect();
    let given = Donate(state.clone());
    let mut arguments: Vec<&dyn Argument> = vec![&given];
    arguments.extend(rest.iter().map(|params| params as &dyn Argument));
    function.call(&arguments).unwrap();
    assert!(state.arrays().iter().any(|buffer| buffer.is_deleted().unwrap()));
    // What is no artifact takes a list.
    let affine = opened("affine.mlir");
    let function = load(&written(directory.path(), &affine, false)).unwrap();
    assert_eq!(function.outputs().len(), client().compile(&affine).unwrap().outputs().len());
}

#[test]
fn of_several_sizes_those_that_are_asked_for_are_loaded() {
    if is_skipped(Only::Cpu, "it compiles for the CPU") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let program = opened("symbolic/linear/linear.jaxexport");
    let error = program.compile_for(&client().topology().unwrap(), &CompileOptions::default()).unwrap_err();
    assert!(error.to_string().contains("needs sizes to be compiled ahead: --sizes b=8"), "{error}");
    let at = |size: usize| compiled(&program.refined(&[("b", size)], None).unwrap());
    let path = directory.path().join("executables");
    let executables: Vec<_> = [2, 3].map(|size| ("cpu".to_owned(), at(size))).into();
    ExecutableFile::write(&path, &executables, None, WriteOptions::default()).unwrap();
    let file = ExecutableFile::open(&path).unwrap();
    let error = client().load_executable(&file).unwrap_err().to_string();
    assert!(error.contains("choose one of b=2; b=3"), "{error}");
    let function = client().load_executable(&file.at_sizes(&[("b", 3)])).unwrap();
    let params = Params::load(client(), data("symbolic/linear/0.safetensors")).unwrap();
    let x = HostArray::from_slice(&[3, 3], &[1f32; 9]).unwrap();
    assert_eq!(function.call(&[&params, &x]).unwrap().single().unwrap().shape(), [3, 2]);
    assert!(function.call(&[&params, &HostArray::from_slice(&[2, 3], &[1f32; 6]).unwrap()]).is_err());
    let error = client().load_executable(&file.at_sizes(&[("b", 4)])).unwrap_err().to_string();
    assert!(error.contains("no executable for these sizes"), "{error}");
    // What was made of a program is not what it was made of.
    let refined = program.refined(&[("b", 2)], None).unwrap();
    let error =
        ExecutableFile::write(&path, &executables, Some(&refined), WriteOptions::default()).unwrap_err();
    assert!(error.to_string().contains("was made from another program"), "{error}");
}

/// The file with other bytes in the place of some, which are there once in its description.
fn changed(path: &Path, from: &str, to: &str) -> PathBuf {
    let bytes = std::fs::read(path).unwrap();
    let text: String = bytes.iter().map(|&byte| char::from(byte)).collect();
    assert!(from.len() == to.len() && text.contains(from), "{from}");
    let changed = path.with_extension("changed");
    std::fs::write(&changed, text.replace(from, to).chars().map(|c| c as u8).collect::<Vec<u8>>()).unwrap();
    changed
}

#[test]
fn an_executable_of_another_build_or_device_is_not_loaded_and_the_program_is_compiled() {
    if is_skipped(Only::Cpu, "it compiles for the CPU") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (program, recorded) = mlp();
    let path = written(directory.path(), &program, false);
    let file = ExecutableFile::open(&path).unwrap();
    let identity = file.entries()[0].identity.clone();
    let build = identity.plugin.library_sha256.clone();
    let other_build = changed(&path, &build, &build.chars().rev().collect::<String>());
    assert!(refused(&other_build).contains("another build of the plugin"), "{}", refused(&other_build));
    let processor = identity.devices.processor.clone().unwrap();
    let other_processor = changed(&path, &processor, &processor.chars().rev().collect::<String>());
    assert!(refused(&other_processor).contains("made for another processor"));
    let other_device = changed(&path, r#"\"platform\":\"cpu\""#, r#"\"platform\":\"tpu\""#);
    assert!(
        refused(&other_device).contains("it is for cpu (tpu), and the client has cpu (cpu)"),
        "{}",
        refused(&other_device)
    );
    // With the program, that is compiled, and why is said.
    let path = written(directory.path(), &program, true);
    let other = changed(&path, &build, &build.chars().rev().collect::<String>());
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    let function = tracing::subscriber::with_default(subscriber, || load(&other)).unwrap();
    assert!(log.text().contains("another build of the plugin"), "{}", log.text());
    function.call(&[&recorded.subtree("args.0").unwrap(), recorded.get("args.1").unwrap()]).unwrap();
    // The file is a program to everybody else.
    assert_eq!(Program::open(&path).unwrap().exported(), program.exported());
}

#[test]
fn a_damaged_file_is_refused_and_never_given_to_the_plugin() {
    if is_skipped(Only::Cpu, "it compiles for the CPU") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (program, _) = mlp();
    let path = written(directory.path(), &program, false);
    let whole = std::fs::read(&path).unwrap();
    let damaged = directory.path().join("damaged");
    let start = whole.len() - ExecutableFile::open(&path).unwrap().entries().len();
    for position in (0..whole.len()).step_by(97).chain([start]) {
        let mut bytes = whole.clone();
        bytes[position] ^= 0x11;
        std::fs::write(&damaged, &bytes).unwrap();
        // A change of a name that nothing depends on is no damage.
        if let Err(error) = load(&damaged) {
            assert!(!matches!(error, Error::Pjrt { .. }), "byte {position}: {error}");
        }
    }
    let mut bytes = whole.clone();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&damaged, &bytes).unwrap();
    assert!(refused(&damaged).contains("its sha256 is another"), "{}", refused(&damaged));
    for length in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&damaged, &whole[..length]).unwrap();
        assert!(matches!(load(&damaged), Err(Error::Malformed { .. })), "cut at {length}");
    }
    let error = Program::open(&path).unwrap_err().to_string();
    assert!(error.contains("the program that they were compiled of is not in it"), "{error}");
    let error = ExecutableFile::open(data("shared.safetensors")).unwrap_err().to_string();
    assert!(error.contains("no `safejax.executables` in its metadata"), "{error}");
}

#[test]
fn a_description_that_is_not_the_executables_is_refused() {
    if is_skipped(Only::Cpu, "it compiles for the CPU") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (program, _) = mlp();
    let path = written(directory.path(), &program, false);
    for (from, to) in [
        (r#"{\"dtype\":\"float32\",\"shape\":[5,4]}"#, r#"{\"dtype\":\"uint32\" ,\"shape\":[5,4]}"#),
        (r#"\"shape\":[4,8]"#, r#"\"shape\":[8,4]"#),
        (r#"\"shape\":[5,3]"#, r#"\"shape\":[3,5]"#),
        (r#"\"count\":1"#, r#"\"count\":0"#),
    ] {
        let error = refused(&changed(&path, from, to));
        assert!(error.contains("is not what its description says"), "{from}: {error}");
    }
    // What does not fit together is found before that.
    let error = refused(&changed(&path, r#"\"kept\":[0,1,2,3,4]"#, r#"\"kept\":[0,1,2,3,9]"#));
    assert!(error.contains("it takes the arguments"), "{error}");
    // The program, too, has a digest.
    let path = written(directory.path(), &program, true);
    let mut bytes = std::fs::read(&path).unwrap();
    let start = bytes.windows(4).rposition(|window| window == b"ML\xefR").unwrap();
    bytes[start + 40] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = Program::open(&path).unwrap_err().to_string();
    assert!(error.contains("the program that is in it is damaged"), "{error}");
}

#[test]
fn the_command_line_compiles_shows_and_runs() {
    if is_skipped(Only::Cpu, "it compiles for the CPU") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("linear.executables");
    let artifact = data("symbolic/linear/linear.jaxexport");
    let compile = |options: &[&str]| command_for(&artifact, options);
    let out_text = out.to_str().unwrap();
    let text = succeeds(&mut compile(&["--for", "cpu", "--sizes", "b=4", "--out", out_text]));
    assert!(text.contains("`<lambda>` at b=4\ncpu: cpu") && text.contains("at once, at most"), "{text}");
    let json: Value =
        serde_json::from_str(&succeeds(&mut compile(&["--for", "cpu", "--sizes", "b=4", "--json"]))).unwrap();
    assert_eq!((&json["targets"][0]["compiles"], &json["sizes"]["b"]), (&true.into(), &4.into()));
    assert_eq!(
        json["targets"][0]["outputs"],
        serde_json::json!([{ "type": "float32[4,2]", "layout": "{1,0}", "sharding": null }])
    );
    let shown = succeeds(safejax().arg("inspect").arg(&out).args(["--plugin", "cpu"]));
    assert!(
        shown.contains("1 executable, and the program") && shown.contains("cpu at b=4: 1 device"),
        "{shown}"
    );
    assert!(
        shown.contains("the plugin loads here: cpu") && shown.contains("args[1]  float32[4,3]"),
        "{shown}"
    );
    let case = data("symbolic/linear");
    let run = |options: &[&str]| {
        let mut command = safejax();
        command.arg("run").arg(&out).args(options);
        command.arg("--arg").arg(format!("0={}", case.join("0.safetensors").display()));
        command.arg("--arg").arg(format!("1={}", case.join("b=4/in_1.npy").display()));
        command.arg("--expect").arg(case.join("b=4/out_0.npy")).args(["--tolerance", "1e-4"]);
        command
    };
    assert!(succeeds(&mut run(&["--trust-executable"])).contains("the outputs are as expected"));
    assert!(succeeds(&mut run(&["--trust-executable", "--sizes", "b=4"])).contains("as expected"));
    // Without it, the program that is in the file is compiled.
    assert!(succeeds(&mut run(&[])).contains("as expected"));
    let error = fails(&mut run(&["--trust-executable", "--sizes", "b=5"]));
    assert!(error.contains("has no executable for them; it has b=4"), "{error}");
    let usage = run(&["--sizes", "b=4"]).output().unwrap();
    assert!(
        usage.status.code() == Some(2)
            && String::from_utf8_lossy(&usage.stderr).contains("--trust-executable")
    );
}

#[test]
fn the_command_line_says_what_does_not_compile_or_is_not_known() {
    let artifact = data("exports/jax0120-mlp.jaxexport");
    let compile = |options: &[&str]| command_for(&artifact, options);
    let error = fails_with(2, &mut compile(&["--for", "v5e:0x2"]));
    assert!(error.contains("the slice `0x2` is no shape; v5e takes a shape such as 2x2"), "{error}");
    let error = fails_with(2, &mut compile(&["--for", "h10"]));
    assert!(
        error.contains("did you mean `h100`") && error.contains("and the plugins cpu, cuda13"),
        "{error}"
    );
    assert!(fails(&mut compile(&["--for", "cpu", "--for", "cpu"])).contains("--for cpu was given twice"));
    assert!(fails(&mut compile(&["--for", "cpu", "--out", "/no/such/file"])).contains("no such directory"));
    assert!(fails(&mut compile(&["--for", "cpu", "--hlo", "/dev/full"])).contains("not a regular file"));
    let itself = artifact.to_str().unwrap();
    assert!(fails(&mut compile(&["--for", "cpu", "--out", itself])).contains("it is the program"));
    assert!(
        fails(&mut compile(&["--for", "cpu", "--out", "x", "--hlo", "./x"]))
            .contains("the file of --out, too")
    );
    let mut without = compile(&["--for", "h100"]);
    without.env("SAFEJAX_HOME", tempfile::tempdir().unwrap().path()).env("PATH", "/nonexistent");
    assert!(fails(&mut without).contains("`safejax plugin install cuda13-compiler`"));
    if common::is_cpu() {
        let output =
            command_for(&data("symbolic/linear/linear.jaxexport"), &["--for", "cpu"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            text.contains("cpu: does not compile: `<lambda>` needs sizes to be compiled ahead: --sizes b=8"),
            "{text}"
        );
        assert_eq!(output.status.code(), Some(1));
        // A checkpoint that is not the program's.
        let other = data("exports/jax0120-cnn.safetensors");
        let options = ["--for", "cpu", "--params", other.to_str().unwrap()];
        let output = compile(&options).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("is no leaf of the program's arguments"), "{text}");
        assert_eq!(output.status.code(), Some(1));
        let description = tempfile::NamedTempFile::with_suffix(".txtpb").unwrap();
        let error = description.path().to_str().unwrap().parse::<Target>().unwrap();
        let error = error.topology(client().plugin()).unwrap_err().to_string();
        assert!(error.contains("it does not say `cuda_compute_capability`"), "{error}");
    }
    let mut decomposed = safejax();
    decomposed.arg("compile").arg(data("ahead/decomposed.jaxexport")).args([
        "--for",
        "cpu",
        "--any-platform",
    ]);
    if common::is_cpu() {
        let text = String::from_utf8_lossy(&decomposed.output().unwrap().stdout).into_owned();
        assert!(text.contains("`lapack_sgeqrf_ffi` is called at geqrf, model.py:3"), "{text}");
    }
    assert!("v5e".parse::<Target>().unwrap().figures().is_some());
}
