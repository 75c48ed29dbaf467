//! A checkpoint written to one file or, where one would be too large, to several with an index, as the hub's libraries
//! have them: `STEM-00001-of-00003.safetensors` and `STEM.safetensors.index.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::file::{FilePlan, Written};
use super::journal::journal_of;
use super::options::Digests;
use super::replace::Replacement;
use super::ring::Registration;
use super::supply::{Supply, TensorBytes};
use crate::array::ArraySpec;
use crate::error::{Context, Error, Result};
use crate::format::{
    CheckpointWriter, SAFETENSORS_ENDING, SHARD_DIGITS, check_whole, index_of, shard_paths, shards_of,
};
use crate::monitor::{Monitor, Tracker};
use crate::printable::Line;
use crate::store::{WriteOptions, check_replaceable, temporary_at};

/// The key of an index's metadata that has the bytes of all tensors.
const TOTAL_KEY: &str = "total_size";

/// What the files of a checkpoint are like.
#[derive(Debug, Clone, Copy)]
pub struct FileOptions {
    /// What tensors are aligned to where they can be, in bytes.
    pub alignment: usize,
    pub digests: Digests,
    /// The most bytes of tensors in a file; a larger tensor has a file to itself.
    pub max_shard_bytes: Option<u64>,
    pub write: WriteOptions,
}

/// A file that was begun by one process, under a temporary name that the others know.
pub struct Begun {
    /// What it was begun for.
    pub path: PathBuf,
    pub temporary: PathBuf,
}

/// A checkpoint about to be written.
pub struct CheckpointPlan {
    options: FileOptions,
    /// The files, each with the positions of its tensors in the supply.
    files: Vec<(FilePlan, Vec<usize>)>,
    /// The strings of the index, where there are several files.
    metadata: BTreeMap<String, String>,
    /// The files' tensors, by file.
    names: Vec<Vec<String>>,
    total_bytes: u64,
}

impl CheckpointPlan {
    /// Plans the files of these tensors and strings.
    ///
    /// # Errors
    /// An error naming the tensor that the format cannot hold.
    pub fn new(
        specs: Vec<(String, ArraySpec)>,
        metadata: BTreeMap<String, String>,
        options: FileOptions,
    ) -> Result<CheckpointPlan> {
        let one = vec![0; specs.len()];
        CheckpointPlan::of_owners(specs, metadata, options, &one)
    }

    /// As [`CheckpointPlan::new`], with files of their own for the tensors of each owner, of whom there is a number for each tensor.
    ///
    /// # Errors
    /// As for [`CheckpointPlan::new`].
    pub fn of_owners(
        specs: Vec<(String, ArraySpec)>,
        metadata: BTreeMap<String, String>,
        options: FileOptions,
        owners: &[usize],
    ) -> Result<CheckpointPlan> {
        let sizes = specs.iter().map(|(name, spec)| spec.packed_bytes().for_tensor(name));
        let sizes: Vec<u64> = sizes.map(|size| size.map(|bytes| bytes as u64)).collect::<Result<_>>()?;
        let shares = share_by_owner(&sizes, owners, options.max_shard_bytes);
        let (alignment, digests) = (options.alignment, options.digests);
        let (mut files, mut names) = (Vec::new(), Vec::new());
        let is_one = shares.len() == 1;
        for positions in shares {
            let specs: Vec<_> = positions.iter().map(|&position| specs[position].clone()).collect();
            names.push(specs.iter().map(|(name, _)| name.clone()).collect());
            let metadata = if is_one { metadata.clone() } else { BTreeMap::new() };
            files.push((FilePlan::new(specs, metadata, alignment, digests)?, positions));
        }
        Ok(CheckpointPlan { options, files, metadata, names, total_bytes: sizes.iter().sum() })
    }

    /// How many files there are, without the index.
    pub fn file_count(&self) -> usize {
        self.files.len()
    }

    /// Tensors that could not be aligned.
    pub fn unaligned(&self) -> usize {
        self.files.iter().map(|(file, _)| file.layout().unaligned().count()).sum()
    }

    /// Writes the files. They take their names when all are complete. Of several, the index comes last, in the place of one
    /// that is there, with names for the files that no file of the old index has: a checkpoint is the old one or the new one.
    /// Files of the old one go after.
    ///
    /// # Errors
    /// The first failure. Until the new checkpoint is there, what was there before stays.
    pub fn write(&self, target: &Path, supply: &dyn Supply, monitor: &Monitor) -> Result<Written> {
        let tracker = Tracker::new(monitor, self.total_bytes);
        let (paths, model) = self.check(target)?;
        let mut writers: Vec<CheckpointWriter> = Vec::new();
        let mut all = Written::default();
        for ((file, positions), path) in self.files.iter().zip(&paths) {
            let part = ShardSupply { supply, positions };
            let (writer, written) =
                file.write_unnamed(path, model.as_deref(), self.write_options(), &part, &tracker)?;
            writers.push(writer);
            all.add(written);
        }
        self.put_in_place(target, writers)?;
        Ok(all)
    }

    /// The files, each with the positions of its tensors.
    pub fn files(&self) -> &[(FilePlan, Vec<usize>)] {
        &self.files
    }

    /// How the files are written.
    pub fn write_options(&self) -> WriteOptions {
        if self.files.len() > 1 { self.options.write.replacing_links() } else { self.options.write }
    }

    /// Whether the checkpoint may be written there; where each file may be begun, and the file whose owner and mode new ones take.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::InvalidArgument`], when something else is there.
    pub fn check(&self, target: &Path) -> Result<(Vec<PathBuf>, Option<PathBuf>)> {
        check_whole(target)?;
        let (paths, index) = (self.paths(target)?, index_of(target));
        // They are replaced last, and then it would be too late.
        index.iter().map(PathBuf::as_path).chain([target]).try_for_each(check_replaceable)?;
        let model = index.as_deref().map(|index| model_of(target, index)).transpose()?.flatten();
        Ok((paths, model))
    }

    /// Where the files are begun, of which these are the temporary names.
    ///
    /// # Errors
    /// As for [`CheckpointPlan::check`].
    pub fn beside(&self, target: &Path, names: &BTreeMap<usize, String>) -> Result<Vec<Begun>> {
        let options = self.write_options();
        let place = |(file, path): (usize, PathBuf)| match names.get(&file) {
            // A name alone: it was said by another process.
            Some(name) if !name.contains('/') => {
                Ok(Begun { temporary: temporary_at(&path, name, options), path })
            }
            _ => Err(Error::Processes(format!("nobody has begun file {file} of the checkpoint"))),
        };
        self.paths(target)?.into_iter().enumerate().map(place).collect()
    }

    /// Gives the files their names.
    ///
    /// # Errors
    /// As for [`CheckpointPlan::write`].
    pub fn put_in_place(&self, target: &Path, writers: Vec<CheckpointWriter>) -> Result<()> {
        match index_of(target) {
            Some(index) => self.put_with_index(target, &index, writers),
            None => writers.into_iter().try_for_each(CheckpointWriter::finish),
        }
    }

    fn put_with_index(&self, target: &Path, index: &Path, mut writers: Vec<CheckpointWriter>) -> Result<()> {
        // Only now: of two that save at the same time, the one that ends last is there.
        let begin = || Replacement::begin(index, target, self.options.write);
        if writers.len() > 1 {
            return begin()?.with_several(writers, |paths| self.index_document(paths));
        }
        let Some(writer) = writers.pop() else { return Ok(()) };
        let replaces = self.options.max_shard_bytes.is_some();
        if index.exists() && !replaces {
            warn_of_index(index, target);
        }
        // Where nobody replaces several files, the file is all there is.
        if replaces || journal_of(index).exists() {
            begin()?.with_one(writer, replaces)
        } else {
            writer.finish()
        }
    }

    /// The file in memory; of one that would be several, an error.
    ///
    /// # Errors
    /// As for [`CheckpointPlan::write`].
    pub fn to_bytes(&self, supply: &dyn Supply, monitor: &Monitor) -> Result<Vec<u8>> {
        match &self.files[..] {
            [(file, _)] => file.to_bytes(supply, &Tracker::new(monitor, self.total_bytes)),
            files => Err(Error::InvalidArgument(format!(
                "the bytes of one file were asked for, and max_shard_bytes makes {} of it",
                files.len()
            ))),
        }
    }

    fn paths(&self, target: &Path) -> Result<Vec<PathBuf>> {
        if self.files.len() == 1 {
            return Ok(vec![target.to_owned()]);
        }
        shard_paths(target, self.files.len(), SHARD_DIGITS).ok_or_else(|| {
            let target = target.display();
            Error::InvalidArgument(format!(
                "{target} is to be several files, so that its name must be UTF-8 and end in {SAFETENSORS_ENDING}"
            ))
        })
    }

    /// The index of files of these names.
    fn index_document(&self, paths: &[PathBuf]) -> String {
        let mut map = Map::new();
        for (names, path) in self.names.iter().zip(paths) {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            map.extend(names.iter().map(|name| (name.clone(), Value::from(&*file))));
        }
        let mut metadata: Map<String, Value> =
            self.metadata.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect();
        if let Some(other) = metadata.insert(TOTAL_KEY.into(), self.total_bytes.into()) {
            tracing::warn!("the string {other} of the key `{TOTAL_KEY}` is left out: an index has its own");
        }
        format!("{:#}\n", json!({"metadata": metadata, "weight_map": map}))
    }
}

/// The positions of the tensors of each file, owner by owner.
fn share_by_owner(sizes: &[u64], owners: &[usize], most: Option<u64>) -> Vec<Vec<usize>> {
    let mut by_owner: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (position, &owner) in owners.iter().enumerate() {
        by_owner.entry(owner).or_default().push(position);
    }
    if by_owner.is_empty() {
        return vec![Vec::new()];
    }
    let of_owner = |positions: Vec<usize>| {
        let own: Vec<u64> = positions.iter().map(|&position| sizes[position]).collect();
        let shares = share(&own, most).into_iter();
        shares.map(move |share| share.into_iter().map(|place| positions[place]).collect())
    };
    by_owner.into_values().flat_map(of_owner).collect()
}

/// The positions of the tensors of each file, in order.
fn share(sizes: &[u64], most: Option<u64>) -> Vec<Vec<usize>> {
    let (mut shares, mut bytes) = (vec![Vec::new()], 0u64);
    for (position, &size) in sizes.iter().enumerate() {
        let is_full = most.is_some_and(|most| bytes.saturating_add(size) > most);
        if is_full && bytes > 0 {
            shares.push(Vec::new());
            bytes = 0;
        }
        bytes = bytes.saturating_add(size);
        if let Some(last) = shares.last_mut() {
            last.push(position);
        }
    }
    shares
}

/// The file whose owner and mode new files take: one of the checkpoint that is there.
///
/// # Errors
/// [`Error::Io`].
fn model_of(target: &Path, index: &Path) -> Result<Option<PathBuf>> {
    let candidates = [target.to_path_buf()].into_iter().chain(shards_of(index)?);
    Ok(candidates.into_iter().find(|path| path.exists()))
}

/// A file was written beside several of the same name, which may be the checkpoint that it was made of.
fn warn_of_index(index: &Path, target: &Path) {
    let (index, target) = (index.display().to_string(), target.display().to_string());
    let (index, target) = (Line(&index), Line(&target));
    tracing::warn!(
        "{index} is another checkpoint beside {target}; remove it, and its files, if the new file replaces it"
    );
}

/// Some of the tensors of a supply.
struct ShardSupply<'a> {
    supply: &'a dyn Supply,
    positions: &'a [usize],
}

impl Supply for ShardSupply<'_> {
    fn supply(&self, index: usize) -> Result<TensorBytes<'_>> {
        self.supply.supply(self.positions[index])
    }

    fn is_divisible(&self, index: usize) -> bool {
        self.supply.is_divisible(self.positions[index])
    }

    fn registration(&self) -> Registration {
        self.supply.registration()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_tensor_is_in_one_file_and_no_file_is_too_large(
            sizes in proptest::collection::vec(0u64..100, 0..40),
            most in 1u64..150,
        ) {
            let shares = share(&sizes, Some(most));
            let all: Vec<usize> = shares.concat();
            prop_assert_eq!(all, (0..sizes.len()).collect::<Vec<_>>());
            for positions in &shares {
                let bytes: u64 = positions.iter().map(|&position| sizes[position]).sum();
                let with_bytes = positions.iter().filter(|&&position| sizes[position] > 0).count();
                prop_assert!(bytes <= most || with_bytes == 1);
                prop_assert!(!positions.is_empty() || sizes.is_empty());
            }
            prop_assert_eq!(share(&sizes, None).len(), 1);
        }
    }
}
