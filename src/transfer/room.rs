//! Whether a device has room for what is loaded, asked before anything is allocated: a plugin waits for seconds, in the hope
//! that somebody frees memory, before it says that there is none.

use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};
use crate::pjrt::{Device, Placement};
use crate::plan::{Change, LoadPlan, Step};

/// How long memory that was just dropped may take to come back, while work that uses it ends.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Refuses a plan that takes more than the device has free, or will have after so long.
///
/// # Errors
/// [`Error::DeviceMemory`], naming the first tensor that does not fit.
pub fn check_all(to: &[Placement], plan: &LoadPlan, patience: Duration) -> Result<()> {
    to.iter().enumerate().try_for_each(|(place, to)| check(to, place, plan, patience))
}

/// Whether a step's tensor goes to the device at this place.
fn is_for(step: &Step, place: usize) -> bool {
    step.place == place || step.copies.contains(&place)
}

fn check(to: &Placement, place: usize, plan: &LoadPlan, patience: Duration) -> Result<()> {
    let device = match to {
        Placement::Device(device) => Some(device.clone()),
        // The statistics are those of the memory that the device uses by default.
        Placement::Memory(memory) => {
            memory.devices().into_iter().find(|device| device.default_memory().as_ref() == Some(memory))
        }
    };
    let Some(device) = device else { return Ok(()) };
    let total: u64 = plan.steps.iter().filter(|step| is_for(step, place)).map(least_bytes).sum();
    let started = Instant::now();
    loop {
        let Some((free, limit)) = room(&device) else { return Ok(()) };
        if total <= free {
            return Ok(());
        }
        if total > limit || started.elapsed() >= patience {
            return refuse(&device, place, plan, free, limit);
        }
        std::thread::sleep(PATIENCE / 50);
    }
}

/// The fewest bytes that a tensor takes on a device. Sub-byte elements, which the host passes in a byte each, may be packed
/// there as they are in the file.
fn least_bytes(step: &Step) -> u64 {
    let bytes = if step.change == Change::Unpack { step.bytes } else { step.device_bytes };
    bytes as u64
}

/// Bytes that are free, and that there are; `None` where the plugin does not count them.
fn room(device: &Device) -> Option<(u64, u64)> {
    let stats = device.memory_stats().ok()?;
    let limit = u64::try_from(stats.limit_bytes?).ok().filter(|&limit| limit > 0)?;
    Some((limit.saturating_sub(stats.in_use_bytes.try_into().ok()?), limit))
}

fn refuse(device: &Device, place: usize, plan: &LoadPlan, free: u64, limit: u64) -> Result<()> {
    let mut needed = 0;
    for step in plan.order.iter().map(|&position| &plan.steps[position]).filter(|step| is_for(step, place)) {
        needed += least_bytes(step);
        if needed > free {
            let device = device.to_string();
            return Err(Error::DeviceMemory { device, needed, free, limit }).for_tensor(&step.name);
        }
    }
    Ok(())
}
