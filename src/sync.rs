//! The locks of what `scripts/checkers.sh loom` tries in every order of its threads' steps: those of the standard library, or
//! loom's, which keep track.

#[cfg(not(safejax_loom))]
pub use std::sync::atomic::{AtomicU8, Ordering};
#[cfg(not(safejax_loom))]
pub use std::sync::{Condvar, Mutex, MutexGuard};

#[cfg(safejax_loom)]
pub use loom::sync::atomic::{AtomicU8, Ordering};
#[cfg(safejax_loom)]
pub use loom::sync::{Condvar, Mutex, MutexGuard};
