//! A program as a file or memory holds it: which of the formats it is, shown by its content, and what it says of itself.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::bundle::Bundle;
use super::executable_file::ExecutableFile;
use super::exported::{self, Exported};
use super::version::{MLIR_BYTECODE_MAGIC, is_within, stablehlo_version};
use super::{hlo, signature};
use crate::error::{Error, Result};
use crate::format::{Checkpoint, foreign, open_blob};
use crate::pjrt::{Plugin, ProgramFormat};

/// A program that can be compiled: a `jax.export` artifact, a bundle of them, StableHLO text or bytecode, or an HLO
/// proto.
#[derive(Clone, PartialEq)]
pub struct Program {
    origin: String,
    format: ProgramFormat,
    code: Bytes,
    pub(super) exported: Option<Arc<Exported>>,
    pub(super) bundle: Option<Arc<Bundle>>,
    /// What it was read from; `None` for a program that was made of another.
    source: Option<Bytes>,
    /// The dimension variables of the program that it was refined of, with their sizes.
    pub(super) sizes: Vec<(String, usize)>,
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
        if path.is_dir() {
            return Err(Error::Malformed {
                origin: path.display().to_string(),
                format: "program",
                problem: "it is a directory".into(),
            });
        }
        let blob = open_blob(path)?;
        if blob.size() > MAX_PROGRAM_BYTES {
            return Err(Error::Malformed {
                origin: blob.origin().to_owned(),
                format: "program",
                problem: format!(
                    "it has {} bytes, and a program has at most {MAX_PROGRAM_BYTES}",
                    blob.size()
                ),
            });
        }
        Program::parse(blob.origin().to_owned(), blob.read(0..blob.size())?)
    }

    /// Takes a program that is in memory.
    ///
    /// # Errors
    /// [`Error::Malformed`] when it is none of the formats.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Program> {
        Program::parse("the program in memory".into(), bytes.into())
    }

    /// A program of this exported function, which was refined for these sizes if there are any.
    pub(super) fn of_exported(origin: String, exported: Exported, sizes: &[(&str, usize)]) -> Program {
        let code = exported.module.clone();
        Program {
            origin,
            format: ProgramFormat::Mlir,
            code,
            exported: Some(Arc::new(exported)),
            bundle: None,
            source: None,
            sizes: sizes.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect(),
        }
    }

    /// The same program without the check that it was exported for the platform that it is compiled for. What JAX lowers
    /// otherwise for that platform, it does not have.
    pub fn for_any_platform(&self) -> Program {
        let mut program = self.clone();
        if let Some(exported) = &mut program.exported {
            Arc::make_mut(exported).disabled_checks.push(Exported::PLATFORM_CHECK.to_owned());
        }
        program
    }

    pub(super) fn parse(origin: String, bytes: Bytes) -> Result<Program> {
        let malformed = |format: &'static str| {
            let origin = origin.clone();
            move |problem: String| Error::Malformed { origin, format, problem }
        };
        if exported::is_artifact(&bytes) {
            let exported = Exported::parse(&bytes).map_err(malformed("jax.export artifact"))?;
            let program = Program::of_exported(origin, exported, &[]);
            return Ok(Program { source: Some(bytes), ..program });
        }
        let safetensors = safetensors_in(&bytes);
        if let Some(file) = safetensors.clone().filter(ExecutableFile::is_in) {
            return ExecutableFile::of(file)?.program()?.ok_or_else(|| {
                Error::InvalidArgument(format!(
                    "{origin} has executables, and the program that they were compiled of is not in it; \
                     Client::load_executable, or `safejax run --trust-executable`, runs what is"
                ))
            });
        }
        if let Some(bundle) = safetensors.as_ref().and_then(Bundle::parse) {
            let bundle = bundle.map_err(malformed("bundle"))?;
            return Ok(Program {
                origin,
                format: ProgramFormat::Mlir,
                code: bundle.buckets[0].exported.module.clone(),
                exported: Some(bundle.signature.clone()),
                bundle: Some(Arc::new(bundle)),
                source: Some(bytes),
                sizes: Vec::new(),
            });
        }
        let (format, code) = detect(&bytes).map_err(malformed("program"))?;
        let source = Some(bytes);
        Ok(Program { origin, format, code, exported: None, bundle: None, source, sizes: Vec::new() })
    }

    /// The bytes that the program was read from; `None` for one that was made of another.
    pub(super) fn source(&self) -> Option<&Bytes> {
        self.source.as_ref()
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

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Program({}, {:?}, {} bytes)", self.origin, self.format, self.code.len())
    }
}

/// The largest file that is taken for a program, in bytes: protobuf's own limit.
const MAX_PROGRAM_BYTES: usize = 1 << 31;

/// How far into a file is looked for a mark of its format, in bytes.
const SEARCHED_BYTES: usize = 1 << 20;

/// The safetensors file that bytes are.
fn safetensors_in(bytes: &Bytes) -> Option<Checkpoint> {
    /// The header begins after its length.
    const HEADER_OFFSET: usize = 8;
    if bytes.get(HEADER_OFFSET) != Some(&b'{') {
        return None;
    }
    Checkpoint::from_bytes(bytes.clone()).ok()
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
    fn what_is_no_program_is_refused_with_a_reason() {
        let refused = |bytes: &'static [u8]| Program::from_bytes(bytes).unwrap_err().to_string();
        assert!(refused(b"").contains("neither StableHLO"));
        assert!(refused(b"HloModule jit_f\n").contains("HLO text"));
        assert!(refused(b"\x10\0\0\0 something ML\xefR").contains("it is damaged"));
        assert!(refused(&[0xff; 100]).contains("neither"));
    }
}
