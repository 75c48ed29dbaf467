//! Files of executables: a program compiled for several targets, and the program itself.
//!
//! Such a file is a safetensors file. Its tensors are bytes: `0`, `1`, … are executables as their plugins wrote them, and
//! `program` is the program as it was read. Its metadata has under `safejax.executables` a JSON object: `version` (1), and
//! `entries`, which say of each executable what it is for, what it takes and returns, and its sha256.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::artifact::Program;
use super::call::Function;
use super::compilation::{Compilation, Identity};
use super::compiled::Compiled;
use super::exported::{Aval, Dim, Exported};
use super::signature::Interface;
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::Checkpoint;
use crate::format::{CheckpointWriter, DEFAULT_ALIGNMENT, DIGEST_KEY, Layout};
use crate::pjrt::{Client, CompiledMemoryStats, LoadedExecutable};
use crate::store::{Digest, WriteOptions, sha256};
use crate::tree::TreeDef;

/// The key of the description in the metadata of the file.
pub const EXECUTABLES_KEY: &str = "safejax.executables";

/// The tensor that holds the program.
const PROGRAM: &str = "program";

/// The version of the description that is written and read here.
const VERSION: u32 = 1;

/// A file of executables, opened: what is in it was read, and none of it was loaded.
#[derive(Clone)]
pub struct ExecutableFile {
    file: Checkpoint,
    entries: Vec<Entry>,
}

/// An executable in a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Entry {
    /// What it was asked to be compiled for, such as `v5e:2x2`.
    pub target: String,
    /// The dimension variables of the program, and the sizes that it was compiled for.
    #[serde(default)]
    pub sizes: Vec<(String, usize)>,
    /// What it depends on.
    pub identity: Identity,
    /// What it takes of a device's memory, if the compiler says it.
    pub memory: Option<CompiledMemoryStats>,
    /// The executable's sha256.
    pub sha256: String,
    /// What it takes and returns, of a `jax.export` artifact.
    signature: Option<SignatureRecord>,
    /// The name of the tensor with its bytes.
    tensor: String,
}

#[derive(Serialize, Deserialize)]
struct Description {
    version: u32,
    entries: Vec<Entry>,
}

/// An exported function without its module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct SignatureRecord {
    function_name: String,
    in_tree: TreeDef,
    out_tree: TreeDef,
    in_avals: Vec<AvalRecord>,
    out_avals: Vec<AvalRecord>,
    kept: Vec<usize>,
    platforms: Vec<String>,
    device_count: usize,
    calling_convention_version: u16,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct AvalRecord {
    dtype: String,
    shape: Vec<Dim>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory: Option<String>,
}

impl ExecutableFile {
    /// Reads what is in a file. Loads nothing of it.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`] when it is no file of executables, or a damaged one.
    pub fn open(path: impl AsRef<Path>) -> Result<ExecutableFile> {
        ExecutableFile::of(Checkpoint::open(path)?)
    }

    /// Whether a checkpoint is a file of executables.
    pub fn is_in(file: &Checkpoint) -> bool {
        file.metadata().contains_key(EXECUTABLES_KEY)
    }

    /// Reads what is in a checkpoint that is a file of executables. As [`ExecutableFile::open`].
    ///
    /// # Errors
    /// As for [`ExecutableFile::open`].
    pub fn of(file: Checkpoint) -> Result<ExecutableFile> {
        let malformed = |problem: String| Error::Malformed {
            origin: file.origin().to_owned(),
            format: "file of executables",
            problem,
        };
        let Some(description) = file.metadata().get(EXECUTABLES_KEY) else {
            return Err(malformed(format!(
                "it has no `{EXECUTABLES_KEY}` in its metadata; `safejax compile --out` writes such files"
            )));
        };
        let unreadable =
            |error: serde_json::Error| malformed(format!("its description cannot be read: {error}"));
        let version: VersionOnly = serde_json::from_str(description).map_err(unreadable)?;
        if version.version != VERSION {
            return Err(malformed(format!(
                "it is of version {}, and version {VERSION} is read here; compile it again, or use a newer safejax",
                version.version
            )));
        }
        let description: Description = serde_json::from_str(description).map_err(unreadable)?;
        for (index, entry) in description.entries.iter().enumerate() {
            let check = || {
                file.tensor(&entry.tensor).map_err(|error| error.to_string())?;
                entry.signature.as_ref().map_or(Ok(()), |signature| signature.to_exported().map(drop))
            };
            check().map_err(|problem| malformed(format!("its executable {index}: {problem}")))?;
        }
        Ok(ExecutableFile { entries: description.entries, file })
    }

    /// Writes executables, each with the name of its target, and the program that they were compiled of, so that it can be
    /// compiled where none of them fits. Atomically: the name stands for the old file or the new.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Pjrt`] when a plugin cannot serialise an executable; [`Error::InvalidArgument`] for a program
    /// that was not read from bytes, such as a refined one: pass what it was refined of.
    pub fn write(
        path: impl AsRef<Path>,
        executables: &[(String, Compilation)],
        program: Option<&Program>,
        options: WriteOptions,
    ) -> Result<()> {
        let mut contents: Vec<(String, Vec<u8>)> = Vec::new();
        let mut entries = Vec::new();
        for (index, (target, compilation)) in executables.iter().enumerate() {
            let bytes = compilation.executable().serialize()?;
            entries.push(Entry::of(target, compilation, index.to_string(), &bytes)?);
            contents.push((index.to_string(), bytes));
        }
        ExecutableFile::write_entries(path.as_ref(), entries, contents, program, options)
    }

    /// Writes the executables of several files into one, with the program. As [`ExecutableFile::write`].
    ///
    /// # Errors
    /// As for [`ExecutableFile::write`]; [`Error::Malformed`] for an executable that is damaged.
    pub fn merge(
        path: impl AsRef<Path>,
        files: &[ExecutableFile],
        program: Option<&Program>,
        options: WriteOptions,
    ) -> Result<()> {
        let mut contents: Vec<(String, Vec<u8>)> = Vec::new();
        let mut entries = Vec::new();
        for (file, entry) in files.iter().flat_map(|file| file.entries.iter().map(move |entry| (file, entry)))
        {
            let tensor = entries.len().to_string();
            contents.push((tensor.clone(), file.executable(entry)?.to_vec()));
            entries.push(Entry { tensor, ..entry.clone() });
        }
        ExecutableFile::write_entries(path.as_ref(), entries, contents, program, options)
    }

    fn write_entries(
        path: &Path,
        entries: Vec<Entry>,
        mut contents: Vec<(String, Vec<u8>)>,
        program: Option<&Program>,
        options: WriteOptions,
    ) -> Result<()> {
        if let Some(program) = program {
            let source = program.source().ok_or_else(|| {
                Error::InvalidArgument(format!(
                    "{} was made from another program; the file takes that one",
                    program.origin()
                ))
            })?;
            contents.push((PROGRAM.to_owned(), source.to_vec()));
        }
        let spec =
            |(name, bytes): &(String, Vec<u8>)| (name.clone(), ArraySpec::new(DType::U8, [bytes.len()]));
        let specs: Vec<(String, ArraySpec)> = contents.iter().map(spec).collect();
        let digests: serde_json::Map<String, serde_json::Value> =
            contents.iter().map(|(name, bytes)| (name.clone(), sha256(bytes).into())).collect();
        let text = |value: serde_json::Result<String>| {
            value.map_err(|error| {
                Error::InvalidArgument(format!("the description cannot be written: {error}"))
            })
        };
        let metadata = [
            (
                EXECUTABLES_KEY.to_owned(),
                text(serde_json::to_string(&Description { version: VERSION, entries }))?,
            ),
            (DIGEST_KEY.to_owned(), text(serde_json::to_string(&digests))?),
        ];
        let layout = Layout::new(&specs, &metadata.into(), DEFAULT_ALIGNMENT)?;
        let mut writer = CheckpointWriter::create(path, layout, options)?;
        while let Some(index) = writer.next_index() {
            writer.write_next(&contents[index].1)?;
        }
        writer.finish()
    }

    /// The file, for messages.
    pub fn origin(&self) -> &str {
        self.file.origin()
    }

    /// The executables.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The same file with the executables for these sizes alone.
    pub fn at_sizes(&self, sizes: &[(&str, usize)]) -> ExecutableFile {
        let has = |entry: &&Entry| {
            entry.sizes.len() == sizes.len()
                && sizes.iter().all(|(name, size)| {
                    entry.sizes.iter().any(|(known, known_size)| known == name && known_size == size)
                })
        };
        let entries = self.entries.iter().filter(has).cloned().collect();
        ExecutableFile { file: self.file.clone(), entries }
    }

    /// The program that the executables were compiled of, if the file has it.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`] when it is damaged.
    pub fn program(&self) -> Result<Option<Program>> {
        if self.file.tensor(PROGRAM).is_err() {
            return Ok(None);
        }
        let bytes = self.file.read(PROGRAM)?;
        let recorded = self.file.digests()?.remove(PROGRAM);
        if !recorded.is_some_and(|digest| digest == Digest::Sha256(sha256(&bytes))) {
            return Err(self.damaged("the program that is in it"));
        }
        Program::parse(format!("the program in {}", self.origin()), bytes).map(Some)
    }

    fn damaged(&self, what: &str) -> Error {
        Error::Malformed {
            origin: self.origin().to_owned(),
            format: "file of executables",
            problem: format!("{what} is damaged: its sha256 is another"),
        }
    }

    /// The executables that a client can load, by their positions; or why it can load none, one sentence each.
    ///
    /// # Errors
    /// [`Error::Io`] when the plugin's library cannot be read.
    pub fn fitting(&self, client: &Client) -> Result<Result<Vec<usize>, Vec<String>>> {
        let (mut fitting, mut reasons) = (Vec::new(), Vec::new());
        for (index, entry) in self.entries.iter().enumerate() {
            let differences = entry.identity.differences(client)?;
            match &differences[..] {
                [] => fitting.push(index),
                differences => {
                    reasons.push(format!("the one for {}: {}", entry.target, differences.join("; ")))
                }
            }
        }
        Ok(if fitting.is_empty() { Err(reasons) } else { Ok(fitting) })
    }

    /// The bytes of an executable, whole.
    fn executable(&self, entry: &Entry) -> Result<bytes::Bytes> {
        let bytes = self.file.read(&entry.tensor)?;
        if sha256(&bytes) != entry.sha256 {
            return Err(self.damaged(&format!("the executable for {}", entry.target)));
        }
        Ok(bytes)
    }
}

impl Client {
    /// Loads the executable of a file that was made for this client's devices by this build of its plugin. Where there is
    /// none, and the file has the program, that is compiled; why is said in a `tracing` event. Blocks.
    ///
    /// **An executable is code, and runs with the rights of this process.** Load only files that you, or somebody whom you
    /// trust, made. To compile the program in a file, and load nothing, use [`ExecutableFile::program`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when no executable fits, with what differs, and there is no program, or when several fit
    /// ([`ExecutableFile::at_sizes`] chooses); [`Error::Malformed`] for a damaged file; as for [`Client::compile`].
    pub fn load_executable(&self, file: &ExecutableFile) -> Result<Function> {
        if file.entries.is_empty() {
            return Err(Error::InvalidArgument(format!(
                "{} has no executable for these sizes",
                file.origin()
            )));
        }
        let reasons = match file.fitting(self)? {
            Ok(fitting) => match self.load_entry(file, &fitting) {
                Err(error @ Error::Pjrt { .. }) => vec![error.to_string()],
                loaded => return loaded,
            },
            Err(reasons) => reasons,
        };
        match file.program()? {
            Some(program) => {
                tracing::warn!(
                    file = file.origin(),
                    ?reasons,
                    "the program is compiled, since no executable fits"
                );
                self.compile(&program)
            }
            None => Err(Error::InvalidArgument(format!(
                "{} has no executable for this client, nor the program to compile: {}",
                file.origin(),
                reasons.join("; ")
            ))),
        }
    }

    fn load_entry(&self, file: &ExecutableFile, fitting: &[usize]) -> Result<Function> {
        let entries: Vec<&Entry> = fitting.iter().map(|&index| &file.entries[index]).collect();
        // Of several that would run, the one that was made for this kind of device.
        let kinds: Vec<String> =
            self.addressable_devices().iter().map(|device| device.kind().to_owned()).collect();
        let is_own = |entry: &&&Entry| kinds.contains(&entry.identity.devices.kind);
        let first = entries.iter().find(is_own).unwrap_or(&entries[0]);
        if entries.iter().any(|entry| entry.sizes != first.sizes) {
            let sizes: Vec<String> = entries.iter().map(|entry| entry.sizes_text()).collect();
            return Err(Error::InvalidArgument(format!(
                "{} has executables for several sizes; choose one of {} (ExecutableFile::at_sizes, or --sizes)",
                file.origin(),
                sizes.join("; ")
            )));
        }
        let executable = self.load_serialized(&file.executable(first)?)?;
        let exported = first.exported();
        first.check(&executable).map_err(|problem| Error::Malformed {
            origin: file.origin().to_owned(),
            format: "file of executables",
            problem: format!(
                "the executable for {} is not what its description says: {problem}",
                first.target
            ),
        })?;
        tracing::info!(file = file.origin(), target = first.target, "loaded an executable");
        let compiled = Compiled::new(executable, exported.as_ref())?;
        Function::of_one(compiled, exported.map(Arc::new))
    }
}

impl Entry {
    fn of(target: &str, compilation: &Compilation, tensor: String, bytes: &[u8]) -> Result<Entry> {
        Ok(Entry {
            target: target.to_owned(),
            sizes: compilation.sizes().to_vec(),
            identity: compilation.identity()?,
            memory: compilation.executable().memory_stats().ok(),
            sha256: sha256(bytes),
            signature: compilation.exported().map(SignatureRecord::from),
            tensor,
        })
    }

    /// Holds the description against what the executable says of itself.
    fn check(&self, executable: &LoadedExecutable) -> Result<(), String> {
        let (described, found) = (self.identity.devices.count, executable.devices().len());
        if described != found {
            return Err(format!("it runs on {found} devices, not {described}"));
        }
        // Of several devices, each says its part of every array.
        let Some(exported) = self.exported().filter(|_| found == 1) else { return Ok(()) };
        let list = |specs: &[Option<ArraySpec>]| {
            let texts = specs.iter().map(|spec| spec.as_ref().map_or("?".to_owned(), ToString::to_string));
            texts.collect::<Vec<_>>().join(", ")
        };
        let compare = |what: &str, described: Vec<Option<ArraySpec>>, found: Vec<Option<ArraySpec>>| {
            if described == found {
                return Ok(());
            }
            Err(format!("it {what} {}, not {}", list(&found), list(&described)))
        };
        let outputs = executable.outputs().iter().map(|spec| Some((**spec).clone())).collect();
        compare("returns", exported.out_avals.iter().map(Aval::to_spec).collect(), outputs)?;
        let Some(interface) = Interface::of(executable.compiled()) else { return Ok(()) };
        let described = exported.kept.iter().map(|&leaf| exported.in_avals[leaf].to_spec()).collect();
        compare("takes", described, interface.parameters.iter().map(Aval::to_spec).collect())
    }

    /// The sizes as they are given on the command line: `b=8,t=64`.
    pub fn sizes_text(&self) -> String {
        self.sizes.iter().map(|(name, size)| format!("{name}={size}")).collect::<Vec<_>>().join(",")
    }

    /// What it takes and returns as a person would write it, of a `jax.export` artifact.
    pub fn signature_text(&self) -> Option<String> {
        self.exported().as_ref().map(super::signature::text)
    }

    /// The exported function that it was compiled of, without its module.
    pub fn exported(&self) -> Option<Exported> {
        // What does not fit together was refused when the file was opened.
        self.signature.as_ref()?.to_exported().ok()
    }
}

impl From<&Exported> for SignatureRecord {
    fn from(exported: &Exported) -> SignatureRecord {
        SignatureRecord {
            function_name: exported.function_name.clone(),
            in_tree: exported.in_tree.clone(),
            out_tree: exported.out_tree.clone(),
            in_avals: exported.in_avals.iter().map(AvalRecord::from).collect(),
            out_avals: exported.out_avals.iter().map(AvalRecord::from).collect(),
            kept: exported.kept.clone(),
            platforms: exported.platforms.clone(),
            device_count: exported.device_count,
            calling_convention_version: exported.calling_convention_version,
        }
    }
}

impl SignatureRecord {
    /// The function, or what does not fit together.
    fn to_exported(&self) -> Result<Exported, String> {
        let avals = |records: &[AvalRecord], def: &TreeDef, what: &str| {
            let leaves = def.leaf_count();
            if records.len() != leaves {
                return Err(format!("it has {} types for {leaves} {what}", records.len()));
            }
            records.iter().map(AvalRecord::to_aval).collect::<Result<Vec<_>, String>>()
        };
        let in_avals = avals(&self.in_avals, &self.in_tree, "arguments")?;
        let out_avals = avals(&self.out_avals, &self.out_tree, "outputs")?;
        let is_ascending = self.kept.windows(2).all(|pair| pair[0] < pair[1]);
        if !is_ascending || self.kept.last().is_some_and(|&last| last >= in_avals.len()) {
            return Err(format!("it takes the arguments {:?} of {}", self.kept, in_avals.len()));
        }
        let (arguments, outputs) = (in_avals.len(), out_avals.len());
        Ok(Exported {
            function_name: self.function_name.clone(),
            in_tree: self.in_tree.clone(),
            out_tree: self.out_tree.clone(),
            in_avals,
            out_avals,
            kept: self.kept.clone(),
            platforms: self.platforms.clone(),
            device_count: self.device_count,
            in_shardings: vec![None; arguments],
            out_shardings: vec![None; outputs],
            disabled_checks: Vec::new(),
            ordered_effects: Vec::new(),
            unordered_effects: Vec::new(),
            calling_convention_version: self.calling_convention_version,
            serialization_version: 0,
            jax_version: None,
            module: bytes::Bytes::new(),
            vjp: None,
        })
    }
}

impl From<&Aval> for AvalRecord {
    fn from(aval: &Aval) -> AvalRecord {
        AvalRecord {
            dtype: aval.dtype.name().to_owned(),
            shape: aval.shape.clone(),
            key: aval.key.map(str::to_owned),
            memory: aval.memory.map(str::to_owned),
        }
    }
}

impl AvalRecord {
    fn to_aval(&self) -> Result<Aval, String> {
        let dtype =
            DType::from_name(&self.dtype).ok_or_else(|| format!("there is no type `{}`", self.dtype))?;
        Aval::described(dtype, self.shape.clone(), self.key.as_deref(), self.memory.as_deref())
    }
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

impl fmt::Debug for ExecutableFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExecutableFile({}, {} executables)", self.origin(), self.entries.len())
    }
}
