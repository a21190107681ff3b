//! The connections that batches go over: one batch at a time on each.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions as _, Executor as _};
use stepwell_core::StoreError;
use tokio::sync::{Mutex, MutexGuard};

use crate::error::{Fault, cannot_connect};
use crate::options::PostgresOptions;

/// How long the answer to a read may take before the connection is taken for lost.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The same for a batch that is sent for the first time: a connection may be half open, and workers
/// must be heard of before their leases end.
const FIRST_ANSWER: Duration = Duration::from_secs(12);
/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How many batches are on their way at a time.
pub(crate) const LANES: NonZeroUsize = NonZeroUsize::new(2).unwrap();

/// A line for each of the engine's lanes.
pub(crate) struct Link {
    lines: [Mutex<Line>; LANES.get()],
    /// The last batch's number, over both lines: what was claimed in a batch is known by it.
    batch: AtomicI64,
}

/// A connection, and the line's number.
pub(crate) struct Line {
    /// `None` while it is lost, or in use by a batch: one that is given up half-way must not be
    /// used again.
    pub(crate) conn: Option<PgConnection>,
    /// Whether calls over it go in transactions that [set their own settings](crate::session).
    pub(crate) begins: bool,
    pub(crate) number: i16,
    /// How many calls in a row have had no answer in time.
    silences: u32,
}

impl Link {
    pub(crate) fn new(conn: PgConnection) -> Self {
        let mut conn = Some(conn);
        let mut number = -1;
        let lines = [(); LANES.get()].map(|()| {
            number += 1;
            Mutex::new(Line { conn: conn.take(), begins: false, number, silences: 0 })
        });
        Self { lines, batch: AtomicI64::new(0) }
    }

    /// The first line, in the order of those who asked for it.
    pub(crate) async fn line(&self) -> MutexGuard<'_, Line> {
        self.lines[0].lock().await
    }

    /// A line that is free; the first when both are in use, or the server has no connection left
    /// for the second.
    pub(crate) async fn free_line(&self, options: &PostgresOptions) -> MutexGuard<'_, Line> {
        for (place, line) in self.lines.iter().enumerate() {
            let Ok(mut line) = line.try_lock() else { continue };
            if place > 0 && line.conn.is_none() {
                line.conn = line.take(options).await.ok();
            }
            if place == 0 || line.conn.is_some() {
                return line;
            }
        }
        self.line().await
    }

    /// The next batch's number. Asked for under a line's lock, so that a line's numbers grow.
    pub(crate) fn next_batch(&self) -> i64 {
        self.batch.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl Line {
    /// The connection, a new one when there is none.
    pub(crate) async fn take(
        &mut self,
        options: &PostgresOptions,
    ) -> Result<PgConnection, StoreError> {
        match self.conn.take() {
            Some(conn) => Ok(conn),
            None => open(options).await,
        }
    }

    /// How long an answer may take before the connection is taken for lost: longer each time, since
    /// the server may be at work, or wait for a lock, and would go on with each call that it
    /// was sent.
    pub(crate) fn patience(&self) -> Duration {
        FIRST_ANSWER * (1 << self.silences.min(8))
    }

    /// Keeps a connection that has answered.
    pub(crate) fn answered(&mut self, conn: PgConnection) {
        self.conn = Some(conn);
        self.silences = 0;
    }

    /// There was no answer.
    pub(crate) fn unanswered(&mut self) -> Fault {
        let waited = self.patience();
        self.silences += 1;
        Fault::Lost(format!("no answer within {waited:?}"))
    }
}

/// Opens a connection.
pub(crate) async fn open(options: &PostgresOptions) -> Result<PgConnection, StoreError> {
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, options.connect.connect());
    let opened = connecting.await.unwrap_or_else(|_| {
        Err(sqlx::Error::Io(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            format!("the server did not answer within {CONNECT_TIMEOUT:?}"),
        )))
    });
    let mut conn = opened.map_err(|error| cannot_connect(error, options))?;
    // A call that is given up ends soon in the server, too, where it waits for a lock. Not every
    // server can tell.
    let checks = "SELECT pg_catalog.set_config('client_connection_check_interval', '5s', false)";
    if let Err(error) = conn.execute(checks).await
        && error.as_database_error().is_none()
    {
        return Err(cannot_connect(error, options));
    }
    Ok(conn)
}
