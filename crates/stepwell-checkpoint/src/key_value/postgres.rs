//! A key-value store in a table of PostgreSQL.

use std::time::Duration;

use sqlx::postgres::types::PgInterval;
use sqlx::{AssertSqlSafe, PgPool};
use stepwell_core::async_trait;

use super::{KeyValueError, KeyValueStore, Pattern};

const STORE: &str = "PostgreSQL";

/// A key-value store in a table of PostgreSQL with the columns `key text PRIMARY KEY, value text,
/// expires_at timestamptz`. Times to live use the server's clock.
#[derive(Clone, Debug)]
pub struct Postgres {
    pool: PgPool,
    table: String,
}

impl Postgres {
    /// The name of the table that [`Postgres::connect`] uses.
    pub const DEFAULT_TABLE: &'static str = "key_values";

    /// Connects to `postgres://user:password@host/database`, and creates the table `key_values` if
    /// it does not exist.
    ///
    /// # Errors
    /// [`KeyValueError::Failed`] when the server cannot be reached, or the table cannot be created.
    pub async fn connect(url: &str) -> Result<Self, KeyValueError> {
        let pool = PgPool::connect(url).await.map_err(failed("connect"))?;
        Self::new(pool, Self::DEFAULT_TABLE).await
    }

    /// Returns a store on the program's own pool, and creates the table if it does not exist. The
    /// table's name may have the name of a schema and a dot before it.
    ///
    /// # Errors
    /// [`KeyValueError::TableName`] for an invalid name; [`KeyValueError::Failed`] when the table
    /// cannot be created.
    pub async fn new(pool: PgPool, table: &str) -> Result<Self, KeyValueError> {
        let is_word = |word: &str| {
            let mut chars = word.chars();
            chars.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
                && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
                && word.len() < 64
        };
        let words: Vec<_> = table.split('.').collect();
        if words.len() > 2 || !words.iter().all(|word| is_word(word)) {
            return Err(KeyValueError::TableName(table.into()));
        }
        let quoted = words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(".");
        let store = Self { pool, table: quoted };
        store.create_table().await.map_err(failed("create the table"))?;
        Ok(store)
    }

    async fn create_table(&self) -> sqlx::Result<()> {
        let table = &self.table;
        let exists = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL").bind(table);
        // A user may have access to the table without the right to create it.
        if exists.fetch_one(&self.pool).await? {
            return Ok(());
        }
        let mut tx = self.pool.begin().await?;
        // The lock is for processes that create the table at the same time: one of them would fail.
        sqlx::query("SELECT pg_advisory_xact_lock(hashtext('stepwell-checkpoint'))")
            .execute(&mut *tx)
            .await?;
        let sql = format!(
            "CREATE TABLE IF NOT EXISTS {table} (key text PRIMARY KEY, value text NOT NULL, \
             expires_at timestamptz)"
        );
        sqlx::query(AssertSqlSafe(sql)).execute(&mut *tx).await?;
        tx.commit().await
    }

    fn sql(&self, text: &str) -> AssertSqlSafe<String> {
        AssertSqlSafe(text.replace("{table}", &self.table))
    }
}

fn failed(action: &'static str) -> impl Fn(sqlx::Error) -> KeyValueError {
    move |error| KeyValueError::failed(STORE, action, error)
}

fn interval(ttl: Option<Duration>) -> Option<PgInterval> {
    // A longer time than PostgreSQL's calendar allows counts as no limit.
    const LONGEST: Duration = Duration::from_secs(1_000 * 365 * 24 * 3600);
    let ttl = ttl.filter(|ttl| *ttl < LONGEST)?;
    Some(PgInterval {
        months: 0,
        days: 0,
        microseconds: i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX),
    })
}

#[async_trait]
impl KeyValueStore for Postgres {
    async fn get(&self, key: &str) -> Result<Option<String>, KeyValueError> {
        let sql = self
            .sql("SELECT value FROM {table} WHERE key = $1 AND (expires_at > now()) IS NOT FALSE");
        sqlx::query_scalar(sql).bind(key).fetch_optional(&self.pool).await.map_err(failed("get"))
    }

    async fn set(
        &self,
        key: &str,
        value: &str,
        ttl: Option<Duration>,
    ) -> Result<(), KeyValueError> {
        let sql = self.sql(
            "INSERT INTO {table} (key, value, expires_at) VALUES ($1, $2, now() + $3)
            ON CONFLICT (key) DO UPDATE
                SET value = excluded.value, expires_at = excluded.expires_at",
        );
        let query = sqlx::query(sql).bind(key).bind(value).bind(interval(ttl));
        query.execute(&self.pool).await.map_err(failed("set"))?;
        Ok(())
    }

    async fn delete(&self, key: &str) -> Result<bool, KeyValueError> {
        let sql = self
            .sql("DELETE FROM {table} WHERE key = $1 RETURNING (expires_at > now()) IS NOT FALSE");
        let was_there = sqlx::query_scalar(sql).bind(key).fetch_optional(&self.pool).await;
        Ok(was_there.map_err(failed("delete"))?.unwrap_or(false))
    }

    async fn exists(&self, key: &str) -> Result<bool, KeyValueError> {
        let sql = self.sql(
            "SELECT EXISTS (SELECT FROM {table} WHERE key = $1 AND (expires_at > now()) IS \
                  NOT FALSE)",
        );
        sqlx::query_scalar(sql).bind(key).fetch_one(&self.pool).await.map_err(failed("look for"))
    }

    async fn keys(&self, pattern: &str) -> Result<Vec<String>, KeyValueError> {
        let like = Pattern::new(pattern)
            .translate("%", &['%', '_', '\\'], |special| format!("\\{special}"));
        // No other code removes expired keys.
        let expired = self.sql("DELETE FROM {table} WHERE expires_at <= now()");
        sqlx::query(expired).execute(&self.pool).await.map_err(failed("list keys"))?;
        let sql = self
            .sql("SELECT key FROM {table} WHERE key LIKE $1 AND (expires_at > now()) IS NOT FALSE");
        sqlx::query_scalar(sql).bind(like).fetch_all(&self.pool).await.map_err(failed("list keys"))
    }

    async fn compare_and_set(
        &self,
        key: &str,
        expected: Option<&str>,
        new: Option<&str>,
        ttl: Option<Duration>,
    ) -> Result<bool, KeyValueError> {
        let query = match (expected, new) {
            (None, None) => return Ok(!self.exists(key).await?),
            (None, Some(_)) => {
                "INSERT INTO {table} AS t (key, value, expires_at)
                SELECT $1, $3, now() + $4 WHERE $2 IS NULL
                ON CONFLICT (key) DO UPDATE
                    SET value = excluded.value, expires_at = excluded.expires_at
                    WHERE t.expires_at <= now()"
            }
            (Some(_), Some(_)) => {
                "UPDATE {table} SET value = $3, expires_at = now() + $4
                WHERE key = $1 AND value = $2 AND (expires_at > now()) IS NOT FALSE"
            }
            (Some(_), None) => {
                "DELETE FROM {table} WHERE key = $1 AND value = $2 AND $3 IS NULL AND $4 IS NULL
                AND (expires_at > now()) IS NOT FALSE"
            }
        };
        let ttl = new.and(interval(ttl));
        let query = sqlx::query(self.sql(query)).bind(key).bind(expected).bind(new).bind(ttl);
        let done = query.execute(&self.pool).await.map_err(failed("compare and set"))?;
        Ok(done.rows_affected() > 0)
    }
}
