//! Ctrl-C and SIGTERM: what can stop is asked to stop, so that nothing half done is left; then the process ends as one that
//! the signal ended.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use safejax::CancelToken;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

/// What work that can stop has this long for; compilers and plugins cannot.
const GRACE: Duration = Duration::from_secs(2);

/// The signal that came first; 0 before.
static RECEIVED: AtomicI32 = AtomicI32::new(0);

static TOKEN: LazyLock<CancelToken> = LazyLock::new(CancelToken::new);

/// The token that the first signal cancels.
pub fn token() -> &'static CancelToken {
    &TOKEN
}

/// Listens for signals in a thread of its own. Where that cannot be, they end the process at once, as ever.
pub fn listen() {
    // A file that would be larger than the process may write is an error of the write, and not the end of the process.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM, SIGHUP]) else { return };
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if RECEIVED.swap(signal, Ordering::Relaxed) != 0 {
                end_by(signal);
            }
            TOKEN.cancel();
            std::thread::spawn(move || {
                std::thread::sleep(GRACE);
                end_by(signal);
            });
        }
    });
}

/// Ends the process by the signal that came, if one did: whoever started it is told so.
pub fn end_if_interrupted() {
    match RECEIVED.load(Ordering::Relaxed) {
        0 => {}
        signal => end_by(signal),
    }
}

fn end_by(signal: i32) {
    crate::stream::clean_up();
    // It does not return; should it, the exit code says the same.
    let _ = emulate_default_handler(signal);
    std::process::exit(128 + signal);
}
