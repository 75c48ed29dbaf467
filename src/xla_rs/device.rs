//! What carries a load to a device of the `xla` crate's: whole arrays, which the crate copies during the call.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use ::xla::{Literal, PjRtBuffer, PjRtClient, PjRtDevice};

use super::element::to_element_type;
use crate::array::ArraySpec;
use crate::error::{Context, Error, Result};
use crate::plan::{Abilities, LoadPlan, Step};
use crate::transfer::{BlockReader, Destination, Ring, Sink, TransferOptions, pass_on, read_staged};

/// A device of a client.
pub struct XlaDestination<'a> {
    client: &'a PjRtClient,
    /// Its position among those that the client can use; the client's first if `None`. The crate's own handles are for
    /// one thread.
    device: Option<usize>,
    ring: Arc<Ring>,
}

/// What the crate can do.
pub fn target(options: TransferOptions) -> Abilities {
    Abilities {
        alias_alignment: None,
        use_map: false,
        copies_map: true,
        has_pieces: false,
        has_views: false,
        block_bytes: options.staging.chunk_bytes,
    }
}

impl<'a> XlaDestination<'a> {
    /// Checks that the client has the device, and types for the whole plan.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::UnsupportedDType`], naming the tensor.
    pub fn new(
        client: &'a PjRtClient,
        device: Option<&PjRtDevice<'_>>,
        plan: &LoadPlan,
        options: TransferOptions,
    ) -> Result<XlaDestination<'a>> {
        for step in &plan.steps {
            to_element_type(step.spec.dtype).for_tensor(&step.name)?;
        }
        let position = |device: &PjRtDevice<'_>| {
            let devices = client.addressable_devices();
            // Two platforms may give their devices the same numbers.
            let name = device.debug_string();
            let names: Vec<String> = devices.iter().map(PjRtDevice::debug_string).collect();
            let found = devices.iter().zip(&names).position(|(d, n)| d.id() == device.id() && *n == name);
            found.ok_or_else(|| Error::not_found("device", &name, names.iter().map(String::as_str)))
        };
        let device = device.map(position).transpose()?;
        Ok(XlaDestination { client, device, ring: Ring::new(None, options.staging) })
    }

    /// An array of these bytes, which are copied before this returns.
    fn copy(&self, spec: &ArraySpec, bytes: &[u8]) -> Result<PjRtBuffer> {
        let dtype = to_element_type(spec.dtype)?;
        // The crate multiplies dimensions without a check.
        spec.xla_dims()?;
        let devices = self.device.map(|position| (self.client.addressable_devices(), position));
        let device = devices.as_ref().map(|(devices, position)| &devices[*position]);
        let copied = if spec.dtype.is_sub_byte() {
            // The crate passes bytes on for whole elements only; a literal has a byte for each.
            Literal::create_from_shape_and_untyped_data(dtype, &spec.shape, bytes)
                .and_then(|literal| self.copy_literal(device, literal))
        } else {
            self.client.buffer_from_host_raw_bytes(dtype, bytes, &spec.shape, device)
        };
        copied.map_err(|error| Error::xla("make a buffer", error))
    }

    /// An array of a literal's elements. XLA reads the literal after its call has returned, and all that the crate has
    /// for waiting until it has is to copy them back.
    fn copy_literal(
        &self,
        device: Option<&PjRtDevice<'_>>,
        literal: Literal,
    ) -> Result<PjRtBuffer, ::xla::Error> {
        let literal = ManuallyDrop::new(literal);
        let buffer = self.client.buffer_from_host_literal(device, &literal)?;
        buffer.to_literal_sync()?;
        // After an error somebody may still read it; then it stays.
        drop(ManuallyDrop::into_inner(literal));
        Ok(buffer)
    }
}

impl Destination for XlaDestination<'_> {
    type Buffer = PjRtBuffer;

    fn carry(&self, sink: &Sink<'_, PjRtBuffer>, index: usize, reader: &mut BlockReader<'_>) -> Result<()> {
        let block = &sink.plan.blocks[index];
        let bytes = match reader.in_memory(&block.pieces)? {
            Some(bytes) => bytes,
            None => read_staged(&self.ring, block, reader)?,
        };
        pass_on(sink, block, bytes, reader, |piece, bytes| {
            self.copy(&sink.plan.steps[piece.step].spec, &bytes).map(Some)
        })
    }

    fn empty(&self, step: &Step) -> Result<PjRtBuffer> {
        let spec = &step.spec;
        self.copy(spec, &[])
    }
}
