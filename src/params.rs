//! Parameters: a tree of device buffers, with the key map that says what each is called.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use crate::array::ArraySpec;
use crate::checkpoint::Checkpoint;
use crate::error::{Context, Error, Result};
use crate::load::{LoadOptions, LoadReport, load};
use crate::pjrt::{Buffer, Client, Placement};
use crate::save::{SaveOptions, save, to_bytes};
use crate::tree::{KeyMap, Node};

/// A tree of arrays on a device, in JAX's order.
///
/// Cheap to clone: clones share their buffers.
#[derive(Clone, Default)]
pub struct Params {
    keys: KeyMap,
    buffers: Vec<Buffer>,
    metadata: BTreeMap<String, String>,
}

impl Params {
    /// Loads a file onto the client's first device. The transfers may still be under way on return;
    /// whatever uses a buffer waits for it, and so does [`Params::wait`].
    ///
    /// # Errors
    /// [`Error::Malformed`] when the file is not valid; an error naming the tensor when the plugin refuses
    /// one.
    pub fn load(client: &Client, path: impl AsRef<Path>) -> Result<Params> {
        Ok(Params::load_with(client, path, &LoadOptions::default())?.0)
    }

    /// Loads a file, and reports how. As [`Params::load`].
    ///
    /// # Errors
    /// As for [`Params::load`].
    pub fn load_with(
        client: &Client,
        path: impl AsRef<Path>,
        options: &LoadOptions,
    ) -> Result<(Params, LoadReport)> {
        load(client, &Checkpoint::open(path)?, options)
    }

    /// The tree of these buffers, named by their paths joined with `.`.
    ///
    /// # Errors
    /// [`Error::Tree`] when the names do not form a tree.
    pub fn from_buffers(buffers: impl IntoIterator<Item = (String, Buffer)>) -> Result<Params> {
        let mut by_name = BTreeMap::new();
        for (name, buffer) in buffers {
            if let Some((name, _)) = by_name.insert(name.clone(), buffer).map(|old| (name, old)) {
                return Err(Error::Tree(format!("two leaves have the name `{name}`")));
            }
        }
        let keys = KeyMap::from_names(by_name.keys().cloned())?;
        let take = |leaf: &crate::tree::Leaf| by_name.remove(&leaf.name);
        let buffers: Vec<Buffer> = keys.leaves().iter().filter_map(take).collect();
        Ok(Params { keys, buffers, metadata: BTreeMap::new() })
    }

    pub(crate) fn with_metadata(mut self, metadata: BTreeMap<String, String>) -> Params {
        self.metadata = metadata;
        self
    }

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
        save(self, path.as_ref(), options)
    }

    /// The buffer of this name, such as `params.Dense_0.kernel`.
    ///
    /// # Errors
    /// [`Error::NotFound`] with the names that look alike.
    pub fn get(&self, name: &str) -> Result<&Buffer> {
        self.keys.index(name).map(|index| &self.buffers[index])
    }

    /// The tree below this name; its names are shorter by that much.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is nothing below it.
    pub fn subtree(&self, name: &str) -> Result<Params> {
        let (keys, range) = self.keys.subtree(name)?;
        Ok(Params { keys, buffers: self.buffers[range].to_vec(), metadata: BTreeMap::new() })
    }

    /// The leaves, in JAX's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Buffer)> {
        self.keys.leaves().iter().map(|leaf| leaf.name.as_str()).zip(&self.buffers)
    }

    /// The buffers, in JAX's order.
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// Which leaf is where and called what.
    pub fn keys(&self) -> &KeyMap {
        &self.keys
    }

    /// The strings that the file held beside the tensors.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The number of leaves.
    pub fn len(&self) -> usize {
        self.buffers.len()
    }

    /// Whether there are no leaves.
    pub fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    /// The tree with the sums over its nodes.
    pub fn tree(&self) -> Node {
        Node::build(self.keys.leaves().iter().zip(self.buffers.iter().map(Buffer::spec)))
    }

    /// The names and specs of the leaves, in JAX's order.
    pub(crate) fn specs(&self) -> Vec<(String, ArraySpec)> {
        self.iter().map(|(name, buffer)| (name.to_owned(), buffer.spec().clone())).collect()
    }

    /// Blocks until every buffer's content is there.
    ///
    /// # Errors
    /// The first failure, naming its tensor.
    pub fn wait(&self) -> Result<()> {
        self.iter().try_for_each(|(name, buffer)| buffer.wait().for_tensor(name))
    }

    /// Starts copying every leaf to another device or memory of its client.
    ///
    /// # Errors
    /// The first failure, naming its tensor.
    pub fn copy_to(&self, to: &Placement) -> Result<Params> {
        let copies = self.iter().map(|(name, buffer)| buffer.copy_to(to).for_tensor(name));
        Ok(Params { buffers: copies.collect::<Result<_>>()?, ..self.clone() })
    }
}

impl fmt::Debug for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Params({})", self.tree().summary)
    }
}

impl fmt::Display for Params {
    /// Draws the tree.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tree().fmt(f)
    }
}

/// The parameters as the bytes of a safetensors file. Blocks until they are on the host.
///
/// # Errors
/// An error naming the tensor when its transfer fails or the format cannot hold it.
pub fn serialize(params: &Params) -> Result<Vec<u8>> {
    to_bytes(params, &SaveOptions::default())
}

/// Parameters on the client's first device, from the bytes of a safetensors file, which are copied.
///
/// # Errors
/// [`Error::Malformed`] when the bytes are not a valid safetensors file.
pub fn deserialize(client: &Client, bytes: &[u8]) -> Result<Params> {
    let checkpoint = Checkpoint::from_bytes(bytes.to_vec())?;
    Ok(load(client, &checkpoint, &LoadOptions::default())?.0)
}
