//! What the writers of other formats than safetensors take.

use crate::array::ArraySpec;
use crate::error::Result;
use crate::tree::KeyMap;

/// A tree of arrays that are written one after another.
pub(crate) trait Leaves {
    /// The tree and the names of its leaves.
    fn keys(&self) -> &KeyMap;

    /// The types and shapes that are written, in JAX's order.
    fn specs(&self) -> &[ArraySpec];

    /// Passes the bytes of a leaf on, once, sub-byte elements in a byte each.
    ///
    /// # Errors
    /// When the leaf cannot be read, naming it; those of `take`.
    fn with_bytes(&mut self, index: usize, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;

    /// Takes down what the format cannot hold, and how it is held instead.
    fn note(&mut self, note: String);

    /// The name of a leaf on disk.
    fn name(&self, index: usize) -> &str {
        &self.keys().leaves()[index].name
    }
}
