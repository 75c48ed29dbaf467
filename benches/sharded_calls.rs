//! What a call of a function on several devices costs.
//!
//! ```text
//! cargo bench --bench sharded_calls -- [--seconds=N] ARTIFACT ARG0.safetensors ARG1.safetensors …
//! ```
//!
//! Each positional argument is a tree in a file of its own, which is loaded into the shards that the function wants. Prints the
//! medians, in microseconds: of calls with all arguments, and of calls with the first one bound. `scripts/bench_sharded.py` compares
//! with JAX.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use safejax::{Argument, Client, LoadOptions, Params, Program};

fn main() -> Result<()> {
    let arguments = || std::env::args().skip(1);
    let seconds = arguments().find_map(|arg| arg.strip_prefix("--seconds=").map(str::parse));
    let time = Duration::from_secs_f64(seconds.transpose()?.unwrap_or(3.0));
    // `cargo bench` passes `--bench`.
    let mut files = arguments().filter(|arg| !arg.starts_with("--")).map(PathBuf::from);
    let Some(artifact) = files.next() else { return Ok(()) };
    let program = Program::open(artifact)?;
    let devices = program.exported().context("the program is no artifact of jax.export")?.device_count;
    let client = Client::cpu_with_devices(devices)?;
    let function = client.compile(&program)?;
    let load = |(position, file): (usize, PathBuf)| -> Result<Params> {
        Ok(Params::load_for(&function, position, file, &LoadOptions::default())?.0)
    };
    let arguments = files.enumerate().map(load).collect::<Result<Vec<_>>>()?;
    let all: Vec<&dyn Argument> = arguments.iter().map(|tree| tree as &dyn Argument).collect();
    let bound = function.bind(&all[..1])?;
    let whole = median_us(time, || function.call(&all)?.wait())?;
    let rest = median_us(time, || bound.call(&all[1..])?.wait())?;
    println!("{whole:.1} {rest:.1}");
    Ok(())
}

/// The median of so much time.
fn median_us(limit: Duration, mut call: impl FnMut() -> safejax::Result<()>) -> Result<f64> {
    call()?;
    let (started, mut times) = (Instant::now(), Vec::new());
    while started.elapsed() < limit {
        let started = Instant::now();
        call()?;
        times.push(started.elapsed());
    }
    let middle = times.len() / 2;
    Ok(times.select_nth_unstable(middle).1.as_secs_f64() * 1e6)
}
