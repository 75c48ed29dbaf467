//! Handwritten digits, classified by a CNN that Flax trained, without Python.
//!
//! Loads the params straight onto the device, runs the exported forward function on held-out images,
//! compares with JAX's own logits, and saves the params from the device to a new file. The files are made
//! by `scripts/make_digits.py`.
//!
//! ```text
//! cargo run --release --example digits [OUTPUT.safetensors]
//! ```

#[path = "../src/cli/progress.rs"]
mod progress;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, ensure};
use safejax::convert::npy;
use safejax::{Client, HostArray, HostSemantics, LoadOptions, Params, Placement, Program};

/// The largest difference to JAX's logits that rounding explains.
const TOLERANCE: f32 = 1e-4;

/// Calls that the time per image is the average of.
const TIMED_CALLS: u32 = 50;

fn main() -> Result<()> {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/digits");
    let output = std::env::args_os().nth(1).map_or_else(default_output, PathBuf::from);

    let mut bar = progress::InstallBar::default();
    let client = Client::choose().on_install(&mut |progress| bar.show(&progress)).build()?;
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
    let accuracy = accuracy(&logits, &labels)?;
    let difference = largest_difference(&logits, &npy::read(files.join("logits.npy"), None)?)?;
    println!("accuracy on {} held-out images: {:.2} %", labels.len(), accuracy * 100.0);
    println!("largest difference to JAX's logits: {difference:.1e}");
    ensure!(difference <= TOLERANCE, "the logits differ from JAX's by more than {TOLERANCE:e}");

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
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/digits.safetensors")
}

/// The share of rows whose largest logit is at the label.
fn accuracy(logits: &HostArray, labels: &[i32]) -> Result<f64> {
    let logits = logits.to_vec::<f32>()?;
    let rows = logits.chunks(logits.len() / labels.len());
    let argmax =
        |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(class, _)| class as i32);
    let right = rows.zip(labels).filter(|(row, label)| argmax(row) == Some(**label)).count();
    Ok(right as f64 / labels.len() as f64)
}

fn largest_difference(ours: &HostArray, theirs: &HostArray) -> Result<f32> {
    ensure!(ours.spec() == theirs.spec(), "{} is not {}", ours.spec(), theirs.spec());
    let (ours, theirs) = (ours.to_vec::<f32>()?, theirs.to_vec::<f32>()?);
    Ok(ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max))
}
