//! What is in an SQLite file when payloads are encrypted: nothing that would tell a secret,
//! wherever it came from.

#![cfg(feature = "sqlite")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{anyhow, bail};
use serde_json::json;
use stepwell::codec::{Compression, Encryption, Key};
use stepwell::sqlite::TransactionExt as _;
use stepwell::sqlite::rusqlite::Connection;
use stepwell::*;

/// In every secret, and nowhere else.
const SECRET: &str = "hush-hush";

fn secret(what: &str) -> String {
    format!("{SECRET} {what}")
}

/// Has a secret in everything that is kept.
#[stepwell::task]
async fn secretive(params: String, ctx: TaskContext) -> TaskResult<String> {
    let tries = AtomicU32::new(0);
    let flaky = ctx.step("flaky", || async {
        if tries.fetch_add(1, Ordering::SeqCst) == 0 {
            bail!(anyhow!(secret("cause")).context(secret("try")));
        }
        Ok(secret("result"))
    });
    let flaky = flaky.retry(RetryStrategy::fixed(Duration::ZERO)).await?;
    let failed = ctx.step("fails", || async { Err::<(), _>(anyhow!(secret("failure"))) }).await;
    let written = ctx.transaction("write", |tx| {
        tx.execute("INSERT INTO written (number) VALUES (7)", [])?;
        Ok(secret("written"))
    });
    let written = written.await?;
    let child = ctx.spawn::<child>("child", secret("child's parameters")).await?;
    let output = ctx.join(&child).await?;
    ctx.emit_event("own", &secret("own event")).await?;
    let own: String = ctx.await_event("own", None).await?;
    ctx.send(ctx.task_id, "own", &secret("own message")).await?;
    let heard: String = ctx.recv("own", None).await?;
    let event: String = ctx.await_event("told", None).await?;
    let message: String = ctx.recv("told", None).await?;
    assert!(failed.is_err());
    Ok([params, flaky, written, output, own, heard, event, message].join(", "))
}

#[stepwell::task]
async fn child(params: String, _ctx: TaskContext) -> TaskResult<String> {
    Ok(format!("{params} and its output"))
}

#[stepwell::task]
async fn failing(_: (), _ctx: TaskContext) -> TaskResult<()> {
    Err(anyhow!(secret("last cause")).context(secret("last words")).into())
}

async fn client(file: &Path, encrypts: bool) -> Durable {
    let builder = Durable::builder().database_url(format!("sqlite://{}", file.display()));
    let key = Key::new("test", *b"a key of thirty-two secret bytes").unwrap();
    let builder = match encrypts {
        true => builder.codec(Compression::new()).codec(Encryption::new(key)),
        false => builder,
    };
    let client = builder.max_attempts(1).build().await.unwrap();
    client.register::<secretive>().await.unwrap();
    client.register::<child>().await.unwrap();
    client.register::<failing>().await.unwrap();
    client
}

/// Has tasks tell all of their secrets, and gives the files' bytes, first while the database is
/// open.
async fn secrets(file: &Path, encrypts: bool) -> [Vec<u8>; 2] {
    let first = client(file, encrypts).await;
    let mut conn = Connection::open(file).unwrap();
    conn.execute_batch("CREATE TABLE written (number INTEGER)").unwrap();
    let worker = first.start_worker(WorkerOptions::new()).await;
    let begun = first.spawn::<secretive>(secret("parameters")).await.unwrap().task_id;
    let failed = first.spawn::<failing>(()).await.unwrap().task_id;
    let error = first.wait::<()>(failed).await.unwrap_err().to_string();
    assert!(error.ends_with("failed: hush-hush last words: hush-hush last cause"), "{error}");
    loop {
        let task = first.task(begun).await.unwrap().unwrap();
        assert!(!task.state.is_finished(), "{:?}", task.failure);
        if task.state == TaskState::Suspended {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    worker.shutdown().await;

    // Another client goes on from the journal, and is told by transactions of the application's.
    let second = client(file, encrypts).await;
    let tx = conn.transaction().unwrap();
    let spawned = second.spawn::<secretive>(secret("parameters")).in_tx(&tx).unwrap().task_id;
    second.emit_event("told", &secret("event")).in_tx(&tx).unwrap();
    tx.commit().unwrap();
    for task in [begun, spawned] {
        second.send(task, "told", &secret("message")).await.unwrap();
    }
    let worker = second.start_worker(WorkerOptions::new()).await;
    for task in [begun, spawned] {
        let output: String = second.wait(task).await.unwrap();
        let told = [
            "parameters",
            "result",
            "written",
            "child's parameters and its output",
            "own event",
            "own message",
            "event",
            "message",
        ];
        assert_eq!(output, told.map(secret).join(", "));
        let journal = format!("{:?}", second.journal(task).await.unwrap());
        for told in ["result", "try", "cause", "failure", "written"] {
            assert!(journal.contains(&secret(told)), "{journal}");
        }
    }
    worker.shutdown().await;
    assert_eq!(
        conn.query_row("SELECT count(*) FROM written", [], |row| row.get::<_, i64>(0)).unwrap(),
        2
    );
    let open = bytes(file);
    drop((first, second, conn));
    [open, bytes(file)]
}

/// The bytes of all files beside it, too: the write-ahead log.
fn bytes(file: &Path) -> Vec<u8> {
    let files = std::fs::read_dir(file.parent().unwrap()).unwrap();
    files.flat_map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
}

fn holds_a_secret(bytes: &[u8]) -> bool {
    bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes())
}

#[tokio::test]
async fn no_secret_is_in_the_files_of_a_database_that_is_encrypted() {
    for encrypts in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        for bytes in secrets(&folder.path().join("tasks.db"), encrypts).await {
            // Without encryption they are found, so the search would find them.
            assert_eq!(holds_a_secret(&bytes), !encrypts);
        }
    }
}

#[tokio::test]
async fn what_is_copied_to_another_place_is_not_taken_for_what_belongs_there() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tasks.db");
    let client = client(&file, true).await;
    let mine = client.spawn::<child>("mine".into()).await.unwrap().task_id;
    let yours = client.spawn::<child>("yours".into()).await.unwrap().task_id;
    let conn = Connection::open(&file).unwrap();
    let copy =
        "UPDATE stepwell_tasks SET params = (SELECT params FROM stepwell_tasks WHERE task_id = ?1)
        WHERE task_id = ?2";
    assert_eq!(conn.execute(copy, [mine.to_string(), yours.to_string()]).unwrap(), 1);
    let worker = client.start_worker(WorkerOptions::new()).await;
    let error = client.wait::<String>(yours).await.unwrap_err().to_string();
    assert!(error.contains("was copied from another place"), "{error}");
    assert_eq!(client.wait::<String>(mine).await.unwrap(), "mine and its output");
    let listed =
        serde_json::to_value(client.tasks(TaskFilter::default()).await.unwrap().items).unwrap();
    let why = listed[0]["params"]["$unreadable"].as_str().unwrap();
    assert!(why.starts_with(&format!("the parameters of task {yours} cannot be read")), "{why}");
    assert_eq!(listed[1]["params"], json!("mine"));
    worker.shutdown().await;
}

/// Takes another way when its step has failed.
#[stepwell::task]
async fn branches(_: (), ctx: TaskContext) -> TaskResult<String> {
    let charged = ctx.step("charge", || async { Ok(secret("receipt")) }).await;
    ctx.await_event::<()>("go", None).await?;
    Ok(charged.unwrap_or_else(|_| "not charged".into()))
}

#[tokio::test]
async fn a_journal_that_was_changed_leads_no_code_another_way() {
    const FAILURE: &str = r#"json_object('kind', 'error', 'message', "#;
    for change in [
        // The result in the place of a failure's message.
        format!("outcome = 'failed', payload = {FAILURE} payload)"),
        format!("outcome = 'failed', payload = {FAILURE} 'plain')"),
        "payload = '\"plain\"'".to_owned(),
        "payload = (SELECT payload FROM stepwell_journal j WHERE j.kind = 'step' AND j.task_id <> \
         stepwell_journal.task_id)"
            .to_owned(),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tasks.db");
        let client = client(&file, true).await;
        client.register::<branches>().await.unwrap();
        let worker = client.start_worker(WorkerOptions::new().max_in_memory(0)).await;
        let mut tasks = Vec::new();
        for _ in 0..2 {
            let task = client.spawn::<branches>(()).await.unwrap().task_id;
            while client.task(task).await.unwrap().unwrap().state != TaskState::Suspended {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tasks.push(task);
        }
        worker.shutdown().await;
        let conn = Connection::open(&file).unwrap();
        let sql = format!(
            "UPDATE stepwell_journal SET {change} WHERE kind = 'step' AND task_id = \
                           ?1"
        );
        assert_eq!(conn.execute(&sql, [tasks[0].to_string()]).unwrap(), 1);
        client.emit_event("go", &()).await.unwrap();
        let worker = client.start_worker(WorkerOptions::new()).await;
        let error = client.wait::<String>(tasks[0]).await.unwrap_err().to_string();
        assert!(error.contains("cannot be read: "), "{change}: {error}");
        assert_eq!(client.wait::<String>(tasks[1]).await.unwrap(), secret("receipt"));
        worker.shutdown().await;
    }
}
