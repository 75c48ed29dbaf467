//! `safejax compile`: whether a program compiles for devices that are not here, fits into them, and how fast it could be.

mod one;
mod params;
mod report;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use safejax::plugins;
use safejax::printable::{File, Line};
use safejax::store::{WriteOptions, write_atomically};
use safejax::{Error, ExecutableFile, Program, Target};
use serde_json::json;

use crate::child::{self, Ended};
use crate::output::{self, Output, OutputArgs};
use crate::sizes::{self, parse_size};
use crate::{interrupt, stream};
pub use one::CompileOne;
use params::Params;
use report::Outcome;
pub use report::collectives_text;

#[derive(Args)]
pub struct Compile {
    /// A jax.export artifact or a bundle of them, StableHLO text or bytecode, or an HLO proto
    program: PathBuf,

    /// What to compile for: TPUs with the shape of a slice (v2, v3, v4:2x2x1, v5e:2x2, v5p:2x2x1, v6e, v7x), NVIDIA GPUs with
    /// their number (a100, a100-40, h100, h100-pcie, h200:8, b200, gb200, b300), the path of a GPU's description (a
    /// GpuTargetConfigProto as text), the processors as so many devices (cpu:8), or a plugin for the devices that it finds
    /// here (cpu, cuda13, …). Can be given several
    /// times
    #[arg(long = "for", value_name = "TARGET", required = true)]
    targets: Vec<Target>,

    /// The sizes of the program's dimension variables, or of a bundle's bucket (the largest, unless it is said): b=8,t=64
    #[arg(long, value_name = "NAME=SIZE,…", value_delimiter = ',', value_parser = parse_size)]
    sizes: Vec<(String, usize)>,

    /// The plugin that compiles, by name or path [default: the first for the target that is on this machine]
    #[arg(long, value_name = "NAME|PATH")]
    plugin: Option<String>,

    /// A checkpoint that the program is to run with: say what it takes of each device
    #[arg(long, value_name = "FILE")]
    params: Option<PathBuf>,

    /// Write the executables, and the program, to a file that `run` and Client::load_executable take
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Leave the program out of that file: it is then of no use on other devices, or with other builds of the plugins
    #[arg(long, requires = "out")]
    without_program: bool,

    /// Write what the compiler made of the program, as an HLO proto, to a file; of several targets, to FILE.TARGET
    #[arg(long, value_name = "FILE")]
    hlo: Option<PathBuf>,

    /// Also compile a function that was exported for other platforms than the targets'
    #[arg(long)]
    any_platform: bool,

    #[command(flatten)]
    output: OutputArgs,
}

/// What a target's HLO is called in its folder.
const HLO: &str = "program.hlo";

/// A target, and the plugin that compiles for it.
struct Job {
    target: Target,
    /// The name of the plugin that compiles for it, or its path if that was given.
    plugin: String,
    library: PathBuf,
}

/// What a process that compiles for one target left.
struct Done {
    outcome: Outcome,
    executables: Option<ExecutableFile>,
}

impl Compile {
    pub fn run(mut self) -> Result<Output> {
        self.program = stream::input(&self.program)?;
        let program = Program::open(&self.program)?;
        let sizes = self.sizes_of(&program)?;
        let compiled = one::at_sizes(&program, &sizes, None)?;
        let params = self.params.as_deref().map(|path| Params::of(path, &compiled)).transpose()?;
        let jobs = self.jobs()?;
        self.check_files(&jobs)?;
        let directory = tempfile::tempdir().context("there is no place for temporary files (TMPDIR)")?;
        let bar = waiting(&jobs);
        let done = run_all(&jobs, |index| {
            self.compile(&jobs[index], &sizes, &directory.path().join(index.to_string()))
        });
        let done = done.into_iter().collect::<Result<Vec<Done>>>()?;
        bar.finish_and_clear();
        if interrupt::token().is_cancelled() {
            drop((done, directory));
            interrupt::end_if_interrupted();
            bail!("interrupted");
        }
        let outcomes: Vec<&Outcome> = done.iter().map(|done| &done.outcome).collect();
        let is_success = outcomes
            .iter()
            .all(|outcome| outcome.fits(params.as_ref()) != Some(false) && outcome.error.is_none())
            && params.as_ref().is_none_or(Params::fits);
        self.write(&program, &done)?;
        self.write_hlo(&jobs, directory.path())?;
        let name = compiled.exported().map_or(compiled.origin(), |exported| &exported.function_name);
        let text = self.output.choose(
            || {
                let mut text = format!("`{}`", Line(name));
                // Writing to a string cannot fail.
                if !sizes.is_empty() {
                    let _ = write!(text, " at {}", sizes::text(&sizes::borrowed(&sizes), ","));
                }
                text.push('\n');
                for outcome in &outcomes {
                    text += &outcome.text(params.as_ref());
                }
                if let Some(out) = self.out.as_deref().filter(|_| outcomes.iter().any(|one| one.error.is_none())) {
                    let without = outcomes.iter().filter(|one| one.error.is_some());
                    let without: Vec<String> = without.map(|one| Line(&one.target).to_string()).collect();
                    let without =
                        if without.is_empty() { String::new() } else { format!(", without {}", without.join(", ")) };
                    let _ = writeln!(text, "wrote {}{without}", File(out));
                }
                text
            },
            || {
                json!({
                    "program": name,
                    "sizes": sizes.iter().cloned().collect::<BTreeMap<_, _>>(),
                    "targets": outcomes.iter().map(|outcome| outcome.json(params.as_ref())).collect::<Vec<_>>(),
                })
            },
        );
        Ok(Output { text, is_success })
    }

    /// The sizes that are compiled for: those given, or those of a bundle's largest bucket.
    fn sizes_of(&self, program: &Program) -> Result<Vec<(String, usize)>> {
        match program.bundle() {
            Some(bundle) if self.sizes.is_empty() => {
                let largest = bundle.buckets.last().map(|bucket| bucket.sizes.clone()).unwrap_or_default();
                Ok(bundle.dims.iter().cloned().zip(largest).collect())
            }
            _ => Ok(self.sizes.clone()),
        }
    }

    /// The targets, each with its plugin. None is asked for twice.
    fn jobs(&self) -> Result<Vec<Job>> {
        let mut jobs: Vec<Job> = Vec::new();
        for target in self.targets.clone() {
            if jobs.iter().any(|job| job.target == target) {
                bail!("--for {target} was given twice");
            }
            let (plugin, library) = match &self.plugin {
                Some(plugin) => (plugin.clone(), plugins::library(plugin)?),
                None => plugin_for(&target)?,
            };
            jobs.push(Job { target, plugin, library });
        }
        Ok(jobs)
    }

    /// Compiles for one target in a process of its own: a compiler that ends its process takes only that with it, and what
    /// it prints is its own.
    fn compile(&self, job: &Job, sizes: &[(String, usize)], directory: &Path) -> Result<Done> {
        std::fs::create_dir(directory)?;
        let (report, executable) = (directory.join("report.json"), directory.join("executable"));
        let mut command = child::command()?;
        command.arg("compile-one").arg(&self.program).args(["--for", job.target.name()]);
        command.arg("--library").arg(&job.library).arg("--report").arg(&report);
        if self.out.is_some() {
            command.arg("--executable").arg(&executable);
        }
        if !sizes.is_empty() {
            command.args(["--sizes", &sizes::text(&sizes::borrowed(sizes), ",")]);
        }
        if self.hlo.is_some() {
            command.arg("--hlo").arg(directory.join(HLO));
        }
        if self.any_platform {
            command.arg("--any-platform");
        }
        // libtpu would wait for the cloud's metadata server, and be loaded by one process at a time: no TPU is used here.
        command.env("TPU_SKIP_MDS_QUERY", "1").env("ALLOW_MULTIPLE_LIBTPU_LOAD", "1");
        // Where it logs; it goes with the directory.
        command.env("TPU_LOG_DIR", directory);
        let ended = child::run(command, || interrupt::token().is_cancelled())
            .context("the compiler's process cannot be started")?;
        tracing::info!(errors = ended.errors(), "what the compiler's process said");
        let said = std::fs::read(&report).ok().and_then(|report| serde_json::from_slice(&report).ok());
        let mut outcome: Outcome = said.unwrap_or_else(|| Outcome::failed(&job.target, why_it_ended(&ended)));
        outcome.plugin.clone_from(&job.plugin);
        let executables = executable.exists().then(|| ExecutableFile::open(&executable)).transpose()?;
        Ok(Done { outcome, executables })
    }

    /// The file that a target's HLO goes to.
    fn hlo_of(&self, target: &Target) -> Option<PathBuf> {
        let hlo = self.hlo.as_ref()?;
        Some(if self.targets.len() == 1 { hlo.clone() } else { with_target(hlo, target) })
    }

    /// Writes what the compilers made of the program, each file whole or not at all.
    fn write_hlo(&self, jobs: &[Job], directory: &Path) -> Result<()> {
        for (index, job) in jobs.iter().enumerate() {
            let made = directory.join(index.to_string()).join(HLO);
            let Some(target) = self.hlo_of(&job.target).filter(|_| made.exists()) else { continue };
            let mut made = std::fs::File::open(&made)?;
            write_atomically(&target, WriteOptions::default(), |file| {
                std::io::copy(&mut made, file).map(drop)
            })?;
        }
        Ok(())
    }

    /// Refuses files that cannot be written, or that are each other or the program, before anything is compiled.
    fn check_files(&self, jobs: &[Job]) -> Result<()> {
        let hlo = jobs.iter().filter_map(|job| self.hlo_of(&job.target)).map(|path| ("--hlo", path));
        let out = self.out.iter().map(|path| ("--out", path.clone()));
        let mut taken: Vec<(PathBuf, String)> = vec![(place_of(&self.program), "the program".into())];
        taken.extend(self.params.iter().map(|params| (place_of(params), "the checkpoint".into())));
        for (option, path) in out.chain(hlo) {
            check_target(option, &path)?;
            let place = place_of(&path);
            if let Some((_, what)) = taken.iter().find(|(other, _)| *other == place) {
                bail!("{option} {}: it is {what}", File(&path));
            }
            taken.push((place, format!("the file of {option}, too")));
        }
        Ok(())
    }

    /// Writes the executables there are, with the program.
    fn write(&self, program: &Program, done: &[Done]) -> Result<()> {
        let Some(out) = &self.out else { return Ok(()) };
        let files: Vec<ExecutableFile> = done.iter().filter_map(|done| done.executables.clone()).collect();
        if files.is_empty() {
            return Ok(());
        }
        let program = Some(program).filter(|_| !self.without_program);
        Ok(ExecutableFile::merge(out, &files, program, WriteOptions::default())?)
    }
}

/// The first plugin for a target that is on this machine.
fn plugin_for(target: &Target) -> Result<(String, PathBuf)> {
    let names = target.plugins();
    match plugins::find_first(&names) {
        Ok(found) => Ok((found.name, found.path)),
        Err(Error::PluginNotFound { .. }) => {
            // The lean one, where there are two.
            let install = names.last().copied().unwrap_or_default();
            bail!(
                "no plugin that compiles for {target} is on this machine; run `safejax plugin install {install}`"
            )
        }
        Err(error) => Err(error.into()),
    }
}

/// Why a process left no report.
fn why_it_ended(ended: &Ended) -> String {
    match (ended.error(), ended.status) {
        (Some(error), _) => error.to_owned(),
        (None, Some(status)) => {
            format!("the compiler ended its process with {status}: {}", ended.last_line())
        }
        (None, None) => "it was interrupted".to_owned(),
    }
}

/// A file's name with that of a target at its end.
fn with_target(file: &Path, target: &Target) -> PathBuf {
    let name: String = target.name().chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
    let mut path = file.as_os_str().to_owned();
    path.push(format!(".{name}"));
    path.into()
}

/// Where a file is, by whatever way it is named.
fn place_of(path: &Path) -> PathBuf {
    path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}

/// Refuses a file that cannot be written.
fn check_target(option: &str, path: &Path) -> Result<()> {
    if stream::is_dash(path) {
        bail!("{option} -: standard output has the report; name a file");
    }
    output::check_directory(option, path)?;
    if path.exists() && !path.is_file() {
        bail!("{option} {}: it is not a regular file", File(path));
    }
    Ok(())
}

/// Shows on a terminal what is waited for, from its first second on.
fn waiting(jobs: &[Job]) -> ProgressBar {
    let names: Vec<String> = jobs.iter().map(|job| Line(job.target.name()).to_string()).collect();
    let bar = ProgressBar::no_length().with_message(format!("compiling for {}", names.join(", ")));
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}, {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_secs(1));
    bar
}

/// Does the jobs, as many at a time as there are processors, and returns what each gave, in order.
fn run_all<T: Send>(jobs: &[Job], run: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(jobs.len());
    let (next, done) = (Mutex::new(0..jobs.len()), Mutex::new(BTreeMap::new()));
    let take = || next.lock().ok()?.next();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(index) = take() {
                    let result = run(index);
                    if let Ok(mut done) = done.lock() {
                        done.insert(index, result);
                    }
                }
            });
        }
    });
    done.into_inner().unwrap_or_default().into_values().collect()
}
