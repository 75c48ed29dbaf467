//! From a device to a checkpoint: a layout is made first, then threads write its parts, from the device's own memory
//! where the host can read that, and else from memory that each part is fetched into.

use std::collections::BTreeMap;
use std::path::Path;

use crate::array::ArraySpec;
use crate::cast::cast_dtype;
use crate::dtype::DType;
use crate::error::{Context, Error, Result};
use crate::format::DEFAULT_ALIGNMENT;
use crate::monitor::Monitor;
use crate::params::Params;
use crate::store::WriteOptions;
use crate::transfer::{CheckpointPlan, DeviceSupply, FileOptions, Registration, Supply};
use crate::tree::{Framework, KeyMap, Leaf, record};

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
    /// The most bytes of tensors in a file; a larger tensor has a file to itself. One file if `None`. Of more than one,
    /// `model.safetensors` becomes `model-00001-of-00003.safetensors` and so on, and `model.safetensors.index.json`,
    /// which is written last.
    pub max_shard_bytes: Option<u64>,
    /// Whether host memory that the device copies into is registered with it.
    pub registration: Registration,
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
            max_shard_bytes: None,
            registration: Registration::default(),
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

    /// Writes several files with an index, each of at most so many bytes of tensors, where one would be larger.
    pub fn max_shard_bytes(mut self, bytes: u64) -> SaveOptions {
        self.max_shard_bytes = Some(bytes);
        self
    }

    /// Says whether host memory that the device copies into is registered with it.
    pub fn registration(mut self, registration: Registration) -> SaveOptions {
        self.registration = registration;
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

/// A tree on a device of whatever kind, about to be saved.
pub(crate) struct TreeToSave<'a> {
    pub keys: &'a KeyMap,
    /// The types and shapes on the device, in the order of the leaves.
    pub specs: Vec<ArraySpec>,
    /// The strings that it was loaded with.
    pub metadata: &'a BTreeMap<String, String>,
    pub framework: Framework,
}

impl TreeToSave<'_> {
    /// The types of the leaves in the file.
    ///
    /// # Errors
    /// An error naming the tensor where its cast is not supported.
    pub fn dtypes(&self, options: &SaveOptions) -> Result<Vec<DType>> {
        let dtype =
            |(spec, leaf): (&ArraySpec, &Leaf)| cast_dtype(spec.dtype, options.dtype).for_tensor(&leaf.name);
        self.specs.iter().zip(self.keys.leaves()).map(dtype).collect()
    }

    /// The file that it makes.
    ///
    /// # Errors
    /// An error naming the tensor that the format cannot hold; [`Error::Tree`].
    fn plan(&self, options: &SaveOptions) -> Result<CheckpointPlan> {
        let dtypes = self.dtypes(options)?;
        let leaves = self.keys.leaves().iter().zip(&self.specs).zip(dtypes);
        let specs = leaves
            .map(|((leaf, spec), dtype)| (leaf.name.clone(), ArraySpec::new(dtype, spec.shape.clone())));
        let files = FileOptions {
            alignment: options.alignment,
            digests: options.digests,
            max_shard_bytes: options.max_shard_bytes,
            write: options.write,
        };
        CheckpointPlan::new(specs.collect(), self.strings(options)?, files)
    }

    /// Saves it to a file.
    ///
    /// # Errors
    /// As for [`Params::save`].
    pub fn write(&self, supply: &dyn Supply, path: &Path, options: &SaveOptions) -> Result<()> {
        let written = self.plan(options)?.write(path, supply, &options.monitor)?;
        for (tensor, elements) in written.overflows {
            tracing::warn!(tensor, elements, "elements became infinite in a cast");
        }
        Ok(())
    }

    /// Saves it to memory.
    ///
    /// # Errors
    /// As for [`crate::serialize`].
    pub fn to_bytes(&self, supply: &dyn Supply, options: &SaveOptions) -> Result<Vec<u8>> {
        self.plan(options)?.to_bytes(supply, &options.monitor)
    }

    /// The user's strings, and what is recorded of the tree.
    fn strings(&self, options: &SaveOptions) -> Result<BTreeMap<String, String>> {
        let mut strings = record::strip(options.metadata.as_ref().unwrap_or(self.metadata));
        let framework = options.framework.unwrap_or(self.framework);
        match options.record {
            Record::Structure => {
                strings.extend(record::write(self.keys.def())?);
                if framework != Framework::Plain {
                    strings.insert(record::FRAMEWORK_KEY.into(), framework.to_string());
                }
            }
            Record::NamesOnly => {
                let names = self.keys.leaves().iter().map(|leaf| leaf.name.as_str());
                let read_back = KeyMap::from_names_by(framework, names)?;
                if let Some(difference) = self.keys.def().difference(read_back.def()) {
                    return Err(Error::Tree(format!(
                        "names alone would not bring the tree back ({difference}); record its structure, or make \
                         it nested dictionaries"
                    )));
                }
            }
        }
        Ok(strings)
    }
}

fn saved(params: &Params) -> TreeToSave<'_> {
    TreeToSave {
        keys: params.keys(),
        specs: params.buffers().iter().map(|buffer| buffer.spec().clone()).collect(),
        metadata: params.metadata(),
        framework: params.framework(),
    }
}

fn device_supply<'a>(
    params: &'a Params,
    saved: &TreeToSave<'_>,
    options: &SaveOptions,
) -> Result<DeviceSupply<'a>> {
    Ok(DeviceSupply { params, dtypes: saved.dtypes(options)?, registration: options.registration })
}

/// Saves to a file.
pub(crate) fn save(params: &Params, path: &Path, options: &SaveOptions) -> Result<()> {
    let saved = saved(params);
    saved.write(&device_supply(params, &saved, options)?, path, options)
}

/// Saves to memory.
pub(crate) fn to_bytes(params: &Params, options: &SaveOptions) -> Result<Vec<u8>> {
    let saved = saved(params);
    saved.to_bytes(&device_supply(params, &saved, options)?, options)
}
