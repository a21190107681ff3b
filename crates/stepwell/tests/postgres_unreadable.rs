//! A row that cannot be read hurts its own task, and nothing else, on PostgreSQL.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

mod damaged;

use stepwell::postgres::sqlx::{self, AssertSqlSafe, Connection as _, PgConnection};
use stepwell::*;

struct Postgres(PgConnection, &'static str);

impl damaged::Damage for Postgres {
    async fn run(&mut self, sql: String) {
        let table = |name: &str| format!("{}.{name}", self.1);
        let sql = ["tasks", "journal", "waits", "schedules"]
            .into_iter()
            .fold(sql, |sql, name| sql.replace(&format!("{{{name}}}"), &table(name)));
        let done = sqlx::raw_sql(AssertSqlSafe(sql.clone())).execute(&mut self.0).await.unwrap();
        assert!(done.rows_affected() > 0, "{sql}");
    }
}

async fn postgres(schema: &'static str) -> (Durable, Postgres) {
    let url = std::env::var("TEST_POSTGRES_URL")
        .expect("this test needs PostgreSQL: run `cargo xtask test`");
    let mut conn = PgConnection::connect(&url).await.unwrap();
    let drop = format!("DROP SCHEMA IF EXISTS {schema} CASCADE");
    sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut conn).await.unwrap();
    let client =
        Durable::builder().database_url(format!("{url}?schema={schema}")).build().await.unwrap();
    (client, Postgres(conn, schema))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_cannot_be_read_hurts_its_own_task_only_on_postgresql() {
    let (client, database) = postgres("test_unreadable").await;
    damaged::hurts_its_own_task_only(client, database).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_cannot_be_loaded_hurts_its_own_task_only_on_postgresql() {
    let (client, database) = postgres("test_unreadable_loaded").await;
    damaged::hurts_a_task_that_is_loaded(client, database).await;
}
