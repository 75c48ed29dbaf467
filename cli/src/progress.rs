//! The progress of an installation, on a terminal or line by line.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use safejax::plugins::{InstallProgress, InstallStage};

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
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
