//! What symbolic dimensions cost: refinement, the first call at a size, and a call at one that was seen.
//!
//! ```text
//! cargo bench --bench symbolic -- NAME.jaxexport STATIC.jaxexport ARGS.safetensors SIZES [...]
//! ```
//!
//! STATIC is the same function exported with the SIZES (`b=8,t=64`), for the calls beside each other; ARGS holds the
//! positional arguments as `args.0.…`, `args.1`, …. One line of JSON a function. `scripts/bench_symbolic.py` makes the
//! files, times JAX, and prints the tables.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use safejax::{Argument, Client, Function, Params, Program};

/// Refinements and calls that the medians are over.
const REFINEMENTS: usize = 200;
const CALLS: usize = 3000;

fn main() -> Result<()> {
    let files: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    for case in files.chunks(4) {
        let [symbolic, fixed, args, sizes] = case else {
            anyhow::bail!("each function needs four arguments")
        };
        measure(Path::new(symbolic), Path::new(fixed), Path::new(args), sizes)?;
    }
    Ok(())
}

fn measure(symbolic: &Path, fixed: &Path, args: &Path, sizes: &str) -> Result<()> {
    let client = Client::cpu()?;
    let sizes: Vec<(&str, usize)> = sizes
        .split(',')
        .map(|pair| {
            let (name, size) = pair.split_once('=').context("a size is NAME=SIZE")?;
            Ok((name, size.parse()?))
        })
        .collect::<Result<_>>()?;
    let program = Program::open(symbolic)?;
    let refine = median(REFINEMENTS, || program.refined(&sizes, None).map(drop))?;
    let arguments = arguments(&client, args)?;
    let arguments: Vec<&dyn Argument> = arguments.iter().map(|params| params as &dyn Argument).collect();
    let function = client.compile(&program)?;
    let start = Instant::now();
    function.call(&arguments)?.wait()?;
    let first = start.elapsed();
    let fixed = client.compile(&Program::open(fixed)?)?;
    let call = |function: &Function| median(CALLS / 10, || function.call(&arguments)?.wait());
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        ours.push(call(&function)?);
        theirs.push(call(&fixed)?);
    }
    println!(
        "{{\"name\": \"{}\", \"refine\": {}, \"first\": {}, \"call\": {}, \"static\": {}}}",
        PathBuf::from(symbolic).file_stem().unwrap_or_default().display(),
        refine.as_secs_f64(),
        first.as_secs_f64(),
        middle(ours).as_secs_f64(),
        middle(theirs).as_secs_f64(),
    );
    Ok(())
}

fn arguments(client: &Client, path: &Path) -> Result<Vec<Params>> {
    let all = Params::load(client, path)?.subtree("args")?;
    let positions = all.iter().filter_map(|(name, _)| name.split('.').next()?.parse::<usize>().ok());
    let last = positions.max().context("ARGS holds no args.0")?;
    Ok((0..=last).map(|position| all.subtree(&position.to_string())).collect::<Result<_, _>>()?)
}

fn middle(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn median(count: usize, mut work: impl FnMut() -> safejax::Result<()>) -> Result<Duration> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed());
    }
    Ok(middle(times))
}
