//! Where the buffers of a load are collected.

use std::sync::OnceLock;

use crate::error::{Context, Error, Result};
use crate::monitor::Tracker;
use crate::plan::LoadPlan;

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
