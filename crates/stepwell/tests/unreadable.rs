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

use stepwell::sqlite::rusqlite::Connection;
use stepwell::*;

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
    let client =
        Durable::builder().database_url(format!("sqlite://{}", file.display())).build().await.unwrap();
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
