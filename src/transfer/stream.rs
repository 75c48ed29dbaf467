//! The stream: blocks are read into a ring of staging chunks, and on their way to the device while the next ones
//! are read.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::block_reader::{BlockReader, timed};
use super::ring::{Lease, Ring, Staging};
use super::sink::Sink;
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::error::{Context, Error, ErrorCode, Result};
use crate::pjrt::{Buffer, Client, HostSemantics, Memory, Placement, TransferManager, TransferPart};
use crate::plan::{Block, LoadPlan, PLACE_ALIGNMENT, Piece, Route, Step, place};

/// The ring and the transfers of a load. Dropping it waits until the device is done with the ring.
pub struct Stream {
    client: Client,
    to: Vec<Placement>,
    ring: Arc<Ring>,
    /// Of each of these.
    memories: Vec<Option<Memory>>,
    /// Begun with the first block that belongs to them.
    groups: Vec<Mutex<Option<Group>>>,
    /// Why one of them could not be begun. Held while one is: where the device is full, a plugin waits for seconds, and
    /// one wait is enough.
    refusal: Mutex<Option<(&'static str, ErrorCode, String)>>,
}

/// Tensors that are allocated, and filled piece by piece, together.
struct Group {
    manager: TransferManager,
    buffers: Vec<Buffer>,
    /// Bytes that are still to be passed on, by slot.
    missing: Vec<usize>,
}

impl Group {
    /// Passes bytes of a buffer on.
    fn transfer(&mut self, slot: usize, offset: usize, bytes: Bytes) -> Result<()> {
        let missing = self.missing[slot] - bytes.len();
        let which = if missing == 0 { TransferPart::Last } else { TransferPart::Part };
        // Dropping the transfer leaves the bytes to it; its outcome is the buffer's.
        drop(self.manager.transfer(slot, offset, bytes, which)?);
        self.missing[slot] = missing;
        Ok(())
    }
}

/// Whether this memory's buffers can be filled piece by piece with row-major bytes, which takes a plugin that has transfer
/// managers and lays elements out as the host does; and whether they can then be views of one that was filled.
/// Tried with a buffer, since only that has a layout. Nothing is transferred: for the first byte that it has to stage
/// itself, a GPU plugin locks gigabytes of the host's memory.
pub fn abilities(client: &Client, memory: Option<&Memory>) -> (bool, bool) {
    let Some(memory) = memory else { return (false, false) };
    let spec = ArraySpec::new(DType::F32, [3, 5]);
    let pieces = || -> Result<bool> {
        let manager = client.transfer_manager(std::slice::from_ref(&spec), memory)?;
        let buffer = manager.take_buffer(0)?;
        // Only its layout is wanted; it fails with the manager.
        Ok(manager.buffer_bytes(0)? == spec.host_bytes()? && buffer.is_row_major()?)
    };
    let views = || -> Result<bool> {
        let base = client.uninitialized_buffer(&bytes_spec(64), memory)?;
        let view = base.into_views([(0, &spec)])?.pop();
        view.map_or(Ok(false), |view| view?.is_row_major())
    };
    let attempt = |what: &str, attempt: &dyn Fn() -> Result<bool>| {
        attempt().unwrap_or_else(|error| {
            tracing::debug!(%error, "{what}");
            // Of a full device nothing is known, and the load will say that it is full.
            error.code() == Some(ErrorCode::ResourceExhausted)
        })
    };
    let has_pieces =
        client.has_transfer_manager() && attempt("buffers are not filled piece by piece", &pieces);
    (has_pieces, has_pieces && attempt("buffers do not share device memory", &views))
}

/// Device memory of so many bytes.
fn bytes_spec(bytes: usize) -> ArraySpec {
    ArraySpec::new(DType::U8, [bytes])
}

/// The memory that a placement stands for.
pub fn memory_of(to: &Placement) -> Option<Memory> {
    match to {
        Placement::Device(device) => device.default_memory(),
        Placement::Memory(memory) => Some(memory.clone()),
    }
}

impl Stream {
    pub fn new(client: &Client, to: &[Placement], plan: &LoadPlan, staging: Staging) -> Stream {
        let groups = plan.groups.iter().map(|_| Mutex::new(None)).collect();
        let ring = Ring::new(Some(client), staging);
        Stream {
            client: client.clone(),
            to: to.to_vec(),
            ring,
            memories: to.iter().map(memory_of).collect(),
            groups,
            refusal: Mutex::default(),
        }
    }

    /// Whether the chunks are registered with the device.
    pub fn is_registered(&self) -> bool {
        self.ring.is_registered()
    }

    /// Reads a block, and passes its pieces on.
    pub fn carry(&self, sink: &Sink<'_, Buffer>, block: &Block, reader: &mut BlockReader<'_>) -> Result<()> {
        // Even what is in memory goes through the ring: the device may read on when the load is over, and the file's map
        // is not to be needed then.
        if block.route == Route::Packed {
            return self.carry_packed(sink, block, reader);
        }
        let bytes = read_staged(&self.ring, block, reader)?;
        pass_on(sink, block, bytes, reader, |piece, bytes| match block.route {
            Route::Whole => self.pass_whole(sink, piece, bytes),
            _ => self.pass_piece(sink, piece, bytes),
        })
    }

    /// Reads a block of small tensors, and passes on together what of it lies together on the device.
    fn carry_packed(
        &self,
        sink: &Sink<'_, Buffer>,
        block: &Block,
        reader: &mut BlockReader<'_>,
    ) -> Result<()> {
        let chunk = read_chunk(&self.ring, block, reader)?;
        let group_of = |piece: &Piece| sink.plan.steps[piece.step].group;
        let mut start = 0;
        for run in block.pieces.chunk_by(|a, b| group_of(a) == group_of(b)) {
            sink.tracker.check()?;
            let bytes = chunk.slice(start..start + run.iter().map(Piece::place).sum::<usize>());
            start += bytes.len();
            let first = &sink.plan.steps[run[0].step];
            let passed = timed(&mut reader.stats.spent.pass, || self.pass_packed(sink, first, bytes));
            for (step, buffer) in passed.for_tensor(&first.name)? {
                sink.deliver(step, buffer);
            }
        }
        Ok(())
    }

    /// Passes on tensors of a group, beginning with this one. Returns the buffers of the whole group when these were its
    /// last.
    fn pass_packed(
        &self,
        sink: &Sink<'_, Buffer>,
        first: &Step,
        bytes: Bytes,
    ) -> Result<Vec<(usize, Buffer)>> {
        let steps = || sink.plan.groups[first.group].iter().map(|&position| &sink.plan.steps[position]);
        let mut group = self.groups[first.group].lock().unwrap_or_else(PoisonError::into_inner);
        let group_here = match &mut *group {
            Some(group) => group,
            empty => {
                let end = steps().next_back().map_or(0, |last| last.offset + place(last.device_bytes));
                empty.insert(self.begin(vec![bytes_spec(end)], |_| first)?)
            }
        };
        group_here.transfer(0, first.offset, bytes)?;
        if group_here.missing[0] > 0 {
            return Ok(Vec::new());
        }
        let base = group_here.buffers.remove(0);
        *group = None;
        drop(group);
        let views = base.into_views(steps().map(|step| (step.offset, &step.spec)))?;
        let positions = sink.plan.groups[first.group].iter().copied();
        positions
            .zip(views)
            .map(|(position, view)| Ok((position, view.for_tensor(&sink.plan.steps[position].name)?)))
            .collect()
    }

    fn pass_whole(&self, sink: &Sink<'_, Buffer>, piece: &Piece, bytes: Bytes) -> Result<Option<Buffer>> {
        let Step { spec, place, .. } = &sink.plan.steps[piece.step];
        self.client.buffer_from_host(spec, bytes, &self.to[*place], HostSemantics::Copy).map(Some)
    }

    /// Passes a piece on; returns the buffer when it was the last.
    fn pass_piece(&self, sink: &Sink<'_, Buffer>, piece: &Piece, bytes: Bytes) -> Result<Option<Buffer>> {
        let step = &sink.plan.steps[piece.step];
        // Held across the transfer, since the last piece must be passed on after all others.
        let mut group = self.groups[step.group].lock().unwrap_or_else(PoisonError::into_inner);
        let group = match &mut *group {
            Some(group) => group,
            empty => {
                let steps: Vec<&Step> =
                    sink.plan.groups[step.group].iter().map(|&step| &sink.plan.steps[step]).collect();
                let specs = steps.iter().map(|step| step.spec.clone()).collect();
                empty.insert(self.begin(specs, |slot| steps[slot])?)
            }
        };
        group.transfer(step.slot, piece.target.start, bytes)?;
        Ok((group.missing[step.slot] == 0).then(|| group.buffers[step.slot].clone()))
    }

    /// Allocates the buffers of a group; says which step an error is about.
    fn begin<'a>(&self, specs: Vec<ArraySpec>, step: impl Fn(usize) -> &'a Step) -> Result<Group> {
        // All steps of a group go to one device.
        let Some(memory) = &self.memories[step(0).place] else {
            return Err(Error::InvalidArgument("the device has no memory to fill piece by piece".into()));
        };
        let mut refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((function, code, message)) = refusal.clone() {
            return Err(Error::Pjrt { function, code, message });
        }
        let manager = self.client.transfer_manager(&specs, memory).inspect_err(|error| {
            if let Error::Pjrt { function, code, message } = error {
                *refusal = Some((function, *code, message.clone()));
            }
        })?;
        drop(refusal);
        let mut group = Group { manager, buffers: Vec::with_capacity(specs.len()), missing: Vec::new() };
        group.missing = specs.iter().map(ArraySpec::host_bytes).collect::<Result<_>>()?;
        for (slot, spec) in specs.iter().enumerate() {
            let (bytes, expected) = (group.manager.buffer_bytes(slot)?, group.missing[slot]);
            if bytes != expected {
                return Err(Error::InvalidArgument(format!(
                    "the device holds {spec} in {bytes} bytes, not {expected}, so that it cannot be filled piece by \
                     piece; load it with Delivery::Whole"
                )))
                .for_tensor(&step(slot).name);
            }
            let buffer = group.manager.take_buffer(slot).for_tensor(&step(slot).name)?;
            // What was tried before the load was one buffer, and a device may lay out others otherwise.
            if !buffer.is_row_major().for_tensor(&step(slot).name)? {
                return Err(Error::InvalidArgument(format!(
                    "the device does not lay {spec} out as the host does, so that it cannot be filled piece by piece; \
                     load it with Delivery::Whole"
                )))
                .for_tensor(&step(slot).name);
            }
            group.buffers.push(buffer);
        }
        Ok(group)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Buffers that will not be filled are failed first, by their managers.
        self.groups.clear();
        self.ring.drain();
    }
}

/// Passes the bytes of a block's pieces on, and delivers the buffers of which that was the last.
pub fn pass_on<B>(
    sink: &Sink<'_, B>,
    block: &Block,
    bytes: Vec<Bytes>,
    reader: &mut BlockReader<'_>,
    pass: impl Fn(&Piece, Bytes) -> Result<Option<B>>,
) -> Result<()> {
    for (piece, bytes) in block.pieces.iter().zip(bytes) {
        sink.tracker.check()?;
        let name = &sink.plan.steps[piece.step].name;
        let passed = timed(&mut reader.stats.spent.pass, || pass(piece, bytes)).for_tensor(name)?;
        if let Some(buffer) = passed {
            sink.deliver(piece.step, buffer);
        }
    }
    Ok(())
}

/// A block's bytes, in a chunk that goes back to the ring when the last of them is dropped.
///
/// # Errors
/// As for [`BlockReader::fill`].
fn read_chunk(ring: &Arc<Ring>, block: &Block, reader: &mut BlockReader<'_>) -> Result<Bytes> {
    let lease = timed(&mut reader.stats.spent.wait, || ring.take(block.bytes));
    let mut lease = match block.pieces.first() {
        Some(piece) => lease.for_tensor(reader.name_of(piece))?,
        None => lease?,
    };
    reader.fill(block, &mut places(&mut lease, block))?;
    Ok(Bytes::from_owner(lease))
}

/// The bytes of a block's pieces, in such a chunk.
///
/// # Errors
/// As for [`BlockReader::fill`].
pub fn read_staged(ring: &Arc<Ring>, block: &Block, reader: &mut BlockReader<'_>) -> Result<Vec<Bytes>> {
    let chunk = read_chunk(ring, block, reader)?;
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
