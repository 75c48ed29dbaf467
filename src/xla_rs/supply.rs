//! The bytes of a tree on a device of the `xla` crate's, for a file.

use super::XlaBuffer;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::transfer::{ByteSource, FileChange, Supply, TensorBytes};

/// Buffers on a device, to be written in these types.
pub struct XlaSupply<'a> {
    pub buffers: &'a [XlaBuffer],
    pub dtypes: Vec<DType>,
}

impl Supply for XlaSupply<'_> {
    fn supply(&self, index: usize) -> Result<TensorBytes<'_>> {
        let XlaBuffer { buffer, spec } = &self.buffers[index];
        let dims = spec.xla_dims()?;
        let copy = || {
            // A literal is laid out as the buffer is; one that is reshaped, as to its own shape, is row-major.
            let literal = buffer.to_literal_sync()?.reshape(&dims)?;
            let mut bytes = vec![0; literal.size_bytes()];
            literal.copy_untyped_to(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = copy().map_err(|error| Error::xla("copy a buffer to the host", error))?;
        if bytes.len() != spec.host_bytes()? {
            let message = format!("{spec} came back as {} bytes", bytes.len());
            return Err(Error::Xla { action: "copy a buffer to the host", message });
        }
        let change = FileChange::to_file(spec.dtype, self.dtypes[index]);
        Ok(TensorBytes { content: ByteSource::Host(bytes.into()), change })
    }

    fn is_divisible(&self, _index: usize) -> bool {
        // Every part would copy the whole.
        false
    }
}
