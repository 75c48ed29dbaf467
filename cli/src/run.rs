//! `safejax run`: a program on arrays and checkpoints.

mod report;
mod value;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use safejax::convert::{ConvertOptions, Source, TargetFormat, convert};
use safejax::format::npy;
use safejax::load::Selection;
use safejax::printable::{File, Line};
use safejax::program::{Entry, Exported, Resharding};
use safejax::{
    Argument, Checkpoint, Client, CompileOptions, Conversion, DType, Device, ExecutableFile, Function,
    HostArray, Outputs, Params, Program,
};
use serde_json::json;

use crate::client::DeviceArgs;
use crate::mesh::{devices_of, parse_device};
use crate::output::{Output, OutputArgs, check_directory};
use crate::sizes::{borrowed, parse_size};
use crate::stream;
use value::Given;

#[derive(Args)]
pub struct Run {
    /// A jax.export artifact or a bundle of them, StableHLO text or bytecode, or an HLO proto
    program: PathBuf,

    /// An argument: its position or, of an artifact, the name of a keyword argument, or a path into either
    /// (0.params.Dense_0); and a file, of one array (.npy) or a tree of them (a checkpoint of any format, a directory of
    /// Orbax's too), the part of one below a name (FILE#params), `-` for standard input, or the value itself: 2.0, true,
    /// [1,2]
    #[arg(long = "arg", value_name = "KEY=VALUE", value_parser = parse_argument)]
    arguments: Vec<(ArgumentKey, Given)>,

    /// Where the outputs go: .npy for a single one, .safetensors, .npz or .msgpack for any tree of them, `-` for standard
    /// output (.npy or .safetensors); small ones are printed otherwise
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// A file that the outputs must be equal to; exit code 1 when they are not
    #[arg(long, value_name = "FILE")]
    expect: Option<PathBuf>,

    /// Call outputs equal whose difference from the expected ones is at most this
    #[arg(long, value_name = "DIFFERENCE", default_value_t = 0.0, requires = "expect")]
    #[arg(value_parser = crate::diff::parse_tolerance)]
    tolerance: f64,

    /// Cast arguments whose element type is not the program's, where that only rounds; what is too large for the new type
    /// becomes infinite
    #[arg(long)]
    cast: bool,

    /// Run the executable in a file that `compile --out` wrote, rather than compile the program that is in it. It is code,
    /// and runs with your rights: only for files that you, or somebody whom you trust, made
    #[arg(long)]
    trust_executable: bool,

    /// With --trust-executable, of a file with executables for several sizes (which a Rust program can write), those for
    /// these: b=8,t=64
    #[arg(long, value_name = "NAME=SIZE,…", value_delimiter = ',', value_parser = parse_size)]
    #[arg(requires = "trust_executable")]
    sizes: Vec<(String, usize)>,

    /// Of a function with symbolic dimensions, the sizes that a variable is padded to by zeros: b=1,8,32. Only for functions
    /// that do not mix what is at different places of that dimension, or that take a mask
    #[arg(long = "pad", value_name = "VARIABLE=SIZES", value_parser = parse_padding)]
    padded_sizes: Vec<(String, Vec<usize>)>,

    #[command(flatten)]
    device: DeviceArgs,

    /// The devices to run on, by their numbers, in the order of the program's mesh [default: the first ones, as many as it
    /// was exported for]
    #[arg(long, value_name = "ID,…", value_delimiter = ',', conflicts_with = "device")]
    #[arg(value_parser = parse_device, allow_hyphen_values = true)]
    devices: Vec<i32>,

    #[command(flatten)]
    output: OutputArgs,
}

/// Which argument, or which part of one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct ArgumentKey {
    root: Root,
    /// The path below the argument; the argument itself if `None`.
    path: Option<String>,
}

/// An argument.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Root {
    Position(usize),
    Name(String),
}

/// The files of each argument, each with the path below it that it is for.
type FilesByArgument<'a> = BTreeMap<Root, Vec<(Option<&'a str>, &'a Given)>>;

fn parse_argument(text: &str) -> Result<(ArgumentKey, Given), String> {
    let (key, given) = text.split_once('=').ok_or("it is not KEY=VALUE")?;
    let (root, path) = match key.split_once('.') {
        Some((root, path)) => (root, Some(path.to_owned())),
        None => (key, None),
    };
    if root.is_empty() {
        return Err("it has no position or name".into());
    }
    let root = root.parse().map_or_else(|_| Root::Name(root.to_owned()), Root::Position);
    Ok((ArgumentKey { root, path }, Given::parse(given)))
}

fn parse_padding(text: &str) -> Result<(String, Vec<usize>), String> {
    let (name, sizes) = text.split_once('=').ok_or("it is not VARIABLE=SIZES, such as b=1,8,32")?;
    let size = |text: &str| text.trim().parse().map_err(|_| format!("`{text}` is no size"));
    Ok((name.trim().to_owned(), sizes.split(',').map(size).collect::<Result<_, String>>()?))
}

/// What is to be run: a program to compile, or executables to load.
enum Code {
    Program(Program),
    Executables(ExecutableFile),
}

impl Code {
    fn exported(&self) -> Option<Exported> {
        match self {
            Code::Program(program) => program.exported().cloned(),
            Code::Executables(file) => file.entries().iter().find_map(Entry::exported),
        }
    }
}

/// What files became on the device.
enum Loaded {
    Array(HostArray),
    Tree(Params),
}

impl Loaded {
    fn as_argument(&self) -> &dyn Argument {
        match self {
            Loaded::Array(array) => array,
            Loaded::Tree(params) => params,
        }
    }

    /// As a tree below a path.
    fn below(self, path: &str, device: &Device) -> Result<Params> {
        let named = match self {
            Loaded::Array(array) => {
                let buffer = device.client().buffer_from_slice(array.spec(), array.bytes(), device)?;
                vec![(path.to_owned(), safejax::Array::from(buffer))]
            }
            Loaded::Tree(params) => {
                params.iter().map(|(name, array)| (format!("{path}.{name}"), array.clone())).collect()
            }
        };
        Ok(Params::from_arrays(named)?)
    }
}

impl Run {
    pub fn run(self) -> Result<Output> {
        let code = self.code()?;
        let exported = code.exported();
        let files = self.files_by_argument(exported.as_ref())?;
        let (client, devices) = self.connect(exported.as_ref())?;
        let compiling = Instant::now();
        let conversion = if self.cast { Conversion::Convert } else { Conversion::Exact };
        let function = self.function(&client, &devices, &code)?.with_conversion(conversion);
        // What is in parts of an argument's tree goes to one device first.
        let function = function.with_resharding(Resharding::Allow);
        let is_loaded = match &code {
            Code::Executables(file) => file.fitting(&client)?.is_ok(),
            Code::Program(_) => false,
        };
        let compile_seconds = compiling.elapsed().as_secs_f64();
        let loaded = load_arguments(&devices[0], &function, files)?;
        let device = devices.iter().map(Device::to_string).collect::<Vec<_>>().join(", ");
        let nothing = Params::default();
        let given = loaded.iter().filter_map(|(root, loaded)| match root {
            Root::Position(position) => Some((*position, loaded.as_argument())),
            Root::Name(_) => None,
        });
        let given: BTreeMap<usize, &dyn Argument> = given.collect();
        let count = given.last_key_value().map_or(0, |(last, _)| last + 1);
        let positional: Vec<&dyn Argument> =
            (0..count).map(|position| given.get(&position).copied().unwrap_or(&nothing)).collect();
        let named: Vec<(&str, &dyn Argument)> = loaded
            .iter()
            .filter_map(|(root, loaded)| match root {
                Root::Name(name) => Some((name.as_str(), loaded.as_argument())),
                Root::Position(_) => None,
            })
            .collect();
        let out = self.out.as_deref().filter(|path| !is_nowhere(path));
        if let Some(path) = out {
            check_target(&function, path)?;
        }
        // With symbolic dimensions, it is compiled now, when there are sizes.
        let compiling = Instant::now();
        function.prepare_call(&positional, &named)?;
        let compile_seconds = compile_seconds + compiling.elapsed().as_secs_f64();
        let running = Instant::now();
        let outputs = function.call_with(&positional, &named)?;
        outputs.wait()?;
        let run_seconds = running.elapsed().as_secs_f64();
        if let Some(path) = out {
            write_outputs(&outputs, path)?;
        }
        let differences = match &self.expect {
            Some(expected) => report::differences(&outputs, expected, self.tolerance)?,
            None => Vec::new(),
        };
        let tree = outputs.to_params();
        let mut specs = Vec::new();
        for (name, buffer) in tree.iter() {
            let values = match &self.out {
                None => report::values(&buffer.to_host()?),
                Some(_) => None,
            };
            specs.push((name.to_owned(), buffer.spec().clone(), values));
        }
        let text = self.output.choose(
            || {
                let mut text = format!(
                    "`{}` on {device}: {} in {:.1} ms, ran in {:.3} ms\n",
                    Line(function.name()),
                    if is_loaded { "loaded" } else { "compiled" },
                    compile_seconds * 1e3,
                    run_seconds * 1e3
                );
                for (name, spec, values) in &specs {
                    let colon = if name.is_empty() { "" } else { ": " };
                    let values = values.as_ref().map_or(String::new(), |values| format!(" = {values}"));
                    let _ = writeln!(text, "output {}{colon}{spec}{values}", Line(name));
                }
                for difference in &differences {
                    let _ = writeln!(text, "{difference}");
                }
                if self.expect.is_some() && differences.is_empty() {
                    text += "the outputs are as expected\n";
                }
                text
            },
            || {
                let output = |(name, spec, values): &(String, safejax::ArraySpec, Option<String>)| {
                    json!({"name": name, "spec": spec, "values": values})
                };
                json!({
                    "program": function.name(),
                    "device": device,
                    "compile_seconds": compile_seconds,
                    "run_seconds": run_seconds,
                    "outputs": specs.iter().map(output).collect::<Vec<_>>(),
                    "differences": differences,
                })
            },
        );
        if self.out.as_deref().is_some_and(stream::is_dash) {
            // Standard output has the arrays.
            eprint!("{text}");
            return Ok(Output { text: String::new(), is_success: differences.is_empty() });
        }
        Ok(Output { text, is_success: differences.is_empty() })
    }

    /// A client, and the devices of it that the program is to run on.
    fn connect(&self, exported: Option<&Exported>) -> Result<(Client, Vec<Device>)> {
        let count = exported.map_or(1, |exported| exported.device_count).max(self.devices.len());
        if count == 1 && self.devices.is_empty() {
            let (client, device) = self.device.connect()?;
            return Ok((client, vec![device]));
        }
        if self.device.is_one() {
            bail!("--device: the program runs on {count} devices; name them with --devices");
        }
        let highest = self.devices.iter().max().map_or(0, |&id| usize::try_from(id).unwrap_or(0) + 1);
        let client = self.device.connect_to_several(count.max(highest))?;
        let devices = match &self.devices[..] {
            [] => client.devices().into_iter().take(count).collect(),
            ids => devices_of(&client, ids)?,
        };
        let found = devices.len();
        let wanted = exported.map_or(found, |exported| exported.device_count);
        if wanted > 1 && wanted != found {
            bail!("--devices: the program runs on {wanted} devices, and there are {found} for it");
        }
        Ok((client, devices))
    }

    /// What is to be run.
    fn code(&self) -> Result<Code> {
        if !self.trust_executable {
            return Ok(Code::Program(Program::open(&self.program)?));
        }
        let file = match ExecutableFile::open(&self.program) {
            Err(_) if Program::open(&self.program).is_ok() => bail!(
                "--trust-executable: {} is a program, and no file that `compile --out` wrote",
                File(&self.program)
            ),
            file => file?,
        };
        if self.sizes.is_empty() {
            return Ok(Code::Executables(file));
        }
        let chosen = file.at_sizes(&borrowed(&self.sizes));
        if chosen.entries().is_empty() {
            let known: Vec<String> =
                file.entries().iter().map(Entry::sizes_text).filter(|text| !text.is_empty()).collect();
            if known.is_empty() {
                bail!(
                    "--sizes: {} has no executable for particular sizes; leave the option away",
                    file.origin()
                );
            }
            bail!("--sizes: {} has no executable for them; it has {}", file.origin(), known.join("; "));
        }
        Ok(Code::Executables(chosen))
    }

    /// Compiles it, or loads it.
    fn function(&self, client: &Client, devices: &[Device], code: &Code) -> Result<Function> {
        let program = match code {
            Code::Program(program) => program,
            Code::Executables(_) if !self.padded_sizes.is_empty() => {
                bail!("--pad: an executable has its sizes")
            }
            Code::Executables(file) => {
                let function = client.load_executable(file)?;
                if function.device().is_some_and(|own| *own != devices[0]) {
                    bail!(
                        "--device: an executable runs on the device that it was compiled for, the first one"
                    );
                }
                return Ok(function);
            }
        };
        let mut options = CompileOptions::default();
        options.partitions = devices.len();
        options.device_assignment = Some(vec![devices.iter().map(Device::id).collect()]);
        options.padded_sizes = self.padded_sizes()?;
        if !options.padded_sizes.is_empty()
            && program.exported().is_none_or(|exported| !exported.has_symbolic_arguments())
        {
            bail!("--pad: {} has no dimensions that are not known in size", program.origin());
        }
        Ok(client.compile_with(program, &options)?)
    }

    /// What `--pad` says, each variable once.
    fn padded_sizes(&self) -> Result<BTreeMap<String, Vec<usize>>> {
        let mut sizes = BTreeMap::new();
        for (name, padded) in &self.padded_sizes {
            if sizes.insert(name.clone(), padded.clone()).is_some() {
                bail!("--pad {name} was given twice");
            }
        }
        Ok(sizes)
    }

    /// The files of each argument. Of a program that is no artifact, positions must follow each other from 0; an
    /// artifact may not need those between.
    fn files_by_argument(&self, exported: Option<&Exported>) -> Result<FilesByArgument<'_>> {
        let mut files = FilesByArgument::new();
        for (key, file) in &self.arguments {
            let parts = files.entry(key.root.clone()).or_default();
            let path = key.path.as_deref();
            if parts.iter().any(|(other, _)| *other == path) {
                bail!("--arg {} was given twice", key_text(key));
            }
            if exported.is_none() && (path.is_some() || matches!(key.root, Root::Name(_))) {
                bail!(
                    "--arg {}: only jax.export artifacts have named arguments and paths into them; give a position",
                    key_text(key)
                );
            }
            parts.push((path, file));
        }
        let positions: Vec<usize> = files
            .keys()
            .filter_map(|root| match root {
                Root::Position(position) => Some(*position),
                Root::Name(_) => None,
            })
            .collect();
        let known = |exported: &Exported| match &exported.in_tree {
            safejax::TreeDef::Tuple(parts) => {
                parts.first().map_or(0, |positional| positional.children().len())
            }
            _ => 0,
        };
        if let Some(exported) = exported {
            match positions.last() {
                Some(&last) if last >= known(exported) => {
                    bail!("--arg {last}: the function takes {} positional arguments", known(exported))
                }
                _ => return Ok(files),
            }
        }
        if let Some(missing) = (0..positions.len()).find(|expected| positions[*expected] != *expected) {
            bail!("--arg {missing} is missing: the arguments given are at {positions:?}");
        }
        Ok(files)
    }
}

fn key_text(key: &ArgumentKey) -> String {
    let root = match &key.root {
        Root::Position(position) => position.to_string(),
        Root::Name(name) => name.clone(),
    };
    key.path.as_ref().map_or(root.clone(), |path| format!("{root}.{path}"))
}

fn load_arguments(
    device: &Device,
    function: &Function,
    files: FilesByArgument<'_>,
) -> Result<Vec<(Root, Loaded)>> {
    let mut loaded: Vec<(Root, Loaded)> = Vec::new();
    for (root, parts) in files {
        let mut whole: Option<Loaded> = None;
        for (path, given) in parts {
            let key = ArgumentKey { root: root.clone(), path: path.map(str::to_owned) };
            let context = || format!("argument {} cannot be loaded", key_text(&key));
            let dtype = expected_dtype(function, &loaded, &key);
            let whole_of = path.is_none().then_some((function, &key.root));
            let part = given.load(device, dtype, whole_of).with_context(context)?;
            let part = match path {
                Some(path) => Loaded::Tree(part.below(path, device).with_context(context)?),
                None => part,
            };
            whole = Some(match (whole, part) {
                (None, part) => part,
                (Some(Loaded::Tree(before)), Loaded::Tree(part)) => {
                    Loaded::Tree(before.merge(&part).with_context(context)?)
                }
                _ => bail!("--arg {}: an argument cannot be both one array and a tree", key_text(&key)),
            });
        }
        loaded.extend(whole.map(|whole| (root, whole)));
    }
    Ok(loaded)
}

/// What NumPy writes without a type takes the one that the program expects there.
fn expected_dtype(function: &Function, before: &[(Root, Loaded)], key: &ArgumentKey) -> Option<DType> {
    if let Some(exported) = function.exported() {
        let root = match &key.root {
            Root::Position(position) => format!("0.{position}"),
            Root::Name(name) => format!("1.{name}"),
        };
        let name = key.path.as_ref().map_or(root.clone(), |path| format!("{root}.{path}"));
        let index = exported.in_tree.paths().iter().position(|path| path.to_name() == name)?;
        return Some(exported.in_avals[index].dtype);
    }
    let mut leaves = Vec::new();
    before.iter().for_each(|(_, loaded)| loaded.as_argument().append_leaves(&mut leaves));
    function.signature()?.parameters.get(leaves.len()).map(|parameter| parameter.aval.dtype)
}

/// Whether what is written there is thrown away: the outputs are computed then, and have no format.
fn is_nowhere(path: &Path) -> bool {
    path == Path::new("/dev/null")
}

/// Refuses a target that the outputs cannot be written to, before they are computed.
fn check_target(function: &Function, path: &Path) -> Result<()> {
    let outputs = function.outputs();
    if stream::is_dash(path) {
        return Ok(());
    }
    let format = match TargetFormat::of_name(path) {
        None | Some(TargetFormat::Json) => {
            bail!("--out {} does not end in .npy, .safetensors, .npz or .msgpack", File(path))
        }
        Some(format) => format,
    };
    if format == TargetFormat::Npy && outputs.len() != 1 {
        bail!(
            "--out: an .npy file holds one array, and `{}` has {}; name a .safetensors file",
            function.name(),
            match outputs.len() {
                0 => "no output".to_owned(),
                count => format!("{count} outputs"),
            }
        );
    }
    let unnamed = |aval: &&safejax::program::Aval| aval.dtype.safetensors_name().is_none();
    // The others are made of it.
    if format != TargetFormat::Npy
        && let Some(aval) = outputs.iter().find(unnamed)
    {
        bail!("the safetensors format cannot hold the output {aval}");
    }
    check_directory("--out", path)
}

fn write_outputs(outputs: &Outputs, path: &Path) -> Result<()> {
    if stream::is_dash(path) {
        // One array as NumPy reads it, a tree as safetensors.
        let bytes = match outputs.single() {
            Ok(output) => npy::to_bytes(&output.to_host()?)?,
            Err(_) => safejax::serialize(&outputs.to_params())?,
        };
        let mut stdout = std::io::stdout().lock();
        use std::io::Write as _;
        return stdout
            .write_all(&bytes)
            .and_then(|()| stdout.flush())
            .context("standard output cannot be written");
    }
    let format = TargetFormat::of_name(path);
    if format == Some(TargetFormat::Npy) {
        let output =
            outputs.single().context("an .npy file holds one array; name a .safetensors file instead")?;
        return Ok(npy::write(path, &output.to_host()?)?);
    }
    if format == Some(TargetFormat::Safetensors) {
        return Ok(outputs.to_params().save(path)?);
    }
    let checkpoint = Checkpoint::from_bytes(safejax::serialize(&outputs.to_params())?)?;
    let source = Source::new(checkpoint, &Selection::default())?;
    convert(&source, path, &ConvertOptions::default())?;
    Ok(())
}
