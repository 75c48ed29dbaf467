//! From a device to a checkpoint: a layout is made first, then threads write its parts, from the device's own memory
//! where the host can read that, and else from memory that each part is fetched into.

pub(crate) mod options;

use std::collections::BTreeMap;
use std::path::Path;

pub use crate::transfer::Digests;
pub use options::Record;
pub(crate) use options::SaveOptions;

use crate::array::ArraySpec;
use crate::cast::cast_dtype;
use crate::dtype::DType;
use crate::error::{Context, Error, Result};
use crate::params::{DeviceArray, ParamTree, Params};
use crate::transfer::{CheckpointPlan, DeviceSupply, FileOptions, Supply};
use crate::tree::{Framework, KeyMap, Leaf, record};

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
    /// These parameters.
    pub fn new<A: DeviceArray>(params: &ParamTree<A>) -> TreeToSave<'_> {
        TreeToSave {
            keys: params.keys(),
            specs: params.buffers().iter().map(|buffer| buffer.spec().clone()).collect(),
            metadata: params.metadata(),
            framework: params.framework(),
        }
    }

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
            Record::Structure => strings.extend(record::write(self.keys.def(), framework)?),
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

impl Params {
    /// Saves to a file, atomically: the file's name stands for the old content or the new. Blocks until
    /// the bytes are on the disk.
    ///
    /// # Errors
    /// [`Error::Io`]; an error naming the tensor when its transfer fails or the format cannot hold it.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.save_with(path, &SaveOptions::default())
    }

    /// Saves to a file with options. As [`Params::save`].
    ///
    /// # Errors
    /// As for [`Params::save`].
    pub fn save_with(&self, path: impl AsRef<Path>, options: &SaveOptions) -> Result<()> {
        let tree = TreeToSave::new(self);
        tree.write(&self.supply(&tree, options)?, path.as_ref(), options)
    }

    /// The bytes of a safetensors file of these parameters.
    pub(crate) fn to_bytes(&self, options: &SaveOptions) -> Result<Vec<u8>> {
        let tree = TreeToSave::new(self);
        tree.to_bytes(&self.supply(&tree, options)?, options)
    }

    fn supply(&self, tree: &TreeToSave<'_>, options: &SaveOptions) -> Result<DeviceSupply<'_>> {
        let (buffers, dtypes) = (self.buffers(), tree.dtypes(options)?);
        Ok(DeviceSupply { buffers, dtypes, registration: options.registration })
    }
}
