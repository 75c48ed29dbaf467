//! Loads a checkpoint in several processes, each only what its devices get, and saves it again, together:
//! `cargo run --release --example processes -- INDEX COUNT RENDEZVOUS JOB FILE NEW_FILE PATTERN`, once for each index from 0
//! on, all at the same time. `RENDEZVOUS` is a directory that all of them reach, and `JOB` a name that no other run has had there.
//! The last dimension of the tensors whose names match `PATTERN`, which are matrices, is divided over all devices.

use anyhow::{Context, Result, bail};
use safejax::load::ShardingRules;
use safejax::processes::{DirectoryStore, Processes};
use safejax::{Client, DeviceMesh, LoadOptions, Params};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [index, count, rendezvous, job, file, new_file, pattern] = &arguments[..] else {
        bail!("usage: processes INDEX COUNT RENDEZVOUS JOB FILE NEW_FILE PATTERN");
    };
    let (index, count) = (index.parse().context("INDEX")?, count.parse().context("COUNT")?);
    let processes = Processes::new(index, count, DirectoryStore::new(rendezvous, job)?)?;
    // The others are told at once, and do not wait for a process that has failed.
    load_and_save(&processes, file, new_file, pattern)
        .inspect_err(|error| processes.give_up(format!("{error:#}")))
}

fn load_and_save(processes: &Processes, file: &str, new_file: &str, pattern: &str) -> Result<()> {
    // Two CPU devices in each process. A client of a GPU's plugin has those of its host.
    let client = Client::cpu()?.plugin().client().device_count(2).processes(processes).build()?;
    let (index, count) = (processes.index(), processes.count());
    let mesh = DeviceMesh::new(&client, format!("data={}", 2 * count).parse()?)?;
    let rules = ShardingRules::default().rule(pattern, "P(None, 'data')".parse()?);
    let (params, report) = Params::load_with(&client, file, &LoadOptions::default().sharded(&mesh, rules))?;
    println!("process {index} of {count}: {} of {} bytes on {mesh}", report.bytes, params.total_bytes());
    params.save(new_file)?;
    Ok(())
}
