//! What became of a buffer: of several calls that want to use it up, one gets it.

use crate::sync::{AtomicU8, Ordering};

/// A buffer's state. Nothing but this crate ends a buffer, so that asking the plugin before every use would only cost time.
pub struct Lifecycle(AtomicU8);

/// What became of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Alive,
    Deleted,
    Donated,
    /// A call that it was given to has not yet said whether it uses it up.
    Claimed,
}

const STATES: [State; 4] = [State::Alive, State::Deleted, State::Donated, State::Claimed];

impl Lifecycle {
    pub fn new() -> Lifecycle {
        Lifecycle(AtomicU8::new(State::Alive as u8))
    }

    pub fn state(&self) -> State {
        STATES[usize::from(self.0.load(Ordering::Acquire))]
    }

    pub fn delete(&self) {
        self.0.swap(State::Deleted as u8, Ordering::AcqRel);
    }

    /// Whether the buffer is now the caller's, who ends that with [`Lifecycle::release`].
    pub fn claim(&self) -> bool {
        self.change(State::Alive, State::Claimed)
    }

    /// Ends a claim. One that was deleted meanwhile stays so.
    pub fn release(&self, is_used_up: bool) {
        self.change(State::Claimed, if is_used_up { State::Donated } else { State::Alive });
    }

    fn change(&self, from: State, to: State) -> bool {
        self.0.compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

#[cfg(all(test, safejax_loom))]
mod loom_tests {
    use std::sync::Arc;

    use super::*;

    /// A call that wants a buffer, and uses it up or not; whether it got it.
    fn call(buffer: &Arc<Lifecycle>, is_used_up: bool) -> loom::thread::JoinHandle<bool> {
        let buffer = Arc::clone(buffer);
        loom::thread::spawn(move || {
            let is_ours = buffer.claim();
            if is_ours {
                buffer.release(is_used_up);
            }
            is_ours
        })
    }

    #[test]
    fn one_of_two_calls_gets_a_buffer_and_one_that_was_deleted_stays_so() {
        loom::model(|| {
            let buffer = Arc::new(Lifecycle::new());
            let calls = [call(&buffer, true), call(&buffer, false)];
            let deletes = {
                let buffer = Arc::clone(&buffer);
                loom::thread::spawn(move || buffer.delete())
            };
            let [uses_up, reads] = calls.map(|call| call.join().unwrap());
            deletes.join().unwrap();
            // Both can have it one after the other, where the first did not use it up.
            assert_eq!(buffer.state(), State::Deleted, "{uses_up} {reads}");
        });
        loom::model(|| {
            let buffer = Arc::new(Lifecycle::new());
            let calls = [call(&buffer, true), call(&buffer, true)].map(|call| call.join().unwrap());
            assert_eq!(calls.iter().filter(|is_ours| **is_ours).count(), 1);
            assert_eq!(buffer.state(), State::Donated);
        });
    }
}
