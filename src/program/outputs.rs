//! What a call returns: a tree of arrays, still on the device.

use std::ops::Deref;
use std::sync::Arc;

use super::argument::{Argument, LeafArgument};
use crate::array::HostArray;
use crate::device_array::{Array, ArrayTransfer};
use crate::error::{Context, Error, Result};
use crate::params::Params;

use crate::tree::{KeyMap, Tree};

/// The outputs of a call, on the device; they can be passed to the next one.
#[derive(Debug, Clone)]
pub struct Outputs {
    arrays: Vec<Array>,
    keys: Arc<KeyMap>,
}

impl Outputs {
    pub(super) fn new(arrays: Vec<Array>, keys: Arc<KeyMap>) -> Outputs {
        assert_eq!(arrays.len(), keys.len(), "a call returns a array for each leaf");
        Outputs { arrays, keys }
    }

    /// The outputs as a tree: the one that the exported function returned, or a tuple.
    pub fn to_params(&self) -> Params {
        Params::from_parts((*self.keys).clone(), self.arrays.clone())
    }

    /// The part of the outputs below a node, by its name or path: `0` for the first of a returned tuple.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is nothing there.
    pub fn subtree(&self, name: &str) -> Result<Params> {
        let (keys, range) = self.keys.subtree(name)?;
        Ok(Params::from_parts(keys, self.arrays[range].to_vec()))
    }

    /// The output of this name or path.
    ///
    /// # Errors
    /// [`Error::NotFound`] with the names that look alike.
    pub fn get(&self, name: &str) -> Result<&Array> {
        self.keys.index(name).map(|index| &self.arrays[index])
    }

    /// The only output.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when there is not exactly one.
    pub fn single(&self) -> Result<&Array> {
        match &self.arrays[..] {
            [array] => Ok(array),
            arrays => Err(Error::InvalidArgument(format!(
                "one output was expected, but the program has {}",
                arrays.len()
            ))),
        }
    }

    /// Blocks until every output is there.
    ///
    /// # Errors
    /// The error of the execution, naming the first output that it keeps from being there.
    pub fn wait(&self) -> Result<()> {
        let named = self.keys.leaves().iter().zip(&self.arrays);
        named.into_iter().try_for_each(|(leaf, array)| array.wait().for_tensor(&leaf.name))
    }

    /// Starts copying every output to the host. Does not block: the next call can run meanwhile.
    ///
    /// # Errors
    /// The first output that was donated or deleted, or that the plugin cannot copy.
    pub fn start_to_host(&self) -> Result<OutputTransfer> {
        let start = |(leaf, array): (&crate::tree::Leaf, &Array)| {
            array.start_to_host().for_tensor(&leaf.name).map(|transfer| (transfer, array.clone()))
        };
        let transfers = self.keys.leaves().iter().zip(&self.arrays).map(start).collect::<Result<_>>()?;
        Ok(OutputTransfer { keys: self.keys.clone(), transfers })
    }

    /// Copies every output to the host, and blocks until they are there.
    ///
    /// # Errors
    /// The error of the execution, or of a copy.
    pub fn to_host(&self) -> Result<Tree<HostArray>> {
        self.start_to_host()?.wait()
    }

    /// The arrays, in the program's order.
    pub fn into_arrays(self) -> Vec<Array> {
        self.arrays
    }
}

impl Deref for Outputs {
    type Target = [Array];
    fn deref(&self) -> &[Array] {
        &self.arrays
    }
}

impl Argument for Outputs {
    fn append_leaves<'a>(&'a self, leaves: &mut Vec<LeafArgument<'a>>) {
        let named = self.keys.leaves().iter().zip(&self.arrays);
        leaves.extend(named.map(|(leaf, array)| LeafArgument::array(array).named(&leaf.name)));
    }
}

/// Outputs on their way to the host. Dropping it blocks until the device has stopped writing.
#[derive(Debug)]
pub struct OutputTransfer {
    keys: Arc<KeyMap>,
    /// Each with its array, which is freed after it.
    transfers: Vec<(ArrayTransfer, Array)>,
}

impl OutputTransfer {
    /// Blocks until the outputs are on the host, and returns them in their tree.
    ///
    /// # Errors
    /// The error of the execution, or of a copy, naming the output.
    pub fn wait(self) -> Result<Tree<HostArray>> {
        let names = self.keys.leaves().iter().map(|leaf| &leaf.name);
        let finish =
            |(name, (transfer, _array)): (&String, (ArrayTransfer, Array))| transfer.wait().for_tensor(name);
        let arrays = names.zip(self.transfers).map(finish).collect::<Result<Vec<_>>>()?;
        Tree::unflatten(self.keys.def().clone(), arrays)
    }
}
