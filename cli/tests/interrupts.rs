//! What a signal, a full disk or another process does to work that is under way.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{binary, names, stderr};
use safejax::convert::{ConvertOptions, convert, open};
use safejax::load::Selection;
use safejax::save::Digests;
use safejax::{CancelToken, Error, LoadOptions, Monitor, Params, SaveOptions};

/// A file of one tensor of zeros, which takes no space on the disk.
fn write_sparse(path: &Path, bytes: u64) {
    let header = format!("{{\"w\":{{\"dtype\":\"U8\",\"shape\":[{bytes}],\"data_offsets\":[0,{bytes}]}}}}");
    let head = common::raw_file(&header, &[]);
    std::fs::write(path, &head).unwrap();
    File::options().write(true).open(path).unwrap().set_len(head.len() as u64 + bytes).unwrap();
}

fn has_files_without_names(directory: &Path) -> bool {
    use std::os::unix::fs::OpenOptionsExt;
    /// `O_TMPFILE` of Linux, which includes `O_DIRECTORY`.
    const O_TMPFILE: i32 = 0o20_200_000;
    File::options().write(true).custom_flags(O_TMPFILE).open(directory).is_ok()
}

fn kill(signal: &str, process: u32) {
    assert!(Command::new("kill").args([signal, &process.to_string()]).status().unwrap().success());
}

/// Starts the command, waits until the target's directory is being written to, sends a signal.
fn interrupted(arguments: &[&str], signal: &str, after: Duration) -> (Output, Duration) {
    let child =
        Command::new(binary()).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(after);
    let sent = Instant::now();
    kill(signal, child.id());
    (child.wait_with_output().unwrap(), sent.elapsed())
}

#[test]
fn a_signal_ends_a_conversion_and_leaves_the_old_file_and_nothing_else() {
    use std::os::unix::process::ExitStatusExt;
    let directory = common::directory_on_disk();
    let (from, to) = (directory.path().join("from.safetensors"), directory.path().join("to"));
    write_sparse(&from, 4 << 30);
    for (format, signal, number) in
        [("safetensors", "-INT", 2), ("npz", "-TERM", 15), ("safetensors", "-KILL", 9)]
    {
        std::fs::write(&to, "old").unwrap();
        let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
        let mut arguments = vec!["convert", from, to, "--to", format];
        arguments.extend((format == "safetensors").then_some("--digests"));
        let (output, took) = interrupted(&arguments, signal, Duration::from_millis(400));
        assert_eq!(output.status.signal(), Some(number), "{format}: {:?} {}", output.status, stderr(&output));
        // Long before the four gigabytes are written.
        assert!(took < Duration::from_secs(5), "{format}: {took:?}");
        assert_eq!(std::fs::read_to_string(to).unwrap(), "old");
        // Killed, a process leaves a file with a name where there are none without.
        if signal != "-KILL" || has_files_without_names(directory.path()) {
            assert_eq!(names(directory.path()), ["from.safetensors", "to"], "{format} {signal}");
        }
    }
}

#[test]
fn a_signal_ends_a_check_that_takes_no_more_memory_than_a_part() {
    use std::os::unix::process::ExitStatusExt;
    let directory = common::directory_on_disk();
    let path = directory.path().join("a.safetensors");
    write_sparse(&path, 64 << 30);
    let arguments = ["verify", "--hash", "--finite", path.to_str().unwrap()];
    let (output, took) = interrupted(&arguments, "-INT", Duration::from_millis(300));
    assert_eq!(output.status.signal(), Some(2), "{:?} {}", output.status, stderr(&output));
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn cancelled_work_is_an_error_that_says_only_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.safetensors");
    let params = Params::load(common::client(), common::digits("params.safetensors")).unwrap();
    let token = CancelToken::new();
    token.cancel();
    let monitor = Monitor::default().cancel(&token);
    let error = params.save_with(&path, &SaveOptions::default().monitor(monitor.clone())).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error:?}");
    let source = open(common::digits("params.safetensors"), &Selection::default()).unwrap();
    for name in ["a.safetensors", "a.npz", "a.msgpack"] {
        let mut options = ConvertOptions::default();
        options.monitor = monitor.clone();
        options.digests = Digests::Sha256;
        let error = convert(&source, &directory.path().join(name), &options).unwrap_err();
        assert!(matches!(error, Error::Cancelled), "{name}: {error:?}");
    }
    assert!(names(directory.path()).is_empty());
    let options = LoadOptions::default().monitor(monitor);
    let error =
        Params::load_with(common::client(), common::digits("params.safetensors"), &options).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error:?}");
}

#[test]
fn a_file_that_is_cut_or_written_to_while_it_is_read_is_an_error_or_a_warning() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.safetensors");
    let copy = || std::fs::copy(common::digits("params.safetensors"), &path).unwrap();
    let length = copy();
    let target = |ending: &str| directory.path().join("b").with_extension(ending);
    for ending in ["safetensors", "npz", "msgpack"] {
        copy();
        let source = open(&path, &Selection::default()).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(length / 2).unwrap();
        for digests in [Digests::None, Digests::Sha256] {
            let mut options = ConvertOptions::default();
            options.digests = digests;
            let error = convert(&source, &target(ending), &options).unwrap_err().to_string();
            assert!(error.contains("tensor `"), "{ending}: {error}");
            assert!(!target(ending).exists());
        }
    }
    // The same of an archive and of a msgpack.
    for ending in ["npz", "msgpack"] {
        copy();
        let from = directory.path().join("c").with_extension(ending);
        let source = open(&path, &Selection::default()).unwrap();
        convert(&source, &from, &ConvertOptions::default()).unwrap();
        let source = open(&from, &Selection::default()).unwrap();
        File::options().write(true).open(&from).unwrap().set_len(2000).unwrap();
        let error =
            convert(&source, &target("safetensors"), &ConvertOptions::default()).unwrap_err().to_string();
        assert!(error.contains("tensor `"), "{ending}: {error}");
    }
}

#[test]
fn a_full_disk_prints_one_error_and_nothing_of_the_libraries_below() {
    let directory = tempfile::tempdir().unwrap();
    let from = common::digits("params.safetensors");
    for ending in ["npz", "msgpack", "safetensors"] {
        let to = directory.path().join("b").with_extension(ending);
        let limited = "ulimit -f 8; trap '' XFSZ; exec \"$0\" convert \"$1\" \"$2\"";
        let output =
            Command::new("bash").args(["-c", limited]).arg(binary()).args([&from, &to]).output().unwrap();
        let printed = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{ending}: {printed}");
        assert!(
            printed.lines().all(|line| line.starts_with("error: ") || line.starts_with("  caused by: ")),
            "{printed}"
        );
        assert!(names(directory.path()).is_empty());
    }
}

#[test]
fn a_file_that_would_be_too_large_is_an_error_and_does_not_end_the_process() {
    let directory = tempfile::tempdir().unwrap();
    let limited = "ulimit -f 8; exec \"$0\" convert \"$1\" \"$2\"";
    let to = directory.path().join("b.safetensors");
    let from = common::digits("params.safetensors");
    let output =
        Command::new("bash").args(["-c", limited]).arg(binary()).args([&from, &to]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{:?}", output.status);
    assert!(stderr(&output).starts_with("error: "));
    assert!(names(directory.path()).is_empty());
}

/// The tensors of a checkpoint, whatever its files; `None` where one of them is not there.
fn tensors(path: &Path) -> Option<BTreeMap<String, Vec<u8>>> {
    let read = |path: &Path| std::fs::read(path).ok().map(|bytes| common::read_tensors(&bytes));
    let Ok(index) = std::fs::read(path.with_extension("safetensors.index.json")) else { return read(path) };
    let index: serde_json::Value = serde_json::from_slice(&index).ok()?;
    let files: BTreeSet<&str> =
        index["weight_map"].as_object()?.values().filter_map(|file| file.as_str()).collect();
    let shards = files.into_iter().map(|file| read(&path.with_file_name(file)));
    Some(shards.collect::<Option<Vec<_>>>()?.into_iter().flatten().collect())
}

/// Saves of one of two checkpoints to the same place, each in its own way.
struct Saves {
    directory: tempfile::TempDir,
    /// What is saved.
    from: [PathBuf; 2],
    /// How each is.
    options: [&'static [&'static str]; 2],
    target: PathBuf,
}

impl Saves {
    fn new(options: [&'static [&'static str]; 2]) -> Saves {
        let directory = common::directory_on_disk();
        let from = [1u8, 2].map(|content| {
            let file = directory.path().join(format!("{content}.safetensors"));
            let data = vec![content; 2 << 20];
            let views = (0..6).map(|index| {
                let view =
                    safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![data.len()], &data);
                (format!("t{index}"), view.unwrap())
            });
            safetensors::serialize_to_file(views, None, &file).unwrap();
            file
        });
        let saved = directory.path().join("saved");
        std::fs::create_dir(&saved).unwrap();
        Saves { directory, from, options, target: saved.join("out.safetensors") }
    }

    fn names(&self) -> Vec<String> {
        names(&self.directory.path().join("saved"))
    }

    /// Saves the first, or the second.
    fn command(&self, which: usize) -> Command {
        let mut command = Command::new(binary());
        command.arg("convert").args([&self.from[which], &self.target]).args(self.options[which]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Saves one, and returns how many files that makes.
    fn save(&self, which: usize) -> usize {
        assert!(self.command(which).status().unwrap().success());
        self.names().len()
    }
}

/// Kills saves over an old checkpoint, one after another, each a little later than the one before: what is there is the old
/// checkpoint or the new one, and after the next save there is that one and nothing else. `SAFEJAX_KILLS` says how many
/// (`scripts/soak.sh`).
fn kill_saves(options: [&'static [&'static str]; 2]) {
    let kills: u32 = std::env::var("SAFEJAX_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(30);
    let saves = Saves::new(options);
    let started = Instant::now();
    let counts = [1, 0].map(|which| saves.save(which));
    let (counts, took) = ([counts[1], counts[0]], started.elapsed() / 2);
    let whole = saves.from.each_ref().map(|file| tensors(file).unwrap());
    let (mut old, mut ended) = (0, [0, 0]);
    for kill in 0..kills {
        let new = 1 - old;
        let mut child = saves.command(new).spawn().unwrap();
        std::thread::sleep(took.mul_f64(1.2 * f64::from(kill) / f64::from(kills)));
        child.kill().unwrap();
        child.wait().unwrap();
        let found = tensors(&saves.target)
            .unwrap_or_else(|| panic!("after kill {kill} there is none: {:?}", saves.names()));
        let which = whole.iter().position(|tensors| *tensors == found);
        let which = which.unwrap_or_else(|| panic!("after kill {kill} it is neither"));
        ended[usize::from(which == new)] += 1;
        // What the killed one left goes with the next.
        assert_eq!(saves.save(which), counts[which], "after kill {kill}: {:?}", saves.names());
        assert_eq!(tensors(&saves.target).unwrap(), whole[which]);
        old = which;
    }
    println!("{kills} kills of {options:?}: the old one {} times, the new one {} times", ended[0], ended[1]);
}

/// The options with which a checkpoint is several files, and one, each in the place of the other.
const SEVERAL: &[&str] = &["--max-shard-size", "5MB"];
const ONE: &[&str] = &["--max-shard-size", "1GB"];

#[test]
fn a_save_that_is_killed_leaves_the_old_file_or_the_new_one() {
    kill_saves([&[], &[]]);
}

#[test]
fn a_save_to_shards_that_is_killed_leaves_the_old_checkpoint_or_the_new_one() {
    kill_saves([SEVERAL, SEVERAL]);
}

#[test]
fn a_save_to_shards_or_to_one_file_in_their_place_that_is_killed_leaves_the_old_checkpoint_or_the_new_one() {
    kill_saves([SEVERAL, ONE]);
}
