//! A schema of its own for each test.

use std::sync::Arc;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use stepwell_core::Runtime;
use stepwell_postgres::{PostgresOptions, PostgresStore, sqlx};

/// A new schema, dropped with this value.
pub(crate) struct Database {
    pub(crate) url: String,
    pub(crate) schema: String,
}

/// The server that the tests use.
pub(crate) fn server() -> String {
    std::env::var("TEST_POSTGRES_URL")
        .expect("these tests need PostgreSQL: run `cargo xtask test`, or set TEST_POSTGRES_URL")
}

impl Database {
    pub(crate) fn new() -> Self {
        Self { url: server(), schema: format!("test_{}", uuid::Uuid::new_v4().simple()) }
    }

    pub(crate) fn options(&self) -> PostgresOptions {
        PostgresOptions::parse(&self.url).unwrap().schema(&self.schema).unwrap()
    }

    pub(crate) async fn open(&self) -> PostgresStore {
        PostgresStore::connect(self.options()).await.unwrap()
    }

    pub(crate) async fn open_at(&self, clock: Arc<dyn Runtime>) -> PostgresStore {
        PostgresStore::connect(self.options().clock(clock)).await.unwrap()
    }

    /// A connection of its own, which finds the schema's tables without its name.
    pub(crate) async fn connection(&self) -> PgConnection {
        let mut conn = PgConnection::connect(&self.url).await.unwrap();
        let path = format!("SET search_path = {}", self.schema);
        conn.execute(sqlx::raw_sql(AssertSqlSafe(path))).await.unwrap();
        conn
    }

    /// Runs statements in the schema.
    pub(crate) async fn sql(&self, sql: &str) -> Vec<PgRow> {
        let mut conn = self.connection().await;
        sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut conn).await.unwrap()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (url, schema) = (self.url.clone(), self.schema.clone());
        // On a thread of its own: a runtime must not block in a drop.
        let dropped = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut conn = PgConnection::connect(&url).await?;
                let sql = format!("DROP SCHEMA IF EXISTS {schema} CASCADE");
                conn.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.map(drop)
            })
        });
        // The server may be gone, and then the schema is.
        let _ = dropped.join();
    }
}
