//! PostgreSQL as a key-value store.

#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs, reason = "a test ends by a panic")]

mod conformance;

use std::sync::Arc;

use futures_util::future::join_all;
use sqlx::{AssertSqlSafe, PgPool};
use stepwell_checkpoint::key_value::{KeyValueError, Postgres};

async fn pool() -> PgPool {
    let url = std::env::var("TEST_POSTGRES_URL")
        .expect("this test needs PostgreSQL: run `cargo xtask test`, or set TEST_POSTGRES_URL");
    PgPool::connect(&url).await.unwrap()
}

async fn drop_table(pool: &PgPool, name: &str) {
    sqlx::query(AssertSqlSafe(format!("DROP TABLE {name}"))).execute(pool).await.unwrap();
}

fn new_table() -> String {
    format!("test_{}", uuid::Uuid::new_v4().simple())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_is_a_key_value_store() {
    let (pool, table) = (pool().await, new_table());
    conformance::check(Arc::new(Postgres::new(pool.clone(), &table).await.unwrap()), "p:").await;
    drop_table(&pool, &table).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_many_make_at_the_same_time_is_made_once() {
    let (pool, table) = (pool().await, new_table());
    let table = format!("public.{table}");
    let stores = join_all((0..8).map(|_| Postgres::new(pool.clone(), &table))).await;
    assert!(stores.into_iter().all(|store| store.is_ok()));
    drop_table(&pool, &table).await;
}

#[tokio::test]
async fn a_name_that_is_none_for_a_table_is_refused() {
    let pool = pool().await;
    for name in ["", "a.b.c", "a b", "1a", "a\"; DROP TABLE x; --", "ä"] {
        let error = Postgres::new(pool.clone(), name).await.unwrap_err();
        assert_eq!(error, KeyValueError::TableName(name.into()));
    }
}
