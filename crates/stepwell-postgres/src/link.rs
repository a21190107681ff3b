//! The connection that batches go over, one at a time.

use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::postgres::PgConnection;
use stepwell_core::StoreError;
use tokio::sync::{Mutex, MutexGuard};

use crate::error::cannot_connect;
use crate::options::PostgresOptions;

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct Link(Mutex<Line>);

/// The connection and the numbers of the batches that were sent.
pub(crate) struct Line {
    /// `None` while it is lost, or in use by a batch: one that is given up half-way must not be used again.
    pub(crate) conn: Option<PgConnection>,
    pub(crate) batch: i64,
}

impl Link {
    pub(crate) fn new(conn: PgConnection) -> Self {
        Self(Mutex::new(Line { conn: Some(conn), batch: 0 }))
    }

    /// The line, in the order of those who asked for it.
    pub(crate) async fn line(&self) -> MutexGuard<'_, Line> {
        self.0.lock().await
    }
}

impl Line {
    /// The connection, a new one when there is none.
    pub(crate) async fn take(&mut self, options: &PostgresOptions) -> Result<PgConnection, StoreError> {
        match self.conn.take() {
            Some(conn) => Ok(conn),
            None => open(options).await,
        }
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
    opened.map_err(|error| cannot_connect(error, options))
}
