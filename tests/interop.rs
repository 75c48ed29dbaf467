//! Files exchanged with the real Python libraries, bit for bit.
//!
//! Ignored by default: run by `.ci/run`, or with `cargo test --release --test interop -- --ignored`. The
//! Python environment is made below the build directory on the first run.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use common::{client, digits, safejax, succeeds};
use safejax::Params;

/// A Python with the packages of `scripts/requirements-interop.txt`.
fn python() -> &'static Path {
    static PYTHON: LazyLock<PathBuf> = LazyLock::new(|| {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let requirements = manifest.join("scripts/requirements-interop.txt");
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| manifest.join("target"), PathBuf::from);
        let environment = target.join("interop-venv");
        let python = environment.join("bin/python");
        let run = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
        if !python.exists() {
            run(Command::new("python3").args(["-m", "venv"]).arg(&environment));
        }
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "-r"]).arg(requirements));
        python
    });
    &PYTHON
}

/// Runs one of the checks of `scripts/interop.py`.
#[track_caller]
fn check(name: &str, files: &[&Path]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/interop.py");
    let output = Command::new(python()).arg(script).arg(name).args(files).output().unwrap();
    assert!(output.status.success(), "{name}: {}", common::stderr(&output));
    String::from_utf8(output.stdout).unwrap()
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
        succeeds(
            safejax().arg("convert").arg(file("floats.safetensors")).arg(&cast).args(["--dtype", dtype]),
        );
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
        let array = safejax::convert::npy::read(directory.path().join(file), None).unwrap();
        assert_eq!(array.spec().to_string(), expected);
        safejax::convert::npy::write(&path, &array).unwrap();
        check("same-npy", &[&directory.path().join(file), &path]);
    }
}
