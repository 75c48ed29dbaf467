//! What carries a load to a device of a PJRT plugin: in place from the file's map or from an arena where the device uses
//! the host's memory, through the staging ring elsewhere.

use super::arena::Arena;
use super::block_reader::{BlockReader, timed};
use super::carry::Destination;
use super::options::{Delivery, Sharing, TransferOptions};
use super::room;
use super::sink::Sink;
use super::stream::{Stream, abilities, memory_of};
use crate::error::{Context, Error, Result};
use crate::format::Checkpoint;
use crate::pjrt::{Buffer, Client, HostSemantics, Placement};
use crate::plan::{Abilities, Block, LoadPlan, Route, Step};

/// XLA:CPU uses host memory in place only at this alignment, in bytes (`cpu_function_runtime::MinAlign`).
const CPU_ALIAS_ALIGNMENT: usize = 64;

/// Bytes that are read into an arena at once: large enough that the calls do not count, small enough that
/// threads end together.
const ARENA_BLOCK_BYTES: usize = 4 << 20;

/// The device or memory that a load goes to, and what that needs.
pub struct ClientDestination<'a> {
    client: &'a Client,
    to: &'a [Placement],
    checkpoint: &'a Checkpoint,
    arena: Arena,
    stream: Stream,
}

/// What the device can do, and what of it is wanted.
pub fn target(client: &Client, to: &Placement, options: TransferOptions) -> Abilities {
    let alias_alignment = match options.delivery {
        Delivery::Auto => (client.platform_name() == "cpu").then_some(CPU_ALIAS_ALIGNMENT),
        Delivery::Stream | Delivery::Whole => None,
    };
    let streams = alias_alignment.is_none() && options.delivery != Delivery::Whole;
    let (has_pieces, has_views) =
        if streams { abilities(client, memory_of(to).as_ref()) } else { (false, false) };
    Abilities {
        alias_alignment,
        use_map: options.sharing == Sharing::Allowed,
        copies_map: false,
        has_pieces,
        has_views,
        block_bytes: if alias_alignment.is_some() { ARENA_BLOCK_BYTES } else { options.staging.chunk_bytes },
    }
}

impl<'a> ClientDestination<'a> {
    /// Gets what the plan needs.
    ///
    /// # Errors
    /// [`crate::Error::HostMemory`]; [`crate::Error::DeviceMemory`], naming the tensor.
    pub fn new(
        client: &'a Client,
        to: &'a [Placement],
        checkpoint: &'a Checkpoint,
        plan: &LoadPlan,
        options: TransferOptions,
    ) -> Result<ClientDestination<'a>> {
        room::check_all(to, plan, room::PATIENCE)?;
        let (arena, stream) = (Arena::new(plan)?, Stream::new(client, to, plan, options.staging));
        Ok(ClientDestination { client, to, checkpoint, arena, stream })
    }

    fn alias(&self, sink: &Sink<'_, Buffer>, block: &Block, reader: &mut BlockReader<'_>) -> Result<()> {
        sink.tracker.check()?;
        for piece in &block.pieces {
            let step = &sink.plan.steps[piece.step];
            let [extent] = step.extents() else { return Err(Error::Undelivered).for_tensor(&step.name) };
            let data = self.checkpoint.blobs[extent.file].map();
            let data = data.ok_or(Error::Undelivered).for_tensor(&step.name)?;
            let bytes = data.slice(extent.range.clone());
            reader.check_in_place(piece, &bytes)?;
            let data = bytes.clone();
            let to = &self.to[step.place];
            let make = || self.client.buffer_from_host(&step.spec, data, to, HostSemantics::Alias);
            let buffer = timed(&mut reader.stats.spent.pass, make).for_tensor(&step.name)?;
            if !buffer.is_over(&bytes) {
                reader.stats.not_in_place.0 += 1;
                reader.stats.not_in_place.1 += bytes.len() as u64;
            }
            sink.deliver(piece.step, buffer);
        }
        Ok(())
    }
}

impl Destination for ClientDestination<'_> {
    type Buffer = Buffer;

    fn carry(&self, sink: &Sink<'_, Buffer>, index: usize, reader: &mut BlockReader<'_>) -> Result<()> {
        let block = &sink.plan.blocks[index];
        match block.route {
            Route::Empty => Ok(()),
            Route::Alias => self.alias(sink, block, reader),
            Route::Arena => self.arena.carry(sink, index, reader, |step, memory| {
                self.client.buffer_over(&step.spec, memory, &self.to[step.place])
            }),
            Route::Stream | Route::Packed | Route::Whole => self.stream.carry(sink, block, reader),
        }
    }

    fn empty(&self, step: &Step) -> Result<Buffer> {
        self.client.buffer_from_slice(&step.spec, &[], &self.to[step.place])
    }

    fn is_registered(&self) -> bool {
        self.stream.is_registered()
    }
}
