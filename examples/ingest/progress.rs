//! Shows how far an ingest is: a bar on a terminal, now and then a line elsewhere.
//!
//! It reads the table of files rather than listen to the tasks. So it is right after a crash, and
//! when another process helps.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::index;

/// How often it is looked.
const TICK: Duration = Duration::from_millis(250);
/// How often a line is written where there is no terminal.
const LINE: Duration = Duration::from_secs(5);

/// A display of progress that goes on until it is stopped.
pub(crate) struct Progress {
    stop: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Shows the progress of this ingest of the folder.
    pub(crate) fn start(database: &Path, folder: &str, run: i64) -> Self {
        let (stop, stopped) = mpsc::channel::<()>();
        let (database, folder) = (database.to_owned(), folder.to_owned());
        let watch = move || {
            let mut display = Display::new();
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(TICK) {
                display.show(look(&database, &folder, run));
            }
            display.clear();
        };
        // Without a thread for it, the ingest goes on unseen.
        Self { stop, thread: std::thread::Builder::new().name("progress".into()).spawn(watch).ok() }
    }

    /// Clears the display.
    pub(crate) fn stop(self) {
        drop(self.stop);
        if let Some(thread) = self.thread {
            let _ = thread.join();
        }
    }
}

/// How many files there are to look into, and how many are done; `None` before they are listed.
pub(crate) fn look(database: &Path, folder: &str, run: i64) -> Option<(i64, i64)> {
    index::progress(&index::open(database).ok()?, folder, run)
}

enum Display {
    Bar { bar: ProgressBar, begun: bool },
    Lines { written: Instant, first: Option<(Instant, i64)> },
}

impl Display {
    fn new() -> Self {
        if std::io::stderr().is_terminal() {
            Self::Bar {
                bar: ProgressBar::new_spinner().with_message("listing the folder"),
                begun: false,
            }
        } else {
            Self::Lines { written: Instant::now(), first: None }
        }
    }

    fn show(&mut self, progress: Option<(i64, i64)>) {
        match (self, progress) {
            (Self::Bar { bar, begun }, Some((all, done))) => {
                if !*begun {
                    *begun = true;
                    let template =
                        "{bar:32.cyan} {human_pos} of {human_len} files, {per_sec:.0}, {eta} left";
                    bar.set_style(
                        ProgressStyle::with_template(template)
                            .unwrap_or_else(|_| ProgressStyle::default_bar()),
                    );
                    bar.set_length(all.unsigned_abs());
                    // What an earlier process has done is no measure of the speed.
                    bar.set_position(done.unsigned_abs());
                    bar.reset_eta();
                }
                bar.set_position(done.unsigned_abs());
                bar.tick();
            }
            (Self::Bar { bar, .. }, None) => bar.tick(),
            (Self::Lines { written, first }, Some((all, done))) => {
                let (since, before) = *first.get_or_insert_with(|| (Instant::now(), done));
                if written.elapsed() >= LINE {
                    *written = Instant::now();
                    let rate = (done - before) as f64 / since.elapsed().as_secs_f64();
                    let left = (all - done) as f64 / rate;
                    let left = if left.is_finite() {
                        format!(", {left:.0} s left")
                    } else {
                        String::new()
                    };
                    eprintln!("{done} of {all} files, {rate:.0} files/s{left}");
                }
            }
            (Self::Lines { .. }, None) => {}
        }
    }

    fn clear(&self) {
        if let Self::Bar { bar, .. } = self {
            bar.finish_and_clear();
        }
    }
}
