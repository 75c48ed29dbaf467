//! `safejax run`: a program on arrays and checkpoints.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use safejax::convert::npy;
use safejax::{
    Argument, Buffer, Client, CompileOptions, Device, Function, HostSemantics, LoadOptions, Outputs, Params,
    Placement, Program,
};
use serde_json::json;

use super::OutputArgs;
use super::client::DeviceArgs;

#[derive(Args)]
pub struct Run {
    /// StableHLO text or bytecode, or an HLO proto
    program: PathBuf,

    /// An argument: its position, and an .npy file for one array or a .safetensors file for a tree of them
    #[arg(long = "arg", value_name = "POSITION=FILE", value_parser = parse_argument)]
    arguments: Vec<(usize, PathBuf)>,

    /// Where the outputs go: .npy for a single one, .safetensors for any number (named 0, 1, …)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    #[command(flatten)]
    device: DeviceArgs,

    #[command(flatten)]
    output: OutputArgs,
}

fn parse_argument(text: &str) -> Result<(usize, PathBuf), String> {
    let (position, file) = text.split_once('=').ok_or("it is not POSITION=FILE")?;
    let position = position.parse().map_err(|_| format!("`{position}` is not a position (0, 1, …)"))?;
    Ok((position, file.into()))
}

/// What a file became on the device.
enum Loaded {
    Array(Buffer),
    Tree(Params),
}

impl Loaded {
    fn as_argument(&self) -> &dyn Argument {
        match self {
            Loaded::Array(buffer) => buffer,
            Loaded::Tree(params) => params,
        }
    }
}

impl Run {
    pub fn run(self) -> Result<String> {
        let files = self.files_in_order()?;
        let program = Program::open(&self.program)?;
        let (client, device) = self.device.connect()?;
        let mut options = CompileOptions::default();
        options.device_assignment = Some(vec![vec![device.id()]]);
        let compiling = Instant::now();
        let function = client.compile_with(&program, &options)?;
        let compile_seconds = compiling.elapsed().as_secs_f64();
        let mut loaded = Vec::new();
        for (position, file) in files {
            let argument = load_argument(&client, &device, &function, &loaded, file);
            loaded.push(argument.with_context(|| format!("argument {position} cannot be loaded"))?);
        }
        let arguments: Vec<&dyn Argument> = loaded.iter().map(Loaded::as_argument).collect();
        if let Some(path) = &self.out {
            check_target(&function, path)?;
        }
        let running = Instant::now();
        let outputs = function.call(&arguments)?;
        outputs.wait()?;
        let run_seconds = running.elapsed().as_secs_f64();
        if let Some(path) = &self.out {
            write_outputs(&outputs, path)?;
        }
        let specs: Vec<_> = outputs.iter().map(|output| output.spec().clone()).collect();
        Ok(self.output.choose(
            || {
                let mut text = format!(
                    "`{}` on {device}: compiled in {:.1} ms, ran in {:.3} ms\n",
                    function.name(),
                    compile_seconds * 1e3,
                    run_seconds * 1e3
                );
                for (position, spec) in specs.iter().enumerate() {
                    let _ = writeln!(text, "output {position}: {spec}");
                }
                text
            },
            || {
                json!({
                    "program": function.name(),
                    "device": device.to_string(),
                    "compile_seconds": compile_seconds,
                    "run_seconds": run_seconds,
                    "outputs": specs,
                })
            },
        ))
    }

    /// The files by position, each of which must be there once.
    fn files_in_order(&self) -> Result<Vec<(usize, &Path)>> {
        let mut files = BTreeMap::new();
        for (position, file) in &self.arguments {
            if files.insert(*position, file.as_path()).is_some() {
                bail!("--arg {position} was given twice");
            }
        }
        if let Some((missing, _)) =
            files.keys().enumerate().find(|(expected, position)| *expected != **position)
        {
            bail!(
                "--arg {missing} is missing: the arguments given are at {:?}",
                files.keys().collect::<Vec<_>>()
            );
        }
        Ok(files.into_iter().collect())
    }
}

fn load_argument(
    client: &Client,
    device: &Device,
    function: &Function,
    before: &[Loaded],
    file: &Path,
) -> Result<Loaded> {
    if has_extension(file, "npy") {
        // What NumPy writes without a type takes the one that the program expects there.
        let mut leaves = Vec::new();
        before.iter().for_each(|loaded| loaded.as_argument().append_leaves(&mut leaves));
        let expected = function.signature().and_then(|signature| signature.parameters.get(leaves.len()));
        let array = npy::read(file, expected.map(|spec| spec.dtype))?;
        let to = Placement::from(device);
        let buffer =
            client.buffer_from_host(array.spec(), array.bytes().clone(), &to, HostSemantics::Copy)?;
        return Ok(Loaded::Array(buffer));
    }
    if !has_extension(file, "safetensors") {
        bail!(
            "{} ends neither in .npy nor in .safetensors; `safejax convert` makes one of other formats",
            file.display()
        );
    }
    let options = LoadOptions::default().to(device);
    Ok(Loaded::Tree(Params::load_with(client, file, &options)?.0))
}

/// Refuses a target that the outputs cannot be written to, before they are computed.
fn check_target(function: &Function, path: &Path) -> Result<()> {
    let outputs = function.outputs();
    if !has_extension(path, "npy") && !has_extension(path, "safetensors") {
        bail!("--out {} ends neither in .npy nor in .safetensors", path.display());
    }
    if has_extension(path, "npy") && outputs.len() != 1 {
        bail!(
            "an .npy file holds one array, and `{}` has {} outputs; name a .safetensors file",
            function.name(),
            outputs.len()
        );
    }
    let unnamed = |spec: &&safejax::ArraySpec| spec.dtype.to_safetensors().is_none();
    if has_extension(path, "safetensors")
        && let Some(spec) = outputs.iter().find(unnamed)
    {
        bail!("the safetensors format cannot hold the output {spec}");
    }
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(directory) if !directory.is_dir() => {
            bail!("--out {}: there is no such directory", path.display())
        }
        _ => Ok(()),
    }
}

fn write_outputs(outputs: &Outputs, path: &Path) -> Result<()> {
    if has_extension(path, "npy") {
        let output =
            outputs.single().context("an .npy file holds one array; name a .safetensors file instead")?;
        return Ok(npy::write(path, &output.to_host()?)?);
    }
    let named = outputs.iter().enumerate().map(|(position, buffer)| (position.to_string(), buffer.clone()));
    Ok(Params::from_buffers(named)?.save(path)?)
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}
