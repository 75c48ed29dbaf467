//! Where the buffers of a load are collected.

use std::sync::OnceLock;

use super::plan::LoadPlan;
use crate::monitor::Tracker;
use crate::pjrt::{Buffer, Client, Placement};

/// The plan of a load, where it goes, and the buffers that are there already.
pub struct Sink<'a> {
    pub client: &'a Client,
    pub plan: &'a LoadPlan,
    pub to: &'a Placement,
    pub tracker: &'a Tracker<'a>,
    buffers: Vec<OnceLock<Buffer>>,
}

impl<'a> Sink<'a> {
    pub fn new(
        client: &'a Client,
        plan: &'a LoadPlan,
        to: &'a Placement,
        tracker: &'a Tracker<'a>,
    ) -> Sink<'a> {
        Sink { client, plan, to, tracker, buffers: plan.steps.iter().map(|_| OnceLock::new()).collect() }
    }

    /// Takes the buffer of a tensor whose bytes have all been read.
    pub fn deliver(&self, step: usize, buffer: Buffer) {
        // A step is carried out once.
        let _ = self.buffers[step].set(buffer);
        let step = &self.plan.steps[step];
        self.tracker.progressed(&step.name, step.range.len() as u64);
    }

    /// The buffers, in the order of the tree's leaves.
    pub fn into_buffers(self) -> Vec<Buffer> {
        self.buffers.into_iter().filter_map(OnceLock::into_inner).collect()
    }
}
