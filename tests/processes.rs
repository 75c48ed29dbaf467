//! Several real processes, each with its own devices: what they load, save together, and tell each other. A test starts this
//! program again for each process, which does one piece of [`WORKS`].

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use common::{digits, files, names, read_tensors};
use safejax::load::{ShardingRules, Verification};
use safejax::processes::{DirectoryStore, MemoryStore, Processes};
use safejax::save::Digests;
use safejax::{
    Array, Client, CompileOptions, DeviceMesh, HostArray, LoadOptions, Params, Plugin, Program, SaveOptions,
};
use safejax_simulator::{Config, Simulator};

/// What a process of a job has to do.
struct Job {
    processes: Processes,
    /// The plugin, and whether it is the simulator.
    plugin: PathBuf,
    directory: PathBuf,
}

impl Job {
    fn client(&self) -> safejax::Result<Client> {
        let builder = Plugin::open(&self.plugin)?.client().processes(&self.processes);
        let is_simulator = self.plugin.to_string_lossy().contains("simulator");
        if is_simulator { builder } else { builder.device_count(2) }.build()
    }

    /// The digits over four devices, two of each process.
    fn load(&self, client: &Client) -> Result<Params> {
        let mesh = DeviceMesh::new(client, "data=2,model=2".parse()?)?;
        let rules = ShardingRules::default()
            .rule("*Dense_0.kernel", "P('data', 'model')".parse()?)
            .rule("*Dense_0.bias", "P('model')".parse()?)
            .rule("*Dense_1.kernel", "P('data')".parse()?);
        let options = LoadOptions::default().sharded(&mesh, rules);
        let (params, report) = Params::load_with(client, digits("params.safetensors"), &options)?;
        params.wait()?;
        // Half of what is cut along `data`, and no byte of the other half.
        let halves = ["params.Dense_0.kernel", "params.Dense_1.kernel"];
        let bytes = |name: &str| Ok::<_, safejax::Error>(params.get(name)?.spec().host_bytes()? as u64);
        let half: u64 = halves.iter().map(|name| bytes(name)).sum::<Result<u64, _>>()? / 2;
        let read = report.bytes;
        ensure!(read == params.total_bytes() - half, "{read} bytes of {}", params.total_bytes());
        Ok(params)
    }
}

type Work = fn(&Job) -> Result<()>;

const WORKS: [(&str, Work); 6] = [
    ("devices", devices),
    ("saves", saves),
    ("differs", differs),
    ("fails", fails),
    ("leaves", leaves),
    ("is_killed", is_killed),
];

/// Every process knows the devices of all.
fn devices(job: &Job) -> Result<()> {
    let client = job.client()?;
    let (index, count) = (job.processes.index(), job.processes.count());
    ensure!(client.process_index() as usize == index);
    ensure!(client.processes().map(Processes::count) == Some(count));
    let processes: Vec<i32> = client.devices().iter().map(|device| device.process_index()).collect();
    ensure!(processes == [0, 0, 1, 1], "{processes:?}");
    ensure!(client.addressable_devices().len() == 2);
    let other = client.devices().into_iter().find(|device| !device.is_addressable()).unwrap();
    let array = HostArray::from_slice(&[1], &[1f32])?;
    let refused = client.put_on(&array, &other).unwrap_err().to_string();
    ensure!(refused.contains("is attached to another process"), "{refused}");
    ensure!(other.memory_stats().is_err());
    let mut on_other = CompileOptions::default();
    on_other.device_assignment = Some(vec![vec![other.id()]]);
    let text = "module @sim_identity {\n  func.func public @main(%a: tensor<f32>) -> tensor<f32> {\n    return %a : tensor<f32>\n  }\n}\n";
    let program = Program::from_bytes(text.as_bytes().to_vec())?;
    let refused = client.compile_with(&program, &on_other).unwrap_err().to_string();
    ensure!(refused.contains("a program runs on the devices of one process"), "{refused}");
    client.compile(&program)?.call(&[&HostArray::from_slice(&[], &[1f32])?])?.wait()?;
    // A second client, whose keys are others.
    ensure!(job.client()?.devices().len() == 4);
    Ok(())
}

/// To one file, with digests, to several, and over what is there.
fn saves(job: &Job) -> Result<()> {
    let client = job.client()?;
    let params = job.load(&client)?;
    let gathered = params.get("params.Dense_0.kernel")?.to_host().unwrap_err().to_string();
    ensure!(gathered.contains("on devices of other processes only"), "{gathered}");
    params.save(job.directory.join("one.safetensors"))?;
    params.save_with(
        job.directory.join("digests.safetensors"),
        &SaveOptions::default().digests(Digests::Sha256).dtype(safejax::DType::BF16),
    )?;
    for most in [40_000, 100_000_000] {
        params.save_with(
            job.directory.join("several.safetensors"),
            &SaveOptions::default().max_shard_bytes(most),
        )?;
    }
    params.save(job.directory.join("one.safetensors"))?;
    Ok(())
}

/// The processes do not save the same.
fn differs(job: &Job) -> Result<()> {
    let client = job.client()?;
    let mut params = job.load(&client)?;
    if job.processes.index() == 1 {
        params.remove("params.Dense_1.bias")?;
    }
    let error = params.save(job.directory.join("one.safetensors")).unwrap_err().to_string();
    // What is recorded of the tree differs too, which is found first.
    ensure!(error.contains("processes 0 and 1 do not save the same"), "{error}");
    // After it, they are in step still.
    job.processes.exchange("the end", b"").map(|_| ()).map_err(Into::into)
}

/// One process cannot go on: its part is not there any more.
fn fails(job: &Job) -> Result<()> {
    let client = job.client()?;
    let params = job.load(&client)?;
    if job.processes.index() == 1 {
        params.get("params.Dense_1.kernel")?.delete()?;
    }
    let error = params.save(job.directory.join("one.safetensors")).unwrap_err();
    let chain = format!("{:#}", anyhow::Error::from(error));
    let expected = if job.processes.index() == 1 {
        "was deleted"
    } else {
        "process 1 has failed: tensor `params.Dense_1.kernel`"
    };
    ensure!(chain.contains(expected), "{chain}");
    job.processes.exchange("the end", b"").map(|_| ()).map_err(Into::into)
}

/// One process does not come.
fn leaves(job: &Job) -> Result<()> {
    let client = job.client()?;
    let params = job.load(&client)?;
    if job.processes.index() == 1 {
        return Ok(());
    }
    let error = params.save(job.directory.join("one.safetensors")).unwrap_err().to_string();
    ensure!(error.contains("process 1 of 2 has ended; `a save (of 2 processes)` needs it"), "{error}");
    Ok(())
}

/// One process ends in the middle of a save, for which both wait: the parent sees what is left.
fn is_killed(job: &Job) -> Result<()> {
    let client = job.client()?;
    let params = job.load(&client)?;
    params.save(job.directory.join("one.safetensors"))?;
    if job.processes.index() == 1 {
        // Says that it is there, and what it has; then no more.
        job.processes.exchange("a save", b"+")?;
        std::process::abort();
    }
    let changed = params.map(|_, array| Ok(array.clone()))?;
    let error = changed.save(job.directory.join("one.safetensors")).unwrap_err().to_string();
    ensure!(error.contains("process 1 of 2 has not come to `what is saved (of 2 processes)`"), "{error}");
    Ok(())
}

/// Which process of which job this is: the work, the process, the plugin and the directory.
const JOB: &str = "SAFEJAX_TEST_JOB";

/// What a process does; as a test of its own, nothing.
#[test]
fn process() {
    let Ok(job) = std::env::var(JOB) else { return };
    let [work, index, plugin, directory] = job.split('|').collect::<Vec<_>>()[..] else { panic!("{job}") };
    let store = DirectoryStore::new(Path::new(directory).with_file_name("store"), "job").unwrap();
    let limit = Duration::from_secs(if ["leaves", "is_killed"].contains(&work) { 3 } else { 60 });
    let processes = Processes::new(index.parse().unwrap(), 2, store).unwrap().time_limit(limit);
    let job = Job { processes, plugin: plugin.into(), directory: directory.into() };
    let (_, work) = WORKS.into_iter().find(|(name, _)| *name == work).unwrap();
    work(&job).unwrap();
}

fn start(work: &str, index: usize, plugin: &Path, directory: &Path) -> Child {
    let config = serde_json::to_string(&Config { devices: 2, ..Config::default() }).unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["process", "--exact", "--nocapture"])
        .env(JOB, format!("{work}|{index}|{}|{}", plugin.display(), directory.display()))
        .env(safejax_simulator::CONFIG_VARIABLE, config)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What two processes have written, and whether each ended well.
struct Outcome {
    _all: tempfile::TempDir,
    directory: PathBuf,
    ended: [bool; 2],
}

/// Has two processes do this.
fn run(work: &str, plugin: &Path) -> Outcome {
    let all = tempfile::tempdir().unwrap();
    let directory = all.path().join("written");
    std::fs::create_dir(&directory).unwrap();
    let children = [0, 1].map(|index| start(work, index, plugin, &directory));
    let outcomes = children.map(|child| child.wait_with_output().unwrap());
    let ended = outcomes.each_ref().map(|output| output.status.success());
    if work != "is_killed" {
        let said = outcomes.map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
        assert_eq!(ended, [true, true], "{work} on {}:\n{}\n{}", plugin.display(), said[0], said[1]);
    }
    Outcome { _all: all, directory, ended }
}

fn plugins() -> [PathBuf; 2] {
    [Client::cpu().unwrap().plugin().path().to_owned(), Simulator::library()]
}

#[test]
fn every_process_knows_the_devices_of_all() {
    plugins().iter().for_each(|plugin| drop(run("devices", plugin)));
}

#[test]
fn what_two_processes_save_together_is_whole() {
    let expected = read_tensors(&std::fs::read(digits("params.safetensors")).unwrap());
    for plugin in plugins() {
        let outcome = run("saves", &plugin);
        let at = |name: &str| outcome.directory.join(name);
        assert_eq!(read_tensors(&std::fs::read(at("one.safetensors")).unwrap()), expected);
        // The same file as one process writes.
        let alone = at("alone.safetensors");
        let alone_client = Client::cpu().unwrap();
        Params::load(&alone_client, digits("params.safetensors")).unwrap().save(&alone).unwrap();
        assert!(std::fs::read(&alone).unwrap() == std::fs::read(at("one.safetensors")).unwrap());
        // One file of each process, in the place of what there was.
        let several: BTreeMap<String, Vec<u8>> = files(&outcome.directory)
            .into_iter()
            .filter(|(path, _)| path.to_string_lossy().contains("several-"))
            .flat_map(|(_, bytes)| read_tensors(&bytes))
            .collect();
        assert_eq!(several, expected);
        let left = names(&outcome.directory);
        let shards = left.iter().filter(|name| name.starts_with("several-")).count();
        assert_eq!((shards, left.len()), (2, 6), "{left:?}");
        let options = LoadOptions::default().verification(Verification::Digests);
        let (_, report) = Params::load_with(&alone_client, at("digests.safetensors"), &options).unwrap();
        assert_eq!(report.checked_tensors, expected.len());
        Params::load(&alone_client, at("several.safetensors.index.json")).unwrap();
    }
}

#[test]
fn where_one_process_fails_all_do_and_nothing_is_left() {
    let cpu = &plugins()[0];
    for work in ["differs", "fails", "leaves"] {
        let left = names(&run(work, cpu).directory);
        assert!(left.is_empty(), "{work}: {left:?}");
    }
    let outcome = run("is_killed", cpu);
    assert_eq!(outcome.ended, [true, false]);
    assert_eq!(names(&outcome.directory), ["one.safetensors"]);
    let expected = read_tensors(&std::fs::read(digits("params.safetensors")).unwrap());
    assert_eq!(read_tensors(&std::fs::read(outcome.directory.join("one.safetensors")).unwrap()), expected);
}

#[test]
fn a_plugin_asks_its_callers_store() {
    let simulator = Simulator::new(Config { devices: 1, ..Config::default() });
    let store = MemoryStore::default();
    // Of one process, nobody is asked.
    let alone = Processes::new(0, 1, store.clone()).unwrap();
    let plugin = Plugin::open(simulator.path()).unwrap();
    assert_eq!(plugin.client().processes(&alone).build().unwrap().devices().len(), 1);
    assert_eq!(simulator.report().exchanged_keys, 0);
    let clients = std::thread::scope(|scope| {
        let threads = [0, 1, 2].map(|index| {
            let processes = Processes::new(index, 3, store.clone()).unwrap();
            let plugin = plugin.clone();
            scope.spawn(move || plugin.client().processes(&processes).build().unwrap())
        });
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(simulator.report().exchanged_keys, 6);
    for (index, client) in clients.iter().enumerate() {
        assert_eq!((client.process_index() as usize, client.devices().len()), (index, 3));
    }
    // A saved array of one's own is whole in every process.
    let shared: Vec<Array> = clients
        .iter()
        .map(|client| client.put(&HostArray::from_slice(&[2], &[1f32, 2.]).unwrap()).unwrap().into())
        .collect();
    let directory = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for array in shared {
            let file = directory.path().join("shared.safetensors");
            scope.spawn(move || Params::from_arrays([("a".to_owned(), array)]).unwrap().save(&file).unwrap());
        }
    });
    assert_eq!(names(directory.path()), ["shared.safetensors"]);
    drop(clients);
    simulator.assert_clean(0);
}
