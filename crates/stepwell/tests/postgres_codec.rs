//! Payloads that are compressed and encrypted in PostgreSQL, with steps, spawns and events in
//! transactions of the application's: they come back as they were, and the tables hold no secret.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use anyhow::anyhow;
use stepwell::codec::{Compression, Encryption, Key};
use stepwell::postgres::TransactionExt as _;
use stepwell::postgres::sqlx::{self, AssertSqlSafe, Connection as _, PgConnection};
use stepwell::*;

/// In every secret, and nowhere else.
const SECRET: &str = "hush-hush";
const SCHEMA: &str = "test_codec";

fn secret(what: &str) -> String {
    format!("{SECRET} {}", what.repeat(20))
}

#[stepwell::task]
async fn secretive(params: String, ctx: TaskContext) -> TaskResult<String> {
    let result = ctx.step("result", || async { Ok(secret("result")) }).await?;
    let written = ctx.transaction("write", |tx| {
        Box::pin(async move {
            sqlx::query(AssertSqlSafe(format!("INSERT INTO {SCHEMA}.written VALUES (7)")))
                .execute(tx)
                .await?;
            Ok(secret("written"))
        })
    });
    let written = written.await?;
    let event: String = ctx.await_event("told", None).await?;
    let message: String = ctx.recv("told", None).await?;
    Ok([params, result, written, event, message].join(", "))
}

#[stepwell::task]
async fn failing(_: (), _ctx: TaskContext) -> TaskResult<()> {
    Err(anyhow!(secret("cause")).context(secret("words")).into())
}

async fn client(url: &str, key: &str) -> Durable {
    let key = Key::new(key, *b"a key of thirty-two secret bytes").unwrap();
    let builder = Durable::builder().database_url(format!("{url}?schema={SCHEMA}"));
    let builder = builder.codec(Compression::new()).codec(Encryption::new(key));
    let client = builder.max_attempts(1).build().await.unwrap();
    client.register::<secretive>().await.unwrap();
    client.register::<failing>().await.unwrap();
    client
}

async fn run(conn: &mut PgConnection, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await.unwrap();
}

/// Every row of every table, as text.
async fn everything(conn: &mut PgConnection) -> String {
    let sql = "SELECT table_name::text FROM information_schema.tables WHERE table_schema = $1 AND \
               table_type = 'BASE TABLE'";
    let tables: Vec<String> =
        sqlx::query_scalar(sql).bind(SCHEMA).fetch_all(&mut *conn).await.unwrap();
    let mut all = String::new();
    for table in tables {
        let sql = format!("SELECT t::text FROM {SCHEMA}.{table} t");
        let rows: Vec<String> =
            sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut *conn).await.unwrap();
        all += &format!("{table}: {}\n", rows.join("\n"));
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_in_the_tables_and_another_key_fails_the_task_alone() {
    let server = throwaway::Postgres::start().unwrap();
    let url = server.url();
    let mut conn = PgConnection::connect(&url).await.unwrap();
    let first = client(&url, "mine").await;
    run(&mut conn, format!("CREATE TABLE {SCHEMA}.written (number integer)")).await;

    let mut tx = conn.begin().await.unwrap();
    let task = first.spawn::<secretive>(secret("parameters")).in_tx(&mut tx).await.unwrap().task_id;
    first.emit_event("told", &secret("event")).in_tx(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    let second = first.spawn::<secretive>(secret("parameters")).await.unwrap().task_id;
    let failed = first.spawn::<failing>(()).await.unwrap().task_id;

    // One that has not the key, at first.
    let blind = client(&url, "yours").await;
    let worker = blind.start_worker(WorkerOptions::new()).await;
    let error = blind.wait::<String>(task).await.unwrap_err().to_string();
    let says = "cannot be read: it was encrypted with the key `mine`, and this client has `yours`";
    assert!(error.contains(says), "{error}");
    for task in [second, failed] {
        let error = blind.wait::<String>(task).await.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    assert_eq!(blind.tasks(TaskFilter::default()).await.unwrap().items.len(), 3);
    worker.shutdown().await;

    let worker = first.start_worker(WorkerOptions::new()).await;
    for task in [task, second, failed] {
        first.retry(task).await.unwrap();
    }
    for task in [task, second] {
        first.send(task, "told", &secret("message")).await.unwrap();
        let output: String = first.wait(task).await.unwrap();
        let told = ["parameters", "result", "written", "event", "message"];
        assert_eq!(output, told.map(secret).join(", "));
    }
    let error = first.wait::<()>(failed).await.unwrap_err().to_string();
    assert!(error.ends_with(&format!("{}: {}", secret("words"), secret("cause"))), "{error}");
    worker.shutdown().await;

    let all = everything(&mut conn).await;
    assert!(!all.contains(SECRET), "{all}");
    assert!(all.contains("aes256gcm:mine") && all.contains("zstd"), "{all}");
    let plain = format!(
        "INSERT INTO {SCHEMA}.written VALUES (8); CREATE TABLE {SCHEMA}.told (what text); INSERT \
         INTO {SCHEMA}.told VALUES ('{SECRET}')"
    );
    run(&mut conn, plain).await;
    assert!(everything(&mut conn).await.contains(SECRET), "the search would find it");
}
