//! The host's memory, as the devices use it: what is registered for direct access, and what is being read or written.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

use crate::c_api as c;
use crate::calls::{Call, lock, plugin};
use crate::client::Client;
use crate::config::{Report, Transfers};
use crate::failure::{Failure, Result};

#[derive(Default)]
pub struct HostMemoryUse(Mutex<State>);

#[derive(Default)]
struct State {
    /// Registered memory: its end by its start.
    registered: BTreeMap<usize, usize>,
    registered_bytes: u64,
    peak_registered_bytes: u64,
    /// Memory that is being read or written.
    in_flight: Vec<Range<usize>>,
    bytes_in_flight: u64,
    peak_bytes_in_flight: u64,
    to_device: Transfers,
    from_device: Transfers,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    ToDevice,
    FromDevice,
}

impl HostMemoryUse {
    /// Counts a transfer that begins; says whether the memory is registered.
    pub fn begin(&self, memory: Range<usize>, direction: Direction) -> bool {
        let mut state = lock(&self.0);
        let bytes = memory.len() as u64;
        let before = state.registered.range(..=memory.start).next_back();
        let is_registered = memory.is_empty() || before.is_some_and(|(_, &end)| memory.end <= end);
        let transfers = match direction {
            Direction::ToDevice => &mut state.to_device,
            Direction::FromDevice => &mut state.from_device,
        };
        transfers.count += 1;
        transfers.bytes += bytes;
        transfers.unregistered_bytes += if is_registered { 0 } else { bytes };
        state.bytes_in_flight += bytes;
        state.peak_bytes_in_flight = state.peak_bytes_in_flight.max(state.bytes_in_flight);
        state.in_flight.push(memory);
        is_registered
    }

    /// Counts its end.
    pub fn end(&self, memory: &Range<usize>) {
        let mut state = lock(&self.0);
        state.bytes_in_flight -= memory.len() as u64;
        if let Some(position) = state.in_flight.iter().position(|other| other == memory) {
            state.in_flight.swap_remove(position);
        }
    }

    pub fn restart(&self) {
        let mut state = lock(&self.0);
        (state.to_device, state.from_device) = Default::default();
        state.peak_bytes_in_flight = state.bytes_in_flight;
        state.peak_registered_bytes = state.registered_bytes;
    }

    pub fn report(&self, report: &mut Report) {
        let state = lock(&self.0);
        report.to_device = state.to_device;
        report.from_device = state.from_device;
        report.registered_bytes = state.registered_bytes;
        report.peak_registered_bytes = state.peak_registered_bytes;
        report.peak_bytes_in_flight = state.peak_bytes_in_flight;
    }
}

pub fn map(args: &mut c::PJRT_Client_DmaMap_Args, _: &mut Call) -> Result<()> {
    plugin().objects.get::<Client>(args.client)?;
    if !plugin().config().has_registration {
        return Err(Failure::unimplemented("this device does not register memory"));
    }
    let (start, end) = (args.data.addr(), args.data.addr() + args.size);
    let mut state = lock(&plugin().host.0);
    let before = state.registered.range(..end).next_back();
    if args.size == 0 || before.is_some_and(|(_, &other)| other > start) {
        plugin().violation("memory is registered that is empty or was registered before");
        return Err(Failure::invalid("the memory is empty or was registered before"));
    }
    state.registered.insert(start, end);
    state.registered_bytes += args.size as u64;
    state.peak_registered_bytes = state.peak_registered_bytes.max(state.registered_bytes);
    Ok(())
}

pub fn unmap(args: &mut c::PJRT_Client_DmaUnmap_Args, _: &mut Call) -> Result<()> {
    plugin().objects.get::<Client>(args.client)?;
    let start = args.data.addr();
    let mut state = lock(&plugin().host.0);
    let Some(end) = state.registered.remove(&start) else {
        plugin().violation("memory that was never registered cannot be given back");
        return Err(Failure::invalid("the memory is not registered"));
    };
    state.registered_bytes -= (end - start) as u64;
    if state.in_flight.iter().any(|range| range.start < end && start < range.end) {
        plugin().violation("memory is given back while a transfer uses it");
    }
    Ok(())
}
