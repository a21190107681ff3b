//! Exactly once with the user's own data: a process that writes an order and spawns its task in one
//! transaction, and whose task pays in a step's transaction, dies between every two of its
//! statements. Whatever is left, both sides agree.

#![cfg(feature = "sqlite")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use stepwell::sqlite::TransactionExt as _;
use stepwell::sqlite::rusqlite::Connection;
use stepwell::*;

/// Dies when it is called for the `n`-th time; never when that is 0.
struct Fate(AtomicU32);

impl Fate {
    fn strike(&self) {
        if self.0.load(Ordering::SeqCst) > 0 && self.0.fetch_sub(1, Ordering::SeqCst) == 1 {
            std::process::abort();
        }
    }
}

#[stepwell::task]
async fn ship(item: String, ctx: TaskContext) -> TaskResult<i64> {
    let fate = ctx.state::<Arc<Fate>>()?;
    let of_step = fate.clone();
    let paid = ctx
        .transaction("pay", move |tx| {
            of_step.strike();
            tx.execute("INSERT INTO payments (item) VALUES (?1)", [&item])?;
            of_step.strike();
            tx.execute("UPDATE totals SET payments = payments + 1", [])?;
            of_step.strike();
            Ok(tx.last_insert_rowid())
        })
        .await?;
    fate.strike();
    ctx.await_event::<u32>("ordered", None).await?;
    fate.strike();
    Ok(paid)
}

async fn connect(file: &Path, fate: u32) -> (Durable, Arc<Fate>) {
    let fate = Arc::new(Fate(AtomicU32::new(fate)));
    let url = format!("sqlite://{}", file.display());
    let builder = Durable::builder().database_url(url).state(fate.clone()).max_attempts(100);
    let client = builder.build().await.unwrap();
    client.register::<ship>().await.unwrap();
    (client, fate)
}

/// Orders, unless that was done before; then works until all is done.
async fn program(file: &Path, fate: u32) {
    let (client, fate) = connect(file, fate).await;
    let mut conn = Connection::open(file).unwrap();
    conn.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    let tx = conn.transaction().unwrap();
    if count(&tx, "SELECT count(*) FROM orders") == 0 {
        fate.strike();
        tx.execute("INSERT INTO orders (item) VALUES ('teapot')", []).unwrap();
        fate.strike();
        let task = client.spawn::<ship>("teapot".into()).in_tx(&tx).unwrap();
        fate.strike();
        assert!(client.emit_event("ordered", &1).in_tx(&tx).unwrap());
        fate.strike();
        tx.execute("UPDATE orders SET task_id = ?1", [task.task_id.to_string()]).unwrap();
        fate.strike();
    }
    tx.commit().unwrap();
    fate.strike();
    let worker = client.start_worker(WorkerOptions::new()).await;
    let id: String = conn.query_row("SELECT task_id FROM orders", [], |row| row.get(0)).unwrap();
    assert_eq!(client.wait::<i64>(id.parse().unwrap()).await.unwrap(), 1);
    fate.strike();
    worker.shutdown().await;
}

fn count(conn: &Connection, sql: &str) -> i64 {
    conn.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[tokio::test]
#[ignore = "it is started by the test that lets it die"]
async fn doomed_program() {
    let Some(file) = std::env::var_os("EXACTLY_ONCE_FILE").map(PathBuf::from) else { return };
    program(&file, std::env::var("EXACTLY_ONCE_FATE").unwrap().parse().unwrap()).await;
}

#[tokio::test]
async fn whenever_the_process_dies_both_sides_agree() {
    let folder = tempfile::tempdir().unwrap();
    let mut deaths = 0;
    loop {
        let file = folder.path().join(format!("{deaths}.db"));
        drop(connect(&file, 0).await);
        let conn = Connection::open(&file).unwrap();
        conn.execute_batch(
            "CREATE TABLE orders (item TEXT, task_id TEXT); CREATE TABLE payments (item TEXT);
            CREATE TABLE totals (payments INTEGER); INSERT INTO totals VALUES (0);",
        )
        .unwrap();
        let mut doomed = Command::new(std::env::current_exe().unwrap());
        doomed.args(["--exact", "doomed_program", "--ignored", "--nocapture"]);
        doomed.env("EXACTLY_ONCE_FILE", &file).env("EXACTLY_ONCE_FATE", (deaths + 1).to_string());
        let ended = doomed.output().unwrap();

        let both = |conn: &Connection| {
            let orders = count(conn, "SELECT count(*) FROM orders WHERE task_id IS NOT NULL");
            assert_eq!(
                count(conn, "SELECT count(*) FROM stepwell_tasks"),
                orders,
                "after death {deaths}"
            );
            assert_eq!(
                count(conn, "SELECT count(*) FROM stepwell_events"),
                orders,
                "after death {deaths}"
            );
            let paid = count(conn, "SELECT count(*) FROM stepwell_journal WHERE kind = 'step'");
            assert_eq!(count(conn, "SELECT count(*) FROM payments"), paid, "after death {deaths}");
            assert_eq!(count(conn, "SELECT payments FROM totals"), paid, "after death {deaths}");
            (orders, paid)
        };
        both(&conn);
        if ended.status.success() {
            break;
        }
        program(&file, 0).await;
        assert_eq!(both(&conn), (1, 1), "after death {deaths} and a new start");
        deaths += 1;
    }
    assert_eq!(deaths, 12, "it was to die at each of its places");
}

#[tokio::test]
async fn what_is_rolled_back_was_never_there() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tasks.db");
    let (client, _) = connect(&file, 0).await;
    let mut conn = Connection::open(&file).unwrap();
    let tx = conn.transaction().unwrap();
    let task = client.spawn::<ship>("teapot".into()).in_tx(&tx).unwrap();
    client.emit_event("ordered", &1).in_tx(&tx).unwrap();
    tx.rollback().unwrap();
    assert!(client.task(task.task_id).await.unwrap().is_none());
    assert!(client.emit_event("ordered", &2).await.unwrap(), "it is the first");
}

#[tokio::test]
async fn connections_that_will_not_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tasks.db");
    let (client, _) = connect(&file, 0).await;
    let elsewhere = Connection::open(folder.path().join("other.db")).unwrap();
    let error = client.spawn::<ship>("teapot".into()).in_tx(&elsewhere).unwrap_err().to_string();
    assert!(error.contains("another database than the client's"), "{error}");
    let here = Connection::open(&file).unwrap();
    let error = client.spawn::<ship>("teapot".into()).in_tx(&here).unwrap_err().to_string();
    assert!(error.contains("no transaction has begun"), "{error}");
    let harness = testing::Harness::new();
    let process = harness.start().await;
    let error = process.spawn::<ship>("teapot".into()).in_tx(&here).unwrap_err().to_string();
    assert!(error.contains("the client's store is not SQLite"), "{error}");
}

#[tokio::test]
async fn a_spawn_in_a_transaction_is_checked_by_what_others_described() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tasks.db");
    let client = Durable::builder()
        .database_url(format!("sqlite://{}", file.display()))
        .build()
        .await
        .unwrap();
    let info = TaskTypeInfo {
        task_type: Name::new("ship").unwrap(),
        params: serde_json::json!({ "type": "string", "maxLength": 3 }),
        output: serde_json::json!({}),
    };
    client.store().describe(info).await.unwrap();
    let mut conn = Connection::open(&file).unwrap();
    let tx = conn.transaction().unwrap();
    let error = client.spawn::<ship>("teapot".into()).in_tx(&tx).unwrap_err().to_string();
    assert!(error.contains("the parameters of ship: does not fit its schema"), "{error}");
    client.spawn::<ship>("pot".into()).in_tx(&tx).unwrap();
    tx.commit().unwrap();
    assert_eq!(client.tasks(TaskFilter::default()).await.unwrap().items.len(), 1);
}
