//! Params for users of the `xla` crate: the same files, key map, plan and errors, with the arrays in an
//! [`xla::PjRtBuffer`] each, on a device of a [`xla::PjRtClient`].
//!
//! Needs the feature `xla` and an xla_extension to build against, see `docs/xla-rs.md`.
//!
//! ```no_run
//! use safejax::xla_rs::XlaParams;
//!
//! let client = xla::PjRtClient::cpu()?;
//! let params = XlaParams::load(&client, "params.safetensors")?;
//!
//! // A parameter of the computation for every leaf, in JAX's order, and one for the input.
//! let builder = xla::XlaBuilder::new("dense");
//! let leaves = params.declare(&builder, 0)?;
//! let x = builder.parameter(leaves.len() as i64, xla::ElementType::F32, &[1, 64], "x")?;
//! let bias = leaves["Dense_0.bias"].broadcast_in_dim(&[1, 10], &[1])?;
//! let y = (x.matmul(&leaves["Dense_0.kernel"])? + bias)?;
//! let dense = client.compile(&y.build()?)?;
//!
//! let x = client.buffer_from_host_buffer(&[0f32; 64], &[1, 64], None)?;
//! let arguments: Vec<&xla::PjRtBuffer> = params.buffers().iter().chain([&x]).collect();
//! let outputs = dense.execute_b(&arguments)?;
//!
//! params.save("copy.safetensors")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod device;
mod element;
mod supply;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;

use ::xla::{PjRtBuffer, PjRtClient, PjRtDevice, XlaBuilder, XlaOp};

pub use element::{from_element_type, to_element_type};

use crate::array::ArraySpec;
use crate::error::{Context, Error, Result};
use crate::format::Checkpoint;
use crate::load::{LoadOptions, LoadReport, Loaded, PlannedLoad};
use crate::save::{SaveOptions, TreeToSave};
use crate::tree::{Framework, KeyMap, Node, Tree};
use device::XlaDevice;
use supply::XlaSupply;

/// A tree of arrays on a device of the `xla` crate's, in JAX's order.
pub struct XlaParams {
    keys: KeyMap,
    buffers: Vec<PjRtBuffer>,
    specs: Vec<ArraySpec>,
    metadata: BTreeMap<String, String>,
    framework: Framework,
}

impl XlaParams {
    /// Loads a file onto the client's first device. Nothing of the file is needed after the return; on devices other than
    /// the host, transfers may still be under way, and whatever uses a buffer waits for it.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the file is not valid; an error naming the tensor whose type the `xla` crate does not
    /// have, or that the client refuses.
    pub fn load(client: &PjRtClient, path: impl AsRef<Path>) -> Result<XlaParams> {
        Ok(XlaParams::load_with(client, None, path, &LoadOptions::default())?.0)
    }

    /// Loads a file onto a device of the client, its first if `None`, and reports how. As [`XlaParams::load`].
    ///
    /// Of the options, [`LoadOptions::to`], `sharing` and `delivery` are for safejax's own clients: the first is an
    /// error here, and the others change nothing, since the crate copies whole arrays.
    ///
    /// # Errors
    /// As for [`XlaParams::load`].
    pub fn load_with(
        client: &PjRtClient,
        device: Option<&PjRtDevice<'_>>,
        path: impl AsRef<Path>,
        options: &LoadOptions,
    ) -> Result<(XlaParams, LoadReport)> {
        XlaParams::load_checkpoint(
            client,
            device,
            &Checkpoint::open_within(path, options.selection.limits)?,
            options,
        )
    }

    /// Loads a checkpoint that is open already. As [`XlaParams::load_with`].
    ///
    /// # Errors
    /// As for [`XlaParams::load`].
    pub fn load_checkpoint(
        client: &PjRtClient,
        device: Option<&PjRtDevice<'_>>,
        checkpoint: &Checkpoint,
        options: &LoadOptions,
    ) -> Result<(XlaParams, LoadReport)> {
        if let Some(placement) = &options.to {
            return Err(Error::InvalidArgument(format!(
                "LoadOptions::to is {placement:?}, a place of safejax's own client; give the xla crate's device \
                 to XlaParams::load_with instead"
            )));
        }
        let prepared = PlannedLoad::new(checkpoint, options, || device::target(options.transfer))?;
        let (loaded, report) =
            prepared.carry_out(|plan| XlaDevice::new(client, device, plan, options.transfer))?;
        let Loaded { keys, buffers, metadata, framework } = loaded;
        let params = XlaParams::from_parts(keys, buffers)?;
        Ok((XlaParams { metadata, framework, ..params }, report))
    }

    /// The parameters of this tree of buffers.
    ///
    /// # Errors
    /// [`Error::Tree`] when two leaves would have one name on disk; an error naming the leaf that is not an array.
    pub fn from_tree(tree: Tree<PjRtBuffer>) -> Result<XlaParams> {
        let (def, buffers) = tree.flatten();
        XlaParams::from_parts(KeyMap::new(def)?, buffers)
    }

    /// The tree of nested dictionaries of these buffers, named by their paths joined with `.`.
    ///
    /// # Errors
    /// [`Error::Tree`] when the names do not form a tree; an error naming the leaf that is not an array.
    pub fn from_buffers(buffers: impl IntoIterator<Item = (String, PjRtBuffer)>) -> Result<XlaParams> {
        let (names, buffers): (Vec<String>, Vec<PjRtBuffer>) = buffers.into_iter().unzip();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (keys, order) = KeyMap::place_names(Framework::Plain, &names)?;
        let mut buffers: Vec<Option<PjRtBuffer>> = buffers.into_iter().map(Some).collect();
        XlaParams::from_parts(keys, order.iter().filter_map(|&position| buffers[position].take()).collect())
    }

    fn from_parts(keys: KeyMap, buffers: Vec<PjRtBuffer>) -> Result<XlaParams> {
        let leaves = keys.leaves().iter().zip(&buffers);
        let specs = leaves.map(|(leaf, buffer)| element::spec_of(buffer).for_tensor(&leaf.name));
        let specs = specs.collect::<Result<_>>()?;
        let (metadata, framework) = (BTreeMap::new(), Framework::default());
        Ok(XlaParams { keys, buffers, specs, metadata, framework })
    }

    /// Saves to a file, atomically: the file's name stands for the old content or the new. Blocks until the bytes are
    /// on the disk.
    ///
    /// # Errors
    /// [`Error::Io`]; an error naming the tensor when its transfer fails or the format cannot hold it.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.save_with(path, &SaveOptions::default())
    }

    /// Saves to a file with options. As [`XlaParams::save`]. Every thread that writes, at most four, holds two copies of an
    /// array while it fetches it, and one until it is written: copies are all that the crate hands out.
    ///
    /// # Errors
    /// As for [`XlaParams::save`].
    pub fn save_with(&self, path: impl AsRef<Path>, options: &SaveOptions) -> Result<()> {
        let saved = self.saved();
        saved.write(&XlaSupply { params: self, dtypes: saved.dtypes(options)? }, path.as_ref(), options)
    }

    /// The bytes of a safetensors file of these parameters.
    ///
    /// # Errors
    /// As for [`XlaParams::save`].
    pub fn serialize(&self) -> Result<Vec<u8>> {
        let (saved, options) = (self.saved(), SaveOptions::default());
        saved.to_bytes(&XlaSupply { params: self, dtypes: saved.dtypes(&options)? }, &options)
    }

    fn saved(&self) -> TreeToSave<'_> {
        TreeToSave {
            keys: &self.keys,
            specs: self.specs.clone(),
            metadata: &self.metadata,
            framework: self.framework,
        }
    }

    /// The buffer of a leaf, by its name on disk, such as `params.Dense_0.kernel`, or by its path, such as
    /// `['params']['Dense_0']['kernel']`.
    ///
    /// # Errors
    /// [`Error::NotFound`] with the names that look alike.
    pub fn get(&self, name: &str) -> Result<&PjRtBuffer> {
        self.keys.index(name).map(|index| &self.buffers[index])
    }

    /// The buffers in JAX's order: that in which a function that JAX exported takes the leaves of this tree, and in
    /// which [`XlaParams::declare`] declares them.
    pub fn buffers(&self) -> &[PjRtBuffer] {
        &self.buffers
    }

    /// The buffers of these leaves, in this order, for computations that take them in another order than JAX's.
    ///
    /// # Errors
    /// [`Error::NotFound`] with the names that look alike.
    pub fn in_order<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Result<Vec<&PjRtBuffer>> {
        names.into_iter().map(|name| self.get(name)).collect()
    }

    /// Declares a parameter of a computation for every leaf, of its type and shape and with its name, in JAX's order
    /// and numbered from `first` on. Returns them by name.
    ///
    /// # Errors
    /// [`Error::Xla`] when the builder refuses one, [`Error::InvalidArgument`] for a name that holds a NUL byte, each
    /// naming the leaf.
    pub fn declare(&self, builder: &XlaBuilder, first: i64) -> Result<HashMap<String, XlaOp>> {
        let declare = |(number, (name, spec)): (i64, (&str, &ArraySpec))| -> Result<(String, XlaOp)> {
            if name.contains('\0') {
                let problem = "a parameter's name cannot hold a NUL byte; rename it with LoadOptions::rename";
                return Err(Error::InvalidArgument(problem.into()));
            }
            let dtype = to_element_type(spec.dtype)?;
            let parameter = builder.parameter(number, dtype, &spec.xla_dims()?, name);
            Ok((name.to_owned(), parameter.map_err(|error| Error::xla("declare a parameter", error))?))
        };
        let leaves = self.iter().map(|(name, _)| name).zip(&self.specs);
        (first..).zip(leaves).map(|leaf| declare(leaf).for_tensor(leaf.1.0)).collect()
    }

    /// The leaves, in JAX's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &PjRtBuffer)> {
        self.keys.leaves().iter().map(|leaf| leaf.name.as_str()).zip(&self.buffers)
    }

    /// The tree of the buffers.
    ///
    /// # Errors
    /// Never for trees that were loaded or built here.
    pub fn into_tree(self) -> Result<Tree<PjRtBuffer>> {
        Tree::unflatten(self.keys.def().clone(), self.buffers)
    }

    /// The types and shapes of the leaves, in JAX's order.
    pub fn specs(&self) -> &[ArraySpec] {
        &self.specs
    }

    /// The tree with the sums over its nodes.
    pub fn tree(&self) -> Node {
        Node::build(self.keys.def(), &mut self.specs.iter())
    }

    /// Which leaf is where and called what.
    pub fn keys(&self) -> &KeyMap {
        &self.keys
    }

    /// The strings that the file held beside the tensors.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The framework whose names these are.
    pub fn framework(&self) -> Framework {
        self.framework
    }

    /// The number of leaves.
    pub fn len(&self) -> usize {
        self.buffers.len()
    }

    /// Whether there are no leaves.
    pub fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }
}

impl fmt::Debug for XlaParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "XlaParams({})", self.tree().summary)
    }
}

impl fmt::Display for XlaParams {
    /// Draws the tree.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tree().fmt(f)
    }
}
