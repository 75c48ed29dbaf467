//! The system calls that read, write, make, name and remove files (`tracer.rs` lists them) fail in turn, in every way: the
//! command ends with an error that says what failed, or with the right result; the old file is whole, or the new one is; and
//! nothing else is left.
//!
//! The short sweep takes the first calls of each name, and the last. `SAFEJAX_SWEEP=all` takes every call
//! (`scripts/soak.sh`). Where the system does not let a process debug another, there is no sweep; with `SAFEJAX_NO_SKIPS=1`
//! that fails (`scripts/soak.sh`).

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

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// The sweep over a command.
struct Sweep<'a> {
    name: &'a str,
    directory: &'a Path,
    arguments: &'a dyn Fn(&Path) -> Vec<PathBuf>,
    /// The files before the command.
    before: Files,
    /// Those that it leaves.
    after: Files,
    /// What the command prints.
    output: tempfile::NamedTempFile,
    runs: usize,
    problems: Vec<String>,
}

/// The sweep over a command, in a directory that holds these files: the first is read, the others are what is there before.
fn sweep(name: &str, before: &[(&str, Vec<u8>)], arguments: impl Fn(&Path) -> Vec<PathBuf>) {
    let directory = common::directory_on_disk();
    let directory = directory.path();
    let before = before.iter().map(|(file, content)| (directory.join(file), content.clone())).collect();
    let mut sweep = Sweep {
        name,
        directory,
        arguments: &arguments,
        before,
        after: Files::new(),
        output: tempfile::NamedTempFile::new().unwrap(),
        runs: 0,
        problems: Vec::new(),
    };
    sweep.all();
    let (runs, problems) = (sweep.runs, sweep.problems);
    println!("{name}: {runs} runs");
    let first = problems[..problems.len().min(20)].join("\n");
    assert!(problems.is_empty(), "{} of {runs}:\n{first}", problems.len());
}

impl Sweep<'_> {
    /// Runs the command with this fault; returns how it ended and what it printed.
    fn run(&self, fault: Option<Fault>) -> std::io::Result<(Traced, String)> {
        restore(self.directory, &self.before);
        let mut command: Command = safejax();
        command.args((self.arguments)(self.directory)).stdout(Stdio::null());
        command.stderr(self.output.reopen().unwrap());
        self.output.as_file().set_len(0).unwrap();
        let traced = tracer::run(&mut command, self.directory, fault)?;
        Ok((traced, std::fs::read_to_string(self.output.path()).unwrap()))
    }

    fn all(&mut self) {
        let (traced, said) = match self.run(None) {
            Ok(outcome) => outcome,
            Err(error) => {
                let name = self.name;
                assert!(std::env::var_os("SAFEJAX_NO_SKIPS").is_none(), "{name}: {error}");
                eprintln!("skipped {name}: this system does not let a process debug another: {error}");
                return;
            }
        };
        assert_eq!(traced.code, Some(0), "{} without faults: {said}", self.name);
        self.after = files(self.directory);
        for (&name, &count) in &traced.calls {
            let mut happened = false;
            for call in swept(count) {
                for kind in kinds(name) {
                    happened |= self.one(Fault { name, call, kind });
                }
            }
            if !happened {
                self.problems.push(format!("{}: no fault happened in {name}", self.name));
            }
        }
    }

    /// Runs the command with one fault, and says whether that happened: where threads race, there can be fewer calls.
    fn one(&mut self, fault: Fault) -> bool {
        let (traced, said) = self.run(Some(fault)).unwrap();
        self.runs += 1;
        let what = format!("{}: {fault:?}: {:?} {said}", self.name, traced.code.ok_or(traced.signal));
        if std::env::var_os("SAFEJAX_SWEEP_SHOW").is_some() {
            println!("{what}");
        }
        let of_test = |files: &Files| of_command(files, fault, &said);
        let found = of_test(&files(self.directory));
        let (old, new) = (of_test(&self.before), of_test(&self.after));
        match traced.code {
            Some(0) if found == new => {}
            Some(1) if !said.starts_with("error: ") && !said.contains("\nerror: ") => {
                self.problems.push(format!("{what}: it does not say why"));
            }
            // A new file whose last step failed is whole, too.
            Some(1) if found == old || found == new => {}
            Some(1) if found.keys().any(|path| is_journal(path)) => self.check_next(&what),
            _ => self.problems.push(format!("{what}: left {:?}", found.keys())),
        }
        traced.has_failed
    }

    /// What a journal tells of goes with the next save, which is as any other.
    fn check_next(&mut self, what: &str) {
        let mut command: Command = safejax();
        let arguments = (self.arguments)(self.directory);
        let status = command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        let found = files(self.directory);
        if !status.success() || by_count(&found) != by_count(&self.after) {
            self.problems.push(format!("{what}: after the next, there are {:?}", found.keys()));
        }
    }
}

/// The files that tell how a command ended: all but those that the fault is about.
fn of_command(files: &Files, fault: Fault, said: &str) -> Files {
    let is_read = |path: &Path| READ.iter().any(|file| path.ends_with(file));
    // Nobody but the test cuts what is read.
    let is_cut = matches!(fault.kind, Kind::Shrink(_));
    // What cannot be removed stays, if that is told.
    let named: Vec<&str> = said.split(|end: char| end.is_whitespace() || ":=".contains(end)).collect();
    let is_told = |path: &Path| fault.name == "unlink" && named.contains(&path.to_str().unwrap());
    let of_command = files.iter().filter(|(path, _)| !(is_cut && is_read(path) || is_told(path)));
    of_command.map(|(path, content)| (path.clone(), content.clone())).collect()
}

fn is_journal(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "saving")
}

/// The files with the names that shards have in a directory without others: each save over shards gives them other numbers of
/// digits.
fn by_count(files: &Files) -> Files {
    let plain = |text: &str| {
        let mut text = text.to_owned();
        for before in ["-", "-of-"] {
            let zeros = format!("{before}0");
            while text.contains(&zeros) {
                text = text.replace(&zeros, before);
            }
        }
        text
    };
    let plain_content = |path: &Path, content: &[u8]| match std::str::from_utf8(content) {
        Ok(text) if path.extension().is_some_and(|ending| ending == "json") => plain(text).into_bytes(),
        _ => content.to_vec(),
    };
    let plain_name = |path: &Path| path.with_file_name(plain(path.file_name().unwrap().to_str().unwrap()));
    files.iter().map(|(path, content)| (plain_name(path), plain_content(path, content))).collect()
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

/// An old checkpoint of several files with other content, beside what is converted.
fn others() -> Vec<(String, Vec<u8>)> {
    let old = common::directory_on_disk();
    let (from, to) = (old.path().join("from.safetensors"), old.path().join("out.safetensors"));
    let mut other = digits_file();
    let length = other.len();
    other[length - 100_000..].iter_mut().for_each(|byte| *byte = 1);
    std::fs::write(&from, other).unwrap();
    common::succeeds(safejax().arg("convert").args([&from, &to]).args(["--max-shard-size", "40kB"]));
    std::fs::remove_file(&from).unwrap();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let shards = files(old.path());
    assert!(shards.len() > 2);
    let input = ("in.safetensors".to_owned(), digits_file());
    [input].into_iter().chain(shards.into_iter().map(|(path, content)| (name(&path), content))).collect()
}

/// Converts with this size of a file, in the place of these.
fn convert_over(name: &str, size: &str, before: &[(&str, Vec<u8>)]) {
    sweep(name, before, |directory| {
        let (from, to) = (directory.join("in.safetensors"), directory.join("out.safetensors"));
        vec!["convert".into(), from, to, "--max-shard-size".into(), size.into()]
    });
}

#[test]
fn a_conversion_to_shards_over_others() {
    let before = others();
    let before: Vec<_> = before.iter().map(|(name, content)| (name.as_str(), content.clone())).collect();
    convert_over("shards over shards", "40kB", &before);
}

#[test]
fn a_conversion_to_one_file_over_shards() {
    let before = others();
    let before: Vec<_> = before.iter().map(|(name, content)| (name.as_str(), content.clone())).collect();
    convert_over("one over shards", "1GB", &before);
}

#[test]
fn a_conversion_to_shards_over_one_file() {
    let before = [("in.safetensors", digits_file()), ("out.safetensors", digits_file())];
    convert_over("shards over one", "40kB", &before);
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
