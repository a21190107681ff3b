//! The control of the write-ahead log's length.
//!
//! At every 2000 pages, SQLite copies the log into the database, and then writes the log from its
//! beginning. During a long read (a backup, a forgotten shell) it cannot do so, and the log grows.
//! When that reader has gone, copying all of the log would stall the next commit. A log that has
//! grown is therefore copied by a thread with its own connection, which does not block commits. The
//! thread truncates the log when almost nothing is left to copy.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, Result};

use crate::base::rows::Statements as _;
use crate::file::identity::beside;

/// The length of the log, in bytes, above which the thread copies it. A large batch alone stays
/// below.
pub(crate) const GROWN: u64 = 64 << 20;
/// The time for which the thread waits for readers. The wait of the thread blocks the writer.
const PATIENCE: Duration = Duration::from_millis(20);
/// The pause between two tries of the thread.
const PAUSE: Duration = Duration::from_millis(500);

/// The settings of connections that write, on all platforms. With FULL, a commit is on the disk
/// when it returns; macOS also requires `fullfsync`.
pub(crate) const DURABLE: &str =
    "PRAGMA synchronous = FULL; PRAGMA fullfsync = ON; PRAGMA checkpoint_fullfsync = ON;";

/// The interval at which the writer checks the log's length.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The writer's control of the log.
pub(crate) struct Checkpoints {
    /// The paths of the database and of its log; `None` for a database in memory.
    files: Option<(PathBuf, PathBuf)>,
    stop: Arc<AtomicBool>,
    running: Option<JoinHandle<()>>,
    /// The time of the next check of the length.
    next_look: Option<Instant>,
}

impl Checkpoints {
    pub(crate) fn new(database: Option<PathBuf>) -> Self {
        let files = database.map(|database| {
            let wal = beside(&database, "-wal");
            (database, wal)
        });
        Self { files, stop: Arc::default(), running: None, next_look: None }
    }

    /// Checks the log's length after a commit.
    pub(crate) fn look(&mut self, conn: &Connection) {
        if self.running.as_ref().is_some_and(JoinHandle::is_finished) {
            self.running = None;
            self.leave_to_sqlite(conn, true);
        }
        let now = Instant::now();
        if self.running.is_some() || self.next_look.is_some_and(|at| now < at) {
            return;
        }
        let Some((path, wal)) = &self.files else { return };
        self.next_look = Some(now + LOOK_EVERY);
        if !std::fs::metadata(wal).is_ok_and(|wal| wal.len() > GROWN) {
            return;
        }
        self.next_look = Some(now + PAUSE);
        let (path, stop) = (path.clone(), self.stop.clone());
        let shorten = move || {
            if let Err(error) = shorten(&path, &stop) {
                tracing::warn!(%error, "cannot shorten the database's write-ahead log");
            }
        };
        match std::thread::Builder::new().name("stepwell-checkpoint".into()).spawn(shorten) {
            Ok(thread) => {
                self.running = Some(thread);
                self.leave_to_sqlite(conn, false);
            }
            Err(error) => tracing::warn!(%error, "cannot start a thread"),
        }
    }

    /// Sets whether commits copy the log, or the thread does.
    fn leave_to_sqlite(&self, conn: &Connection, commits_copy: bool) {
        let pages = if commits_copy { 2000 } else { 0 };
        if let Err(error) = conn.execute_batch(&format!("PRAGMA wal_autocheckpoint = {pages}")) {
            tracing::warn!(%error, "cannot set when the write-ahead log is copied");
        }
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.running.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// Copies the log into the database until the log can be truncated.
fn shorten(path: &Path, stop: &AtomicBool) -> Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.execute_batch(DURABLE)?;
    conn.busy_timeout(PATIENCE)?;
    // The columns are: whether other connections blocked it, the pages in the log, the copied
    // pages.
    let checkpoint = |sql| conn.one(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    while !stop.load(Ordering::Relaxed) {
        let copied: Option<(bool, i64, i64)> = checkpoint("PRAGMA wal_checkpoint(PASSIVE)")?;
        if copied.is_some_and(|(busy, pages, copied)| !busy && pages == copied)
            && checkpoint("PRAGMA wal_checkpoint(TRUNCATE)")?.is_some_and(|(busy, ..)| !busy)
        {
            return Ok(());
        }
        std::thread::park_timeout(PAUSE);
    }
    Ok(())
}
