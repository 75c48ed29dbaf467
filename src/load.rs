//! From a checkpoint to a device: a plan is made first, then carried out, then reported.

mod plan;

use bytes::Bytes;

pub use plan::{LoadPlan, Route, Step, Target};

use crate::checkpoint::Checkpoint;
use crate::error::{Context, Result};
use crate::params::Params;
use crate::pjrt::{Buffer, Client, HostSemantics, Placement};
use crate::sub_byte;

/// XLA:CPU uses host memory in place only at this alignment, in bytes (`cpu_function_runtime::MinAlign`).
const CPU_ALIAS_ALIGNMENT: usize = 64;

/// How a checkpoint is loaded.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct LoadOptions {
    /// Where the buffers go; the client's first device if `None`.
    pub to: Option<Placement>,
    /// Whether buffers may use the file's memory map in place.
    pub sharing: Sharing,
}

impl LoadOptions {
    /// Puts the buffers on this device or memory.
    pub fn to(mut self, placement: impl Into<Placement>) -> LoadOptions {
        self.to = Some(placement.into());
        self
    }

    /// Says whether buffers may use the file's memory map in place.
    pub fn sharing(mut self, sharing: Sharing) -> LoadOptions {
        self.sharing = sharing;
        self
    }
}

/// Whether buffers may use the file's memory map in place, where the platform can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sharing {
    /// They may: nothing is copied, and the file must not be overwritten in place while they live.
    #[default]
    Allowed,
    /// They may not: what happens to the file after loading does not matter.
    Never,
}

/// What a load did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[non_exhaustive]
pub struct LoadReport {
    /// Tensors that were loaded.
    pub tensors: usize,
    /// Their bytes in the file.
    pub bytes: u64,
    /// Tensors that use the file's memory map in place.
    pub aliased_tensors: usize,
    /// Their bytes.
    pub aliased_bytes: u64,
    /// Tensors that were copied.
    pub copied_tensors: usize,
    /// Their bytes.
    pub copied_bytes: u64,
}

/// Loads a checkpoint, and reports how.
pub(crate) fn load(
    client: &Client,
    checkpoint: &Checkpoint,
    options: &LoadOptions,
) -> Result<(Params, LoadReport)> {
    let to = match &options.to {
        Some(placement) => placement.clone(),
        None => Placement::from(&client.device(0)?),
    };
    let target = Target {
        alias_alignment: (options.sharing == Sharing::Allowed).then(|| alias_alignment(client)).flatten(),
    };
    let plan = LoadPlan::new(checkpoint.tensors(), checkpoint.data().as_ptr() as usize, target);
    let mut report = LoadReport::default();
    let mut leaves = Vec::with_capacity(plan.steps.len());
    for step in &plan.steps {
        let bytes = checkpoint.data().slice(step.range.clone());
        let buffer = carry_out(client, step, bytes.clone(), &to).for_tensor(&step.name)?;
        report.add(step, step.route == Route::Alias && is_in_place(&buffer, &bytes));
        leaves.push((step.name.clone(), buffer));
    }
    tracing::debug!(origin = checkpoint.origin(), ?report, "loaded");
    let params = Params::from_buffers(leaves).map_err(|error| named(error, checkpoint.origin()))?;
    Ok((params.with_metadata(checkpoint.metadata().clone()), report))
}

/// What host memory must be aligned to for the client to use it in place; `None` where it never does.
fn alias_alignment(client: &Client) -> Option<usize> {
    (client.platform_name() == "cpu").then_some(CPU_ALIAS_ALIGNMENT)
}

fn carry_out(client: &Client, step: &Step, bytes: Bytes, to: &Placement) -> Result<Buffer> {
    match step.route {
        Route::Alias => client.buffer_from_host(&step.spec, bytes, to, HostSemantics::Alias),
        Route::Copy => client.buffer_from_host(&step.spec, bytes, to, HostSemantics::Copy),
        Route::Unpack => {
            let unpacked = sub_byte::unpack(&bytes, step.spec.dtype);
            client.buffer_from_host(&step.spec, unpacked.into(), to, HostSemantics::Copy)
        }
    }
}

/// Whether the buffer really uses these bytes: a plugin may copy although it was told that it need not.
fn is_in_place(buffer: &Buffer, bytes: &Bytes) -> bool {
    buffer
        .external_reference()
        .is_ok_and(|reference| reference.as_ptr().cast_const() == bytes.as_ptr().cast())
}

/// Names the file in an error about its names.
fn named(error: crate::Error, origin: &str) -> crate::Error {
    match error {
        crate::Error::Tree(problem) => crate::Error::Tree(format!("in {origin}, {problem}")),
        other => other,
    }
}

impl LoadReport {
    fn add(&mut self, step: &Step, in_place: bool) {
        let bytes = step.range.len() as u64;
        self.tensors += 1;
        self.bytes += bytes;
        let (tensors, sum) = if in_place {
            (&mut self.aliased_tensors, &mut self.aliased_bytes)
        } else {
            (&mut self.copied_tensors, &mut self.copied_bytes)
        };
        *tensors += 1;
        *sum += bytes;
    }
}
