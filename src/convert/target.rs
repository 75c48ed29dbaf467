//! Writing a source in another format.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use super::source::{LeafBytes, Source};
use crate::array::ArraySpec;
use crate::cast::Cast;
use crate::dtype::DType;
use crate::error::{Context, Error, Result};
use crate::format::{
    DEFAULT_ALIGNMENT, Leaves, OrbaxOptions, check_whole, json, msgpack, npy, npz, write_orbax,
};
use crate::monitor::{Monitor, Tracker};
use crate::plan::{check_casts, loaded_dtype};
use crate::store::{Digest, WriteOptions};
use crate::sub_byte;
use crate::transfer::{
    ByteSource, CheckpointPlan, Digests, FileChange, FileOptions, ReadPart, Supply, TensorBytes,
};
use crate::tree::{KeyMap, record};

/// How a file is converted.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConvertOptions {
    /// The format that is written; that of the target's name if `None`.
    pub format: Option<TargetFormat>,
    /// What floating point tensors are cast to, by pattern over names in the file that is read; the first that matches
    /// counts.
    pub dtypes: Vec<(String, DType)>,
    /// What tensors are aligned to where they can be, in bytes: a power of two, 8 to 4096. Safetensors only.
    pub alignment: usize,
    /// Whether digests are recorded. Safetensors only.
    pub digests: Digests,
    /// The most bytes of tensors in a file, as [`crate::SaveOptions::max_shard_bytes`]. Safetensors only.
    pub max_shard_bytes: Option<u64>,
    /// The level at which Zstandard compresses, 1 to 22; `None` for not at all. Orbax only.
    pub zstd_level: Option<i32>,
    /// How the file is written.
    pub write: WriteOptions,
    /// Who watches the conversion, and who may stop it.
    pub monitor: Monitor,
}

impl Default for ConvertOptions {
    fn default() -> ConvertOptions {
        ConvertOptions {
            format: None,
            dtypes: Vec::new(),
            alignment: DEFAULT_ALIGNMENT,
            digests: Digests::None,
            max_shard_bytes: None,
            zstd_level: None,
            write: WriteOptions::default(),
            monitor: Monitor::default(),
        }
    }
}

/// The formats that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum TargetFormat {
    /// A safetensors file, with the tree recorded.
    Safetensors,
    /// What `flax.serialization.from_bytes` reads.
    Msgpack,
    /// NumPy's zip of arrays, by name.
    Npz,
    /// One NumPy array; for a tree of one leaf.
    Npy,
    /// A directory that Orbax restores.
    Orbax,
    /// The tree alone, without the arrays' elements.
    Json,
}

impl TargetFormat {
    /// The format that a file's name asks for, by its ending.
    pub fn of_name(path: &Path) -> Option<TargetFormat> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        Some(match extension.as_str() {
            "safetensors" => TargetFormat::Safetensors,
            "msgpack" => TargetFormat::Msgpack,
            "npz" => TargetFormat::Npz,
            "npy" => TargetFormat::Npy,
            "orbax" => TargetFormat::Orbax,
            "json" => TargetFormat::Json,
            _ => return None,
        })
    }
}

impl std::str::FromStr for TargetFormat {
    type Err = String;
    fn from_str(name: &str) -> std::result::Result<TargetFormat, String> {
        TargetFormat::of_name(Path::new(&format!("x.{name}"))).ok_or_else(|| {
            "there is no such format; there are safetensors, msgpack, npz, npy, orbax and json".to_owned()
        })
    }
}

impl fmt::Display for TargetFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            TargetFormat::Safetensors => "safetensors",
            TargetFormat::Msgpack => "Flax msgpack",
            TargetFormat::Npz => "npz",
            TargetFormat::Npy => "npy",
            TargetFormat::Orbax => "Orbax",
            TargetFormat::Json => "JSON",
        })
    }
}

/// What a conversion did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct ConvertReport {
    /// Tensors in the file.
    pub tensors: usize,
    /// The files that were written, without an index: more than one makes it.
    pub files: usize,
    /// Tensors that were cast.
    pub cast_tensors: usize,
    /// Finite elements that became infinite, by tensor.
    pub overflows: BTreeMap<String, usize>,
    /// Tensors that could not be aligned, in a safetensors file.
    pub unaligned_tensors: usize,
    /// What the format that was written cannot hold, and how it is held instead.
    pub notes: Vec<String>,
}

/// Writes a source to a new file, atomically.
///
/// # Errors
/// [`Error::InvalidArgument`] for a cast that is not supported, or a name that asks for no format that is
/// written; an error naming the leaf that the format cannot hold; [`Error::Io`].
pub fn convert(source: &Source, target: &Path, options: &ConvertOptions) -> Result<ConvertReport> {
    let format = options.format.or_else(|| TargetFormat::of_name(target)).ok_or_else(|| {
        Error::InvalidArgument(format!(
            "{} does not end in .safetensors, .msgpack, .npz, .npy, .orbax or .json; say which format it is to have (`--to`)",
            target.display()
        ))
    })?;
    check_whole(target)?;
    let mut conversion = TypedSource::new(source, options)?;
    match format {
        TargetFormat::Safetensors => conversion.write_safetensors(target, options)?,
        TargetFormat::Msgpack => msgpack::write(&mut conversion, target, options.write)?,
        TargetFormat::Npz => npz::write(&mut conversion, target, options.write)?,
        TargetFormat::Npy => conversion.write_npy(target, options.write)?,
        TargetFormat::Orbax => {
            let (framework, metadata) = (source.framework(), source.metadata());
            let options = OrbaxOptions { zstd_level: options.zstd_level, write: options.write };
            write_orbax(&mut conversion, (framework, &metadata), target, &options)?;
        }
        TargetFormat::Json => {
            let (framework, metadata) = (source.framework(), source.metadata());
            json::write(&conversion, (framework, &metadata), target, options.write)?;
        }
    }
    source.warn_if_changed();
    let strings = source.metadata();
    if !strings.is_empty() && matches!(format, TargetFormat::Msgpack | TargetFormat::Npz | TargetFormat::Npy)
    {
        let keys: Vec<&str> = strings.keys().map(String::as_str).collect();
        conversion.report.notes.push(format!("{format} has no place for the metadata ({})", keys.join(", ")));
    }
    Ok(conversion.report)
}

/// The tensors of a source, to be written in these types.
struct SourceSupply<'a> {
    source: &'a Source,
    specs: &'a [ArraySpec],
}

impl Supply for SourceSupply<'_> {
    fn supply(&self, index: usize) -> Result<TensorBytes<'_>> {
        let change = FileChange::between(self.source.specs()[index].dtype, self.specs[index].dtype);
        let content = match self.source.recorded_digest(index) {
            _ if !self.source.has_parts(index) => ByteSource::Host(self.source.read_checked(index)?),
            None => ByteSource::File(Box::new(move |start, bytes| {
                self.source.read_part(index, start, bytes, None)
            })),
            Some(digest) => ByteSource::File(self.checked_parts(index, digest)),
        };
        Ok(TensorBytes { content, change })
    }

    fn is_divisible(&self, index: usize) -> bool {
        // A digest is that of the whole.
        self.source.has_parts(index) && self.source.recorded_digest(index).is_none()
    }
}

impl<'a> SourceSupply<'a> {
    /// Reads the parts of a tensor, and holds them against a digest once the last one is read. They must be asked for in
    /// order, as those of a tensor that is not divisible are.
    fn checked_parts(&self, index: usize, digest: &'a Digest) -> Box<ReadPart<'a>> {
        let source = self.source;
        let size = source.tensors()[index].bytes();
        let check = RefCell::new(Some(digest.begin()));
        Box::new(move |start, bytes| {
            let mut check = check.borrow_mut();
            source.read_part(index, start, bytes, check.as_mut())?;
            let is_last = start + bytes.len() == size;
            check.take_if(|_| is_last).map_or(Ok(()), |check| check.finish())
        })
    }
}

/// A source with the types that its tensors get.
struct TypedSource<'a> {
    source: &'a Source,
    /// The types and shapes that are written, in JAX's order.
    specs: Vec<ArraySpec>,
    report: ConvertReport,
    /// What leaves are read into.
    memory: Vec<u8>,
    /// Counts what is read, of formats that are not written by a plan, which has its own.
    tracker: Tracker<'a>,
}

impl<'a> TypedSource<'a> {
    fn new(source: &'a Source, options: &'a ConvertOptions) -> Result<TypedSource<'a>> {
        let names: Vec<&str> = source.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
        check_casts(&options.dtypes, &names)?;
        let specs = source.tensors().iter().map(|tensor| {
            let dtype = loaded_dtype(&tensor.name, tensor.spec.dtype, &options.dtypes);
            Ok(ArraySpec::new(dtype.for_tensor(&tensor.name)?, tensor.spec.shape.clone()))
        });
        let specs = specs.collect::<Result<Vec<_>>>()?;
        let report = ConvertReport { tensors: specs.len(), files: 1, ..ConvertReport::default() };
        let total = source.specs().iter().map(|spec| spec.packed_bytes().unwrap_or(0) as u64).sum();
        let tracker = Tracker::new(&options.monitor, total);
        Ok(TypedSource { source, specs, report, memory: Vec::new(), tracker })
    }

    /// The bytes of a leaf, held against its recorded digest, as they are written; and the finite elements that became
    /// infinite.
    fn read<'m>(&self, index: usize, memory: &'m mut Vec<u8>) -> Result<(LeafBytes<'m>, usize)> {
        let name = &self.source.keys().leaves()[index].name;
        let mut progress = |bytes: u64| {
            self.tracker.check()?;
            self.tracker.progressed(name, bytes);
            Ok(())
        };
        let bytes = self.source.read_lent_checked(index, memory, &mut progress)?;
        let (from, to) = (self.source.specs()[index].dtype, self.specs[index].dtype);
        if from != to {
            let cast = Cast::new(&bytes, from, to)?;
            return Ok((LeafBytes::Owned(cast.bytes.into()), cast.overflows));
        }
        Ok(if to.is_sub_byte() {
            (LeafBytes::Owned(sub_byte::unpack(&bytes, to, self.specs[index].host_bytes()?).into()), 0)
        } else {
            (bytes, 0)
        })
    }

    fn write_safetensors(&mut self, target: &Path, options: &ConvertOptions) -> Result<()> {
        let mut metadata = self.source.metadata();
        metadata.extend(record::write(self.source.keys().def(), self.source.framework())?);
        let names = self.source.keys().leaves().iter().map(|leaf| leaf.name.clone());
        let specs = names.zip(self.specs.iter().cloned()).collect();
        let files = FileOptions {
            alignment: options.alignment,
            digests: options.digests,
            max_shard_bytes: options.max_shard_bytes,
            write: options.write,
        };
        let plan = CheckpointPlan::new(specs, metadata, files)?;
        self.report.unaligned_tensors = plan.unaligned();
        let supply = SourceSupply { source: self.source, specs: &self.specs };
        let written = plan.write(target, &supply, &options.monitor)?;
        let specs = self.source.specs().iter().zip(&self.specs);
        self.report.cast_tensors = specs.filter(|(from, to)| from.dtype != to.dtype).count();
        self.report.overflows = written.overflows;
        self.report.files = plan.file_count();
        let is_sha256 = |leaf| matches!(self.source.recorded_digest(leaf), Some(Digest::Sha256(_)));
        let has_digests = (0..self.specs.len()).any(is_sha256);
        if has_digests && options.digests == Digests::None {
            self.report
                .notes
                .push("the file has no digests, as what was read has; --digests records them".into());
        }
        Ok(())
    }

    fn write_npy(&mut self, target: &Path, options: WriteOptions) -> Result<()> {
        if self.specs.len() != 1 {
            return Err(Error::InvalidArgument(format!(
                "an .npy file holds one array, and {} has {}; write an .npz file instead",
                self.source.origin(),
                self.specs.len()
            )));
        }
        npy::note_types(self);
        let spec = self.specs[0].clone();
        self.with_bytes(0, &mut |bytes| npy::write_bytes(target, &spec, bytes, options))
    }
}

impl Leaves for TypedSource<'_> {
    fn keys(&self) -> &KeyMap {
        self.source.keys()
    }

    fn specs(&self) -> &[ArraySpec] {
        &self.specs
    }

    fn with_bytes(&mut self, index: usize, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let name = &self.source.keys().leaves()[index].name;
        let mut memory = std::mem::take(&mut self.memory);
        let taken = self.read(index, &mut memory).and_then(|(bytes, overflows)| {
            take(&bytes)?;
            Ok(overflows)
        });
        self.memory = memory;
        let overflows = taken.for_tensor(name)?;
        self.report.cast_tensors += usize::from(self.source.specs()[index].dtype != self.specs[index].dtype);
        if overflows > 0 {
            self.report.overflows.insert(name.to_owned(), overflows);
        }
        Ok(())
    }

    fn note(&mut self, note: String) {
        self.report.notes.push(note);
    }
}
