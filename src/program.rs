//! Programs: StableHLO and HLO, compiled for a device and called with buffers and trees of them.

mod argument;
mod bind;
mod buckets;
mod bundle;
mod cache;
mod call;
mod compiled;
pub mod exported;
mod flatbuffer;
mod hlo;
mod outputs;
mod pad;
mod sharding;
mod signature;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

pub use argument::{Argument, ArrayArgument, Donate, LeafArgument};
pub use bind::Conversion;
pub use bundle::{BUNDLE_KEY, Bucket, Bundle};
pub use cache::{CACHE_VARIABLE, cache_dir};
pub use call::{BoundFunction, Function};
pub use exported::Exported;
pub use outputs::{OutputTransfer, Outputs};
pub use sharding::{Mesh, Sharding};
pub use signature::{ArgumentKey, ArgumentTree, Parameter, Signature};

use crate::error::{Error, Result};
use crate::format::{Checkpoint, foreign, open_blob};
use crate::pjrt::{Client, CompileOptions, LoadedExecutable, Plugin, ProgramFormat};
use buckets::Buckets;
use compiled::{Compiled, check_platform};

/// With what MLIR bytecode begins, a StableHLO portable artifact included.
const MLIR_BYTECODE_MAGIC: &[u8] = b"ML\xefR";

/// A program that can be compiled: a `jax.export` artifact, a bundle of them, StableHLO text or bytecode, or an HLO
/// proto.
#[derive(Clone, PartialEq)]
pub struct Program {
    origin: String,
    format: ProgramFormat,
    code: Bytes,
    exported: Option<Arc<Exported>>,
    bundle: Option<Arc<Bundle>>,
}

impl Program {
    /// Reads a program from a file. What it is shows in its content, not in its name.
    ///
    /// Compile only programs that you trust: a damaged HLO proto can make a plugin abort the process.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`] when it is none of the formats.
    pub fn open(path: impl AsRef<Path>) -> Result<Program> {
        let path = path.as_ref();
        // A copy, since a program is small and its file may change while it is compiled.
        let bytes = Bytes::copy_from_slice(bounded(path, open_blob(path)?.bytes())?);
        Program::parse(path.display().to_string(), bytes)
    }

    /// Takes a program that is in memory.
    ///
    /// # Errors
    /// [`Error::Malformed`] when it is none of the formats.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Program> {
        Program::parse("the program in memory".into(), bytes.into())
    }

    fn parse(origin: String, bytes: Bytes) -> Result<Program> {
        let malformed = |format: &'static str| {
            let origin = origin.clone();
            move |problem: String| Error::Malformed { origin, format, problem }
        };
        if exported::is_artifact(&bytes) {
            let exported = Exported::parse(&bytes).map_err(malformed("jax.export artifact"))?;
            let code = exported.module.clone();
            return Ok(Program {
                origin,
                format: ProgramFormat::Mlir,
                code,
                exported: Some(Arc::new(exported)),
                bundle: None,
            });
        }
        if let Some(bundle) = bundle_in(&bytes) {
            let bundle = bundle.map_err(malformed("bundle"))?;
            return Ok(Program {
                origin,
                format: ProgramFormat::Mlir,
                code: bundle.buckets[0].exported.module.clone(),
                exported: Some(bundle.signature.clone()),
                bundle: Some(Arc::new(bundle)),
            });
        }
        let (format, code) = detect(&bytes).map_err(malformed("program"))?;
        Ok(Program { origin, format, code, exported: None, bundle: None })
    }

    /// The file, or what else the program came from, for messages.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The buckets, if the program is a bundle.
    pub fn bundle(&self) -> Option<&Bundle> {
        self.bundle.as_deref()
    }

    /// The exported function, if the program is a `jax.export` artifact; of a bundle, with names for the dimensions
    /// that differ.
    pub fn exported(&self) -> Option<&Exported> {
        self.exported.as_deref()
    }

    /// The arguments and outputs as a person would write them, if the program is a `jax.export` artifact.
    pub fn signature_text(&self) -> Option<String> {
        self.exported().map(signature::text)
    }

    /// The format of [`Program::code`].
    pub fn format(&self) -> ProgramFormat {
        self.format
    }

    /// The program as a plugin takes it; the smallest bucket of a bundle.
    pub fn code(&self) -> &Bytes {
        &self.code
    }

    /// The StableHLO version that a portable artifact was written with, such as `1.9.5`.
    pub fn stablehlo_version(&self) -> Option<String> {
        stablehlo_version(&self.code)
    }

    /// Whether the program's StableHLO version is among those that the plugin reads; `None` where the program or the
    /// plugin does not say.
    pub fn is_readable_by(&self, plugin: &Plugin) -> Option<bool> {
        is_within(
            &self.stablehlo_version()?,
            plugin.stablehlo_minimum_version().as_deref(),
            &plugin.stablehlo_version()?,
        )
    }
}

/// Whether a version is between two others, both included; `None` if one of them is no version.
fn is_within(version: &str, minimum: Option<&str>, maximum: &str) -> Option<bool> {
    let parts = |text: &str| text.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u64>>>();
    let version = parts(version)?;
    let is_new_enough = minimum.map_or(Some(true), |minimum| Some(parts(minimum)? <= version))?;
    Some(is_new_enough && version <= parts(maximum)?)
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Program({}, {:?}, {} bytes)", self.origin, self.format, self.code.len())
    }
}

/// The largest file that is taken for a program, in bytes: protobuf's own limit.
const MAX_PROGRAM_BYTES: usize = 1 << 31;

/// How far into a file is looked for a mark of its format, in bytes.
const SEARCHED_BYTES: usize = 1 << 20;

fn bounded<'a>(path: &Path, bytes: &'a Bytes) -> Result<&'a Bytes> {
    if bytes.len() <= MAX_PROGRAM_BYTES {
        return Ok(bytes);
    }
    Err(Error::Malformed {
        origin: path.display().to_string(),
        format: "program",
        problem: format!("it has {} bytes, and a program has at most {MAX_PROGRAM_BYTES}", bytes.len()),
    })
}

/// The bundle that a safetensors file is; `None` for any other file.
fn bundle_in(bytes: &Bytes) -> Option<Result<Bundle, String>> {
    /// The header begins after its length.
    const HEADER_OFFSET: usize = 8;
    if bytes.get(HEADER_OFFSET) != Some(&b'{') {
        return None;
    }
    Bundle::parse(&Checkpoint::from_bytes(bytes.clone()).ok()?)
}

/// What a program's bytes are, and the part that a plugin takes; or why they are nothing that it does.
fn detect(bytes: &Bytes) -> Result<(ProgramFormat, Bytes), String> {
    if bytes.starts_with(MLIR_BYTECODE_MAGIC) {
        return Ok((ProgramFormat::Mlir, bytes.clone()));
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && !text.contains('\0')
    {
        let first = first_line(text);
        if first.starts_with("HloModule") {
            return Err("it is HLO text, which plugins do not read; convert it to an HLO proto, or export \
                        StableHLO"
                .into());
        }
        const BEGINNINGS: [&str; 4] = ["module", "func.func", "builtin.module", "\"builtin.module\""];
        // An alias of an attribute or a type: `#map = …`, `!t = …`.
        let name = first.strip_prefix(['#', '!']);
        let is_alias =
            name.is_some_and(|name| name.starts_with(char::is_alphanumeric) && name.contains(" = "));
        if is_alias || BEGINNINGS.iter().any(|beginning| first.starts_with(beginning)) {
            return Ok((ProgramFormat::Mlir, bytes.clone()));
        }
    }
    if let Some(module) = hlo::module_within(bytes) {
        return Ok((ProgramFormat::Hlo, module));
    }
    let searched = &bytes[..bytes.len().min(SEARCHED_BYTES)];
    if searched.windows(MLIR_BYTECODE_MAGIC.len()).any(|window| window == MLIR_BYTECODE_MAGIC) {
        return Err(
            "there is StableHLO in it, but it is no jax.export artifact that can be read; it is damaged"
                .into(),
        );
    }
    if bytes.get(4..9) == Some(b"\0\0\0\0{") {
        return Err("it is a safetensors file of arrays, which a program takes as an argument (--arg)".into());
    }
    Err(foreign::file(bytes)
        .unwrap_or_else(|| "it is neither StableHLO (text or bytecode) nor an HLO proto".into()))
}

/// The first line of MLIR or HLO text that is not a comment.
fn first_line(text: &str) -> &str {
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| !line.is_empty() && !line.starts_with("//")).unwrap_or_default()
}

impl Client {
    /// Compiles a program for the client's first device. Blocks while it compiles.
    ///
    /// What took long is kept on the disk, so that the next process need not compile it again: see [`cache_dir`].
    /// Of a bundle only the smallest bucket is compiled now, the others when they are needed.
    ///
    /// # Errors
    /// [`Error::Pjrt`] with the compiler's words when the program does not parse, needs a newer plugin, or
    /// calls something that the plugin does not have; [`Error::InvalidArgument`] for a function that was exported
    /// for other platforms, or with dimensions that are symbolic.
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
        let executable = match program.exported() {
            Some(exported) => compile_exported(self, exported, program.origin(), options)?,
            None => cache::compile(self, program.code(), program.format(), options)
                .map_err(|error| about_program(error, self, program.origin(), program.stablehlo_version()))?,
        };
        let compiled = Compiled::new(executable, program.exported())?;
        Function::of_one(compiled, program.exported.clone())
    }
}

/// Compiles an exported function.
fn compile_exported(
    client: &Client,
    exported: &Exported,
    origin: &str,
    options: &CompileOptions,
) -> Result<LoadedExecutable> {
    check_exported(exported, origin)?;
    check_platform(exported, client)?;
    let mut options = options.clone();
    options.partitions = exported.device_count;
    options.use_shardy = exported.calling_convention_version >= FIRST_SHARDY_CONVENTION;
    cache::compile(client, &exported.module, ProgramFormat::Mlir, &options)
        .map_err(|error| about_program(error, client, origin, stablehlo_version(&exported.module)))
}

/// The calling convention from which on shardings are Shardy's.
const FIRST_SHARDY_CONVENTION: u16 = 10;

/// Refuses what is known not to compile or run, with what to do instead.
fn check_exported(exported: &Exported, origin: &str) -> Result<()> {
    let symbolic = exported.symbolic_dimensions();
    if !symbolic.is_empty() {
        return Err(Error::InvalidArgument(format!(
            "{origin} has symbolic dimensions ({}), which plugins do not compile; export it with sizes instead: at \
             several of them, scripts/export_buckets.py makes a bundle that takes any size up to the largest",
            symbolic.join(", ")
        )));
    }
    if !exported.ordered_effects.is_empty() {
        return Err(Error::InvalidArgument(format!(
            "{origin} has ordered side effects ({}), which are not supported; export it without them",
            exported.ordered_effects.join(", ")
        )));
    }
    Ok(())
}

/// Names the program, and what it needs, in the compiler's error.
fn about_program(error: Error, client: &Client, origin: &str, version: Option<String>) -> Error {
    match error {
        Error::Pjrt { function, code, message } => {
            let (minimum, maximum) =
                (client.plugin().stablehlo_minimum_version(), client.plugin().stablehlo_version());
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
            Error::Pjrt { function, code, message: format!("{origin}{version}: {message}{remedy}") }
        }
        Error::InvalidArgument(problem) => Error::InvalidArgument(format!("{origin}: {problem}")),
        other => other,
    }
}

/// The StableHLO version in the producer of a portable artifact.
fn stablehlo_version(code: &[u8]) -> Option<String> {
    /// MLIR bytecode: magic, format version (a varint of one byte), then the producer, ending in 0.
    const PRODUCER_OFFSET: usize = MLIR_BYTECODE_MAGIC.len() + 1;
    if !code.starts_with(MLIR_BYTECODE_MAGIC) {
        return None;
    }
    let producer = code.get(PRODUCER_OFFSET..)?.split(|&byte| byte == 0).next()?;
    std::str::from_utf8(producer).ok()?.strip_prefix("StableHLO_v").map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_apart_by_content() {
        let text = Program::from_bytes(&b"// a comment\nmodule @jit_f {\n}\n"[..]).unwrap();
        assert_eq!(text.format(), ProgramFormat::Mlir);
        assert_eq!(text.stablehlo_version(), None);
        let artifact = Program::from_bytes(&b"ML\xefR\x0dStableHLO_v1.9.5\0rest"[..]).unwrap();
        assert_eq!(artifact.format(), ProgramFormat::Mlir);
        assert_eq!(artifact.stablehlo_version().as_deref(), Some("1.9.5"));
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert_eq!(is_within("1.9.5", Some("0.9.0"), "1.14.0"), Some(true));
        assert_eq!(is_within("1.14.1", Some("0.9.0"), "1.14.0"), Some(false));
        assert_eq!(is_within("0.8.9", Some("0.9.0"), "1.14.0"), Some(false));
        assert_eq!(is_within("1.14.0", None, "1.14.0"), Some(true));
        assert_eq!(is_within("nightly", None, "1.14.0"), None);
    }

    #[test]
    fn what_is_no_program_is_refused_with_a_reason() {
        let refused = |bytes: &'static [u8]| Program::from_bytes(bytes).unwrap_err().to_string();
        assert!(refused(b"").contains("neither StableHLO"));
        assert!(refused(b"HloModule jit_f\n").contains("HLO text"));
        assert!(refused(b"\x10\0\0\0 something ML\xefR").contains("it is damaged"));
        assert!(refused(&[0xff; 100]).contains("neither"));
    }
}
