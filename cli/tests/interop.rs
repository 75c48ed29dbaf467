//! Files exchanged with the real Python libraries, bit for bit.
//!
//! Ignored by default: run by `.ci/run`, or with `cargo test --release --test interop -- --ignored`. The
//! Python environment is made below the build directory on the first run.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use common::{client, digits, safejax, succeeds};
use safejax::{Framework, LoadOptions, Params, SaveOptions};

/// A Python with the packages of `scripts/requirements-NAME.txt`, in an environment of its own.
fn python(name: &str, interpreter: &str, options: &[&str]) -> PathBuf {
    let environment = common::target_directory().join(format!("interop-{name}"));
    let python = environment.join("bin/python");
    let run = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
    if !python.exists() {
        run(Command::new(interpreter).args(["-m", "venv"]).arg(&environment));
    }
    let requirements = common::packages::workspace().join(format!("scripts/requirements-{name}.txt"));
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet"])
        .args(options)
        .arg("-r")
        .arg(requirements));
    python
}

static NUMPY: LazyLock<PathBuf> = LazyLock::new(|| python("numpy", "python3", &[]));
static ORBAX: LazyLock<PathBuf> = LazyLock::new(|| python("orbax", "python3", &[]));
static FORMATS: LazyLock<PathBuf> = LazyLock::new(|| python("formats", "python3", &[]));
static TENSORFLOW: LazyLock<PathBuf> = LazyLock::new(|| python("tensorflow", "python3", &[]));
static JAX: LazyLock<PathBuf> = LazyLock::new(|| python("jax", "python3", &[]));

/// Python safejax 0.5.0 asks for a jax that no longer installs, so its requirements are listed whole.
static SAFEJAX: LazyLock<PathBuf> = LazyLock::new(|| python("safejax", old_interpreter(), &["--no-deps"]));

/// A Python for which there is the jax of 2023: 3.8 to 3.11, and what else is used needs 3.10.
fn old_interpreter() -> &'static str {
    let fits = |interpreter: &&str| {
        let version = "import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 12))";
        Command::new(interpreter).args(["-c", version]).status().is_ok_and(|status| status.success())
    };
    let interpreter = ["python3", "python3.11", "python3.10"].into_iter().find(fits);
    interpreter.expect("Python 3.10 or 3.11 is needed for libraries of 2023")
}

/// Runs a script of `scripts/` with one of these Pythons.
#[track_caller]
fn script(python: &Path, script: &str, arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> String {
    let script = common::packages::workspace().join("scripts").join(script);
    let mut command = Command::new(python);
    command.arg(&script).args(arguments.iter().map(|argument| argument.as_ref()));
    let output = command.env("JAX_PLATFORMS", "cpu").env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", common::stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs one of the checks of `scripts/interop.py`.
#[track_caller]
fn check(name: &str, files: &[&Path]) -> String {
    let arguments: Vec<&dyn AsRef<std::ffi::OsStr>> =
        std::iter::once(&name as _).chain(files.iter().map(|file| file as _)).collect();
    script(&NUMPY, "interop.py", &arguments)
}

/// Loads every `NAME.safetensors` of a directory onto the device and saves it as `NAME.ours.safetensors`.
fn through_the_device(directory: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let params = Params::load(client(), &path).unwrap();
            params.save(directory.join(format!("{name}.ours.safetensors"))).unwrap();
            names.push(name);
        }
    }
    names.sort();
    names
}

#[test]
#[ignore = "installs Python packages"]
fn python_safejax_reads_what_we_write_and_we_read_what_it_writes() {
    let directory = tempfile::tempdir().unwrap();
    script(&SAFEJAX, "interop_safejax.py", &[&"write", &directory.path()]);
    let names = through_the_device(directory.path());
    assert_eq!(names, ["flax", "haiku", "objax", "objax-random", "plain"]);
    for (name, framework) in [
        ("flax", Framework::Flax),
        ("haiku", Framework::Haiku),
        ("objax", Framework::Objax),
        ("objax-random", Framework::Objax),
        ("plain", Framework::Plain),
    ] {
        let path = |kind: &str| directory.path().join(format!("{name}{kind}.safetensors"));
        let options = LoadOptions::default();
        let (_, report) = Params::load_with(client(), path(""), &options).unwrap();
        assert_eq!(report.framework, framework, "{name}");
        // Bit for bit, names and all.
        check("same", &[&path(""), &path(".ours")]);
    }
    script(&SAFEJAX, "interop_safejax.py", &[&"check", &directory.path()]);
}

#[test]
#[ignore = "installs Python packages"]
fn trees_of_current_jax_survive_the_device() {
    let directory = tempfile::tempdir().unwrap();
    script(&JAX, "interop_jax.py", &[&"write", &directory.path()]);
    assert_eq!(through_the_device(directory.path()), ["everything", "params", "train_state"]);
    script(&JAX, "interop_jax.py", &[&"check", &directory.path()]);
}

#[test]
#[ignore = "installs Python packages"]
fn flax_msgpack_and_npz_are_converted_both_ways() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    script(&JAX, "interop_jax.py", &[&"write", &directory.path()]);
    for (from, to) in [
        ("params.msgpack", "params.from-msgpack.safetensors"),
        ("train_state.msgpack", "train_state.from-msgpack.safetensors"),
        ("odd.msgpack", "odd.from-msgpack.safetensors"),
        ("chunked.msgpack", "chunked.from-msgpack.safetensors"),
        ("stored.npz", "stored.from-npz.safetensors"),
        ("deflated.npz", "deflated.from-npz.safetensors"),
        ("arrays.pickle2", "arrays.from-pickle2.safetensors"),
        ("arrays.pickle5", "arrays.from-pickle5.safetensors"),
        ("params.safetensors", "params.ours.msgpack"),
        ("train_state.safetensors", "train_state.ours.msgpack"),
        ("params.safetensors", "params.ours.npz"),
    ] {
        succeeds(safejax().arg("convert").args([&file(from), &file(to)]));
    }
    script(&JAX, "interop_jax.py", &[&"check-formats", &directory.path()]);
}

#[test]
#[ignore = "installs Python packages"]
fn what_orbax_and_tensorstore_write_is_read() {
    let directory = tempfile::tempdir().unwrap();
    script(&ORBAX, "make_orbax.py", &[&"--directory", &directory.path()]);
    let cases = common::names(directory.path());
    assert!(cases.len() >= 11, "{cases:?}");
    for case in cases {
        common::orbax::assert_is_as_saved(&directory.path().join(case));
    }
}

#[test]
#[ignore = "installs Python packages"]
fn what_older_versions_of_orbax_write_is_read() {
    let directory = tempfile::tempdir().unwrap();
    for (environment, cases) in
        [("orbax05", &["orbax05", "orbax05_aggregate"][..]), ("orbax02", &["orbax02"][..])]
    {
        let python = python(environment, old_interpreter(), &[]);
        for case in cases {
            script(&python, "make_orbax.py", &[&"--directory", &directory.path(), case]);
            common::orbax::assert_is_as_saved(&directory.path().join(case));
        }
    }
}

#[test]
#[ignore = "installs Python packages"]
fn orbax_restores_what_is_written_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    script(&ORBAX, "restore_orbax.py", &[&"write", &at("")]);
    for (name, options) in [("plain", &[][..]), ("compressed", &["--zstd"][..])] {
        let target = at(&format!("{name}.orbax"));
        let mut convert = safejax();
        succeeds(convert.arg("convert").arg(at("tree.pkl")).arg(&target).args(options));
        script(&ORBAX, "restore_orbax.py", &[&"check", &at(""), &target]);
        // Its lists and tuples, its names of classes: Orbax does not have them, and we do.
        let tree = |path| safejax::convert::open(path, &Default::default()).unwrap().keys().def().clone();
        assert_eq!(tree(target), tree(at("tree.pkl")));
    }
    let step = at("manager/5/default");
    std::fs::create_dir_all(step.parent().unwrap()).unwrap();
    succeeds(safejax().arg("convert").args([at("tree.pkl"), step.clone()]).args(["--to", "orbax"]));
    script(&ORBAX, "restore_orbax.py", &[&"check-manager", &at(""), &step]);
    let state = at("nnx.orbax");
    succeeds(safejax().arg("convert").args([at("nnx"), state.clone()]));
    script(&ORBAX, "restore_orbax.py", &[&"check-nnx", &at(""), &state]);
}

#[test]
#[ignore = "installs Python packages"]
fn what_other_libraries_write_is_read() {
    let root = tempfile::tempdir().unwrap();
    for format in ["equinox", "hdf5", "onnx", "gguf", "arrow"] {
        let directory = root.path().join(format);
        script(&FORMATS, &format!("make_{format}.py"), &[&"--directory", &directory]);
    }
    script(&TENSORFLOW, "make_tensorflow.py", &[&"--directory", &root.path().join("tensorflow")]);
    common::foreign::cases(root.path()).iter().for_each(common::foreign::Case::assert_is_as_saved);
}

#[test]
#[ignore = "installs Python packages"]
fn python_reads_what_the_device_saved_bit_for_bit() {
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("copy.safetensors");
    Params::load(client(), digits("params.safetensors")).unwrap().save(&copy).unwrap();
    check("same", &[&digits("params.safetensors"), &copy]);
}

#[test]
#[ignore = "installs Python packages"]
fn files_of_every_type_that_python_writes_survive_the_device() {
    let directory = tempfile::tempdir().unwrap();
    let (theirs, ours) =
        (directory.path().join("theirs.safetensors"), directory.path().join("ours.safetensors"));
    let types = check("write", &[&theirs]);
    assert!(types.lines().count() >= 15, "{types}");
    let params = Params::load(client(), &theirs).unwrap();
    params.save(&ours).unwrap();
    check("same", &[&theirs, &ours]);
    // The same through the command, without a device.
    let converted = directory.path().join("converted.safetensors");
    succeeds(safejax().arg("convert").args([&theirs, &converted]));
    check("same", &[&theirs, &converted]);
}

#[test]
#[ignore = "installs Python packages"]
fn a_cast_rounds_as_ml_dtypes_does() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    check("write-floats", &[&file("floats.safetensors")]);
    for dtype in ["float16", "bfloat16", "float32"] {
        let cast = file(dtype);
        succeeds(safejax().arg("convert").arg(file("floats.safetensors")).arg(&cast).args([
            "--dtype",
            dtype,
            "--to",
            "safetensors",
        ]));
        check("is-cast", &[&file("floats.safetensors"), &cast, Path::new(dtype)]);
    }
}

#[test]
#[ignore = "installs Python packages"]
fn npy_files_are_numpys() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.npy");
    for line in check("write-npy", &[directory.path()]).lines() {
        let (file, expected) = line.split_once(' ').unwrap();
        let array = safejax::format::npy::read(directory.path().join(file), None).unwrap();
        assert_eq!(array.spec().to_string(), expected);
        safejax::format::npy::write(&path, &array).unwrap();
        check("same-npy", &[&directory.path().join(file), &path]);
    }
}

#[test]
#[ignore = "installs Python packages"]
fn checkpoints_in_several_files_are_the_hubs() {
    let directory = tempfile::tempdir().unwrap();
    let (original, file) = (digits("params.safetensors"), |name: &str| directory.path().join(name));
    check("write-shards", &[&original, directory.path()]);
    let params = Params::load(client(), directory.path()).unwrap();
    params.save(file("joined.safetensors")).unwrap();
    check("same", &[&original, &file("joined.safetensors")]);
    params.save_with(file("ours.safetensors"), &SaveOptions::default().max_shard_bytes(64_000)).unwrap();
    check("same-shards", &[&original, &file("ours.safetensors.index.json")]);
}

#[test]
#[ignore = "installs Python packages"]
fn the_recipes_of_the_cookbook_give_what_jax_gives() {
    let directory = tempfile::tempdir().unwrap();
    script(&JAX, "cookbook.py", &[&directory.path()]);
    let file = |name: String| -> Option<PathBuf> {
        let path = |ending| directory.path().join(format!("{name}.{ending}"));
        [path("npy"), path("safetensors"), path("eqx")].into_iter().find(|path| path.exists())
    };
    for name in ["nnx", "equinox", "optax", "train_state", "key"] {
        let mut command = safejax();
        command.arg("run").arg(directory.path().join(format!("{name}.jaxexport")));
        let arguments = (0..).map_while(|index| Some((index, file(format!("{name}.{index}"))?)));
        for (index, path) in arguments {
            command.arg("--arg").arg(format!("{index}={}", path.display()));
        }
        command.arg("--expect").arg(file(format!("{name}.out")).unwrap()).args(["--tolerance", "1e-6"]);
        let printed = succeeds(&mut command);
        assert!(printed.contains("the outputs are as expected"), "{name}: {printed}");
    }
}
