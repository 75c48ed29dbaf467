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
//! let arguments: Vec<&xla::PjRtBuffer> = params.arrays().iter().map(|leaf| &**leaf).chain([&x]).collect();
//! let outputs = dense.execute_b(&arguments)?;
//!
//! params.save("copy.safetensors")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod device;
mod element;
mod supply;

use std::borrow::Borrow;
use std::collections::HashMap;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use ::xla::{PjRtBuffer, PjRtClient, PjRtDevice, XlaBuilder, XlaOp};

pub use element::{from_element_type, to_element_type};

use crate::array::ArraySpec;
use crate::device_array::DeviceArray;
use crate::error::{Context, Error, Result};
use crate::format::Checkpoint;
use crate::load::{LoadOptions, LoadReport, PlannedLoad};
use crate::params::ParamTree;
use crate::save::SaveOptions;
use device::XlaDestination;
use supply::XlaSupply;

/// A tree of arrays on a device of the `xla` crate's, in JAX's order.
pub type XlaParams = ParamTree<XlaBuffer>;

/// An array on a device of the `xla` crate's, with its type and shape. Borrowed, or dereferenced, it is the crate's own.
///
/// Cheap to clone: clones share the buffer.
#[derive(Clone)]
pub struct XlaBuffer {
    buffer: Arc<PjRtBuffer>,
    spec: ArraySpec,
}

impl XlaBuffer {
    /// A buffer of the crate's.
    ///
    /// # Errors
    /// [`Error::Xla`] when it is a tuple, or of a type that the crate does not have.
    pub fn new(buffer: PjRtBuffer) -> Result<XlaBuffer> {
        let spec = element::spec_of(&buffer)?;
        Ok(XlaBuffer { buffer: Arc::new(buffer), spec })
    }
}

impl DeviceArray for XlaBuffer {
    fn spec(&self) -> &ArraySpec {
        &self.spec
    }
}

impl Deref for XlaBuffer {
    type Target = PjRtBuffer;
    fn deref(&self) -> &PjRtBuffer {
        &self.buffer
    }
}

impl Borrow<PjRtBuffer> for XlaBuffer {
    fn borrow(&self) -> &PjRtBuffer {
        self
    }
}

// So that the crate's calls take references of these, too.
impl Borrow<PjRtBuffer> for &XlaBuffer {
    fn borrow(&self) -> &PjRtBuffer {
        self
    }
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
        let planned = PlannedLoad::new(checkpoint, options, || device::target(options.transfer))?;
        let (params, report) =
            planned.carry_out(|plan| XlaDestination::new(client, device, plan, options.transfer))?;
        Ok((params.try_convert(XlaBuffer::new)?, report))
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
        let buffers = self.arrays();
        self.write_from(path.as_ref(), options, |dtypes| XlaSupply { buffers, dtypes })
    }

    /// The bytes of a safetensors file of these parameters.
    ///
    /// # Errors
    /// As for [`XlaParams::save`].
    pub fn serialize(&self) -> Result<Vec<u8>> {
        let buffers = self.arrays();
        self.bytes_from(&SaveOptions::default(), |dtypes| XlaSupply { buffers, dtypes })
    }

    /// The buffers of these leaves, in this order, for computations that take them in another order than JAX's.
    ///
    /// # Errors
    /// [`Error::NotFound`] with the names that look alike.
    pub fn in_order<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Result<Vec<&PjRtBuffer>> {
        names.into_iter().map(|name| self.get(name).map(Deref::deref)).collect()
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
        let leaves = self.iter().map(|(name, buffer)| (name, &buffer.spec));
        (first..).zip(leaves).map(|leaf| declare(leaf).for_tensor(leaf.1.0)).collect()
    }
}
