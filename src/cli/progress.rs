//! The progress of an installation, on a terminal or line by line; and of loads and saves, on a terminal.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use safejax::Monitor;
use safejax::plugins::{InstallProgress, InstallStage};

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
        let bar = bar.0.get_or_insert_with(|| {
            styled(ProgressBar::new(progress.total_bytes), "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}  {msg}")
        });
        bar.set_position(progress.bytes);
        bar.set_message(progress.tensor.to_owned());
    })
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Says once that something is being installed, then how far it is.
#[derive(Default)]
pub struct InstallBar {
    bar: Option<ProgressBar>,
    is_waiting: bool,
}

impl InstallBar {
    /// Shows how an installation goes on.
    pub fn show(&mut self, progress: &InstallProgress) {
        match progress.stage {
            InstallStage::Waiting if !self.is_waiting => {
                self.is_waiting = true;
                eprintln!("another process is installing the {} plugin; waiting for it", progress.name);
            }
            InstallStage::Running => {
                let bar = self.bar.get_or_insert_with(|| start(progress));
                bar.set_position(progress.bytes.min(bar.length().unwrap_or(u64::MAX)));
            }
            InstallStage::Done => {
                if let Some(bar) = self.bar.take() {
                    bar.finish_and_clear();
                }
                eprintln!("installed the {} plugin", progress.name);
            }
            _ => {}
        }
    }
}

/// Says what is being installed; the bar itself shows only on a terminal.
fn start(progress: &InstallProgress) -> ProgressBar {
    eprintln!("installing the {} plugin ({}); this happens once", progress.name, progress.package);
    let (bar, template) = match progress.expected_bytes {
        Some(bytes) => (ProgressBar::new(bytes), "{bar:40} {bytes} of {total_bytes}, {elapsed}"),
        None => (ProgressBar::no_length(), "{spinner} {bytes}, {elapsed}"),
    };
    let bar = styled(bar, template);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
