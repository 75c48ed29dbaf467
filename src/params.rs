//! Parameters: a tree of arrays on devices, with the key map that says what each is called. Data alone: what loads and saves
//! them stands above.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::{Duration, Instant};

use crate::array::HostArray;
use crate::device_array::{Array, DeviceArray};
use crate::error::{Context, Result};
use crate::pjrt::{Client, Placement};
use crate::tree::{Framework, KeyMap, KeyPath, Leaf, Node, Tree};

/// A tree of arrays on devices of a [`Client`], in JAX's order.
///
/// Cheap to clone: clones share their arrays.
pub type Params = ParamTree<Array>;

/// A tree of arrays on devices, in JAX's order: [`Params`] for a safejax [`Client`], and with the feature `xla`,
/// `XlaParams` for one of the `xla` crate's.
#[derive(Clone)]
pub struct ParamTree<A> {
    keys: KeyMap,
    arrays: Vec<A>,
    metadata: BTreeMap<String, String>,
    framework: Framework,
}

impl<A> ParamTree<A> {
    /// A key map and the arrays of its leaves, in its order.
    pub(crate) fn from_parts(keys: KeyMap, arrays: Vec<A>) -> ParamTree<A> {
        assert_eq!(keys.len(), arrays.len(), "a tree has an array for each leaf");
        ParamTree { keys, arrays, ..ParamTree::default() }
    }

    pub(crate) fn with_metadata(
        mut self,
        metadata: BTreeMap<String, String>,
        framework: Framework,
    ) -> ParamTree<A> {
        self.metadata = metadata;
        self.framework = framework;
        self
    }

    /// The tree of what `convert` makes of every array.
    ///
    /// # Errors
    /// The first error of `convert`, naming its leaf.
    pub(crate) fn try_convert<B>(self, convert: impl Fn(A) -> Result<B>) -> Result<ParamTree<B>> {
        let leaves = self.keys.leaves().iter().zip(self.arrays);
        let arrays = leaves.map(|(leaf, array)| convert(array).for_tensor(&leaf.name));
        let arrays = arrays.collect::<Result<_>>()?;
        Ok(ParamTree { keys: self.keys, arrays, metadata: self.metadata, framework: self.framework })
    }
}

impl<A: DeviceArray> ParamTree<A> {
    /// The tree of nested dictionaries of these arrays, named by their paths joined with `.`.
    ///
    /// # Errors
    /// [`crate::Error::Tree`] when the names do not form a tree.
    pub fn from_arrays<I: Into<A>>(arrays: impl IntoIterator<Item = (String, I)>) -> Result<ParamTree<A>> {
        let arrays = arrays.into_iter().map(|(name, array)| (name, array.into()));
        let (names, arrays): (Vec<String>, Vec<A>) = arrays.unzip();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (keys, order) = KeyMap::place_names(Framework::Plain, &names)?;
        Ok(ParamTree::from_parts(keys, order.iter().map(|&position| arrays[position].clone()).collect()))
    }

    /// The parameters of this tree.
    ///
    /// # Errors
    /// [`crate::Error::Tree`] when two leaves would have one name on disk.
    pub fn from_tree(tree: Tree<A>) -> Result<ParamTree<A>> {
        let (def, arrays) = tree.flatten();
        Ok(ParamTree::from_parts(KeyMap::new(def)?, arrays))
    }

    /// The array of a leaf, by its name on disk, such as `params.Dense_0.kernel`, or by its path, such as
    /// `['params']['Dense_0']['kernel']`.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`] with the names that look alike.
    pub fn get(&self, name: &str) -> Result<&A> {
        self.keys.index(name).map(|index| &self.arrays[index])
    }

    /// The array of a leaf, to be replaced by another.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`] with the names that look alike.
    pub fn get_mut(&mut self, name: &str) -> Result<&mut A> {
        self.keys.index(name).map(|index| &mut self.arrays[index])
    }

    /// Puts an array at a name: in the place of the leaf that has it, whose old array is returned, or at a
    /// new place in nested dictionaries.
    ///
    /// # Errors
    /// [`crate::Error::Tree`] when the name is that of a node, leads through a leaf, or would have to add to a list
    /// or another node that is not a dictionary.
    pub fn insert(&mut self, name: &str, array: impl Into<A>) -> Result<Option<A>> {
        let array = array.into();
        if let Ok(index) = self.keys.index(name) {
            return Ok(Some(std::mem::replace(&mut self.arrays[index], array)));
        }
        let added = ParamTree::from_arrays([(name.to_owned(), array)])?;
        *self = self.merge(&added)?;
        Ok(None)
    }

    /// Takes a leaf out of the tree. Dictionaries that become empty go too; a place in a list or in another
    /// node becomes `None`.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`] with the names that look alike.
    pub fn remove(&mut self, name: &str) -> Result<A> {
        let index = self.keys.index(name)?;
        let array = self.arrays[index].clone();
        let keep: Vec<bool> = (0..self.arrays.len()).map(|other| other != index).collect();
        *self = self.keep(&keep)?;
        Ok(array)
    }

    /// The tree below a node, by its name or path; its names are shorter by that much.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`] when there is nothing there.
    pub fn subtree(&self, name: &str) -> Result<ParamTree<A>> {
        let (keys, range) = self.keys.subtree(name)?;
        Ok(ParamTree::from_parts(keys, self.arrays[range].to_vec()))
    }

    /// The leaves for which `predicate` holds, and the others. What becomes empty goes, as for
    /// [`ParamTree::remove`].
    ///
    /// # Errors
    /// Never for trees that were loaded or built here.
    pub fn partition(
        &self,
        mut predicate: impl FnMut(&str, &A) -> bool,
    ) -> Result<(ParamTree<A>, ParamTree<A>)> {
        let keep: Vec<bool> = self.iter().map(|(name, array)| predicate(name, array)).collect();
        let others: Vec<bool> = keep.iter().map(|keep| !keep).collect();
        Ok((self.keep(&keep)?, self.keep(&others)?))
    }

    fn keep(&self, keep: &[bool]) -> Result<ParamTree<A>> {
        let kept = self.arrays.iter().zip(keep).filter(|(_, keep)| **keep).map(|(array, _)| array.clone());
        let params = ParamTree::from_parts(self.keys.filter(keep)?, kept.collect());
        Ok(params.with_metadata(self.metadata.clone(), self.framework))
    }

    /// The tree of both: dictionaries are joined, and a node that only one has is that one's.
    ///
    /// # Errors
    /// [`crate::Error::Tree`] naming the first path at which both have something that cannot be joined.
    pub fn merge(&self, other: &ParamTree<A>) -> Result<ParamTree<A>> {
        let keys = KeyMap::new(self.keys.def().merge(other.keys.def())?)?;
        let leaves = self.keys.leaves().iter().zip(&self.arrays);
        let by_path: HashMap<&KeyPath, &A> = leaves
            .chain(other.keys.leaves().iter().zip(&other.arrays))
            .map(|(leaf, array)| (&leaf.path, array))
            .collect();
        let arrays = keys.leaves().iter().map(|leaf| by_path[&leaf.path].clone()).collect();
        Ok(ParamTree::from_parts(keys, arrays).with_metadata(self.metadata.clone(), self.framework))
    }

    /// The tree of what `map` makes of every array, by name.
    ///
    /// # Errors
    /// The first error of `map`, naming its leaf.
    pub fn map(&self, mut map: impl FnMut(&str, &A) -> Result<A>) -> Result<ParamTree<A>> {
        let arrays = self.iter().map(|(name, array)| map(name, array).for_tensor(name));
        Ok(ParamTree { arrays: arrays.collect::<Result<_>>()?, ..self.clone() })
    }

    /// The leaves, in JAX's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &A)> {
        self.keys.leaves().iter().map(|leaf| leaf.name.as_str()).zip(&self.arrays)
    }

    /// The arrays, in JAX's order.
    pub fn arrays(&self) -> &[A] {
        &self.arrays
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
        self.arrays.len()
    }

    /// Whether there are no leaves.
    pub fn is_empty(&self) -> bool {
        self.arrays.is_empty()
    }

    /// The framework whose names these are.
    pub fn framework(&self) -> Framework {
        self.framework
    }

    /// The elements of all arrays together.
    pub fn parameter_count(&self) -> u64 {
        self.tree().summary.parameters
    }

    /// The bytes of all arrays together, as they are in a file.
    pub fn total_bytes(&self) -> u64 {
        self.tree().summary.bytes
    }

    /// The tree with the sums over its nodes.
    pub fn tree(&self) -> Node {
        Node::build(self.keys.def(), &mut self.arrays.iter().map(DeviceArray::spec))
    }
}

impl Params {
    /// Moves a tree of host arrays to a device or memory. The transfers may still be under way on return.
    ///
    /// ```no_run
    /// use safejax::{Client, HostArray, Params, Tree, TreeDef};
    /// let client = Client::cpu()?;
    /// let def = TreeDef::dict([("kernel".into(), TreeDef::LEAF)])?;
    /// let tree = Tree::unflatten(def, [HostArray::from_slice(&[2, 2], &[1.0f32, 0.0, 0.0, 1.0])?])?;
    /// let params = Params::from_host(&client, &client.device(0)?, tree)?;
    /// assert_eq!(params.get("kernel")?.to_vec::<f32>()?[0], 1.0);
    /// # Ok::<(), safejax::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`crate::Error::Tree`] when two leaves would have one name on disk; an error naming the leaf when the plugin
    /// refuses one.
    pub fn from_host(client: &Client, to: impl Into<Placement>, tree: Tree<HostArray>) -> Result<Params> {
        let (to, (def, arrays)) = (to.into(), tree.flatten());
        let keys = KeyMap::new(def)?;
        let upload = |(leaf, array): (&Leaf, HostArray)| {
            client.put_on(&array, &to).map(Array::from).for_tensor(&leaf.name)
        };
        let arrays = keys.leaves().iter().zip(arrays).map(upload).collect::<Result<_>>()?;
        Ok(Params::from_parts(keys, arrays))
    }

    /// The arrays on the host, in the same tree. Blocks until they are there.
    ///
    /// # Errors
    /// The first failure, naming its leaf.
    pub fn to_host(&self) -> Result<Tree<HostArray>> {
        let arrays = self.iter().map(|(name, array)| array.to_host().for_tensor(name));
        Tree::unflatten(self.keys.def().clone(), arrays.collect::<Result<Vec<_>>>()?)
    }

    /// Blocks until every array's content is there.
    ///
    /// # Errors
    /// The first failure, naming its tensor.
    pub fn wait(&self) -> Result<()> {
        self.iter().try_for_each(|(name, array)| array.wait().for_tensor(name))
    }

    /// As [`Params::wait`], for so long at most.
    ///
    /// # Errors
    /// As for [`Params::wait`]; [`crate::Error::TimeLimit`], naming the tensor that was waited for.
    pub fn wait_for(&self, limit: Duration) -> Result<()> {
        let started = Instant::now();
        self.iter().try_for_each(|(name, array)| {
            let rest = limit.saturating_sub(started.elapsed());
            array.wait_for(rest).map_err(|error| error.after(limit)).for_tensor(name)
        })
    }

    /// Starts copying every leaf to another device or memory of its client.
    ///
    /// # Errors
    /// The first failure, naming its leaf.
    pub fn copy_to(&self, to: impl Into<Placement>) -> Result<Params> {
        let to = to.into();
        self.map(|_, array| array.copy_to(&to))
    }
}

impl<A> Default for ParamTree<A> {
    fn default() -> ParamTree<A> {
        ParamTree {
            keys: KeyMap::default(),
            arrays: Vec::new(),
            metadata: BTreeMap::new(),
            framework: Framework::default(),
        }
    }
}

impl<A: DeviceArray> fmt::Debug for ParamTree<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Params({})", self.tree().summary)
    }
}

impl<A: DeviceArray> fmt::Display for ParamTree<A> {
    /// Draws the tree.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tree().fmt(f)
    }
}
