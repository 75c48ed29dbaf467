//! The staging ring: a bounded number of chunks of host memory, each of which comes back when the device is done
//! with it.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorCode, Result};
use crate::pjrt::{Client, StagingMemory};
use crate::sync::{Condvar, Mutex, MutexGuard};

/// How much host memory a load through a staging ring uses, and what kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Staging {
    /// The size of a chunk in bytes, at least 64 KiB.
    pub chunk_bytes: usize,
    /// How many there are, at least 2.
    pub chunks: usize,
    /// Whether the chunks are registered with the device.
    pub registration: Registration,
}

/// Whether staging memory is registered with the device for direct access ("pinned"), where the plugin does that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Registration {
    /// It is: the device reads it without a further copy of the driver's.
    #[default]
    Auto,
    /// It is not, for systems on which memory must not be locked.
    Never,
}

impl Default for Staging {
    /// Twelve chunks of 8 MiB: large enough that a transfer's own cost does not count, small enough that the ring stays
    /// in the processors' last level cache between the read that fills it and the device that empties it.
    fn default() -> Staging {
        Staging::new(12, 8 << 20)
    }
}

impl Staging {
    /// A ring of so many chunks of so many bytes; fewer than 2, or smaller than 64 KiB, are taken as that.
    pub fn new(chunks: usize, chunk_bytes: usize) -> Staging {
        Staging {
            chunk_bytes: chunk_bytes.max(64 << 10),
            chunks: chunks.max(2),
            registration: Registration::Auto,
        }
    }

    /// Says whether the chunks are registered with the device.
    pub fn registration(mut self, registration: Registration) -> Staging {
        self.registration = registration;
        self
    }
}

/// How often a thread that waits for a chunk asks whether it can still come back.
const ASKED_EVERY: Duration = Duration::from_millis(100);

/// The chunks of one load.
pub struct Ring {
    staging: Staging,
    client: Option<Client>,
    /// What the client had lost of host memory before.
    lost_before: usize,
    state: Mutex<State>,
    returned: Condvar,
}

struct State {
    free: Vec<StagingMemory>,
    /// Chunks that were made.
    made: usize,
    /// Chunks that somebody has, larger ones included.
    out: usize,
    /// Bytes of the chunks that somebody has and that are larger than the ring's own.
    large: usize,
    /// Threads that wait for a chunk larger than the ring's own.
    waiting_for_large: usize,
    /// Whether the plugin registers memory; `None` until it was asked to.
    registers: Option<bool>,
    /// Whether what comes back now is freed: nobody waits for it.
    is_given_up: bool,
}

impl Ring {
    /// A ring for transfers to this client, which registers its chunks and whose time limit is the ring's; or for none.
    pub fn new(client: Option<&Client>, staging: Staging) -> Arc<Ring> {
        let lost_before = client.map_or(0, Client::lost_memory);
        // The fields are open to everybody.
        let staging = Staging::new(staging.chunks, staging.chunk_bytes).registration(staging.registration);
        let state = State {
            free: Vec::new(),
            made: 0,
            out: 0,
            large: 0,
            waiting_for_large: 0,
            registers: (staging.registration == Registration::Never).then_some(false),
            is_given_up: false,
        };
        let (client, state) = (client.cloned(), Mutex::new(state));
        Arc::new(Ring { staging, client, lost_before, state, returned: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a chunk to come back.
    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let waited = self.returned.wait_timeout(state, ASKED_EVERY);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Why a thread that has waited since then waits no longer, if it does not.
    fn patience(&self, since: Instant) -> Result<()> {
        const WORK: &str = "a transfer from the staging ring";
        let Some(client) = &self.client else { return Ok(()) };
        if client.lost_memory() > self.lost_before {
            let message =
                "the plugin does not say when its transfers end, so that their host memory is given up";
            return Err(Error::Pjrt { function: WORK, code: ErrorCode::Internal, message: message.into() });
        }
        match client.time_limit() {
            Some(limit) if since.elapsed() >= limit => Err(Error::TimeLimit { work: WORK, limit }),
            _ => Ok(()),
        }
    }

    /// A chunk of at least this many bytes. Blocks until one is free; of those larger than the ring's own, there are
    /// as many as a further ring has bytes, or one.
    ///
    /// # Errors
    /// [`Error::HostMemory`]; [`Error::TimeLimit`] when none came back; [`Error::Pjrt`] when none will.
    pub fn take(self: &Arc<Ring>, bytes: usize) -> Result<Lease> {
        let is_large = bytes > self.staging.chunk_bytes;
        let most = self.staging.chunk_bytes.saturating_mul(self.staging.chunks);
        let since = Instant::now();
        let mut state = self.state();
        loop {
            if is_large && (state.large == 0 || state.large + bytes <= most) {
                state.large += bytes;
                let lease = self.lease(&mut state, None, bytes);
                drop(state);
                return lease.filled(StagingMemory::allocate(bytes, None));
            }
            if !is_large && let Some(chunk) = state.free.pop() {
                return Ok(self.lease(&mut state, Some(chunk), 0));
            }
            if !is_large && state.made < self.staging.chunks {
                state.made += 1;
                let lease = self.lease(&mut state, None, 0);
                let registers = state.registers != Some(false);
                drop(state);
                // Without the lock: to lock memory takes longer than to fill it, and several threads do it at once.
                return lease.filled(self.chunk(registers));
            }
            self.patience(since)?;
            state.waiting_for_large += usize::from(is_large);
            state = self.wait(state);
            state.waiting_for_large -= usize::from(is_large);
        }
    }

    fn lease(self: &Arc<Ring>, state: &mut State, chunk: Option<StagingMemory>, large: usize) -> Lease {
        state.out += 1;
        Lease { chunk, large, ring: Arc::clone(self) }
    }

    /// A new chunk, registered for direct access where the plugin does that.
    fn chunk(&self, registers: bool) -> Result<StagingMemory> {
        let client = self.client.as_ref().filter(|_| registers);
        let chunk = StagingMemory::allocate(self.staging.chunk_bytes, client)?;
        let mut state = self.state();
        state.registers = Some(chunk.is_registered() && state.registers != Some(false));
        drop(state);
        Ok(chunk)
    }

    /// Blocks until every chunk has come back, and frees each as it does: here, since the last to hold the ring can be a
    /// thread of the plugin's. Those that are not back when the time limit is over are freed if they ever come back.
    pub fn drain(&self) {
        let since = Instant::now();
        let mut state = self.state();
        loop {
            let free = std::mem::take(&mut state.free);
            if !free.is_empty() {
                drop(state);
                drop(free);
                state = self.state();
            } else if state.out == 0 {
                return;
            } else if let Err(error) = self.patience(since) {
                tracing::warn!(%error, chunks = state.out, "staging memory stays allocated");
                state.is_given_up = true;
                return;
            } else {
                state = self.wait(state);
            }
        }
    }

    /// Whether chunks are registered with the device.
    pub fn is_registered(&self) -> bool {
        self.state().registers == Some(true)
    }
}

/// A chunk that somebody fills, or that the device reads. Dropping it gives it back.
pub struct Lease {
    chunk: Option<StagingMemory>,
    /// Its bytes, if it is larger than the ring's own.
    large: usize,
    ring: Arc<Ring>,
}

impl Lease {
    /// The lease with its memory; without any, it is given back for somebody else to try again.
    fn filled(mut self, chunk: Result<StagingMemory>) -> Result<Lease> {
        self.chunk = Some(chunk?);
        Ok(self)
    }
}

impl Deref for Lease {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.chunk.as_deref().unwrap_or_default()
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.chunk.as_deref_mut().unwrap_or_default()
    }
}

impl AsRef<[u8]> for Lease {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let was_made = self.chunk.is_some();
        // One that is larger than the ring's own is freed before there is room for the next.
        let kept = self.chunk.take().filter(|_| self.large == 0);
        let mut state = self.ring.state();
        state.out -= 1;
        state.made -= usize::from(!was_made && self.large == 0);
        state.large -= self.large;
        if state.is_given_up {
            drop(state);
            return drop(kept);
        }
        state.free.extend(kept);
        let is_for_anyone = state.waiting_for_large == 0;
        drop(state);
        // By a thread of the plugin's that has more transfers to see to: it wakes no more than it must.
        if is_for_anyone {
            self.ring.returned.notify_one();
        } else {
            self.ring.returned.notify_all();
        }
    }
}

#[cfg(all(test, safejax_loom))]
mod loom_tests {
    use loom::thread::spawn;

    use super::*;

    const CHUNK: usize = 64 << 10;

    /// Threads of a load take chunks, and threads of the plugin's give them back: whoever waits is woken, in every order.
    #[test]
    fn who_waits_for_a_chunk_gets_one() {
        loom::model(|| {
            let ring = Ring::new(None, Staging::new(2, CHUNK));
            let [first, second, large] = [CHUNK, CHUNK, CHUNK + 1].map(|bytes| ring.take(bytes).unwrap());
            let take = |bytes: usize| {
                let ring = Arc::clone(&ring);
                spawn(move || drop(ring.take(bytes).unwrap()))
            };
            // Of the large ones, one more would be too many.
            let (takes_one, takes_large) = (take(CHUNK), take(CHUNK + CHUNK / 2));
            // The one that it is of use to is woken, although the other waits too.
            drop(large);
            takes_large.join().unwrap();
            // By a thread of the plugin's.
            let plugin = spawn(move || drop((first, second)));
            takes_one.join().unwrap();
            plugin.join().unwrap();
            ring.drain();
            assert_eq!(ring.state().out, 0);
        });
    }

    #[test]
    fn a_ring_is_drained_of_what_comes_back_meanwhile() {
        loom::model(|| {
            let ring = Ring::new(None, Staging::new(2, CHUNK));
            let out = [ring.take(1).unwrap(), ring.take(2 * CHUNK).unwrap(), ring.take(CHUNK).unwrap()];
            let plugin = out.map(|lease| spawn(move || drop(lease)));
            ring.drain();
            let state = ring.state();
            assert_eq!((state.out, state.large, state.free.len()), (0, 0, 0));
            drop(state);
            plugin.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }
}
