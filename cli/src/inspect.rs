//! `safejax inspect`: what is in a file. Loads no plugin but the one that is asked about.

mod executables;
mod program;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use safejax::convert::Source;
use safejax::format::{DEFAULT_ALIGNMENT, Format, OrbaxContents, Tensor, orbax_contents, sniff};
use safejax::printable::{Count, File, Line, Name};
use safejax::program::BUNDLE_KEY;
use safejax::tree::Node;
use safejax::{Checkpoint, ExecutableFile, Program};
use serde_json::{Value, json};

use crate::output::OutputArgs;
use crate::select::SelectArgs;
use crate::sizes::{borrowed, parse_size};

/// The characters of a metadata value that are shown.
const SHOWN_METADATA: usize = 100;

/// The metadata values that are shown.
const SHOWN_STRINGS: usize = 20;

#[derive(Args)]
pub struct Inspect {
    /// A checkpoint of any format that is read (of one in several files, the index, one of them or the directory), or a
    /// program (jax.export artifact, StableHLO text or bytecode, HLO proto)
    file: PathBuf,

    /// Also say whether this plugin reads the program's version of StableHLO, and which arguments it donates to which
    /// outputs: a name (cpu, cuda13, …; `safejax plugin list` has them all) or
    /// the path of a library
    #[arg(long, value_name = "NAME|PATH")]
    plugin: Option<String>,

    /// Show a program with dimension variables as it is at these sizes: b=8,t=64
    #[arg(long, value_name = "NAME=SIZE,…", value_delimiter = ',', value_parser = parse_size)]
    sizes: Vec<(String, usize)>,

    /// With --sizes, of a program that was exported for several platforms, the part of this one (the first, unless it is
    /// named)
    #[arg(long, value_name = "PLATFORM", requires = "sizes")]
    platform: Option<String>,

    /// Show a program's StableHLO as text for reading, which no compiler takes; with --sizes, as it is compiled for them. Not
    /// together with --plugin or --json
    #[arg(long, conflicts_with_all = ["plugin", "json"])]
    text: bool,

    /// What there is to choose from, of Orbax's directories.
    #[arg(skip)]
    contents: OrbaxContents,

    #[command(flatten)]
    select: SelectArgs,

    #[command(flatten)]
    output: OutputArgs,
}

impl Inspect {
    pub fn run(mut self) -> Result<String> {
        self.contents = orbax_contents(&self.file)?;
        self.file = self.select.input(&self.file)?;
        match sniff(&self.file)? {
            Some(Format::Safetensors) => {
                let checkpoint = self.open()?;
                if checkpoint.metadata().contains_key(BUNDLE_KEY) {
                    return self.program(&Program::open(&self.file)?);
                }
                if ExecutableFile::is_in(&checkpoint) {
                    return self.executables(&ExecutableFile::of(checkpoint)?);
                }
                self.checkpoint(checkpoint)
            }
            // An artifact can begin like a map of msgpack by chance.
            Some(Format::Msgpack) if is_artifact(&self.file) => self.program(&Program::open(&self.file)?),
            Some(_) => self.source(&Source::new(self.open()?, &self.select.selection()?)?),
            // Nothing that holds arrays begins like this; a damaged checkpoint still might.
            None => match (Program::open(&self.file), self.open()) {
                (Ok(program), _) => self.program(&program),
                (_, Ok(checkpoint)) => self.checkpoint(checkpoint),
                (Err(no_program), Err(no_checkpoint)) => match ending(&self.file) {
                    Ending::Checkpoint => Err(no_checkpoint.into()),
                    Ending::Program => Err(no_program.into()),
                    Ending::Other => {
                        let file = File(&self.file);
                        bail!("{file} is of no format that is read\n{no_checkpoint}\n{no_program}")
                    }
                },
            },
        }
    }

    fn program(&self, program: &Program) -> Result<String> {
        let sizes = borrowed(&self.sizes);
        let refined =
            if sizes.is_empty() { None } else { Some(program.refined(&sizes, self.platform.as_deref())?) };
        let program = refined.as_ref().unwrap_or(program);
        if self.text {
            return Ok(program.stablehlo_text()?);
        }
        program::show(program, &sizes, self.plugin.as_deref(), self.output)
    }

    fn executables(&self, file: &ExecutableFile) -> Result<String> {
        if self.text || !self.sizes.is_empty() {
            // What is said of the program that is in it.
            return self.program(&Program::open(&self.file)?);
        }
        executables::show(file, self.plugin.as_deref(), self.output)
    }

    /// Refuses to say of a file that is no program what is only said of programs.
    fn refuse_plugin(&self) -> Result<()> {
        let asked =
            [("--plugin", self.plugin.is_some()), ("--sizes", !self.sizes.is_empty()), ("--text", self.text)];
        match asked.iter().find(|(_, is_asked)| *is_asked) {
            Some((option, _)) => {
                bail!("{} is no program, so that {option} has nothing to say about it", File(&self.file))
            }
            None => Ok(()),
        }
    }

    fn open(&self) -> safejax::Result<Checkpoint> {
        Checkpoint::open_within(&self.file, self.select.limits())
    }

    fn checkpoint(&self, checkpoint: Checkpoint) -> Result<String> {
        self.refuse_plugin()?;
        let source = match Source::new(checkpoint.clone(), &self.select.selection()?) {
            Err(error) if !matches!(error, safejax::Error::Tree(_)) => return Err(error.into()),
            source => source,
        };
        let text = || match &source {
            Ok(source) => text(&checkpoint, source),
            Err(error) => flat(&checkpoint, error),
        };
        Ok(self.output.choose(text, || to_json(&checkpoint, &source)))
    }

    fn source(&self, source: &Source) -> Result<String> {
        self.refuse_plugin()?;
        let tree = source.tree();
        let contents = contents_line(&self.contents);
        Ok(self.output.choose(
            || {
                let (origin, format) = (Line(source.origin()), source.format());
                let lines = metadata_lines(source.checkpoint());
                format!("{origin}: {format}, {}\n{contents}{lines}{}", tree.summary, drawn(&tree))
            },
            || {
                let leaves = source.keys().leaves().iter().zip(source.specs());
                let leaf = |(leaf, spec): (&safejax::tree::Leaf, &safejax::ArraySpec)| {
                    json!({"name": leaf.name, "dtype": spec.dtype, "shape": spec.shape})
                };
                json!({
                    "file": source.origin(),
                    "format": source.format(),
                    "steps": self.contents.steps,
                    "items": self.contents.items,
                    "metadata": source.metadata(),
                    "tree": source.keys().def(),
                    "tensors": leaves.map(leaf).collect::<Vec<_>>(),
                })
            },
        ))
    }
}

fn to_json(checkpoint: &Checkpoint, source: &safejax::Result<Source>) -> Value {
    // What is broken about the tree is told beside the tensors, which are there all the same.
    let (tree, error) = match source {
        Ok(source) => (Some(source.keys().def()), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let tensor = |tensor: &Tensor| {
        json!({
            "name": tensor.name,
            "dtype": tensor.spec.dtype,
            "shape": tensor.spec.shape,
            "file": tensor.extents().first().map(|extent| extent.file),
            "offset": start(tensor),
            "bytes": tensor.bytes(),
        })
    };
    json!({
        "file": checkpoint.origin(),
        "format": "safetensors",
        "file_bytes": checkpoint.file_bytes(),
        "files": checkpoint.files().collect::<Vec<_>>(),
        "data_start": (checkpoint.files().len() == 1).then(|| checkpoint.data_start()),
        "metadata": checkpoint.metadata(),
        "framework": source.as_ref().ok().map(Source::framework),
        "tree": tree,
        "tree_error": error,
        "tensors": checkpoint.tensors().iter().map(tensor).collect::<Vec<_>>(),
    })
}

/// What the ending of a file's name says that it is.
enum Ending {
    Checkpoint,
    Program,
    Other,
}

fn ending(file: &Path) -> Ending {
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("safetensors") => Ending::Checkpoint,
        Some("stablehlo" | "mlir" | "jaxexport" | "mlirbc" | "hlo") => Ending::Program,
        _ => Ending::Other,
    }
}

fn is_artifact(file: &Path) -> bool {
    Program::open(file).is_ok_and(|program| program.exported().is_some())
}

/// Where a tensor begins in its file, in bytes.
fn start(tensor: &Tensor) -> usize {
    tensor.extents().first().map_or(0, |extent| extent.range.start)
}

fn text(checkpoint: &Checkpoint, source: &Source) -> String {
    let is_aligned = |tensor: &&Tensor| start(tensor).is_multiple_of(DEFAULT_ALIGNMENT);
    let aligned = checkpoint.tensors().iter().filter(is_aligned).count();
    let tree = source.tree();
    let place = match checkpoint.files().len() {
        1 => format!("data from byte {}", checkpoint.data_start()),
        files => format!("in {files} files"),
    };
    format!(
        "{}: {}\n{aligned} of {} aligned to {DEFAULT_ALIGNMENT} bytes; {place}\n\
         names as {} has them; structure from {}\n{}{}",
        Line(checkpoint.origin()),
        tree.summary,
        Count(checkpoint.tensors().len(), "tensor"),
        source.framework(),
        if source.has_record() { "its record in the metadata" } else { "the names" },
        metadata_lines(checkpoint),
        drawn(&tree),
    )
}

/// The tree as the terminal's locale can show it: `C` and `POSIX` have ASCII only.
fn drawn(tree: &Node) -> String {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
    let is_ascii = locale.is_some_and(|locale| locale == "C" || locale == "POSIX");
    if is_ascii { format!("{tree:#}") } else { tree.to_string() }
}

/// The tensors one by one, where they make no tree, and why they do not.
fn flat(checkpoint: &Checkpoint, error: &safejax::Error) -> String {
    let mut text =
        format!("{}: {}\n", Line(checkpoint.origin()), Count(checkpoint.tensors().len(), "tensor"));
    // Writing to a string cannot fail.
    let _ = writeln!(text, "no tree: {error}");
    text += &metadata_lines(checkpoint);
    for tensor in checkpoint.tensors() {
        let _ = writeln!(text, "{}  {}  {} B", Name(&tensor.name), tensor.spec, tensor.bytes());
    }
    text
}

/// The metadata, one line a string, long ones cut.
fn metadata_lines(checkpoint: &Checkpoint) -> String {
    let line = |(key, value): (&String, &String)| {
        let mut shown: String = value.chars().take(SHOWN_METADATA).collect();
        if shown.len() < value.len() {
            shown += "…";
        }
        format!("metadata {} = {}\n", Line(key), Line(&shown))
    };
    let metadata = checkpoint.metadata();
    let mut lines: String = metadata.iter().take(SHOWN_STRINGS).map(line).collect();
    if metadata.len() > SHOWN_STRINGS {
        let _ = writeln!(lines, "… and {} more in the metadata (--json)", metadata.len() - SHOWN_STRINGS);
    }
    lines
}

/// The steps and items of a directory of Orbax's, if it has any.
fn contents_line(contents: &OrbaxContents) -> String {
    let mut line = String::new();
    if !contents.steps.is_empty() {
        let steps: Vec<String> = contents.steps.iter().map(u64::to_string).collect();
        let _ = writeln!(line, "steps: {}", steps.join(", "));
    }
    if !contents.items.is_empty() {
        let _ = writeln!(line, "items with arrays: {}", Line(&contents.items.join(", ")));
    }
    line
}
