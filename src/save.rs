//! From a device to a checkpoint: a layout is made first, then the tensors are fetched and written in its
//! order, the next one on its way from the device while one is written.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use crate::array::ArraySpec;
use crate::cast::{Cast, cast_dtype};
use crate::checkpoint::{CheckpointWriter, DEFAULT_ALIGNMENT, DIGEST_KEY, Layout, WriteOptions, sha256};
use crate::dtype::DType;
use crate::error::{Context, Error, Result};
use crate::params::Params;
use crate::pjrt::{Buffer, HostTransfer};
use crate::sub_byte;
use crate::tree::{Framework, record};

/// How parameters are saved.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SaveOptions {
    /// What tensors are aligned to in the file where they can be, in bytes: a power of two, 8 to 4096.
    pub alignment: usize,
    /// Strings for the header; those that the parameters were loaded with if `None`.
    pub metadata: Option<BTreeMap<String, String>>,
    /// What floating point arrays are cast to; others stay as they are.
    pub dtype: Option<DType>,
    /// The framework that is recorded; that which the parameters were loaded as if `None`.
    pub framework: Option<Framework>,
    /// What is recorded beside the tensors.
    pub record: Record,
    /// Whether a digest of every tensor is recorded.
    pub digests: Digests,
    /// How the file is written.
    pub write: WriteOptions,
}

/// What is recorded in the metadata beside the user's strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Record {
    /// The tree's structure.
    #[default]
    Structure,
    /// Nothing; refused for a tree that its names alone would not bring back.
    NamesOnly,
}

/// Whether digests are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Digests {
    /// They are not.
    #[default]
    None,
    /// The sha256 of every tensor.
    Sha256,
}

impl Default for SaveOptions {
    fn default() -> SaveOptions {
        SaveOptions {
            alignment: DEFAULT_ALIGNMENT,
            metadata: None,
            dtype: None,
            framework: None,
            record: Record::default(),
            digests: Digests::default(),
            write: WriteOptions::default(),
        }
    }
}

impl SaveOptions {
    /// Puts these strings into the header.
    pub fn metadata(mut self, metadata: BTreeMap<String, String>) -> SaveOptions {
        self.metadata = Some(metadata);
        self
    }

    /// Casts floating point arrays to this type.
    pub fn dtype(mut self, dtype: DType) -> SaveOptions {
        self.dtype = Some(dtype);
        self
    }

    /// Says what is recorded beside the tensors.
    pub fn record(mut self, record: Record) -> SaveOptions {
        self.record = record;
        self
    }

    /// Says whether digests are recorded.
    pub fn digests(mut self, digests: Digests) -> SaveOptions {
        self.digests = digests;
        self
    }

    /// Says how the file is written.
    pub fn write(mut self, write: WriteOptions) -> SaveOptions {
        self.write = write;
        self
    }

    /// Says what tensors are aligned to, in bytes.
    pub fn alignment(mut self, alignment: usize) -> SaveOptions {
        self.alignment = alignment;
        self
    }
}

/// A file that is about to be written.
struct Plan {
    specs: Vec<(String, ArraySpec)>,
    metadata: BTreeMap<String, String>,
    layout: Layout,
    alignment: usize,
}

impl Plan {
    fn new(params: &Params, options: &SaveOptions) -> Result<Plan> {
        let spec = |(name, buffer): (&str, &Buffer)| -> Result<(String, ArraySpec)> {
            let dtype = cast_dtype(buffer.dtype(), options.dtype).for_tensor(name)?;
            Ok((name.to_owned(), ArraySpec::new(dtype, buffer.shape())))
        };
        let specs: Vec<(String, ArraySpec)> = params.iter().map(spec).collect::<Result<_>>()?;
        let mut metadata = metadata(params, options)?;
        if options.digests == Digests::Sha256 {
            // As long as the digests will be, so that the header keeps its size when they are known.
            let blank = "0".repeat(sha256(&[]).len());
            metadata.insert(
                DIGEST_KEY.into(),
                digest_record(specs.iter().map(|(name, _)| (name, blank.clone()))),
            );
        }
        let layout = Layout::new(&specs, &metadata, options.alignment)?;
        Ok(Plan { specs, metadata, layout, alignment: options.alignment })
    }

    /// The file's beginning with these digests, as long as the one of the layout.
    fn head_with(mut self, digests: &BTreeMap<String, String>) -> Result<Vec<u8>> {
        self.metadata
            .insert(DIGEST_KEY.into(), digest_record(digests.iter().map(|(name, hex)| (name, hex.clone()))));
        Ok(Layout::new(&self.specs, &self.metadata, self.alignment)?.head)
    }
}

fn digest_record<'a>(digests: impl Iterator<Item = (&'a String, String)>) -> String {
    let map: BTreeMap<&String, String> = digests.collect();
    serde_json::json!(map).to_string()
}

/// The user's strings, and what is recorded of the tree.
fn metadata(params: &Params, options: &SaveOptions) -> Result<BTreeMap<String, String>> {
    let mut metadata = record::strip(options.metadata.as_ref().unwrap_or(params.metadata()));
    let framework = options.framework.unwrap_or(params.framework());
    match options.record {
        Record::Structure => {
            metadata.extend(record::write(params.keys().def())?);
            if framework != Framework::Plain {
                metadata.insert(record::FRAMEWORK_KEY.into(), framework.to_string());
            }
        }
        Record::NamesOnly => {
            let names = params.keys().leaves().iter().map(|leaf| leaf.name.as_str());
            let read_back = crate::tree::KeyMap::from_names_by(framework, names)?;
            if let Some(difference) = params.keys().def().difference(read_back.def()) {
                return Err(Error::Tree(format!(
                    "names alone would not bring the tree back ({difference}); record its structure, or make it \
                     nested dictionaries"
                )));
            }
        }
    }
    Ok(metadata)
}

/// Saves to a file.
pub(crate) fn save(params: &Params, path: &Path, options: &SaveOptions) -> Result<()> {
    let plan = Plan::new(params, options)?;
    let mut writer = CheckpointWriter::create(path, plan.layout.clone(), options.write)?;
    let mut digests = BTreeMap::new();
    fetch(params, &plan, &mut |name, bytes| {
        if options.digests == Digests::Sha256 {
            digests.insert(name.to_owned(), sha256(bytes));
        }
        writer.write_next(bytes)
    })?;
    if options.digests == Digests::Sha256 {
        writer.replace_head(&plan.head_with(&digests)?)?;
    }
    writer.finish()
}

/// Saves to memory.
pub(crate) fn to_bytes(params: &Params, options: &SaveOptions) -> Result<Vec<u8>> {
    let plan = Plan::new(params, options)?;
    let mut file = Vec::with_capacity(plan.layout.file_bytes);
    file.extend_from_slice(&plan.layout.head);
    let mut digests = BTreeMap::new();
    fetch(params, &plan, &mut |name, bytes| {
        if options.digests == Digests::Sha256 {
            digests.insert(name.to_owned(), sha256(bytes));
        }
        file.extend_from_slice(bytes);
        Ok(())
    })?;
    if options.digests == Digests::Sha256 {
        let head = plan.head_with(&digests)?;
        file[..head.len()].copy_from_slice(&head);
    }
    Ok(file)
}

/// Fetches the tensors in the order of the layout and hands each to `sink` by name, in its form on disk. At
/// most two tensors are on the host at a time.
fn fetch(params: &Params, plan: &Plan, sink: &mut dyn FnMut(&str, &[u8]) -> Result<()>) -> Result<()> {
    let leaf = |index: usize| (&params.keys().leaves()[index].name, &params.buffers()[index]);
    let start = |index: usize| -> Result<HostTransfer> {
        let (name, buffer) = leaf(index);
        buffer.start_to_host().for_tensor(name)
    };
    let mut order = plan.layout.tensors.iter().map(|placed| placed.index).peekable();
    let mut ahead = order.peek().map(|&index| start(index)).transpose()?;
    while let Some(index) = order.next() {
        let Some(current) = ahead.take() else { break };
        ahead = order.peek().map(|&next| start(next)).transpose()?;
        let (name, buffer) = leaf(index);
        let bytes = current.wait().for_tensor(name)?;
        let bytes = on_disk(&bytes, buffer.dtype(), plan.specs[index].1.dtype).for_tensor(name)?;
        sink(name, &bytes).for_tensor(name)?;
    }
    Ok(())
}

/// The bytes of a host transfer as they are in a file.
fn on_disk(bytes: &[u8], from: DType, to: DType) -> Result<Cow<'_, [u8]>> {
    if from != to {
        return Ok(Cow::Owned(Cast::new(bytes, from, to)?.bytes));
    }
    Ok(if from.is_sub_byte() { Cow::Owned(sub_byte::pack(bytes, from)) } else { Cow::Borrowed(bytes) })
}
