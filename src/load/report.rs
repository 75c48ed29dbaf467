//! What a load did.

use std::fmt;
use std::time::Duration;

use crate::plan::{LoadPlan, Route};
use crate::store::Io;
use crate::transfer::ThreadTimes;
use crate::tree::Framework;

/// What a load did. Printed, it says where the time went.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize)]
#[non_exhaustive]
pub struct LoadReport {
    /// The framework whose names these are: as it was given, recorded or recognised.
    pub framework: Framework,
    /// Whether the tree came from a structure record, rather than from the names.
    pub has_record: bool,
    /// Tensors that were loaded.
    pub tensors: usize,
    /// The bytes of their elements, before anything is done to them.
    pub bytes: u64,
    /// Tensors that use the file's memory map in place; over several devices, parts of them.
    pub aliased_tensors: usize,
    /// Their bytes.
    pub aliased_bytes: u64,
    /// Tensors that were copied, whether into an arena or through the staging ring; over several devices, parts of them.
    pub copied_tensors: usize,
    /// Their bytes.
    pub copied_bytes: u64,
    /// Bytes of those that were read into an arena, which the device uses in place.
    pub arena_bytes: u64,
    /// Bytes of those that were streamed, whole or in pieces, from the staging ring or from memory.
    pub streamed_bytes: u64,
    /// Tensors whose elements were cast.
    pub cast_tensors: usize,
    /// Tensors whose digests were checked.
    pub checked_tensors: usize,
    /// How the bytes that were copied were read.
    pub io: Io,
    /// Threads that read.
    pub threads: usize,
    /// Whether staging chunks were registered with the device.
    pub is_registered: bool,
    /// Where the time went.
    pub seconds: LoadSeconds,
}

/// Where the time of a load went, in seconds. All but the first two are sums over the threads.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize)]
#[non_exhaustive]
pub struct LoadSeconds {
    /// From the call until the load returned.
    pub total: f64,
    /// Reading names, making the tree and the plan.
    pub plan: f64,
    /// Reading.
    pub read: f64,
    /// Checking digests.
    pub check: f64,
    /// Casting and unpacking.
    pub change: f64,
    /// Passing bytes to the plugin.
    pub pass: f64,
    /// Waiting for a staging chunk.
    pub wait: f64,
}

impl LoadReport {
    /// The report of a plan that was carried out; `not_in_place` of its tensors to be used in
    /// place, and their bytes, were copied.
    pub(super) fn new(plan: &LoadPlan, not_in_place: (usize, u64)) -> LoadReport {
        let (tensors, bytes) =
            (plan.steps.len(), plan.steps.iter().map(|step| step.bytes as u64).sum::<u64>());
        let (aliased_tensors, aliased_bytes) = plan.sum(Route::Alias);
        let (aliased_tensors, aliased_bytes) =
            (aliased_tensors - not_in_place.0, aliased_bytes - not_in_place.1);
        LoadReport {
            tensors,
            bytes,
            aliased_tensors,
            aliased_bytes,
            copied_tensors: tensors - aliased_tensors,
            copied_bytes: bytes - aliased_bytes,
            arena_bytes: plan.sum(Route::Arena).1,
            streamed_bytes: [Route::Stream, Route::Packed, Route::Whole]
                .map(|route| plan.sum(route).1)
                .iter()
                .sum(),
            cast_tensors: plan.cast_steps().count(),
            io: plan.io,
            ..LoadReport::default()
        }
    }

    pub(super) fn add_times(&mut self, plan: Duration, total: Duration, spent: ThreadTimes) {
        self.seconds = LoadSeconds {
            total: total.as_secs_f64(),
            plan: plan.as_secs_f64(),
            read: spent.read.as_secs_f64(),
            check: spent.check.as_secs_f64(),
            change: spent.change.as_secs_f64(),
            pass: spent.pass.as_secs_f64(),
            wait: spent.wait.as_secs_f64(),
        };
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = |label: &str, bytes: u64| format!("{label:14} {bytes} bytes\n");
        let milliseconds = |label: &str, seconds: f64| format!("{label:14} {:.3} ms\n", seconds * 1e3);
        let LoadSeconds { total, plan, read, check, change, pass, wait } = self.seconds;
        f.write_str(&bytes("in place:", self.aliased_bytes))?;
        f.write_str(&bytes("arena:", self.arena_bytes))?;
        f.write_str(&bytes("streamed:", self.streamed_bytes))?;
        writeln!(f, "{:14} {}, {} threads", "read by:", self.io, self.threads)?;
        f.write_str(&milliseconds("total:", total))?;
        f.write_str(&milliseconds("plan:", plan))?;
        let of_threads =
            [("read:", read), ("check:", check), ("change:", change), ("pass on:", pass), ("wait:", wait)];
        let spent: String = of_threads
            .iter()
            .filter(|(_, seconds)| *seconds > 0.0)
            .map(|(label, seconds)| milliseconds(label, *seconds))
            .collect();
        f.write_str(&spent)
    }
}
