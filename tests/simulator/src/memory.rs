//! A device's memory: so many bytes, which the host cannot address.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use crate::c_api as c;
use crate::calls::{lock, plugin};
use crate::failure::{Failure, Result};

/// What all devices together have in use.
#[derive(Default)]
pub struct Usage(Mutex<(u64, u64)>);

impl Usage {
    fn add(&self, bytes: u64) {
        let mut usage = lock(&self.0);
        usage.0 += bytes;
        usage.1 = usage.1.max(usage.0);
    }

    fn remove(&self, bytes: u64) {
        lock(&self.0).0 -= bytes;
    }

    /// Bytes in use, and the most of them at once.
    pub fn get(&self) -> (u64, u64) {
        *lock(&self.0)
    }

    /// The most is what is in use now.
    pub fn restart(&self) {
        let mut usage = lock(&self.0);
        usage.1 = usage.0;
    }
}

pub struct DeviceMemory {
    /// `None` for the host's, which is not counted.
    pub limit: Option<u64>,
    state: Mutex<Statistics>,
    alive: Mutex<BTreeMap<u64, Weak<Allocation>>>,
    first_address: u64,
}

/// What the device says of its memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct Statistics {
    pub in_use: u64,
    pub peak: u64,
    pub allocations: u64,
    pub largest: u64,
    /// Where the next allocation goes: no address is used twice.
    next: u64,
}

pub struct Allocation {
    pub address: u64,
    pub bytes: usize,
    data: Mutex<Vec<u8>>,
    memory: Arc<DeviceMemory>,
}

/// What allocations begin at, as on a GPU.
const ALIGNMENT: u64 = 256;

impl DeviceMemory {
    /// The memory of the device of this number. Its addresses are none that a process can have.
    pub fn new(device: usize, limit: Option<u64>) -> DeviceMemory {
        DeviceMemory {
            limit,
            state: Mutex::default(),
            alive: Mutex::default(),
            first_address: (0xDE << 56) | ((device as u64) << 40),
        }
    }

    pub fn statistics(&self) -> Statistics {
        *lock(&self.state)
    }

    /// Takes so many bytes.
    pub fn allocate(self: &Arc<DeviceMemory>, bytes: usize) -> Result<Arc<Allocation>> {
        let size = bytes as u64;
        let mut state = lock(&self.state);
        if let Some(limit) = self.limit.filter(|limit| state.in_use + size > *limit) {
            return Err(Failure::new(
                c::PJRT_Error_Code_RESOURCE_EXHAUSTED,
                format!(
                    "Out of memory while trying to allocate {size} bytes; {} of {limit} are in use.",
                    state.in_use
                ),
            ));
        }
        let address = self.first_address + state.next;
        state.next += size.max(1).next_multiple_of(ALIGNMENT);
        if self.limit.is_some() {
            state.in_use += size;
            state.allocations += 1;
            (state.peak, state.largest) = (state.peak.max(state.in_use), state.largest.max(size));
            plugin().usage.add(size);
        }
        drop(state);
        // What nobody has written is not zero.
        let data = if plugin().config().stores { vec![0xCD; bytes] } else { Vec::new() };
        let allocation =
            Arc::new(Allocation { address, bytes, data: Mutex::new(data), memory: Arc::clone(self) });
        lock(&self.alive).insert(address, Arc::downgrade(&allocation));
        Ok(allocation)
    }

    /// The allocation that these bytes lie in.
    pub fn find(&self, address: u64, bytes: usize) -> Option<(Arc<Allocation>, usize)> {
        let alive = lock(&self.alive);
        let (&start, allocation) = alive.range(..=address).next_back()?;
        let allocation = allocation.upgrade()?;
        let offset = usize::try_from(address - start).ok()?;
        (offset + bytes <= allocation.bytes).then_some((allocation, offset))
    }
}

impl Allocation {
    /// Writes bytes.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let mut data = lock(&self.data);
        if !data.is_empty() {
            data[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Reads bytes; zeros where none are kept.
    pub fn read(&self, offset: usize, bytes: usize) -> Vec<u8> {
        let data = lock(&self.data);
        if data.is_empty() { vec![0; bytes] } else { data[offset..offset + bytes].to_vec() }
    }

    /// Where the host finds them, for memory of the host's.
    pub fn host_address(&self) -> u64 {
        lock(&self.data).as_ptr().addr() as u64
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        lock(&self.memory.alive).remove(&self.address);
        if self.memory.limit.is_some() {
            lock(&self.memory.state).in_use -= self.bytes as u64;
            plugin().usage.remove(self.bytes as u64);
        }
    }
}
