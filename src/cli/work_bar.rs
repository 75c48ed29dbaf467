//! The progress of loads and saves, on a terminal.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressState, ProgressStyle};
use safejax::Monitor;
use safejax::printable::Name;

/// Work that ends sooner has no bar.
const SHOWN_AFTER: Duration = Duration::from_secs(1);

/// A bar that goes when the work ends, however it does.
struct WorkBar(Option<ProgressBar>);

impl Drop for WorkBar {
    fn drop(&mut self) {
        if let Some(bar) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}

/// Shows how far a load or save is, once it has taken a second; nothing where stderr is no terminal.
pub fn watch() -> Monitor {
    let (start, bar) = (Instant::now(), Mutex::new(WorkBar(None)));
    Monitor::default().on_progress(move |progress| {
        if start.elapsed() < SHOWN_AFTER {
            return;
        }
        let mut bar = bar.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = bar.0.get_or_insert_with(|| start_bar(progress.total_bytes, start.elapsed()));
        bar.set_position(progress.bytes);
        bar.set_message(Name(progress.tensor).to_string());
    })
}

fn start_bar(bytes: u64, elapsed: Duration) -> ProgressBar {
    let bar = ProgressBar::new(bytes).with_elapsed(elapsed);
    match ProgressStyle::with_template("{bar:30} {bytes} of {total_bytes}, {rate}  {wide_msg}") {
        Ok(style) => bar.with_style(style.with_key("rate", rate)),
        Err(_) => bar,
    }
}

/// The mean rate since the work began: the bar's own would count what was done before it was shown as done at once.
fn rate(state: &ProgressState, text: &mut dyn fmt::Write) {
    let rate = state.pos() as f64 / state.elapsed().as_secs_f64().max(f64::EPSILON);
    // Text that cannot be written is not shown.
    let _ = write!(text, "{}/s", HumanBytes(rate as u64));
}
