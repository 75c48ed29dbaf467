//! The stream: blocks are read into a ring of staging chunks, and on their way to the device while the next ones
//! are read.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::blocks::{Block, Piece};
use super::fill::{Filler, timed};
use super::plan::{LoadPlan, PLACE_ALIGNMENT, Route};
use super::ring::{Lease, Ring, Staging};
use super::sink::Sink;
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::error::{Context, Error, Result};
use crate::pjrt::{Buffer, Client, HostSemantics, Memory, Piece as Last, Placement, TransferManager};

/// The ring and the transfers of a load. Dropping it waits until the device is done with the ring.
pub struct Stream {
    client: Client,
    to: Placement,
    ring: Arc<Ring>,
    memory: Option<Memory>,
    /// Begun with the first block that belongs to them.
    groups: Vec<Mutex<Option<Group>>>,
}

/// Tensors that are allocated, and filled piece by piece, together.
struct Group {
    manager: TransferManager,
    buffers: Vec<Buffer>,
    /// Bytes that are still to be passed on, by slot.
    missing: Vec<usize>,
}

impl Drop for Group {
    fn drop(&mut self) {
        let unfilled = self.missing.iter().enumerate().filter(|(_, missing)| **missing > 0);
        for (slot, _) in unfilled {
            // Nobody is to wait for ever for a buffer whose load was given up.
            if let Err(error) = self.manager.fail_buffer(slot, "the load was given up") {
                tracing::debug!(%error, "a buffer that was not filled could not be failed");
            }
        }
    }
}

/// Whether this memory's buffers can be filled piece by piece with row-major bytes: the plugin has transfer
/// managers, and lays elements out as the host does. Tried with a buffer, since only that has a layout.
pub fn has_pieces(client: &Client, memory: Option<&Memory>) -> bool {
    let Some(memory) = memory else { return false };
    let spec = ArraySpec::new(DType::F32, [3, 5]);
    let attempt = || -> Result<bool> {
        let manager = client.transfer_manager(std::slice::from_ref(&spec), memory)?;
        let buffer = manager.take_buffer(0)?;
        let bytes = manager.buffer_bytes(0)?;
        let is_row_major = bytes == spec.host_bytes()? && buffer.is_row_major()?;
        manager.transfer(0, 0, Bytes::from(vec![0; bytes]), Last::Last)?.wait()?;
        Ok(is_row_major)
    };
    client.has_transfer_manager()
        && attempt().unwrap_or_else(|error| {
            tracing::debug!(%error, "buffers are not filled piece by piece");
            false
        })
}

/// The memory that a placement stands for.
pub fn memory_of(to: &Placement) -> Option<Memory> {
    match to {
        Placement::Device(device) => device.default_memory(),
        Placement::Memory(memory) => Some(memory.clone()),
    }
}

impl Stream {
    pub fn new(client: &Client, to: &Placement, plan: &LoadPlan, staging: Staging) -> Stream {
        let groups = plan.groups.iter().map(|_| Mutex::new(None)).collect();
        let ring = Ring::new(Some(client), staging);
        Stream { client: client.clone(), to: to.clone(), ring, memory: memory_of(to), groups }
    }

    /// Whether the chunks are registered with the device.
    pub fn is_registered(&self) -> bool {
        self.ring.is_registered()
    }

    /// Reads a block, and passes its pieces on.
    pub fn carry(&self, sink: &Sink<'_, Buffer>, block: &Block, filler: &mut Filler<'_>) -> Result<()> {
        // Even what is in memory goes through the ring: the device may read on when the load is over, and the file's map
        // is not to be needed then.
        let bytes = read_staged(&self.ring, block, filler)?;
        pass_on(sink, block, bytes, filler, |piece, bytes| match block.route {
            Route::Whole => self.pass_whole(sink, piece, bytes),
            _ => self.pass_piece(sink, piece, bytes),
        })
    }

    fn pass_whole(&self, sink: &Sink<'_, Buffer>, piece: &Piece, bytes: Bytes) -> Result<Option<Buffer>> {
        let spec = &sink.plan.steps[piece.step].spec;
        self.client.buffer_from_host(spec, bytes, &self.to, HostSemantics::Copy).map(Some)
    }

    /// Passes a piece on; returns the buffer when it was the last.
    fn pass_piece(&self, sink: &Sink<'_, Buffer>, piece: &Piece, bytes: Bytes) -> Result<Option<Buffer>> {
        let step = &sink.plan.steps[piece.step];
        // Held across the transfer, since the last piece must be passed on after all others.
        let mut group = self.groups[step.group].lock().unwrap_or_else(PoisonError::into_inner);
        let group = match &mut *group {
            Some(group) => group,
            empty => empty.insert(self.begin(sink, step.group)?),
        };
        let missing = group.missing[step.slot] - bytes.len();
        let which = if missing == 0 { Last::Last } else { Last::Part };
        // Dropping the transfer leaves the bytes to it; its outcome is the buffer's.
        drop(group.manager.transfer(step.slot, piece.target.start, bytes, which)?);
        group.missing[step.slot] = missing;
        Ok((missing == 0).then(|| group.buffers[step.slot].clone()))
    }

    /// Allocates the buffers of a group.
    fn begin(&self, sink: &Sink<'_, Buffer>, index: usize) -> Result<Group> {
        let steps: Vec<_> = sink.plan.groups[index].iter().map(|&step| &sink.plan.steps[step]).collect();
        let specs: Vec<ArraySpec> = steps.iter().map(|step| step.spec.clone()).collect();
        let Some(memory) = &self.memory else {
            return Err(Error::InvalidArgument("the device has no memory to fill piece by piece".into()));
        };
        let manager = self.client.transfer_manager(&specs, memory)?;
        let mut group = Group { manager, buffers: Vec::with_capacity(steps.len()), missing: Vec::new() };
        group.missing = steps.iter().map(|step| step.device_bytes).collect();
        for (slot, step) in steps.iter().enumerate() {
            let bytes = group.manager.buffer_bytes(slot).for_tensor(&step.name)?;
            if bytes != step.device_bytes {
                return Err(Error::InvalidArgument(format!(
                    "the device holds {} in {bytes} bytes, not {}, so that it cannot be filled piece by piece; \
                     load it with Delivery::Whole",
                    step.spec, step.device_bytes
                )))
                .for_tensor(&step.name);
            }
            group.buffers.push(group.manager.take_buffer(slot).for_tensor(&step.name)?);
        }
        Ok(group)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Buffers that will not be filled are failed first.
        self.groups.clear();
        self.ring.drain();
    }
}

/// Passes the bytes of a block's pieces on, and delivers the buffers of which that was the last.
pub fn pass_on<B>(
    sink: &Sink<'_, B>,
    block: &Block,
    bytes: Vec<Bytes>,
    filler: &mut Filler<'_>,
    pass: impl Fn(&Piece, Bytes) -> Result<Option<B>>,
) -> Result<()> {
    for (piece, bytes) in block.pieces.iter().zip(bytes) {
        sink.tracker.check()?;
        let name = &sink.plan.steps[piece.step].name;
        let passed = timed(&mut filler.spent.pass, || pass(piece, bytes)).for_tensor(name)?;
        if let Some(buffer) = passed {
            sink.deliver(piece.step, buffer);
        }
    }
    Ok(())
}

/// The bytes of a block's pieces, in a chunk that goes back to the ring when the last of them is dropped.
///
/// # Errors
/// As for [`Filler::fill`].
pub fn read_staged(ring: &Arc<Ring>, block: &Block, filler: &mut Filler<'_>) -> Result<Vec<Bytes>> {
    let mut lease = timed(&mut filler.spent.wait, || ring.take(block.bytes))?;
    filler.fill(block, &mut places(&mut lease, block))?;
    let chunk = Bytes::from_owner(lease);
    let mut start = 0;
    let slice = |piece: &Piece| {
        let bytes = chunk.slice(start..start + piece.target.len());
        start += piece.place();
        bytes
    };
    Ok(block.pieces.iter().map(slice).collect())
}

/// The places of a block's pieces in a chunk.
fn places<'a>(lease: &'a mut Lease, block: &Block) -> Vec<&'a mut [u8]> {
    debug_assert!(lease.as_ptr().addr().is_multiple_of(PLACE_ALIGNMENT));
    let mut rest: &mut [u8] = lease;
    let mut places = Vec::with_capacity(block.pieces.len());
    for piece in &block.pieces {
        let (place, next) = std::mem::take(&mut rest).split_at_mut(piece.place());
        places.push(&mut place[..piece.target.len()]);
        rest = next;
    }
    places
}
