//! The connections for batches, with one batch at a time on each.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions as _, Executor as _};
use stepwell_core::StoreError;
use tokio::sync::{Mutex, MutexGuard};

use crate::connection::error::{Fault, cannot_connect};
use crate::connection::options::PostgresOptions;

/// The time after which a read without an answer counts as a lost connection.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The time after which the first sending of a batch without an answer counts as a lost connection.
/// The time is short, because a connection may be half open, and workers must reach the server
/// before their leases end.
const FIRST_ANSWER: Duration = Duration::from_secs(12);
/// The time within which a server must accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The number of batches that are sent at the same time.
pub(crate) const LANES: NonZeroUsize = NonZeroUsize::new(2).unwrap();

/// A line for each of the engine's lanes.
pub(crate) struct Link {
    lines: [Mutex<Line>; LANES.get()],
    /// The number of the last batch on any line. The claims of a batch are identified by it.
    batch: AtomicI64,
}

/// A connection, and the number of its line.
pub(crate) struct Line {
    /// The connection; `None` while it is lost or a batch uses it. A connection whose batch was
    /// dropped half-way must not be used again.
    pub(crate) conn: Option<PgConnection>,
    /// `true` if calls over the connection need transactions that [set their own
    /// settings](crate::connection::session).
    pub(crate) begins: bool,
    pub(crate) number: i16,
    /// The number of successive calls without an answer in time.
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

    /// Locks the first line. Callers get it in the order of their requests.
    pub(crate) async fn line(&self) -> MutexGuard<'_, Line> {
        self.lines[0].lock().await
    }

    /// Locks a free line. The result is the first line when both are in use, or when the server has
    /// no connection left for the second one.
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

    /// Returns the number of the next batch. Invariant: the caller holds a line's lock, so that the
    /// numbers of a line grow.
    pub(crate) fn next_batch(&self) -> i64 {
        self.batch.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl Line {
    /// Takes the connection, or opens a new one.
    pub(crate) async fn take(
        &mut self,
        options: &PostgresOptions,
    ) -> Result<PgConnection, StoreError> {
        match self.conn.take() {
            Some(conn) => Ok(conn),
            None => open(options).await,
        }
    }

    /// Returns the time after which a call without an answer counts as a lost connection. The time
    /// doubles with each such call: the server may be busy or wait for a lock, and would execute
    /// each call that it received.
    pub(crate) fn patience(&self) -> Duration {
        FIRST_ANSWER * (1 << self.silences.min(8))
    }

    /// Keeps a connection that has answered.
    pub(crate) fn answered(&mut self, conn: PgConnection) {
        self.conn = Some(conn);
        self.silences = 0;
    }

    /// Counts a call without an answer, and returns its error.
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
    // With this setting, the server soon ends a call that waits for a lock and whose client has
    // gone. Some servers do not support the setting.
    let checks = "SELECT pg_catalog.set_config('client_connection_check_interval', '5s', false)";
    if let Err(error) = conn.execute(checks).await
        && error.as_database_error().is_none()
    {
        return Err(cannot_connect(error, options));
    }
    Ok(conn)
}
