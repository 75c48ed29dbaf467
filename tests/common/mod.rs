//! What the integration tests share: a client of the plugin that is tested, the digits, files made to order, and the
//! binary.
//!
//! The plugin is the CPU's, or the one that [`PLUGIN_VARIABLE`] names. What is true of every device is tested on every
//! plugin; a test that makes no sense on one begins with [`is_skipped`]. The binaries also run away from the source
//! tree, where [`ROOT_VARIABLE`] says what stands in its place (`scripts/gpu_check.sh`).

#![allow(dead_code)] // Every test binary uses a part of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, LazyLock, Mutex};

use safejax::plugins::{Package, Wheel, install_into};
use safejax::{ArraySpec, Client, DType, Placement};

pub mod foreign;
pub mod orbax;
pub mod packages;

/// The environment variable that names the plugin to test, by name or path.
pub const PLUGIN_VARIABLE: &str = "SAFEJAX_TEST_PLUGIN";

/// The environment variable that names a directory with `tests/data`, `examples`, `bin/safejax` and a writable `tmp`.
pub const ROOT_VARIABLE: &str = "SAFEJAX_TEST_ROOT";

/// The plugin that is tested.
pub fn plugin() -> String {
    std::env::var(PLUGIN_VARIABLE).unwrap_or_else(|_| "cpu".into())
}

/// The client that a test binary shares. Installs the CPU plugin on the first run.
pub fn client() -> &'static Client {
    static CLIENT: LazyLock<Client> = LazyLock::new(|| {
        let choice = if std::env::var_os(PLUGIN_VARIABLE).is_none() {
            return Client::cpu().unwrap();
        } else {
            Client::choose().plugin(plugin())
        };
        let is_cpu = plugin().contains("cpu");
        // Several tests and the commands that they run share a card.
        choice.configure(|builder| if is_cpu { builder } else { builder.preallocate(false) }).build().unwrap()
    });
    &CLIENT
}

/// Another client of the plugin, with one device where that is for us to say.
pub fn other_client() -> Client {
    let builder = client().plugin().client();
    let builder = if is_cpu() { builder.device_count(1) } else { builder.preallocate(false) };
    builder.build().unwrap()
}

/// Whether the device is the host's own processor.
pub fn is_cpu() -> bool {
    client().platform_name() == "cpu"
}

pub fn first_device() -> Placement {
    Placement::from(&client().device(0).unwrap())
}

/// Where a test makes sense.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Only {
    /// On the CPU.
    Cpu,
    /// On devices with memory of their own.
    Accelerator,
    /// With so many devices.
    Devices(usize),
}

/// Whether the test that calls this makes no sense on the plugin that is tested; says so, with the reason.
pub fn is_skipped(only: Only, why: &str) -> bool {
    let fits = match only {
        Only::Cpu => is_cpu(),
        Only::Accelerator => !is_cpu(),
        Only::Devices(count) => client().addressable_devices().len() >= count,
    };
    if !fits {
        let platform = client().platform_name();
        let thread = std::thread::current();
        eprintln!("skipped {} on {platform}: {why}", thread.name().unwrap_or_default());
    }
    !fits
}

/// The arguments that have a command use the plugin that is tested.
pub fn on_device() -> Vec<String> {
    let arguments: &[&str] = match std::env::var_os(PLUGIN_VARIABLE) {
        None => &["--device", "cpu"],
        Some(_) if is_cpu() => &["--plugin", &plugin()],
        Some(_) => &["--plugin", &plugin(), "--option", "preallocate=false"],
    };
    arguments.iter().map(|&argument| argument.to_owned()).collect()
}

/// How far numbers may be from those of another compiler for another device, relative to what is at least 1: CPUs compute
/// float32 as such, GPUs multiply it with 10 bits of mantissa.
pub fn tolerance() -> f32 {
    if is_cpu() { 1e-4 } else { 2e-2 }
}

/// The build directory.
pub fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| packages::workspace().join("target"), PathBuf::from)
}

fn root() -> PathBuf {
    std::env::var_os(ROOT_VARIABLE).map_or_else(|| packages::workspace().into(), PathBuf::from)
}

/// A file of examples/digits.
pub fn digits(name: &str) -> PathBuf {
    root().join("examples/digits").join(name)
}

/// A file of tests/data.
pub fn data(name: &str) -> PathBuf {
    root().join("tests/data").join(name)
}

/// A directory of its own on a disk: not among the system's temporary files, which may be in memory, where there are no
/// direct reads.
pub fn directory_on_disk() -> tempfile::TempDir {
    let parent = match std::env::var_os(ROOT_VARIABLE) {
        Some(root) => Path::new(&root).join("tmp"),
        None => env!("CARGO_TARGET_TMPDIR").into(),
    };
    tempfile::tempdir_in(parent).unwrap()
}

/// The path of the binary, which is built for the tests of its own package alone: those in cli/tests.
pub fn binary() -> PathBuf {
    match std::env::var_os(ROOT_VARIABLE) {
        Some(root) => Path::new(&root).join("bin/safejax"),
        None => {
            const BUILT: Option<&str> = option_env!("CARGO_BIN_EXE_safejax");
            BUILT.expect("tests that run the command are in cli/tests").into()
        }
    }
}

/// The binary, to be given arguments.
pub fn safejax() -> Command {
    Command::new(binary())
}

/// A run of the binary that must succeed; returns what it printed.
#[track_caller]
pub fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// A run of the binary that must fail with exit code 1 and say so; returns its error.
#[track_caller]
pub fn fails(command: &mut Command) -> String {
    fails_with(1, command)
}

/// A run of the binary that must fail with this exit code (2 for what is wrong in the arguments) and say so.
#[track_caller]
pub fn fails_with(code: i32, command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{command:?}: {}", stderr(&output));
    let error = stderr(&output);
    assert!(error.contains("error: "), "{error}");
    assert!(!error.contains("panicked"), "{error}");
    error
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A safetensors file with this header and data, valid or not.
pub fn raw_file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A valid safetensors file of these tensors, as the official crate writes it. Their bytes count up.
pub fn official_file(tensors: &[(&str, DType, &[usize])]) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, dtype, shape)| {
            let bytes = ArraySpec::new(*dtype, *shape).packed_bytes().unwrap();
            // A bool is 0 or 1.
            if *dtype == DType::Bool {
                (0..bytes).map(|index| (index % 2) as u8).collect()
            } else {
                counting(bytes)
            }
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, dtype, shape), bytes)| {
        let dtype = serde_json::from_value(dtype.safetensors_name().into()).unwrap();
        (*name, safetensors::tensor::TensorView::new(dtype, shape.to_vec(), bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

/// Bytes that count up: a swapped byte or element shows, since they repeat after 59, which is no multiple of an element's
/// width. No element of them is NaN in any type of floating point, since none is above 0x3b.
pub fn counting(count: usize) -> Vec<u8> {
    (0..count).map(|index| (index % 59) as u8 + 1).collect()
}

/// Runs a future on this thread.
pub fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::task::Waker::from(std::sync::Arc::new(Unpark(std::thread::current())));
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(output) => return output,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
}

/// The tensors of a safetensors file, by their bytes.
pub fn read_tensors(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let tensors = safetensors::SafeTensors::deserialize(bytes).unwrap();
    tensors.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect()
}

/// The content of every file of a directory.
pub fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// The names in a directory, sorted.
pub fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Of so many calls of a function, those that a sweep has fail: the first and the last, or all of them with
/// `SAFEJAX_SWEEP=all` (`scripts/soak.sh`).
pub fn swept(count: u64) -> Vec<u64> {
    if std::env::var("SAFEJAX_SWEEP").is_ok_and(|sweep| sweep == "all") {
        return (0..count).collect();
    }
    let mut calls: Vec<u64> = (0..count.min(3)).chain(count.checked_sub(1)).collect();
    calls.dedup();
    calls
}

/// A place in memory for what is logged.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// What was logged.
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}
