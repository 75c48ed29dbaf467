//! Handwritten digits, classified by a CNN that Flax trained, without Python.
//!
//! Loads the params straight onto the device, runs the exported forward function on held-out images,
//! compares with JAX's own logits, and saves the params from the device to a new file. The files are made
//! by `scripts/make_digits.py`.
//!
//! ```text
//! cargo run --release --example digits [OUTPUT.safetensors]
//! ```

#[path = "digits/score.rs"]
mod score;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, ensure};
use safejax::format::npy;
use safejax::plugins::InstallProgress;
use safejax::{Client, HostSemantics, LoadOptions, Params, Placement, Program};

/// Calls that the time per image is the average of.
const TIMED_CALLS: u32 = 50;

fn main() -> Result<()> {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/digits");
    let output = std::env::args_os().nth(1).map_or_else(default_output, PathBuf::from);

    let mut is_first = true;
    let mut say_once = |progress: InstallProgress| {
        if std::mem::take(&mut is_first) {
            eprintln!("installing the {} plugin ({}); this happens once", progress.name, progress.package);
        }
    };
    let client = Client::choose().on_install(&mut say_once).build()?;
    println!("{client:?}");

    let (params, report) =
        Params::load_with(&client, files.join("params.safetensors"), &LoadOptions::default())?;
    params.wait()?;
    println!("loaded {} tensors, {} bytes", report.tensors, report.bytes);

    let forward = client.compile(&Program::open(files.join("forward.stablehlo"))?)?;
    let images = npy::read(files.join("images.npy"), None)?;
    let to = Placement::from(&client.device(0)?);
    let x = client.buffer_from_host(images.spec(), images.bytes().clone(), &to, HostSemantics::Copy)?;
    let logits = forward.call(&[&params, &x])?.single()?.to_host()?;

    let labels = npy::read(files.join("labels.npy"), None)?.to_vec::<i32>()?;
    let jax = npy::read(files.join("logits.npy"), None)?;
    ensure!(logits.spec() == jax.spec(), "{} is not {}", logits.spec(), jax.spec());
    score::report(&logits.to_vec()?, &jax.to_vec()?, &labels)?;

    let start = Instant::now();
    for _ in 0..TIMED_CALLS {
        forward.call(&[&params, &x])?.wait()?;
    }
    let images_run = TIMED_CALLS * labels.len() as u32;
    println!("time per image: {:.2} µs", start.elapsed().as_secs_f64() / f64::from(images_run) * 1e6);

    params.save(&output)?;
    println!("saved the params from the device to {}", output.display());
    Ok(())
}

fn default_output() -> PathBuf {
    PathBuf::from("digits.safetensors")
}
