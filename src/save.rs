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
use crate::device_array::{Array, DeviceArray};
use crate::dtype::DType;
use crate::error::{Context, Error, Result};
use crate::params::{ParamTree, Params};
use crate::processes::Processes;
use crate::transfer::{CheckpointPlan, DeviceSupply, FileOptions, Supply, TogetherSave};
use crate::tree::{KeyMap, record};

// A tree on a device of whatever kind: a supply has its bytes.
impl<A: DeviceArray> ParamTree<A> {
    /// Saves to a file what `supply` has, in the types that it is given.
    ///
    /// # Errors
    /// As for [`Params::save`].
    pub(crate) fn write_from<S: Supply>(
        &self,
        path: &Path,
        options: &SaveOptions,
        supply: impl FnOnce(Vec<DType>) -> S,
    ) -> Result<()> {
        let dtypes = self.dtypes_in_file(options)?;
        let plan = self.checkpoint_plan(&dtypes, options)?;
        let written = plan.write(path, &supply(dtypes), &options.monitor)?;
        warn_of_overflows(written.overflows);
        Ok(())
    }

    /// As [`ParamTree::write_from`], to memory.
    ///
    /// # Errors
    /// As for [`crate::serialize`].
    pub(crate) fn bytes_from<S: Supply>(
        &self,
        options: &SaveOptions,
        supply: impl FnOnce(Vec<DType>) -> S,
    ) -> Result<Vec<u8>> {
        let dtypes = self.dtypes_in_file(options)?;
        let plan = self.checkpoint_plan(&dtypes, options)?;
        plan.to_bytes(&supply(dtypes), &options.monitor)
    }

    /// The types of the leaves in the file.
    ///
    /// # Errors
    /// An error naming the tensor where its cast is not supported.
    fn dtypes_in_file(&self, options: &SaveOptions) -> Result<Vec<DType>> {
        let dtype =
            |(name, array): (&str, &A)| cast_dtype(array.spec().dtype, options.dtype).for_tensor(name);
        self.iter().map(dtype).collect()
    }

    /// The files that it makes.
    ///
    /// # Errors
    /// An error naming the tensor that the format cannot hold; [`Error::Tree`].
    fn checkpoint_plan(&self, dtypes: &[DType], options: &SaveOptions) -> Result<CheckpointPlan> {
        CheckpointPlan::new(self.specs_in_file(dtypes), self.strings(options)?, file_options(options))
    }

    /// The names, types and shapes in the file.
    fn specs_in_file(&self, dtypes: &[DType]) -> Vec<(String, ArraySpec)> {
        let specs = self.iter().zip(dtypes).map(|((name, array), &dtype)| {
            (name.to_owned(), ArraySpec::new(dtype, array.spec().shape.clone()))
        });
        specs.collect()
    }

    /// The user's strings, and what is recorded of the tree.
    fn strings(&self, options: &SaveOptions) -> Result<BTreeMap<String, String>> {
        let mut strings = record::strip(options.metadata.as_ref().unwrap_or(self.metadata()));
        let framework = options.framework.unwrap_or(self.framework());
        match options.record {
            Record::Structure => strings.extend(record::write(self.keys().def(), framework)?),
            Record::NamesOnly => {
                let names = self.keys().leaves().iter().map(|leaf| leaf.name.as_str());
                let read_back = KeyMap::from_names_by(framework, names)?;
                if let Some(difference) = self.keys().def().difference(read_back.def()) {
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

fn file_options(options: &SaveOptions) -> FileOptions {
    FileOptions {
        alignment: options.alignment,
        digests: options.digests,
        max_shard_bytes: options.max_shard_bytes,
        write: options.write,
    }
}

fn warn_of_overflows(overflows: BTreeMap<String, usize>) {
    for (tensor, elements) in overflows {
        tracing::warn!(tensor, elements, "elements became infinite in a cast");
    }
}

impl Params {
    /// Saves to a file, atomically: the file's name stands for the old content or the new. Blocks until
    /// the bytes are on the disk.
    ///
    /// Of a client of several processes ([`crate::pjrt::ClientBuilder::processes`]), every one of them calls this, for the same path
    /// of a file system that all of them reach. Each writes what its devices have, every byte is written once, and the file has its
    /// name when all is there. With [`SaveOptions::max_shard_bytes`], each process has files of its own, and the index is written
    /// last. Where one fails, all do, and what was there before stays; only when names are given can a process fail that does not
    /// know of the others, and then the checkpoint is the old one or the new one, whole.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Processes`]; an error naming the tensor when its transfer fails or the format cannot hold it.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.save_with(path, &SaveOptions::default())
    }

    /// Saves to a file with options. As [`Params::save`].
    ///
    /// # Errors
    /// As for [`Params::save`].
    pub fn save_with(&self, path: impl AsRef<Path>, options: &SaveOptions) -> Result<()> {
        let mut clients = self.arrays().iter().map(Array::client);
        match clients.find_map(|client| client.processes().filter(|processes| processes.count() > 1)) {
            Some(processes) => self.save_together(path.as_ref(), processes, options),
            None => self.write_from(path.as_ref(), options, |dtypes| self.supply(dtypes, options)),
        }
    }

    fn save_together(&self, path: &Path, processes: &Processes, options: &SaveOptions) -> Result<()> {
        let planned = self.dtypes_in_file(options).and_then(|dtypes| Ok((dtypes, self.strings(options)?)));
        let ((dtypes, strings), _) = processes.agree("a save", planned, |_| Vec::new())?;
        let save = TogetherSave {
            processes,
            specs: self.specs_in_file(&dtypes),
            supply: self.supply(dtypes, options),
            strings,
            options: file_options(options),
            monitor: &options.monitor,
        };
        warn_of_overflows(save.write(path)?);
        Ok(())
    }

    /// The bytes of a safetensors file of these parameters.
    pub(crate) fn to_bytes(&self, options: &SaveOptions) -> Result<Vec<u8>> {
        self.bytes_from(options, |dtypes| self.supply(dtypes, options))
    }

    fn supply(&self, dtypes: Vec<DType>, options: &SaveOptions) -> DeviceSupply<'_> {
        DeviceSupply::new(self.arrays(), dtypes, options.registration)
    }
}
