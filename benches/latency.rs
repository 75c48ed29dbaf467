//! What one call of an exported function costs: the C API alone, a bound function, and a call with every argument.
//!
//! ```text
//! cargo bench --features bare --bench latency [--seconds=N] [ARTIFACT ARGS.safetensors]...
//! ```
//!
//! ARGS holds the positional arguments as `args.0.…`, `args.1`, …. Without files, the digits' CNN is called. The kinds
//! take turns, and the medians are printed in microseconds: first of a client as it is by default, then, on the CPU, of one
//! that was created with the option `asynchronous=false`. The last column is what a bound call takes until it returns, its
//! outputs not awaited. The plugin is the CPU's, or that of `SAFEJAX_PLUGIN`. `scripts/bench_calls.py` compares with JAX.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use safejax::format::npy;
use safejax::{Argument, Buffer, Client, Function, Outputs, Params, Placement, Program, Tree, TreeDef};

/// Each kind is timed for this long unless `--seconds` says otherwise, in as many turns as this.
const TIME: Duration = Duration::from_secs(3);
const TURNS: u32 = 10;

fn main() -> Result<()> {
    let seconds = std::env::args().find_map(|arg| arg.strip_prefix("--seconds=").map(str::parse));
    let time = seconds.transpose()?.map_or(TIME, Duration::from_secs_f64);
    // `cargo bench` passes `--bench`.
    let files: Vec<PathBuf> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).map(PathBuf::from).collect();
    let mut clients = vec![if has_choice() { Client::auto()? } else { Client::cpu()? }];
    let mut kinds = "bare | bound | call".to_owned();
    if clients[0].platform_name() == "cpu" {
        clients.push(synchronous_client()?);
        kinds += " | bare, sync | bound, sync | call, sync";
    }
    println!("| artifact | leaves | {kinds} | enqueue |");
    println!("|{}", " --- |".repeat(kinds.split('|').count() + 3));
    if files.is_empty() {
        return print_row(&clients, time, &digits("forward.jaxexport"), digits_arguments);
    }
    for pair in files.chunks(2) {
        let [artifact, args] = pair else { bail!("each ARTIFACT needs its ARGS.safetensors") };
        print_row(&clients, time, artifact, |client| recorded_arguments(client, args))?;
    }
    Ok(())
}

/// Whether somebody says which plugin is to be used.
fn has_choice() -> bool {
    std::env::var_os("SAFEJAX_PLUGIN").is_some_and(|value| !value.is_empty())
}

/// A client that runs a program in the thread that calls it.
fn synchronous_client() -> safejax::Result<Client> {
    let plugin = std::env::var("SAFEJAX_PLUGIN").ok().filter(|value| !value.is_empty());
    let plugin = plugin.unwrap_or_else(|| "cpu".into());
    Client::choose().plugin(plugin).configure(|builder| builder.option("asynchronous", false)).build()
}

fn digits(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/digits").join(name)
}

fn digits_arguments(client: &Client) -> Result<Vec<Params>> {
    let images = npy::read(digits("images.npy"), None)?;
    let params = Params::load(client, digits("params.safetensors"))?;
    let to = Placement::from(&client.device(0)?);
    Ok(vec![params, Params::from_host(client, &to, Tree::unflatten(TreeDef::LEAF, [images])?)?])
}

fn recorded_arguments(client: &Client, path: &Path) -> Result<Vec<Params>> {
    let all = Params::load(client, path)?.subtree("args")?;
    let positions = all.iter().filter_map(|(name, _)| name.split('.').next()?.parse::<usize>().ok());
    let last = positions.max().context("ARGS holds no args.0")?;
    Ok((0..=last).map(|position| all.subtree(&position.to_string())).collect::<Result<_, _>>()?)
}

fn print_row(
    clients: &[Client],
    time: Duration,
    artifact: &Path,
    arguments: impl Fn(&Client) -> Result<Vec<Params>>,
) -> Result<()> {
    let program = Program::open(artifact)?;
    let mut row = format!("| {} |", artifact.file_stem().unwrap_or_default().to_string_lossy());
    let mut first = None;
    for (index, client) in clients.iter().enumerate() {
        let arguments = arguments(client)?;
        if index == 0 {
            row += &format!(" {} |", arguments.iter().map(Params::len).sum::<usize>());
        }
        let [kinds @ .., enqueued] = measure(&client.compile(&program)?, time, &arguments)?;
        row += &kinds.map(|time| format!(" {time:.2} |")).concat();
        first.get_or_insert(enqueued);
    }
    println!("{row} {:.2} |", first.unwrap_or_default());
    Ok(())
}

/// The times of the C API alone, of the function with its first argument bound, of calls with all of them, and until a
/// bound call returns.
fn measure(function: &Function, limit: Duration, arguments: &[Params]) -> Result<[f64; 4]> {
    let pass: Vec<&dyn Argument> = arguments.iter().map(|tree| tree as &dyn Argument).collect();
    let bound = function.bind(&pass[..1])?;
    let bare = bare_arguments(function, arguments)?;
    let executable = function.executable().context("a bundle has several")?;

    let first = executable.time_bare_executions(&bare, 10)?;
    let rounds = ((limit / TURNS).as_nanos() / first[5].as_nanos().max(1)).clamp(10, 100_000) as usize;
    let mut times: [Vec<Duration>; 4] = Default::default();
    for _ in 0..TURNS {
        times[0].extend(executable.time_bare_executions(&bare, rounds)?);
        times[1].extend(time(rounds, || bound.call(&pass[1..])?.wait())?);
        times[2].extend(time(rounds, || function.call(&pass)?.wait())?);
        times[3].extend(time_enqueued(rounds, || bound.call(&pass[1..]))?);
    }
    Ok(times.map(median_us))
}

/// The buffers that the executable takes: those of the leaves that the program uses.
fn bare_arguments<'a>(function: &Function, arguments: &'a [Params]) -> Result<Vec<&'a Buffer>> {
    let parameters = &function.signature().context("it has no signature")?.parameters;
    let leaves = arguments.iter().flat_map(Params::arrays).map(safejax::Array::buffer);
    let leaves: Vec<&Buffer> = leaves.collect::<safejax::Result<_>>()?;
    ensure!(parameters.len() == leaves.len(), "the arguments have {} leaves", leaves.len());
    let used = parameters.iter().zip(leaves).filter(|(parameter, _)| parameter.is_used);
    Ok(used.map(|(_, leaf)| leaf).collect())
}

fn time(rounds: usize, mut run: impl FnMut() -> safejax::Result<()>) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let started = Instant::now();
        run()?;
        times.push(started.elapsed());
    }
    Ok(times)
}

/// The times until the calls return; each is awaited before the next.
fn time_enqueued(rounds: usize, call: impl Fn() -> safejax::Result<Outputs>) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let started = Instant::now();
        let outputs = call()?;
        times.push(started.elapsed());
        outputs.wait()?;
    }
    Ok(times)
}

fn median_us(mut times: Vec<Duration>) -> f64 {
    let middle = times.len() / 2;
    times.select_nth_unstable(middle).1.as_secs_f64() * 1e6
}
