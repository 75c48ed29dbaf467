//! Every function that a piece of work calls fails in turn, at every call of it, in every way. Each time the work ends, with an
//! error that says what failed or with the right result; everything is given back; files are as they were; and the next
//! attempt works.
//!
//! The short sweep takes the first calls of each function, and the last. `SAFEJAX_SWEEP=all` takes every call
//! (`scripts/soak.sh`).

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{digits, files, read_tensors, swept};
use safejax::load::{Delivery, Staging};
use safejax::{Array, Client, Donate, HostArray, LoadOptions, Params, Plugin, Program, SaveOptions};
use safejax_simulator::{Config, Fault, FaultKind, Simulator};

/// What is done, from the client to its end, in a directory of its own.
type Work = fn(plugin: &Path, directory: &Path) -> Result<()>;

/// Longer than any of the work takes, with what is injected.
const PATIENCE: Duration = Duration::from_secs(60);

/// What an error is to be told apart by: `PJRT_Error_Code_DATA_LOSS`, which nothing else gives.
const CODE: u32 = 15;

/// Functions that start work, which can fail after they have returned.
const STARTS_WORK: [&str; 6] = [
    "PJRT_Client_BufferFromHostBuffer",
    "PJRT_AsyncHostToDeviceTransferManager_TransferData",
    "PJRT_Buffer_ToHostBuffer",
    "PJRT_Buffer_CopyRawToHost",
    "PJRT_LoadedExecutable_Execute",
    "PJRT_Buffer_ReadyEvent",
];

fn sum_program() -> Program {
    let text = "module @sim_add {\n  func.func public @main(%arg0: tensor<64x10xf32> {tf.aliasing_output = 0 : i32}, \
                %arg1: tensor<64x10xf32>) -> (tensor<64x10xf32>) {\n    return %arg0 : tensor<64x10xf32>\n  }\n}\n";
    Program::from_bytes(text.as_bytes().to_vec()).unwrap()
}

/// Longer than anything takes that ends.
const TIME_LIMIT: Duration = Duration::from_millis(300);

fn connect(plugin: &Path) -> Result<Client> {
    Ok(Plugin::open(plugin)?.client().time_limit(TIME_LIMIT).build()?)
}

fn load(plugin: &Path, delivery: Delivery) -> Result<Params> {
    let client = connect(plugin)?;
    let options = LoadOptions::default().delivery(delivery).staging(Staging::new(2, 64 << 10));
    let (params, _) = Params::load_with(&client, digits("params.safetensors"), &options)?;
    Ok(params)
}

/// The values of the params, read back through the plugin.
fn check(params: &Params) -> Result<()> {
    let expected = read_tensors(&std::fs::read(digits("params.safetensors"))?);
    let saved = read_tensors(&safejax::serialize(params)?);
    ensure!(saved == expected, "the values are others");
    Ok(())
}

fn load_by_stream(plugin: &Path, _: &Path) -> Result<()> {
    let params = load(plugin, Delivery::Auto)?;
    params.wait()?;
    check(&params)
}

fn load_whole(plugin: &Path, _: &Path) -> Result<()> {
    let params = load(plugin, Delivery::Whole)?;
    params.wait()?;
    check(&params)
}

fn save_to_one_file(plugin: &Path, directory: &Path) -> Result<()> {
    let file = directory.join("saved.safetensors");
    load(plugin, Delivery::Auto)?.save(&file)?;
    ensure!(
        read_tensors(&std::fs::read(file)?) == read_tensors(&std::fs::read(digits("params.safetensors"))?)
    );
    Ok(())
}

fn save_to_shards(plugin: &Path, directory: &Path) -> Result<()> {
    let params = load(plugin, Delivery::Auto)?;
    params.save_with(directory.join("saved.safetensors"), &SaveOptions::default().max_shard_bytes(40_000))?;
    let mut saved = BTreeMap::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "safetensors") {
            saved.extend(read_tensors(&std::fs::read(path)?));
        }
    }
    ensure!(saved == read_tensors(&std::fs::read(digits("params.safetensors"))?));
    Ok(())
}

fn compile_and_call(plugin: &Path, _: &Path) -> Result<()> {
    let client = connect(plugin)?;
    let sum = client.compile(&sum_program())?;
    let one = HostArray::from_slice(&[64, 10], &[1f32; 640])?;
    let (left, right) = (client.put(&one)?, client.put(&one)?);
    let outputs = sum.call(&[&left, &right])?;
    let total = sum.call(&[&Donate(outputs.single()?.clone()), &right])?;
    ensure!(total.single()?.to_vec::<f32>()? == [3f32; 640], "the sum is another");
    ensure!(left.to_vec::<f32>()? == [1f32; 640], "an argument was changed");
    Ok(())
}

fn bind_and_call(plugin: &Path, _: &Path) -> Result<()> {
    let client = connect(plugin)?;
    let sum = client.compile(&sum_program())?;
    let one = HostArray::from_slice(&[64, 10], &[1f32; 640])?;
    let right = client.put(&one)?;
    let mut total = Array::from(client.put(&one)?);
    // The sum of the same two arguments, of which the first is fixed here.
    let total_and_one = sum.bind(&[&right])?;
    ensure!(total_and_one.call(&[&right])?.single()?.to_vec::<f32>()? == [2f32; 640], "the sum is another");
    for _ in 0..3 {
        total = sum.call(&[&Donate(total), &right])?.single()?.clone();
    }
    ensure!(total.start_to_host()?.wait()?.bytes().len() == 2560);
    ensure!(total.to_vec::<f32>()? == [4f32; 640], "the sum is another");
    Ok(())
}

/// Does the work on a thread of its own, which must end.
fn run(work: Work, plugin: &Path, directory: &Path, what: &str) -> Result<()> {
    let (sender, receiver) = mpsc::channel();
    let (plugin, directory) = (plugin.to_owned(), directory.to_owned());
    std::thread::spawn(move || {
        let outcome = std::panic::catch_unwind(|| work(&plugin, &directory));
        let _ = sender.send(outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked"))));
    });
    match receiver.recv_timeout(PATIENCE) {
        Ok(outcome) => outcome,
        Err(_) => panic!("{what}: it hangs"),
    }
}

/// The sweep over one piece of work.
struct Sweep {
    name: &'static str,
    work: Work,
    simulator: Simulator,
    directory: tempfile::TempDir,
    runs: usize,
    problems: Vec<String>,
}

/// What is called once, when the plugin is opened.
const OPENS: [&str; 2] = ["PJRT_Plugin_Initialize", "PJRT_Plugin_Attributes"];

/// Whether `SAFEJAX_SWEEP_SKIP` names the function: what keeps memory for good is nothing for a checker of leaks
/// (`scripts/checkers.sh`).
fn is_left_out(function: &str) -> bool {
    std::env::var("SAFEJAX_SWEEP_SKIP").is_ok_and(|left_out| left_out.split(',').any(|one| one == function))
}

/// How a function can go wrong.
fn kinds_of(function: &str) -> Vec<FaultKind> {
    let mut kinds = vec![FaultKind::Error(CODE), FaultKind::Delay(2)];
    if STARTS_WORK.contains(&function) {
        kinds.extend([
            FaultKind::FailingWork(CODE),
            FaultKind::LateWork(2),
            FaultKind::EndlessWork,
            FaultKind::DeviceLost,
        ]);
    }
    kinds
}

impl Sweep {
    fn attempt(&self, what: &str) -> Result<()> {
        run(self.work, self.simulator.path(), self.directory.path(), what)
    }

    /// Does the work with every fault in turn.
    fn all(&mut self) {
        let name = self.name;
        self.attempt("without faults").with_context(|| format!("{name} without faults")).unwrap();
        self.simulator.assert_clean(0);
        for (function, &count) in &self.simulator.report().calls {
            if OPENS.contains(&function.as_str()) || is_left_out(function) {
                continue;
            }
            let mut happened = 0;
            for call in swept(count) {
                for kind in kinds_of(function) {
                    happened += self.one(function, call, kind);
                }
            }
            if happened == 0 {
                self.problems.push(format!("no fault happened in {function}"));
            }
        }
        self.simulator.set_faults(Vec::new());
        self.attempt("after all faults").with_context(|| format!("{name} after all faults")).unwrap();
    }

    /// Does the work with one fault; returns how often that happened: where threads race, there can be fewer calls.
    fn one(&mut self, function: &str, call: u64, kind: FaultKind) -> u64 {
        let what = format!("{}: {kind:?} in call {call} of {function}", self.name);
        let before = files(self.directory.path());
        self.simulator.set_faults(vec![Fault::once(function, call, kind)]);
        let outcome = self.attempt(&what);
        // What never ends has to end for everything to come back.
        self.simulator.release();
        let report = self.simulator.report_at_rest(0);
        self.runs += 1;
        let left = report.problems(0);
        if !left.is_empty() {
            let said = outcome.as_ref().err().map(|error| format!("{error:#}"));
            self.problems.push(format!("{what}: {said:?}: {left:?}"));
        }
        if let Err(error) = outcome {
            let said = format!("{error:#}");
            if std::env::var_os("SAFEJAX_SWEEP_SHOW").is_some() {
                println!("{what}: {said}");
            }
            let is_for_nothing = matches!(kind, FaultKind::Delay(_) | FaultKind::LateWork(_));
            if is_for_nothing || report.faults == 0 || !says_what(function, kind, &said) {
                self.problems.push(format!("{what}: the error is not of the fault: {said}"));
            }
            // What was there before is there still, and nothing else.
            if files(self.directory.path()) != before {
                self.problems.push(format!("{what}: files are not as they were"));
            }
        }
        report.faults
    }
}

/// Whether an error tells what went wrong, and where.
fn says_what(function: &str, kind: FaultKind, said: &str) -> bool {
    // To wait is not what fails: it is what was waited for, or the chunk that does not come back.
    let names_work = ["PJRT_", "the work that fills", "a transfer from the staging ring"];
    let names_it = names_work.iter().any(|work| said.contains(work));
    match kind {
        FaultKind::Error(_) if !function.starts_with("PJRT_Event_") => {
            said.contains(function) && said.contains("DATA_LOSS")
        }
        FaultKind::Error(_) | FaultKind::FailingWork(_) => names_it && said.contains("DATA_LOSS"),
        FaultKind::EndlessWork => names_it && said.contains("which is the time limit"),
        _ => names_it,
    }
}

fn sweep(name: &'static str, config: Config, work: Work) {
    let (simulator, directory) = (Simulator::new(config), tempfile::tempdir().unwrap());
    let mut sweep = Sweep { name, work, simulator, directory, runs: 0, problems: Vec::new() };
    sweep.all();
    let (runs, problems) = (sweep.runs, sweep.problems);
    let first = problems[..problems.len().min(20)].join("\n");
    assert!(problems.is_empty(), "{} of {runs}:\n{first}", problems.len());
}

#[test]
fn opening_a_plugin() {
    for function in OPENS {
        for kind in kinds_of(function) {
            let simulator =
                Simulator::new(Config { faults: vec![Fault::once(function, 0, kind)], ..Config::default() });
            let directory = tempfile::tempdir().unwrap();
            let attempt = || run(load_by_stream, simulator.path(), directory.path(), function);
            let outcome = attempt();
            assert_eq!(simulator.report().faults, 1, "{kind:?} in {function}");
            if let Err(error) = outcome {
                let said = format!("{error:#}");
                assert!(says_what(function, kind, &said) && kind == FaultKind::Error(CODE), "{said}");
            }
            simulator.assert_clean(0);
            attempt().unwrap();
            simulator.assert_clean(0);
        }
    }
}

#[test]
fn a_load_by_stream() {
    sweep("stream", Config::default(), load_by_stream);
}

#[test]
fn a_load_of_whole_tensors() {
    sweep("whole", Config::default(), load_whole);
}

#[test]
fn a_load_without_registration_where_callbacks_come_from_elsewhere() {
    let config = Config { has_registration: false, calls_back_elsewhere: true, ..Config::default() };
    sweep("unregistered", config, load_by_stream);
}

#[test]
fn a_save_to_one_file() {
    sweep("save", Config::default(), save_to_one_file);
}

#[test]
fn a_save_to_shards() {
    sweep("shards", Config::default(), save_to_shards);
}

#[test]
fn a_call() {
    sweep("call", Config::default(), compile_and_call);
}

#[test]
fn a_chain_of_calls() {
    sweep("chain", Config::default(), bind_and_call);
}
