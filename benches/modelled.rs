//! How much of a device's bandwidth a load reaches, on the simulated accelerator: its transfers take the time of their bytes and
//! 10 µs each, and nothing of the processor's, as those of a device that reads the host's memory by itself.
//!
//! A machine that reads the page cache at 5 GB/s cannot feed 25 GB/s, so the same is done with the device ten times as slow
//! (2.5 GB/s, 100 µs a transfer): then all that the host does counts for as much as on a machine ten times as fast.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use safejax::load::{Delivery, Staging};
use safejax::{Client, LoadOptions, Params};
use safejax_simulator::{Config, Simulator};

/// Bytes a second, and microseconds a transfer.
const RATE: f64 = 25e9;
const MICROS: u64 = 10;

/// Rounds of each; the median is told.
const ROUNDS: usize = 7;

fn main() -> Result<()> {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let large = checkpoint(directory.path(), "large", 160, 2 << 20)?;
    let small = checkpoint(directory.path(), "small", 20_000, 1 << 10)?;
    println!(
        "{:<34} {:>10} {:>9} {:>9} {:>10} {:>12}",
        "", "bandwidth", "seconds", "GB/s", "of it", "transfers"
    );
    for slower in [1.0, 2.0, 10.0] {
        measure("1.34 GB in 160 tensors", &large, slower, Delivery::Auto)?;
        measure("82 MB in 20,000 tensors", &small, slower, Delivery::Auto)?;
        measure("82 MB in 20,000 tensors, one by one", &small, slower, Delivery::Whole)?;
    }
    Ok(())
}

/// A file of so many float32 tensors of so many elements.
fn checkpoint(directory: &Path, name: &str, tensors: usize, elements: usize) -> Result<PathBuf> {
    let content: Vec<u8> = (0..elements).flat_map(|element| (element as f32).to_ne_bytes()).collect();
    let views = (0..tensors).map(|index| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![elements], &content);
        view.map(|view| (format!("t{index:05}"), view))
    });
    let file = directory.join(name).with_extension("safetensors");
    safetensors::serialize_to_file(views.collect::<Result<Vec<_>, _>>()?, None, &file)?;
    Ok(file)
}

fn measure(what: &str, file: &Path, slower: f64, delivery: Delivery) -> Result<()> {
    let simulator = Simulator::new(Config {
        memory_bytes: 8 << 30,
        bytes_per_second: RATE / slower,
        transfer_micros: (MICROS as f64 * slower) as u64,
        stores: false,
        ..Config::default()
    });
    let client = Client::from_plugin(simulator.path())?;
    let options = LoadOptions::default().delivery(delivery);
    let mut seconds = Vec::new();
    for _ in 0..ROUNDS {
        simulator.set_faults(Vec::new());
        let started = Instant::now();
        let (params, _) = Params::load_with(&client, file, &options)?;
        params.wait()?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    let report = simulator.report();
    seconds.sort_by(f64::total_cmp);
    let median = *seconds.get(ROUNDS / 2).context("there are rounds")?;
    let rate = report.to_device.bytes as f64 / median;
    let bandwidth = RATE / slower;
    println!(
        "{what:<34} {:>8.1} G {median:>9.4} {:>9.2} {:>8.0} % {:>12}",
        bandwidth / 1e9,
        rate / 1e9,
        100.0 * rate / bandwidth,
        report.to_device.count,
    );
    let ring = Staging::default();
    assert!(report.peak_registered_bytes <= (ring.chunks * ring.chunk_bytes) as u64, "more than the ring");
    Ok(())
}
