//! The arena: aligned host memory that is filled in parallel, and that buffers use in place, each as soon as its
//! own bytes are there.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::block_reader::{BlockReader, timed};
use super::sink::Sink;
use crate::error::{Context, Error, Result};
use crate::pjrt::HostMemory;
use crate::plan::{LoadPlan, Route, Step, place};

/// The memory of a load, divided among its blocks and their tensors.
pub struct Arena {
    /// The memory of each block's pieces, until the block is read.
    blocks: Vec<Mutex<Vec<HostMemory>>>,
    /// The pieces that are there, by where they begin, of each tensor that was cut.
    cut: HashMap<usize, Mutex<Vec<(usize, HostMemory)>>>,
}

impl Arena {
    /// Reserves the memory that the plan asks for: one region a group, every tensor aligned within.
    ///
    /// # Errors
    /// [`crate::Error::HostMemory`].
    pub fn new(plan: &LoadPlan) -> Result<Arena> {
        let mut regions = Vec::with_capacity(plan.groups.len());
        for steps in &plan.groups {
            let steps = steps.iter().map(|&step| &plan.steps[step]);
            let arena = steps.filter(|step| step.route == Route::Arena);
            let bytes = arena.map(|step| place(step.device_bytes)).sum();
            regions.push(HostMemory::allocate(bytes)?);
        }
        let mut cut: HashMap<usize, Mutex<Vec<_>>> = HashMap::new();
        let blocks = plan.blocks.iter().map(|block| {
            let pieces = block.pieces.iter().filter(|_| block.route == Route::Arena).map(|piece| {
                let step = &plan.steps[piece.step];
                let region = &mut regions[step.group];
                let memory = region.split_to(piece.target.len());
                if piece.target.end == step.device_bytes {
                    // What is between two tensors is nobody's.
                    drop(region.split_to(piece.place() - piece.target.len()));
                }
                if piece.target.len() < step.device_bytes {
                    cut.entry(piece.step).or_default();
                }
                memory
            });
            Mutex::new(pieces.collect())
        });
        Ok(Arena { blocks: blocks.collect(), cut })
    }

    /// Reads a block, and makes buffers of the tensors that are complete with it.
    pub fn carry<B>(
        &self,
        sink: &Sink<'_, B>,
        index: usize,
        reader: &mut BlockReader<'_>,
        make: impl Fn(&Step, HostMemory) -> Result<B>,
    ) -> Result<()> {
        let block = &sink.plan.blocks[index];
        let mut memory =
            std::mem::take(&mut *self.blocks[index].lock().unwrap_or_else(PoisonError::into_inner));
        reader.fill(block, &mut memory.iter_mut().map(|memory| &mut **memory).collect::<Vec<_>>())?;
        for (piece, memory) in block.pieces.iter().zip(memory) {
            sink.tracker.check()?;
            let step = &sink.plan.steps[piece.step];
            let whole = self.complete(piece.step, piece.target.start, step.device_bytes, memory);
            let Some(memory) = whole.for_tensor(&step.name)? else { continue };
            let buffer = timed(&mut reader.stats.spent.pass, || make(step, memory)).for_tensor(&step.name)?;
            sink.deliver(piece.step, buffer);
        }
        Ok(())
    }

    /// The whole memory of a tensor once all of its pieces are there.
    ///
    /// # Errors
    /// [`Error::Undelivered`] when its pieces do not lie one after another.
    fn complete(
        &self,
        step: usize,
        start: usize,
        bytes: usize,
        piece: HostMemory,
    ) -> Result<Option<HostMemory>> {
        let Some(pieces) = self.cut.get(&step) else { return Ok(Some(piece)) };
        let mut pieces = pieces.lock().unwrap_or_else(PoisonError::into_inner);
        pieces.push((start, piece));
        if pieces.iter().map(|(_, piece)| piece.len()).sum::<usize>() < bytes {
            return Ok(None);
        }
        pieces.sort_by_key(|(start, _)| *start);
        let mut pieces = pieces.drain(..).map(|(_, piece)| piece);
        let mut whole = pieces.next().ok_or(Error::Undelivered)?;
        for piece in pieces {
            // They were split off one region, one after another.
            whole.join(piece).map_err(|_| Error::Undelivered)?;
        }
        Ok(Some(whole))
    }
}
