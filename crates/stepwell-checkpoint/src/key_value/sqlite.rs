//! A key-value store in a table of SQLite.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, params};
use stepwell_core::{Timestamp, after, async_trait};

use super::{KeyValueError, KeyValueStore, Pattern};

const STORE: &str = "SQLite";

/// A key-value store in the table `key_values` of a SQLite database. Several processes may share
/// the file.
#[derive(Clone, Debug)]
pub struct Sqlite {
    connection: Arc<Mutex<Connection>>,
}

impl Sqlite {
    /// Opens the database file, and creates it if it does not exist. The file is in WAL mode, and
    /// every commit is synced.
    ///
    /// # Errors
    /// [`KeyValueError::Failed`] when the file cannot be opened, or is not a database.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, KeyValueError> {
        let path = path.as_ref().to_owned();
        let opened = tokio::task::spawn_blocking(move || {
            let connection = Connection::open(path)?;
            connection.busy_timeout(Duration::from_secs(10))?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            Ok::<_, rusqlite::Error>(connection)
        });
        let connection =
            opened.await.map_err(|error| KeyValueError::failed(STORE, "open", error))?;
        let connection = connection.map_err(|error| KeyValueError::failed(STORE, "open", error))?;
        Self::new(Arc::new(Mutex::new(connection))).await
    }

    /// Returns a store on the program's own connection, with the connection's settings. The call
    /// creates the table if it does not exist.
    ///
    /// # Errors
    /// [`KeyValueError::Failed`] when the table cannot be created.
    pub async fn new(connection: Arc<Mutex<Connection>>) -> Result<Self, KeyValueError> {
        let store = Self { connection };
        store
            .run("create the table key_values", |connection| {
                connection.execute_batch(
                    "CREATE TABLE IF NOT EXISTS key_values (
                        key TEXT PRIMARY KEY,
                        value TEXT NOT NULL,
                        expires_at INTEGER -- microseconds since 1970
                    ) STRICT, WITHOUT ROWID",
                )
            })
            .await?;
        Ok(store)
    }

    /// Runs blocking work on a thread for such work.
    async fn run<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, KeyValueError> {
        let connection = self.connection.clone();
        let done = tokio::task::spawn_blocking(move || {
            work(&connection.lock().unwrap_or_else(PoisonError::into_inner))
        });
        let done = done.await.map_err(|error| KeyValueError::failed(STORE, action, error))?;
        done.map_err(|error| KeyValueError::failed(STORE, action, error))
    }
}

fn now() -> i64 {
    Timestamp::now().as_microsecond()
}

fn end(ttl: Option<Duration>) -> Option<i64> {
    ttl.map(|ttl| after(Timestamp::now(), ttl).as_microsecond())
}

#[async_trait]
impl KeyValueStore for Sqlite {
    async fn get(&self, key: &str) -> Result<Option<String>, KeyValueError> {
        let key = key.to_owned();
        self.run("get", move |connection| {
            connection
                .prepare_cached(
                    "SELECT value FROM key_values WHERE key = ?1 AND ifnull(expires_at > ?2, 1)",
                )?
                .query_row(params![key, now()], |row| row.get(0))
                .optional()
        })
        .await
    }

    async fn set(
        &self,
        key: &str,
        value: &str,
        ttl: Option<Duration>,
    ) -> Result<(), KeyValueError> {
        let (key, value) = (key.to_owned(), value.to_owned());
        self.run("set", move |connection| {
            connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO key_values (key, value, expires_at) VALUES (?1, ?2, \
                     ?3)",
                )?
                .execute(params![key, value, end(ttl)])
        })
        .await?;
        Ok(())
    }

    async fn delete(&self, key: &str) -> Result<bool, KeyValueError> {
        let key = key.to_owned();
        self.run("delete", move |connection| {
            let sql = "DELETE FROM key_values WHERE key = ?1 RETURNING ifnull(expires_at > ?2, 1)";
            let was_there =
                connection.prepare_cached(sql)?.query_row(params![key, now()], |row| row.get(0));
            Ok(was_there.optional()?.unwrap_or(false))
        })
        .await
    }

    async fn exists(&self, key: &str) -> Result<bool, KeyValueError> {
        Ok(self.get(key).await?.is_some())
    }

    async fn keys(&self, pattern: &str) -> Result<Vec<String>, KeyValueError> {
        let glob =
            Pattern::new(pattern).translate("*", &['?', '['], |special| format!("[{special}]"));
        self.run("list keys", move |connection| {
            // No other code removes expired keys.
            connection.execute("DELETE FROM key_values WHERE expires_at <= ?1", [now()])?;
            let mut select =
                connection.prepare_cached("SELECT key FROM key_values WHERE key GLOB ?1")?;
            select.query_map([glob], |row| row.get(0))?.collect()
        })
        .await
    }

    async fn compare_and_set(
        &self,
        key: &str,
        expected: Option<&str>,
        new: Option<&str>,
        ttl: Option<Duration>,
    ) -> Result<bool, KeyValueError> {
        let key = key.to_owned();
        let (expected, new) = (expected.map(str::to_owned), new.map(str::to_owned));
        self.run("compare and set", move |connection| {
            let (now, end) = (now(), end(ttl));
            // Each case is a single statement, and therefore atomic.
            let changed = match (expected, new) {
                (None, None) => {
                    let sql = "SELECT 1 FROM key_values WHERE key = ?1 AND ifnull(expires_at > ?2, \
                               1)";
                    return Ok(!connection.prepare_cached(sql)?.exists(params![key, now])?);
                }
                (None, Some(new)) => connection
                    .prepare_cached(
                        "INSERT INTO key_values (key, value, expires_at) VALUES (?1, ?2, ?3)
                        ON CONFLICT (key) DO UPDATE
                            SET value = excluded.value, expires_at = excluded.expires_at
                            WHERE expires_at <= ?4",
                    )?
                    .execute(params![key, new, end, now])?,
                (Some(expected), Some(new)) => connection
                    .prepare_cached(
                        "UPDATE key_values SET value = ?3, expires_at = ?4
                        WHERE key = ?1 AND value = ?2 AND ifnull(expires_at > ?5, 1)",
                    )?
                    .execute(params![key, expected, new, end, now])?,
                (Some(expected), None) => connection
                    .prepare_cached(
                        "DELETE FROM key_values WHERE key = ?1 AND value = ?2 AND \
                         ifnull(expires_at > ?3, 1)",
                    )?
                    .execute(params![key, expected, now])?,
            };
            Ok(changed > 0)
        })
        .await
    }
}
