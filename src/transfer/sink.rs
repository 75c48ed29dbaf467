//! Where the buffers of a load are collected.

use std::sync::OnceLock;

use crate::error::{Context, Error, Result};
use crate::monitor::Tracker;
use crate::plan::{LoadPlan, Step};

/// The plan of a load, and the buffers that are there already.
pub struct Sink<'a, B> {
    pub plan: &'a LoadPlan,
    pub tracker: &'a Tracker<'a>,
    buffers: Vec<OnceLock<B>>,
}

impl<'a, B> Sink<'a, B> {
    pub fn new(plan: &'a LoadPlan, tracker: &'a Tracker<'a>) -> Sink<'a, B> {
        Sink { plan, tracker, buffers: plan.steps.iter().map(|_| OnceLock::new()).collect() }
    }

    /// Takes the buffer of a tensor whose bytes have all been read.
    pub fn deliver(&self, step: usize, buffer: B) {
        // A step is carried out once.
        let _ = self.buffers[step].set(buffer);
        let step = &self.plan.steps[step];
        self.tracker.progressed(&step.name, step.bytes as u64);
    }

    /// How much there is so far, for an error: what was delivered goes with the sink.
    pub fn so_far(&self) -> String {
        let there = || self.plan.steps.iter().zip(&self.buffers).filter(|(_, buffer)| buffer.get().is_some());
        let bytes = |steps: &mut dyn Iterator<Item = &Step>| steps.map(|step| step.bytes as u64).sum::<u64>();
        format!(
            "; {} of {} tensors ({} of {} bytes) had been loaded, and were released",
            there().count(),
            self.plan.steps.len(),
            bytes(&mut there().map(|(step, _)| step)),
            bytes(&mut self.plan.steps.iter()),
        )
    }

    /// The buffers, in the order of the tree's leaves.
    ///
    /// # Errors
    /// [`Error::Undelivered`], naming the tensor that nobody delivered.
    pub fn into_buffers(self) -> Result<Vec<B>> {
        let buffers = self.buffers.into_iter().zip(&self.plan.steps);
        buffers
            .map(|(buffer, step)| buffer.into_inner().ok_or(Error::Undelivered).for_tensor(&step.name))
            .collect()
    }
}
