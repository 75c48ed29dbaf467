//! The staging ring: a bounded number of chunks of host memory, each of which comes back when the device is done
//! with it.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::Result;
use crate::pjrt::{Client, DmaRegion, HostMemory};

/// How much host memory a load through a staging ring uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Staging {
    /// The size of a chunk in bytes, at least 64 KiB.
    pub chunk_bytes: usize,
    /// How many there are, at least 2.
    pub chunks: usize,
}

impl Default for Staging {
    /// Four chunks of 16 MiB.
    fn default() -> Staging {
        Staging { chunk_bytes: 16 << 20, chunks: 4 }
    }
}

impl Staging {
    /// A ring of so many chunks of so many bytes; fewer than 2, or smaller than 64 KiB, are taken as that.
    pub fn new(chunks: usize, chunk_bytes: usize) -> Staging {
        Staging { chunk_bytes: chunk_bytes.max(64 << 10), chunks: chunks.max(2) }
    }
}

/// The chunks of one load.
pub struct Ring {
    staging: Staging,
    client: Option<Client>,
    state: Mutex<State>,
    returned: Condvar,
}

struct State {
    free: Vec<Chunk>,
    /// Chunks that were made.
    made: usize,
    /// Chunks that somebody has, larger ones included.
    out: usize,
    /// Bytes of the chunks that somebody has and that are larger than the ring's own.
    large: usize,
    /// Whether the plugin registers memory; `None` until it was asked to.
    registers: Option<bool>,
}

enum Chunk {
    Plain(HostMemory),
    Registered(DmaRegion),
}

impl Ring {
    /// A ring whose chunks are registered with the client, if one is given.
    pub fn new(client: Option<&Client>, staging: Staging) -> Arc<Ring> {
        let state = State { free: Vec::new(), made: 0, out: 0, large: 0, registers: None };
        let (client, state) = (client.cloned(), Mutex::new(state));
        Arc::new(Ring { staging, client, state, returned: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.returned.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// A chunk of at least this many bytes. Blocks until one is free; of those larger than the ring's own, there are
    /// as many as a further ring has bytes, or one.
    ///
    /// # Errors
    /// [`crate::Error::HostMemory`].
    pub fn take(self: &Arc<Ring>, bytes: usize) -> Result<Lease> {
        let is_large = bytes > self.staging.chunk_bytes;
        let most = self.staging.chunk_bytes.saturating_mul(self.staging.chunks);
        let mut state = self.state();
        loop {
            if is_large && (state.large == 0 || state.large + bytes <= most) {
                let memory = HostMemory::allocate(bytes)?;
                state.large += bytes;
                return Ok(self.lease(&mut state, Chunk::Plain(memory), bytes));
            }
            if !is_large && let Some(chunk) = state.free.pop() {
                return Ok(self.lease(&mut state, chunk, 0));
            }
            if !is_large && state.made < self.staging.chunks {
                let memory = HostMemory::allocate(self.staging.chunk_bytes)?;
                let chunk = self.register(&mut state, memory)?;
                state.made += 1;
                return Ok(self.lease(&mut state, chunk, 0));
            }
            state = self.wait(state);
        }
    }

    fn lease(self: &Arc<Ring>, state: &mut State, chunk: Chunk, large: usize) -> Lease {
        state.out += 1;
        Lease { chunk: Some(chunk), large, ring: Arc::clone(self) }
    }

    /// Registers memory for direct access, where the plugin does that.
    fn register(&self, state: &mut State, memory: HostMemory) -> Result<Chunk> {
        let Some(client) = self.client.as_ref().filter(|_| state.registers != Some(false)) else {
            return Ok(Chunk::Plain(memory));
        };
        match DmaRegion::new(client, memory) {
            Ok(region) => {
                state.registers = Some(true);
                Ok(Chunk::Registered(region))
            }
            Err(error) => {
                tracing::debug!(%error, "staging memory is not registered with the device");
                state.registers = Some(false);
                HostMemory::allocate(self.staging.chunk_bytes).map(Chunk::Plain)
            }
        }
    }

    /// Blocks until every chunk has come back, and frees them: here, since the last to hold the ring can be a thread of
    /// the plugin's that must not unregister memory.
    pub fn drain(&self) {
        let mut state = self.state();
        while state.out > 0 {
            state = self.wait(state);
        }
        let free = std::mem::take(&mut state.free);
        drop(state);
        drop(free);
    }

    /// Whether chunks are registered with the device.
    pub fn is_registered(&self) -> bool {
        self.state().registers == Some(true)
    }
}

/// A chunk that somebody fills, or that the device reads. Dropping it gives it back.
pub struct Lease {
    chunk: Option<Chunk>,
    /// Its bytes, if it is larger than the ring's own.
    large: usize,
    ring: Arc<Ring>,
}

impl Deref for Lease {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.chunk {
            Some(Chunk::Plain(memory)) => memory,
            Some(Chunk::Registered(region)) => region,
            None => &[],
        }
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.chunk {
            Some(Chunk::Plain(memory)) => memory,
            Some(Chunk::Registered(region)) => region,
            None => &mut [],
        }
    }
}

impl AsRef<[u8]> for Lease {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // One that is larger than the ring's own is freed before there is room for the next.
        let kept = self.chunk.take().filter(|_| self.large == 0);
        let mut state = self.ring.state();
        state.out -= 1;
        state.large -= self.large;
        state.free.extend(kept);
        drop(state);
        self.ring.returned.notify_all();
    }
}
