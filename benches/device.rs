//! Loads, saves and a soak on whatever device there is, for `scripts/gpu_check.py`, which watches the process.
//!
//! ```text
//! device loads ROUNDS warm|cold FILE WAY...       (options before all: --option NAME=true|false, of the client)
//! device saves ROUNDS FILE TARGET
//! device soak  SECONDS FILE ARTIFACT ARGS DIRECTORY
//! ```
//!
//! The plugin is that of `SAFEJAX_PLUGIN`, or the best that there is. A WAY is a name, and what is not as by default:
//! `ours`, or `small-ring:staging=4x4,threads=8,delivery=whole,registration=never,to=pinned_host`. The ways take turns.
//! Every measurement is two lines of JSON: one when it begins, one when it has ended, with its seconds. ARGS holds the
//! arguments of ARTIFACT as `args.0.…`, `args.1`, ….

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use safejax::load::{Delivery, Registration, Staging};
use safejax::pjrt::ClientBuilder;
use safejax::{Argument, Client, Device, Function, LoadOptions, Params, Program, SaveOptions};
use serde_json::{Value, json};

fn main() -> Result<()> {
    // `cargo bench` passes `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut options = Vec::new();
    while let ["--option", option, ..] = arguments[..] {
        let (name, value) = option.split_once('=').context("an option is NAME=VALUE")?;
        options.push((name, value.parse::<bool>()?));
        arguments.drain(..2);
    }
    let client = || {
        let configure =
            |builder| options.iter().fold(builder, |b: ClientBuilder, &(name, value)| b.option(name, value));
        Client::choose().configure(configure).build()
    };
    match arguments[..] {
        ["loads", rounds, cache, file, ref ways @ ..] => {
            loads(&client()?, rounds.parse()?, cache == "cold", file.as_ref(), ways)
        }
        ["saves", rounds, file, target] => saves(&client()?, rounds.parse()?, file.as_ref(), target.as_ref()),
        ["soak", seconds, file, artifact, args, directory] => {
            let work =
                Soak::new(client()?, file.as_ref(), artifact.as_ref(), args.as_ref(), directory.as_ref())?;
            work.run(Duration::from_secs(seconds.parse()?))
        }
        [] => {
            println!("run by scripts/gpu_check.py");
            Ok(())
        }
        _ => bail!("there is no such work: {}", arguments.join(" ")),
    }
}

fn say(event: &str, mut value: Value) {
    value["event"] = event.into();
    println!("{value}");
}

/// Says that a measurement begins, and what it took when it has ended.
fn measured<T>(way: &str, work: impl FnOnce() -> Result<(T, Value)>) -> Result<T> {
    say("begin", json!({"way": way}));
    let start = Instant::now();
    let (result, report) = work()?;
    say("end", json!({"way": way, "seconds": start.elapsed().as_secs_f64(), "report": report}));
    Ok(result)
}

fn loads(client: &Client, rounds: usize, is_cold: bool, file: &Path, ways: &[&str]) -> Result<()> {
    let ways = ways.iter().map(|way| parse_way(way, client)).collect::<Result<Vec<_>>>()?;
    for _ in 0..rounds {
        for (name, options) in &ways {
            if is_cold {
                evict(file)?;
            }
            // What is dropped is not part of the measurement.
            let _params = measured(name, || {
                let (params, report) = Params::load_with(client, file, options)?;
                params.wait()?;
                Ok((params, json!(report)))
            })?;
        }
    }
    Ok(())
}

/// A name, and the options behind it.
fn parse_way(way: &str, client: &Client) -> Result<(String, LoadOptions)> {
    let (name, settings) = way.split_once(':').unwrap_or((way, ""));
    let (mut options, mut staging) = (LoadOptions::default(), Staging::default());
    for setting in settings.split(',').filter(|setting| !setting.is_empty()) {
        let (key, value) = setting.split_once('=').context("a setting is KEY=VALUE")?;
        match (key, value) {
            ("delivery", "stream") => options = options.delivery(Delivery::Stream),
            ("delivery", "whole") => options = options.delivery(Delivery::Whole),
            ("registration", "never") => staging = staging.registration(Registration::Never),
            ("threads", count) => options = options.threads(count.parse()?),
            ("to", kind) => {
                options = options.to(&client.device(0)?.memory(kind).context("no such memory")?)
            }
            ("staging", size) => {
                let (chunks, mebibytes) = size.split_once('x').context("staging is CHUNKSxMIB")?;
                (staging.chunks, staging.chunk_bytes) = (chunks.parse()?, mebibytes.parse::<usize>()? << 20);
                options = options.staging(staging);
            }
            _ => bail!("there is no setting {setting}"),
        }
    }
    if staging.registration == Registration::Never {
        options = options.staging(staging);
    }
    Ok((name.to_owned(), options))
}

/// Takes a file out of the page cache.
fn evict(file: &Path) -> Result<()> {
    let file = std::fs::File::open(file)?;
    #[cfg(target_os = "linux")]
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(file.sync_all()?)
}

fn saves(client: &Client, rounds: usize, file: &Path, target: &Path) -> Result<()> {
    let params = Params::load(client, file)?;
    params.wait()?;
    let mut options = SaveOptions::default();
    options.write.sync = false;
    for _ in 0..rounds {
        measured("ours", || Ok((params.save_with(target, &options)?, Value::Null)))?;
        std::fs::remove_file(target)?;
    }
    Ok(())
}

/// Loads, calls, saves and drops, again and again, from several threads at once.
struct Soak<'a> {
    device: Device,
    file: &'a Path,
    function: Function,
    arguments: Vec<Params>,
    directory: &'a Path,
    rounds: AtomicUsize,
    is_over: AtomicBool,
}

const SOAK_THREADS: usize = 8;

impl<'a> Soak<'a> {
    fn new(
        client: Client,
        file: &'a Path,
        artifact: &Path,
        args: &Path,
        directory: &'a Path,
    ) -> Result<Soak<'a>> {
        let all = Params::load(&client, args)?.subtree("args")?;
        let mut arguments = Vec::new();
        while let Ok(argument) = all.subtree(&arguments.len().to_string()) {
            arguments.push(argument);
        }
        Ok(Soak {
            device: client.device(0)?,
            file,
            function: client.compile(&Program::open(artifact)?)?,
            arguments,
            directory,
            rounds: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
        })
    }

    fn run(&self, time: Duration) -> Result<()> {
        let start = Instant::now();
        self.sample(start);
        std::thread::scope(|scope| {
            let work = |thread| {
                let result = self.work(thread);
                // The first that fails ends it.
                self.is_over.store(true, Ordering::Relaxed);
                result
            };
            let threads: Vec<_> = (0..SOAK_THREADS).map(|thread| scope.spawn(move || work(thread))).collect();
            while start.elapsed() < time && !self.is_over.load(Ordering::Relaxed) {
                self.sample(start);
                std::thread::sleep(Duration::from_millis(500));
            }
            self.is_over.store(true, Ordering::Relaxed);
            threads.into_iter().try_for_each(|thread| match thread.join() {
                Ok(result) => result,
                Err(_) => bail!("a thread panicked"),
            })
        })?;
        // A thread of the plugin gives the last buffers back.
        std::thread::sleep(Duration::from_millis(500));
        self.sample(start);
        Ok(())
    }

    fn work(&self, thread: usize) -> Result<()> {
        let target = self.directory.join(format!("soak-{thread}.safetensors"));
        let mut options = SaveOptions::default();
        options.write.sync = false;
        let arguments: Vec<&dyn Argument> = self.arguments.iter().map(|tree| tree as &dyn Argument).collect();
        let first = self.function.call(&arguments)?.to_host()?;
        while !self.is_over.load(Ordering::Relaxed) {
            let params = Params::load_with(self.device.client(), self.file, &LoadOptions::default())?.0;
            let outputs = self.function.call(&arguments)?;
            params.save_with(&target, &options)?;
            std::fs::remove_file(&target)?;
            if outputs.to_host()? != first {
                bail!("a call gave other numbers than the first");
            }
            self.rounds.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// What the device and the process have in use now.
    fn sample(&self, start: Instant) {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let anonymous = anonymous.and_then(|kib| kib.trim().trim_end_matches(" kB").parse::<u64>().ok());
        say(
            "sample",
            json!({
                "seconds": start.elapsed().as_secs_f64(),
                "rounds": self.rounds.load(Ordering::Relaxed),
                "device_bytes": self.device.memory_stats().ok().map(|stats| stats.in_use_bytes),
                "host_bytes": anonymous.map(|kib| kib * 1024),
                "descriptors": std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
                "mappings": std::fs::read_to_string("/proc/self/maps").map_or(0, |maps| maps.lines().count()),
            }),
        );
    }
}
