//! Shows how far an import is: a bar on a terminal, now and then a line elsewhere.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use stepwell::ItemCounts;

/// How often a line is written where there is no terminal.
const LINE: Duration = Duration::from_secs(5);

pub(crate) struct Progress {
    /// The import that is shown. A worker may go on with others that were interrupted.
    key: String,
    shown: Mutex<Option<Shown>>,
}

struct Shown {
    /// `None` where there is no terminal.
    bar: Option<ProgressBar>,
    written: Instant,
}

impl Progress {
    pub(crate) fn new(key: String) -> Self {
        Self { key, shown: Mutex::new(None) }
    }

    /// Shows how many of an import's rows are read.
    pub(crate) fn show(&self, key: &str, counts: ItemCounts) {
        if key != self.key {
            return;
        }
        let (done, total) = (counts.succeeded, counts.total);
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = shown.get_or_insert_with(|| {
            if done > 0 {
                eprintln!("Going on: {done} of {total} rows were read before.");
            }
            Shown { bar: bar(done, total), written: Instant::now() }
        });
        match &shown.bar {
            Some(bar) if done == total => bar.finish_and_clear(),
            Some(bar) => bar.set_position(done as u64),
            None if shown.written.elapsed() >= LINE => {
                shown.written = Instant::now();
                eprintln!("{done} of {total} rows are read.");
            }
            None => {}
        }
    }
}

fn bar(done: usize, total: usize) -> Option<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let style = ProgressStyle::with_template(
        "{bar:32.cyan} {human_pos} of {human_len} rows, {per_sec:.0}, {eta} left",
    );
    let bar = ProgressBar::new(total as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    // What an earlier process has done is no measure of the speed.
    bar.set_position(done as u64);
    bar.reset_eta();
    Some(bar)
}
