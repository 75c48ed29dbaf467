//! The system calls that read, write, make, name and remove files (`tracer.rs` lists them) fail in turn, in every way: the command ends with an error that says what failed, or with the
//! right result; the old file is whole, or the new one is; and nothing else is left.
//!
//! The short sweep takes the first calls of each name, and the last. `SAFEJAX_SWEEP=all` takes every call
//! (`scripts/soak.sh`).

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "system_faults/tracer.rs"]
mod tracer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{digits, files, safejax, swept};
use nix::errno::Errno;
use tracer::{Fault, Kind, Traced};

/// How a call can go wrong.
fn kinds(name: &str) -> Vec<Kind> {
    let error = |errno: &[Errno]| errno.iter().map(|errno| Kind::Error(*errno)).collect::<Vec<_>>();
    let mut kinds = match name {
        "read" | "pread64" => error(&[Errno::EIO, Errno::EINTR]),
        "write" | "pwrite64" | "writev" | "copy_file_range" | "fallocate" | "ftruncate" => {
            error(&[Errno::EIO, Errno::ENOSPC, Errno::EINTR, Errno::EDQUOT])
        }
        "mmap" => error(&[Errno::ENOMEM, Errno::ENODEV]),
        "openat" => error(&[Errno::EMFILE, Errno::EACCES, Errno::EINTR]),
        "fsync" | "fdatasync" => error(&[Errno::EIO, Errno::ENOSPC]),
        _ => error(&[Errno::EIO, Errno::ENOSPC]),
    };
    if ["read", "write", "pread64", "pwrite64"].contains(&name) {
        kinds.push(Kind::Half);
    }
    if ["read", "pread64", "mmap"].contains(&name) {
        kinds.push(Kind::Shrink("in."));
    }
    kinds
}

/// The files that commands read.
const READ: [&str; 3] = ["in.safetensors", "in.npy", "program.mlir"];

fn restore(directory: &Path, wanted: &BTreeMap<PathBuf, Vec<u8>>) {
    for path in files(directory).keys() {
        std::fs::remove_file(path).unwrap();
    }
    for (path, content) in wanted {
        std::fs::write(path, content).unwrap();
    }
}

/// The sweep over a command, in a directory that holds these files: the first is read, the others are what is there before.
fn sweep(name: &str, before: &[(&str, Vec<u8>)], arguments: impl Fn(&Path) -> Vec<PathBuf>) {
    let directory = common::directory_on_disk();
    let directory = directory.path();
    let before: BTreeMap<PathBuf, Vec<u8>> =
        before.iter().map(|(file, content)| (directory.join(file), content.clone())).collect();
    let output = tempfile::NamedTempFile::new().unwrap();
    let run = |fault: Option<Fault>| -> Option<(Traced, String)> {
        restore(directory, &before);
        let mut command: Command = safejax();
        command.args(arguments(directory)).stdout(Stdio::null()).stderr(output.reopen().unwrap());
        output.as_file().set_len(0).unwrap();
        match tracer::run(&mut command, directory, fault) {
            Ok(traced) => Some((traced, std::fs::read_to_string(output.path()).unwrap())),
            Err(error) => {
                eprintln!("skipped {name}: this system does not let a process debug another: {error}");
                None
            }
        }
    };
    let Some((traced, said)) = run(None) else { return };
    assert_eq!(traced.code, Some(0), "{name} without faults: {said}");
    let after = files(directory);
    let (mut runs, mut problems) = (0, Vec::new());
    for (&call_name, &count) in &traced.calls {
        for (call, kind) in swept(count)
            .into_iter()
            .flat_map(|call| kinds(call_name).into_iter().map(move |kind| (call, kind)))
        {
            let fault = Fault { name: call_name, call, kind };
            let (traced, said) = run(Some(fault)).unwrap();
            runs += 1;
            let what = format!("{name}: {fault:?}: {:?} {said}", traced.code.ok_or(traced.signal));
            // Nobody but the test cuts what is read.
            let ours = |files: BTreeMap<PathBuf, Vec<u8>>| -> BTreeMap<PathBuf, Vec<u8>> {
                let is_read = |path: &Path| READ.iter().any(|file| path.ends_with(file));
                let is_cut = matches!(kind, Kind::Shrink(_));
                // What cannot be removed stays, if that is told.
                let is_told = |path: &Path| call_name == "unlink" && said.contains(path.to_str().unwrap());
                files.into_iter().filter(|(path, _)| !(is_cut && is_read(path) || is_told(path))).collect()
            };
            let (found, old, new) = (ours(files(directory)), ours(before.clone()), ours(after.clone()));
            if std::env::var_os("SAFEJAX_SWEEP_SHOW").is_some() {
                println!("{what}");
            }
            match traced.code {
                Some(0) if found == new => {}
                Some(1) if !said.starts_with("error: ") && !said.contains("\nerror: ") => {
                    problems.push(format!("{what}: it does not say why"));
                }
                // A new file whose last step failed is whole, too.
                Some(1) if found == old || found == new => {}
                // What a journal tells of goes with the next.
                Some(1)
                    if found.keys().any(|path| path.extension().is_some_and(|ending| ending == "saving")) =>
                {
                    let mut command: Command = safejax();
                    let status = command.args(arguments(directory)).stdout(Stdio::null()).status().unwrap();
                    if !status.success() || files(directory).len() != after.len() {
                        problems
                            .push(format!("{what}: after the next, there are {:?}", files(directory).keys()));
                    }
                }
                _ => problems.push(format!("{what}: left {:?}", found.keys())),
            }
        }
    }
    println!("{name}: {runs} runs");
    assert!(
        problems.is_empty(),
        "{} of {runs}:\n{}",
        problems.len(),
        problems[..problems.len().min(20)].join("\n")
    );
}

fn digits_file() -> Vec<u8> {
    std::fs::read(digits("params.safetensors")).unwrap()
}

#[test]
fn a_conversion_over_an_old_file() {
    let before = [("in.safetensors", digits_file()), ("out.safetensors", b"old".to_vec())];
    sweep("convert", &before, |directory| {
        vec!["convert".into(), directory.join("in.safetensors"), directory.join("out.safetensors")]
    });
}

#[test]
fn a_conversion_in_place() {
    sweep("in place", &[("in.safetensors", digits_file())], |directory| {
        let file = directory.join("in.safetensors");
        vec!["convert".into(), file.clone(), file, "--digests".into()]
    });
}

#[test]
fn a_conversion_to_an_archive() {
    let before = [("in.safetensors", digits_file()), ("out.npz", b"old".to_vec())];
    sweep("npz", &before, |directory| {
        vec!["convert".into(), directory.join("in.safetensors"), directory.join("out.npz")]
    });
}

#[test]
fn a_conversion_to_shards() {
    sweep("shards", &[("in.safetensors", digits_file())], |directory| {
        let (from, to) = (directory.join("in.safetensors"), directory.join("out.safetensors"));
        vec!["convert".into(), from, to, "--max-shard-size".into(), "40kB".into()]
    });
}

#[test]
fn a_conversion_to_shards_over_others() {
    // An old checkpoint of as many files, of other content.
    let old = common::directory_on_disk();
    let (from, to) = (old.path().join("from.safetensors"), old.path().join("out.safetensors"));
    let mut other = digits_file();
    let length = other.len();
    other[length - 100_000..].iter_mut().for_each(|byte| *byte = 1);
    std::fs::write(&from, other).unwrap();
    common::succeeds(safejax().arg("convert").args([&from, &to]).args(["--max-shard-size", "40kB"]));
    std::fs::remove_file(&from).unwrap();
    let shards = files(old.path());
    let mut before = vec![("in.safetensors", digits_file())];
    let names: Vec<String> =
        shards.keys().map(|path| path.file_name().unwrap().to_str().unwrap().into()).collect();
    before.extend(names.iter().map(String::as_str).zip(shards.into_values()));
    assert!(before.len() > 3);
    sweep("shards over shards", &before, |directory| {
        let (from, to) = (directory.join("in.safetensors"), directory.join("out.safetensors"));
        vec!["convert".into(), from, to, "--max-shard-size".into(), "40kB".into()]
    });
}

#[test]
fn a_conversion_to_msgpack() {
    let before = [("in.safetensors", digits_file()), ("out.msgpack", b"old".to_vec())];
    sweep("msgpack", &before, |directory| {
        vec!["convert".into(), directory.join("in.safetensors"), directory.join("out.msgpack")]
    });
}

#[test]
fn a_load_onto_a_device() {
    sweep("load", &[("in.safetensors", digits_file())], |directory| {
        let plugin = safejax_simulator::Simulator::library();
        vec!["load".into(), directory.join("in.safetensors"), "--plugin".into(), plugin, "--explain".into()]
    });
}

#[test]
fn a_call_that_writes_what_comes_out() {
    let program = "module @sim_identity {\n  func.func public @main(%arg0: tensor<64x10xf32>) -> (tensor<64x10xf32>) \
                   {\n    return\n  }\n}\n";
    let mut array = Vec::new();
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (64, 10), }";
    array.extend_from_slice(b"\x93NUMPY\x01\x00\x76\x00");
    array.extend_from_slice(format!("{header:<117}\n").as_bytes());
    array.extend((0..640).flat_map(|number| (number as f32).to_le_bytes()));
    let before = [("in.npy", array), ("program.mlir", program.into()), ("out.npy", b"old".to_vec())];
    sweep("run", &before, |directory| {
        let mut arguments: Vec<PathBuf> = vec!["run".into(), directory.join("program.mlir"), "--arg".into()];
        arguments.push(format!("0={}", directory.join("in.npy").display()).into());
        arguments.extend(["--plugin".into(), safejax_simulator::Simulator::library(), "--out".into()]);
        arguments.push(directory.join("out.npy"));
        arguments
    });
}

#[test]
fn a_check() {
    sweep("verify", &[("in.safetensors", digits_file())], |directory| {
        vec!["verify".into(), "--finite".into(), directory.join("in.safetensors")]
    });
}

#[test]
fn a_look() {
    sweep("inspect", &[("in.safetensors", digits_file())], |directory| {
        vec!["inspect".into(), directory.join("in.safetensors")]
    });
}
