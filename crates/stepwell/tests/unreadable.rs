//! A row that cannot be read hurts its own task, and nothing else.

#![cfg(feature = "sqlite")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

mod damaged;

use std::time::Duration;

use stepwell::sqlite::rusqlite::Connection;
use stepwell::*;

use crate::damaged::Damage as _;

struct Sqlite(Connection);

impl damaged::Damage for Sqlite {
    async fn run(&mut self, sql: String) {
        let sql = sql
            .replace("{tasks}", "stepwell_tasks")
            .replace("{journal}", "stepwell_journal")
            .replace("{waits}", "stepwell_waits")
            .replace("{schedules}", "stepwell_schedules");
        assert!(self.0.execute(&sql, []).unwrap() > 0, "{sql}");
    }
}

async fn sqlite() -> (tempfile::TempDir, Durable, Sqlite) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tasks.db");
    let client = Durable::builder()
        .database_url(format!("sqlite://{}", file.display()))
        .build()
        .await
        .unwrap();
    let conn = Connection::open(&file).unwrap();
    conn.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    (folder, client, Sqlite(conn))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_cannot_be_read_hurts_its_own_task_only_on_sqlite() {
    let (_folder, client, database) = sqlite().await;
    damaged::hurts_its_own_task_only(client, database).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_cannot_be_loaded_hurts_its_own_task_only_on_sqlite() {
    let (_folder, client, database) = sqlite().await;
    damaged::hurts_a_task_that_is_loaded(client, database).await;
}

/// What may be in a column of a task's row, in whatever stage the task is.
const COLUMNS: &[&str] = &[
    "queue = ''",
    "state = 'hibernating'",
    "task_type = ''",
    "run_id = 'x'",
    "worker_id = 'x'",
    "parent = 'x'",
    "scope = 'nonsense'",
    "attempt = -1",
    "max_attempts = -9223372036854775808",
    "crashes = 9223372036854775807",
    "lost = 9223372036854775807",
    "priority = 9223372036854775807",
    "max_duration = -1",
];

/// With one slot: a row that took it, or a place of a claim, would be in everybody's way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_cannot_be_read_hold_up_nobody_in_any_stage() {
    let (_folder, client, mut database) = sqlite().await;
    damaged::register(&client).await;
    let options = || WorkerOptions::new().max_in_memory(0).poll_interval(Duration::from_millis(20));
    let worker = client.start_worker(options()).await;
    let (mut hurt, mut others) = (Vec::new(), Vec::new());
    for column in COLUMNS {
        hurt.push((*column, damaged::spawn(&client, "waits").await));
        others.push(damaged::spawn(&client, "waits").await);
    }
    for (_, task) in &hurt {
        damaged::until(&client, *task, |task| task.state == TaskState::Suspended).await;
    }
    worker.shutdown().await;
    let delayed = || SpawnOptions::new().delay(Duration::from_millis(1));
    for column in COLUMNS {
        let overdue =
            CancellationPolicy { max_delay: Some(Duration::ZERO), ..CancellationPolicy::default() };
        for options in [SpawnOptions::new(), delayed(), SpawnOptions::new().cancellation(overdue)] {
            hurt.push((
                *column,
                client.spawn_named("plain", &7).options(options).await.unwrap().task_id,
            ));
        }
        others.push(damaged::spawn(&client, "plain").await);
        others.push(client.spawn_named("plain", &7).options(delayed()).await.unwrap().task_id);
    }
    for (column, task) in &hurt {
        database.run(format!("UPDATE {{tasks}} SET {column} WHERE task_id = '{task}'")).await;
    }
    assert!(client.emit_event("go", &()).await.unwrap());
    client.queues().list().await.unwrap();
    let worker = client.start_worker(options().concurrency(1)).await;
    let all = async {
        for task in others {
            assert_eq!(client.wait::<u32>(task).await.unwrap(), 7);
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all).await.unwrap();
    worker.shutdown().await;
}
