//! From a program to a function: what is known not to run is refused, the rest goes to the compiler or comes from the cache.

use std::borrow::Cow;

use bytes::Bytes;

use super::artifact::Program;
use super::buckets::Buckets;
use super::cache;
use super::call::Function;
use super::compiled::{Compiled, check_platform, platform_position};
use super::exported::Exported;
use super::stablehlo::{Module, Refusal, custom_calls};
use super::symbolic::{Shapes, Symbolic, refine_exported};
use super::version::{is_within, stablehlo_version};
use crate::error::{Error, Result};
use crate::pjrt::{Client, CompileOptions, LoadedExecutable, Plugin, ProgramFormat, Topology};
use crate::sharding::Sharding;

/// What compiles a program: a plugin, for one of its platforms.
#[derive(Debug, Clone, Copy)]
pub struct Compiler<'a> {
    pub plugin: &'a Plugin,
    pub platform: &'a str,
}

impl<'a> From<&'a Client> for Compiler<'a> {
    fn from(client: &'a Client) -> Compiler<'a> {
        Compiler { plugin: client.plugin(), platform: client.platform_name() }
    }
}

impl<'a> From<&'a Topology> for Compiler<'a> {
    fn from(topology: &'a Topology) -> Compiler<'a> {
        Compiler { plugin: topology.plugin(), platform: topology.platform_name() }
    }
}

impl Client {
    /// Compiles a program for the client's first device. Blocks while it compiles.
    ///
    /// What took long is kept on the disk, so that the next process need not compile it again: see
    /// [`crate::program::cache_dir`].
    /// Of a bundle only the smallest bucket is compiled now, the others when they are needed.
    ///
    /// # Errors
    /// [`Error::Pjrt`] with the compiler's words when the program does not parse, needs a newer plugin, or
    /// calls something that the plugin does not have; [`Error::InvalidArgument`] for a function that was exported
    /// for other platforms.
    pub fn compile(&self, program: &Program) -> Result<Function> {
        self.compile_with(program, &CompileOptions::default())
    }

    /// Compiles a program with options. As [`Client::compile`].
    ///
    /// # Errors
    /// As for [`Client::compile`].
    pub fn compile_with(&self, program: &Program, options: &CompileOptions) -> Result<Function> {
        if let Some(bundle) = &program.bundle {
            return Function::of_buckets(Buckets::new(self, program, bundle.clone(), options));
        }
        let Some(exported) = &program.exported else {
            let is_mlir = matches!(program.format(), ProgramFormat::Mlir);
            let use_shardy = options.use_shardy.or_else(|| Some(is_mlir && has_shardy(program.code())));
            let options = &CompileOptions { use_shardy, ..options.clone() };
            if let Some(count) =
                partitions_of(program.code()).filter(|&count| count > 1 && count != options.partitions)
            {
                return Err(Error::InvalidArgument(format!(
                    "{} is a module for {count} devices, and was to be compiled for {}; say for which \
                     (CompileOptions::partitions, run --devices)",
                    program.origin(),
                    options.partitions
                )));
            }
            let executable = cache::compile(self, program.code(), program.format(), options)
                .map_err(|error| about_module(error, self.into(), program.origin(), program.code()))?;
            return Function::of_one(Compiled::new(executable, None)?, None);
        };
        if exported.has_symbolic_arguments() {
            check_exported(exported, program.origin())?;
            check_platform(exported, self.platform_name())?;
            let symbolic = Symbolic::new(self, program, exported.clone(), options)?;
            return Function::of_symbolic(symbolic, exported.clone());
        }
        let compiled = compile_static(self, exported, program.origin(), options)?;
        Function::of_one(compiled, Some(exported.clone()))
    }
}

/// Compiles an exported function whose arguments are all known in size.
///
/// # Errors
/// As for [`Client::compile`].
pub fn compile_static(
    client: &Client,
    exported: &Exported,
    origin: &str,
    options: &CompileOptions,
) -> Result<Compiled> {
    let (exported, options) = ready(client.into(), exported, origin, options)?;
    let executable = compile_module(client, &exported, origin, &options)?;
    Compiled::new(executable, Some(&exported))
}

/// An exported function whose arguments are all known in size, and the options, as its compiler takes them.
///
/// # Errors
/// [`Error::InvalidArgument`] for what is known not to compile or run.
pub fn ready<'e>(
    compiler: Compiler<'_>,
    exported: &'e Exported,
    origin: &str,
    options: &CompileOptions,
) -> Result<(Cow<'e, Exported>, CompileOptions)> {
    check_exported(exported, origin)?;
    check_platform(exported, compiler.platform)?;
    let exported = refined_static(exported, compiler).map_or(Cow::Borrowed(exported), Cow::Owned);
    let options = options_of(&exported, options);
    Ok((exported, options))
}

/// The function without what is of other platforms, and in the versions of operations that an older plugin reads; `None`
/// where it need not be changed, or cannot.
fn refined_static(exported: &Exported, compiler: Compiler<'_>) -> Option<Exported> {
    let platform = platform_position(exported, compiler.platform);
    let is_newer = || {
        let (version, newest) = (stablehlo_version(&exported.module)?, compiler.plugin.stablehlo_version()?);
        is_within(&version, None, &newest).map(|is_known| !is_known)
    };
    if platform.is_none() && !is_newer().unwrap_or(false) {
        return None;
    }
    let shapes: Shapes = exported
        .kept
        .iter()
        .map(|&leaf| Some(exported.in_avals[leaf].to_spec()?.shape))
        .collect::<Option<_>>()?;
    let refined = Module::read(&exported.module)
        .map_err(Refusal::from)
        .and_then(|module| refine_exported(exported, &module, &shapes, platform));
    match refined {
        Ok((refined, _)) => Some(refined),
        Err(refusal) => {
            // The compiler may know better.
            tracing::debug!(?refusal, "the module is compiled as it is");
            None
        }
    }
}

/// Compiles an exported function that is refined.
pub fn compile_exported(
    client: &Client,
    exported: &Exported,
    origin: &str,
    options: &CompileOptions,
) -> Result<LoadedExecutable> {
    check_exported(exported, origin)?;
    check_platform(exported, client.platform_name())?;
    compile_module(client, exported, origin, &options_of(exported, options))
}

fn compile_module(
    client: &Client,
    exported: &Exported,
    origin: &str,
    options: &CompileOptions,
) -> Result<LoadedExecutable> {
    cache::compile(client, &exported.module, ProgramFormat::Mlir, options)
        .map_err(|error| about_module(error, client.into(), origin, &exported.module))
}

/// The options with what the artifact says of them.
fn options_of(exported: &Exported, options: &CompileOptions) -> CompileOptions {
    // What was exported for one device runs on one, or on each of several.
    let partitions = if exported.device_count > 1 { exported.device_count } else { options.partitions };
    let is_free = |sharding: &Option<Sharding>| sharding.is_none() && partitions > 1;
    CompileOptions {
        partitions,
        use_shardy: options.use_shardy.or_else(|| Some(has_shardy(&exported.module))),
        free_outputs: exported.out_shardings.iter().map(is_free).collect(),
        ..options.clone()
    }
}

/// For how many devices a module in text says that it is.
fn partitions_of(code: &[u8]) -> Option<usize> {
    const SAID: &str = "mhlo.num_partitions = ";
    let text = std::str::from_utf8(code).ok()?;
    let said = &text[text.find(SAID)? + SAID.len()..];
    said[..said.find(|end: char| !end.is_ascii_digit())?].parse().ok()
}

/// Whether a module's shardings are Shardy's. Its dialects tell; the calling convention does not, since new versions of jax can
/// export GSPMD's.
fn has_shardy(module: &Bytes) -> bool {
    const DIALECT: &str = "sdy";
    match Module::read(module) {
        Ok(module) => module.has_dialect(DIALECT),
        // Text, or bytecode that is not known here: in its strings, each with its end.
        Err(_) => {
            let contains = |text: &[u8]| module.windows(text.len()).any(|window| window == text);
            contains(b"\0sdy\0") || contains(b"sdy.mesh")
        }
    }
}

/// Refuses what is known not to compile or run, with what to do instead.
fn check_exported(exported: &Exported, origin: &str) -> Result<()> {
    if !exported.ordered_effects.is_empty() {
        return Err(Error::InvalidArgument(format!(
            "{origin} has ordered side effects ({}), which are not supported; export it without them",
            exported.ordered_effects.join(", ")
        )));
    }
    Ok(())
}

/// Where the custom call is that a compiler's message names; nothing if it names none.
fn place_of_custom_call(message: &str, module: &Bytes) -> String {
    let calls = Module::read(module).map(|module| custom_calls(&module));
    let Ok(Ok(calls)) = calls else { return String::new() };
    let named = calls.into_iter().find(|call| !call.target.is_empty() && message.contains(&call.target));
    let place = named.and_then(|call| Some((call.target, call.place?)));
    place.map_or(String::new(), |(target, place)| format!("; `{target}` is called at {place}"))
}

/// Names the program, and what it needs, in the compiler's error over this module of it.
pub fn about_module(error: Error, compiler: Compiler<'_>, origin: &str, module: &Bytes) -> Error {
    let version = stablehlo_version(module);
    match error {
        Error::Pjrt { function, code, message } => {
            let (minimum, maximum) =
                (compiler.plugin.stablehlo_minimum_version(), compiler.plugin.stablehlo_version());
            let remedy = match (&version, maximum) {
                (Some(version), Some(maximum))
                    if is_within(version, minimum.as_deref(), &maximum) == Some(false) =>
                {
                    format!(
                        "; this plugin reads StableHLO {} to {maximum}: use another one, or export the function with a \
                         jax of its age",
                        minimum.as_deref().unwrap_or("(an unknown version)")
                    )
                }
                _ => String::new(),
            };
            let version = version.map_or(String::new(), |version| format!(" (StableHLO {version})"));
            let place = place_of_custom_call(&message, module);
            Error::Pjrt { function, code, message: format!("{origin}{version}: {message}{place}{remedy}") }
        }
        Error::InvalidArgument(problem) => Error::InvalidArgument(format!("{origin}: {problem}")),
        other => other,
    }
}
