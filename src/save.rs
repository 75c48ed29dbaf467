//! From a device to a checkpoint: a layout is made first, then threads write its parts, from the device's own memory
//! where the host can read that, and else from memory that each part is fetched into.

mod file;
mod supply;

use std::collections::BTreeMap;
use std::path::Path;

pub(crate) use file::FilePlan;
pub(crate) use supply::{Change, Content, Supplied, Supply};

use crate::array::ArraySpec;
use crate::cast::cast_dtype;
use crate::checkpoint::{DEFAULT_ALIGNMENT, WriteOptions};
use crate::dtype::DType;
use crate::error::{Context, Error, Result};
use crate::monitor::Monitor;
use crate::params::Params;
use crate::pjrt::Buffer;
use crate::tree::{Framework, record};
use supply::DeviceSupply;

/// How parameters are saved.
#[derive(Debug, Clone)]
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
    /// Who watches the save, and who may stop it.
    pub monitor: Monitor,
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
            monitor: Monitor::default(),
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

    /// Says who watches the save, and who may stop it.
    pub fn monitor(mut self, monitor: Monitor) -> SaveOptions {
        self.monitor = monitor;
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

/// The types that parameters have in their file, in JAX's order.
fn supply<'a>(params: &'a Params, options: &SaveOptions) -> Result<DeviceSupply<'a>> {
    let dtype = |(name, buffer): (&str, &Buffer)| cast_dtype(buffer.dtype(), options.dtype).for_tensor(name);
    Ok(DeviceSupply { params, dtypes: params.iter().map(dtype).collect::<Result<_>>()? })
}

/// Saves to a file.
pub(crate) fn save(params: &Params, path: &Path, options: &SaveOptions) -> Result<()> {
    let written =
        plan(params, options)?.write(path, options.write, &supply(params, options)?, &options.monitor)?;
    for (tensor, elements) in written.overflows {
        tracing::warn!(tensor, elements, "elements became infinite in a cast");
    }
    Ok(())
}

/// Saves to memory.
pub(crate) fn to_bytes(params: &Params, options: &SaveOptions) -> Result<Vec<u8>> {
    plan(params, options)?.to_bytes(&supply(params, options)?, &options.monitor)
}
