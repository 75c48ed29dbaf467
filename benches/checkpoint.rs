//! One load or save of a checkpoint on the CPU plugin, in a process of its own that `scripts/bench_load.py` starts,
//! times from within and watches from outside.
//!
//! ```text
//! cargo bench --bench checkpoint -- MODE FILE [OTHER]
//! ```
//!
//! The process says `ready`, waits for a line, works, says `done SECONDS`, and so on: for loads, until the mode's parts
//! are done, of which the last is the reduction over every tensor whose artifact OTHER is; for saves to the file OTHER,
//! until there is no further line.

#[path = "checkpoint/timed.rs"]
mod timed;
#[cfg(feature = "xla")]
#[path = "checkpoint/xla_rs.rs"]
mod xla_rs;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use safejax::load::Sharing;
use safejax::load::{Delivery, Prefetch};
use safejax::pjrt::HostMemory;
use safejax::store::WriteOptions;
use safejax::{
    Buffer, Checkpoint, Client, DType, Function, HostSemantics, LoadOptions, Params, Placement, Program,
    SaveOptions,
};
use timed::timed;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [mode, file, rest @ ..] = &arguments[..] else {
        println!("run by scripts/bench_load.py");
        return Ok(());
    };
    let other = rest.first().map(String::as_str);
    match mode.as_str() {
        "limit" => limit(file),
        "save" | "save-fsync" => save(mode == "save-fsync", file, other.context("no file to write")?),
        #[cfg(feature = "xla")]
        "xla" | "ours-xla" => xla_rs::load(mode, file, other.is_some()),
        _ => load(mode, file, other),
    }
}

fn client() -> Result<Client> {
    Ok(Client::cpu()?)
}

fn load(mode: &str, file: &str, artifact: Option<&str>) -> Result<()> {
    let client = client()?;
    let reduce = artifact.map(|path| client.compile(&Program::open(path)?)).transpose()?;
    let options = LoadOptions::default();
    let options = match mode {
        "ours" => options,
        "ours-populate" => options.prefetch(Prefetch::Populate),
        "ours-direct" => options.io(safejax::store::Io::Direct),
        "ours-copy" => options.sharing(Sharing::Never),
        "ours-stream" => options.delivery(Delivery::Stream),
        "ours-whole" => options.delivery(Delivery::Whole),
        "ours-bf16" => options.dtype("*", DType::BF16),
        "bare" => return loaded(reduce, || bare(&client, file)),
        _ => bail!("there is no mode {mode}"),
    };
    loaded(reduce, || {
        let (params, _) = Params::load_with(&client, file, &options)?;
        params.wait()?;
        Ok(params)
    })
}

/// Times a load, then the reduction.
fn loaded(reduce: Option<Function>, load: impl FnOnce() -> Result<Params>) -> Result<()> {
    if let (Some(params), Some(reduce)) = (timed(load)?, reduce) {
        timed(|| Ok(reduce.call(&[&params])?.to_host()?))?;
    }
    Ok(())
}

/// What one writes by hand: a map of the file, and `BufferFromHostBuffer` tensor by tensor.
fn bare(client: &Client, file: &str) -> Result<Params> {
    let checkpoint = Checkpoint::open(file)?;
    let to = Placement::from(&client.device(0)?);
    let buffers = checkpoint.tensors().iter().map(|tensor| -> Result<(String, Buffer)> {
        let bytes: Bytes = checkpoint.bytes(&tensor.name)?;
        Ok((tensor.name.clone(), client.buffer_from_host(&tensor.spec, bytes, &to, HostSemantics::Copy)?))
    });
    let params = Params::from_arrays(buffers.collect::<Result<Vec<_>>>()?)?;
    params.wait()?;
    Ok(params)
}

/// The machine's limit: the file's bytes read by every processor into memory on huge pages, and nothing else.
fn limit(file: &str) -> Result<()> {
    const BLOCK: usize = 4 << 20;
    let memory = timed(|| {
        let file = File::open(file)?;
        let length = file.metadata()?.len() as usize;
        let mut memory = HostMemory::allocate(length)?;
        let blocks: Vec<_> =
            memory.chunks_mut(BLOCK).map(|block| std::sync::Mutex::new(Some(block))).collect();
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(block) = blocks.get(index).and_then(|block| block.lock().ok()?.take()) else {
                    break;
                };
                file.read_exact_at(block, (index * BLOCK) as u64)?;
            }
            Ok(())
        };
        let threads = std::thread::available_parallelism()?.get();
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            work()?;
            others
                .into_iter()
                .try_for_each(|other| other.join().unwrap_or_else(|_| bail!("a thread panicked")))
        })?;
        drop(blocks);
        Ok(memory)
    })?;
    // The least that a reduction costs: every byte is looked at.
    timed(|| {
        Ok(memory.iter().flat_map(|memory| memory.chunks_exact(8)).fold(0u8, |sum, word| sum ^ word[0]))
    })?;
    Ok(())
}

fn save(sync: bool, file: &str, target: &str) -> Result<()> {
    let client = client()?;
    let params = Params::load_with(&client, file, &LoadOptions::default().sharing(Sharing::Never))?.0;
    params.wait()?;
    let mut write = WriteOptions::default();
    write.sync = sync;
    let options = SaveOptions::default().write(write);
    while timed(|| Ok(params.save_with(target, &options)?))?.is_some() {}
    Ok(())
}
