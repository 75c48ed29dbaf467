//! What a call is given: arrays on the device or the host, and trees of them.

use crate::array::{ArraySpec, HostArray};
use crate::device_array::Array;
use crate::error::Error;
use crate::params::Params;
use crate::pjrt::{Buffer, Device};
use crate::tree::{Framework, Tree};

/// An array or a tree of arrays as an argument of a call.
///
/// Nothing that is only referred to is ever donated; see [`Donate`].
pub trait Argument {
    /// Appends the leaves, in order.
    fn append_leaves<'a>(&'a self, leaves: &mut Vec<LeafArgument<'a>>);
}

/// One array of an argument.
#[derive(Debug, Clone, Copy)]
pub struct LeafArgument<'a> {
    /// Its name within the argument, if that is a tree.
    pub name: Option<&'a str>,
    /// The array.
    pub array: ArrayArgument<'a>,
    /// Whether the call may use up its memory.
    pub is_donated: bool,
}

/// Where an array of an argument is.
#[derive(Debug, Clone, Copy)]
pub enum ArrayArgument<'a> {
    /// On a device.
    Device(&'a Buffer),
    /// On several devices.
    Sharded(&'a Array),
    /// On the host: each call copies it to the device first.
    Host(&'a HostArray),
}

impl<'a> LeafArgument<'a> {
    /// A buffer without a name.
    pub fn buffer(buffer: &'a Buffer) -> LeafArgument<'a> {
        LeafArgument { name: None, array: ArrayArgument::Device(buffer), is_donated: false }
    }

    /// An array without a name.
    pub fn array(array: &'a Array) -> LeafArgument<'a> {
        let place = array.as_one().map_or(ArrayArgument::Sharded(array), ArrayArgument::Device);
        LeafArgument { name: None, array: place, is_donated: false }
    }

    /// The same leaf under a name.
    pub fn named(self, name: &'a str) -> LeafArgument<'a> {
        LeafArgument { name: Some(name), ..self }
    }

    /// The array's type and shape.
    pub fn spec(&self) -> &'a ArraySpec {
        match self.array {
            ArrayArgument::Device(buffer) => buffer.spec(),
            ArrayArgument::Sharded(array) => array.spec(),
            ArrayArgument::Host(array) => array.spec(),
        }
    }

    /// Why the array cannot be used any more, if its buffer is deleted or used up.
    pub(super) fn gone(&self) -> Option<Error> {
        match self.array {
            ArrayArgument::Device(buffer) => buffer.check_alive().err(),
            ArrayArgument::Sharded(array) => array.check_alive().err(),
            ArrayArgument::Host(_) => None,
        }
    }

    /// The device that the array is on, if that is another than this one.
    pub(super) fn other_device(&self, device: &Device) -> Option<Device> {
        match self.array {
            ArrayArgument::Device(buffer) if !buffer.is_on(device) => buffer.device().ok(),
            _ => None,
        }
    }
}

impl Argument for Buffer {
    fn append_leaves<'a>(&'a self, leaves: &mut Vec<LeafArgument<'a>>) {
        leaves.push(LeafArgument::buffer(self));
    }
}

/// Each call copies the array to the device.
impl Argument for HostArray {
    fn append_leaves<'a>(&'a self, leaves: &mut Vec<LeafArgument<'a>>) {
        leaves.push(LeafArgument { name: None, array: ArrayArgument::Host(self), is_donated: false });
    }
}

impl Argument for Params {
    fn append_leaves<'a>(&'a self, leaves: &mut Vec<LeafArgument<'a>>) {
        let has_names = self.framework() != Framework::Equinox;
        leaves.extend(self.iter().map(|(name, array)| match LeafArgument::array(array) {
            leaf if has_names => leaf.named(name),
            leaf => leaf,
        }));
    }
}

impl<T: Argument + ?Sized> Argument for std::sync::Arc<T> {
    fn append_leaves<'a>(&'a self, leaves: &mut Vec<LeafArgument<'a>>) {
        (**self).append_leaves(leaves);
    }
}

impl Argument for Array {
    fn append_leaves<'a>(&'a self, leaves: &mut Vec<LeafArgument<'a>>) {
        leaves.push(LeafArgument::array(self));
    }
}

/// The leaves are bound by their order. What is on the host is copied to the device by each call.
impl<T: Argument> Argument for Tree<T> {
    fn append_leaves<'a>(&'a self, leaves: &mut Vec<LeafArgument<'a>>) {
        self.leaves().append_leaves(leaves);
    }
}

impl<T: Argument> Argument for [T] {
    fn append_leaves<'a>(&'a self, leaves: &mut Vec<LeafArgument<'a>>) {
        self.iter().for_each(|argument| argument.append_leaves(leaves));
    }
}

impl<T: Argument> Argument for Vec<T> {
    fn append_leaves<'a>(&'a self, leaves: &mut Vec<LeafArgument<'a>>) {
        self.as_slice().append_leaves(leaves);
    }
}

/// An argument that is given away: where the function donates it (`donate_argnums` in JAX), an output takes its
/// memory, and using a clone of it afterwards is an error that says so. Where the function does not, this is as if
/// it had only been referred to.
///
/// ```no_run
/// # fn main() -> Result<(), safejax::Error> {
/// # let (step, mut params, grads): (safejax::Function, safejax::Params, safejax::Params) = todo!();
/// use safejax::Donate;
/// params = step.call(&[&Donate(params), &grads])?.to_params();
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Donate<T>(pub T);

impl<T: Argument> Argument for Donate<T> {
    fn append_leaves<'a>(&'a self, leaves: &mut Vec<LeafArgument<'a>>) {
        let own = leaves.len();
        self.0.append_leaves(leaves);
        leaves[own..].iter_mut().for_each(|leaf| leaf.is_donated = true);
    }
}
