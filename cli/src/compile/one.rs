//! The process that compiles for one target.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use safejax::store::WriteOptions;
use safejax::{CompileOptions, Error, ExecutableFile, Plugin, Program, Target, Topology};

use super::report::Outcome;
use crate::probe;
use crate::sizes::{borrowed, parse_size};

/// Compile for one target, and write a report: what `compile` starts for each
#[derive(Args)]
pub struct CompileOne {
    program: PathBuf,
    #[arg(long = "for")]
    target: String,
    #[arg(long)]
    library: PathBuf,
    #[arg(long)]
    report: PathBuf,
    #[arg(long)]
    executable: Option<PathBuf>,
    #[arg(long, value_delimiter = ',', value_parser = parse_size)]
    sizes: Vec<(String, usize)>,
    #[arg(long)]
    hlo: Option<PathBuf>,
    #[arg(long)]
    any_platform: bool,
}

/// The program at these sizes, and the part of it for a platform, if one is said and it is among the program's.
pub fn at_sizes(program: &Program, sizes: &[(String, usize)], platform: Option<&str>) -> Result<Program> {
    if sizes.is_empty() {
        return Ok(program.clone());
    }
    let known = program.exported().map(|exported| exported.platforms.clone()).unwrap_or_default();
    let platform = platform.filter(|platform| known.iter().any(|known| known == platform));
    Ok(program.refined(&borrowed(sizes), platform)?)
}

/// What libtpu says of a program that does not run on all devices of a slice whose chips are not all wired to each other.
const NEEDS_ALL: &str = "should include all slice devices";

/// Names the target to ask for where this one has too few devices, or too many.
fn with_slice(error: Error, target: &Target, program: &Program, topology: &Topology) -> anyhow::Error {
    let wanted = program.exported().map_or(1, |exported| exported.device_count);
    let (found, error) = (topology.devices().len(), anyhow::Error::from(error));
    let fitting = || target.of_devices(wanted).filter(|fitting| fitting != target);
    let said = format!("{error:#}");
    if wanted > found
        && let Some(fitting) = fitting()
    {
        return anyhow!("{said}; ask for as many: {fitting}");
    }
    if said.contains(NEEDS_ALL)
        && let Some(fitting) = fitting()
    {
        return anyhow!(
            "the program runs on {wanted} devices, and on {target} a program runs on all {found}; ask for {fitting}"
        );
    }
    error
}

impl CompileOne {
    pub fn run(self) -> Result<String> {
        let target: Target = self.target.parse()?;
        let outcome = match self.compile(&target) {
            Ok(outcome) => outcome,
            Err(error) => Outcome::of_error(&target, &error),
        };
        std::fs::write(&self.report, serde_json::to_vec(&outcome)?)?;
        Ok(String::new())
    }

    fn compile(&self, target: &Target) -> Result<Outcome> {
        probe::try_if_new(&self.library)?;
        let plugin = Plugin::open(&self.library)?;
        let topology = target.topology(&plugin)?;
        let program = Program::open(&self.program)?;
        let program = at_sizes(&program, &self.sizes, Some(topology.platform_name()))?;
        let program = if self.any_platform { program.for_any_platform() } else { program };
        let started = Instant::now();
        let compilation = program
            .compile_for(&topology, &CompileOptions::default())
            .map_err(|error| with_slice(error, target, &program, &topology))?;
        let outcome = Outcome::of_compilation(target, &compilation, started.elapsed());
        if let Some(path) = &self.hlo {
            let code = compilation.executable().optimized_program()?.code;
            std::fs::write(path, code).with_context(|| format!("{} cannot be written", path.display()))?;
        }
        if let Some(path) = &self.executable {
            let named = [(target.name().to_owned(), compilation)];
            ExecutableFile::write(path, &named, None, WriteOptions::default())?;
        }
        Ok(outcome)
    }
}
