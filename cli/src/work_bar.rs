//! The progress of work over a second, on a terminal; and its end when a signal comes.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressState, ProgressStyle};
use safejax::printable::Name;
use safejax::{Error, Monitor};

use crate::interrupt;

/// Work that ends sooner has no bar.
const SHOWN_AFTER: Duration = Duration::from_secs(1);

/// Columns that the bar itself takes, where the terminal has so many more for the rest.
const BAR_COLUMNS: u16 = 30;
const OTHER_COLUMNS: u16 = 50;

/// A bar that goes when the work ends, however it does.
pub struct WorkBar {
    start: Instant,
    total_bytes: u64,
    bytes: u64,
    bar: Option<ProgressBar>,
}

impl Drop for WorkBar {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl WorkBar {
    /// A bar for so many bytes of work.
    pub fn new(total_bytes: u64) -> WorkBar {
        WorkBar { start: Instant::now(), total_bytes, bytes: 0, bar: None }
    }

    /// Says that so many more bytes, of this tensor, are done.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when a signal came.
    pub fn advance(&mut self, tensor: &str, bytes: u64) -> Result<(), Error> {
        if interrupt::token().is_cancelled() {
            return Err(Error::Cancelled);
        }
        self.show(tensor, self.bytes + bytes);
        Ok(())
    }

    fn show(&mut self, tensor: &str, bytes: u64) {
        self.bytes = bytes;
        let elapsed = self.start.elapsed();
        if elapsed < SHOWN_AFTER {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| start_bar(self.total_bytes, elapsed));
        bar.set_position(bytes);
        bar.set_message(Name(tensor).to_string());
    }
}

/// Shows how far a load, save or conversion is, once it has taken a second, and ends it when a signal comes; shows nothing
/// where stderr is no terminal.
pub fn watch() -> Monitor {
    let bar = Mutex::new(WorkBar::new(0));
    let show = move |progress: &safejax::Progress<'_>| {
        let mut bar = bar.lock().unwrap_or_else(PoisonError::into_inner);
        bar.total_bytes = progress.total_bytes;
        bar.show(progress.tensor, progress.bytes);
    };
    Monitor::default().on_progress(show).cancel(interrupt::token())
}

fn start_bar(bytes: u64, elapsed: Duration) -> ProgressBar {
    let bar = ProgressBar::new(bytes).with_elapsed(elapsed);
    // A narrow terminal has room for the numbers alone.
    let columns = rustix::termios::tcgetwinsize(std::io::stderr()).map_or(0, |size| size.ws_col);
    let template = if columns >= BAR_COLUMNS + OTHER_COLUMNS {
        "{bar:30} {bytes} of {total_bytes}, {rate}  {wide_msg}"
    } else {
        "{bytes} of {total_bytes}, {rate}"
    };
    match ProgressStyle::with_template(template) {
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
