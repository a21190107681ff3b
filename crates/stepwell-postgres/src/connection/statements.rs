//! Statements over the connections, repeated where another try may succeed.

use std::time::Duration;

use sqlx::error::BoxDynError;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Connection as _, Row as _};
use stepwell_core::StoreError;
use tokio::time::timeout;

use crate::connection::call::Query;
use crate::connection::error::Fault;
use crate::connection::link::{ANSWER_TIMEOUT, Line};
use crate::connection::{POOL, Shared, session};
use crate::values::columns::Moment;
use crate::values::rows::unreadable;

/// The number of times that a batch gives way to other transactions, before it fails.
pub(crate) const WAYS_GIVEN: u32 = 50;

impl Shared {
    /// Reads the server's clock and its timeline.
    pub(crate) async fn begin(&self) -> Result<(), StoreError> {
        let sql = "SELECT pg_catalog.clock_timestamp()";
        let rows = self.read_on(&mut *self.link.line().await, sql, |query| query).await?;
        if let Some(row) = rows.first() {
            self.clock.hear(row.try_get::<Moment, _>(0).map_err(|error| self.error(error))?.0);
        }
        // A standby has no timeline of its own yet. A compatible server that does not know the
        // function is not asked again.
        let sql = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN ''
            ELSE pg_catalog.left(pg_catalog.pg_walfile_name(
                pg_catalog.pg_current_wal_insert_lsn()), 8) END";
        let rows = self
            .read_on(&mut *self.link.line().await, sql, |query| query)
            .await
            .unwrap_or_default();
        if let Some(Ok(name)) = rows.first().map(|row| row.try_get::<&str, _>(0)) {
            self.timeline.moved(name);
        }
        Ok(())
    }

    /// Reads over the line, with a new connection when the old one breaks.
    pub(crate) async fn read_on(
        &self,
        line: &mut Line,
        sql: &str,
        bind: impl Fn(Query) -> Query,
    ) -> Result<Vec<PgRow>, StoreError> {
        let mut tries = 0;
        loop {
            let mut conn = match line.take(&self.options).await {
                Ok(conn) => conn,
                Err(_) if tries < 1_000 => {
                    pause(tries).await;
                    tries += 1;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let query = bind(sqlx::query(AssertSqlSafe(sql.to_owned())));
            match self.fetch(&mut conn, query, line.begins).await {
                Ok(rows) => {
                    line.conn = Some(conn);
                    return Ok(rows);
                }
                Err(error) => match Fault::of(error, &self.options) {
                    Fault::Unfit(_) if !line.begins => {
                        line.conn = Some(conn);
                        line.begins = true;
                    }
                    Fault::Lost(_) | Fault::Standby(_) if tries < 1_000 => {
                        pause(tries).await;
                        tries += 1;
                    }
                    fault => {
                        line.conn = Some(conn);
                        return Err(fault.into_error(&self.options));
                    }
                },
            }
        }
    }

    /// Returns the rows of a list that can be read. Rows that cannot be read are logged, and do not
    /// hide the others.
    pub(crate) fn readable<T>(
        &self,
        what: &str,
        rows: &[PgRow],
        read: impl Fn(&PgRow) -> sqlx::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let (mut left_out, mut first) = (0, None);
        let mut all = Vec::with_capacity(rows.len());
        for row in rows {
            match read(row) {
                Ok(row) => all.push(row),
                Err(error) => {
                    left_out += 1;
                    first
                        .get_or_insert(unreadable(what, error).map_err(|error| self.error(error))?);
                }
            }
        }
        if let Some(error) = first {
            tracing::error!(left_out, %error, "rows that cannot be read are left out of a list");
        }
        Ok(all)
    }

    /// Reads over the pool. All connections may have broken since their last use, so that each is
    /// tried once.
    pub(crate) async fn read(
        &self,
        sql: &str,
        bind: impl Fn(Query) -> Query,
    ) -> Result<Vec<PgRow>, StoreError> {
        let (mut tries, mut gave_way, mut begins) = (0, 0, false);
        loop {
            let mut conn = match self.pool.acquire().await {
                Ok(conn) => conn,
                // The connection was cut while it was being made.
                Err(sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::Tls(_))
                    if tries < POOL =>
                {
                    tries += 1;
                    continue;
                }
                Err(error) => return Err(self.error(error)),
            };
            let query = bind(sqlx::query(AssertSqlSafe(sql.to_owned())));
            let Ok(answer) = timeout(ANSWER_TIMEOUT, self.fetch(&mut conn, query, begins)).await
            else {
                conn.close_on_drop();
                let reason = format!("no answer within {ANSWER_TIMEOUT:?}");
                return Err(Fault::Lost(reason).into_error(&self.options));
            };
            match answer {
                Ok(rows) => return Ok(rows),
                Err(error) => match Fault::of(error, &self.options) {
                    Fault::Unfit(_) if !begins => begins = true,
                    Fault::GaveWay if gave_way < WAYS_GIVEN => gave_way += 1,
                    Fault::Lost(_) | Fault::Standby(_) if tries < POOL => {
                        conn.close_on_drop();
                        tries += 1;
                    }
                    fault => return Err(fault.into_error(&self.options)),
                },
            }
        }
    }

    /// Runs a statement; with `begins`, in a transaction with its own settings.
    pub(crate) async fn fetch(
        &self,
        conn: &mut PgConnection,
        query: Query,
        begins: bool,
    ) -> sqlx::Result<Vec<PgRow>> {
        if self.options.prepares && !begins {
            return query.fetch_all(conn).await;
        }
        // A standby can be read, but does not allow a transaction that writes.
        let begin = if begins { session::BEGIN } else { session::BEGIN_READING };
        let mut tx = conn.begin_with(begin).await?;
        let rows = query.persistent(self.options.prepares).fetch_all(&mut *tx).await?;
        tx.commit().await?;
        Ok(rows)
    }

    /// Logs, once, that a setting makes batches slower.
    pub(crate) fn say_unfit(&self, reason: &str) {
        self.unfit.call_once(|| {
            tracing::warn!(
                reason,
                "a default of the database or the role is in the way of batches: each sets it in a \
                 transaction of its own from now on, which takes two round trips more. See the \
                 documentation on settings"
            );
        });
    }

    /// Returns the error of a statement in a user's transaction, which may be in another database.
    pub(crate) fn error_within(&self, error: sqlx::Error) -> StoreError {
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        match code.as_deref() {
            Some("42883" | "42P01" | "3F000") => StoreError::Backend(format!(
                "the transaction is in a database that lacks the schema of {}, or a part of it: \
                 begin it in the store's own database",
                self.options
            )),
            _ => self.error(error),
        }
    }

    /// Returns the error of arguments that cannot be encoded.
    pub(crate) fn unsendable(&self, error: BoxDynError) -> StoreError {
        self.error(sqlx::Error::Encode(error))
    }

    pub(crate) fn error(&self, error: sqlx::Error) -> StoreError {
        Fault::of(error, &self.options).into_error(&self.options)
    }
}

/// Waits before another try: longer each time, at most half a second. Workers must reach the server
/// before their leases end.
pub(crate) async fn pause(times: u32) {
    tokio::time::sleep(Duration::from_millis(20 << times.min(5)).min(Duration::from_millis(500)))
        .await;
}
