//! From a device to a checkpoint: a layout is made first, then the tensors are fetched and written in its
//! order, the next one on its way from the device while one is written.

mod file;

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;

pub(crate) use file::FilePlan;

use crate::array::ArraySpec;
use crate::cast::{Cast, cast_dtype};
use crate::checkpoint::{DEFAULT_ALIGNMENT, WriteOptions};
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

/// The file that these parameters make.
fn plan(params: &Params, options: &SaveOptions) -> Result<FilePlan> {
    let spec = |(name, buffer): (&str, &Buffer)| -> Result<(String, ArraySpec)> {
        let dtype = cast_dtype(buffer.dtype(), options.dtype).for_tensor(name)?;
        Ok((name.to_owned(), ArraySpec::new(dtype, buffer.shape())))
    };
    let specs = params.iter().map(spec).collect::<Result<_>>()?;
    FilePlan::new(specs, metadata(params, options)?, options.alignment, options.digests)
}

/// Saves to a file.
pub(crate) fn save(params: &Params, path: &Path, options: &SaveOptions) -> Result<()> {
    let plan = plan(params, options)?;
    let mut fetch = Fetch::new(params, &plan)?;
    plan.write(path, options.write, |index, dtype| fetch.next(index, dtype))
}

/// Saves to memory.
pub(crate) fn to_bytes(params: &Params, options: &SaveOptions) -> Result<Vec<u8>> {
    let plan = plan(params, options)?;
    let mut fetch = Fetch::new(params, &plan)?;
    plan.to_bytes(|index, dtype| fetch.next(index, dtype))
}

/// Tensors on their way from the device, the next one started before the current one is waited for: at most
/// two are on the host at a time.
struct Fetch<'a> {
    params: &'a Params,
    /// Positions in the order of the file.
    order: std::iter::Peekable<std::vec::IntoIter<usize>>,
    ahead: Option<HostTransfer>,
}

impl<'a> Fetch<'a> {
    fn new(params: &'a Params, plan: &FilePlan) -> Result<Fetch<'a>> {
        let mut fetch = Fetch { params, order: plan.order().into_iter().peekable(), ahead: None };
        fetch.ahead = fetch.start_next()?;
        Ok(fetch)
    }

    fn start_next(&mut self) -> Result<Option<HostTransfer>> {
        let Some(&index) = self.order.peek() else { return Ok(None) };
        let transfer = self.params.buffers()[index].start_to_host();
        transfer.for_tensor(&self.params.keys().leaves()[index].name).map(Some)
    }

    /// The bytes of the tensor at this position, which is the next in order, as they are in the file.
    fn next(&mut self, index: usize, dtype: DType) -> Result<Bytes> {
        let current = self.ahead.take();
        self.order.next();
        self.ahead = self.start_next()?;
        let current = match current {
            Some(transfer) => transfer,
            None => self.params.buffers()[index].start_to_host()?,
        };
        on_disk(current.wait()?, self.params.buffers()[index].dtype(), dtype)
    }
}

/// The bytes of a host transfer as they are in a file.
fn on_disk(bytes: Vec<u8>, from: DType, to: DType) -> Result<Bytes> {
    if from != to {
        return Ok(Cast::new(&bytes, from, to)?.bytes.into());
    }
    Ok(if from.is_sub_byte() { sub_byte::pack(&bytes, from).into() } else { bytes.into() })
}
