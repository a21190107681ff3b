//! A task that begins on SQLite, goes on in PostgreSQL, and ends on SQLite.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use stepwell::*;

type Ran = Arc<Mutex<Vec<String>>>;

const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

#[stepwell::task]
async fn travel(from: String, ctx: TaskContext) -> TaskResult<Vec<String>> {
    let ran = ctx.state::<Ran>()?.clone();
    let mut seen = vec![from];
    for stage in ["Bonn", "Mainz", "Basel"] {
        ctx.step(("go", stage), || async { Ok(ran.lock().unwrap().push(stage.into())) }).await?;
        let late = ctx
            .try_step(("late", stage), || async { Err::<(), _>(format!("\u{0} {stage} 🚂")) })
            .await?;
        seen.extend(late.err());
        seen.push(ctx.recv("ticket", WEEK).await?);
    }
    ctx.log(LogLevel::Info, "arrived", []);
    Ok(seen)
}

async fn client(url: &str, ran: &Ran) -> Durable {
    let client = Durable::builder().database_url(url).state(ran.clone()).build().await.unwrap();
    client.register::<travel>().await.unwrap();
    client
}

/// The task, once it waits with so many steps behind it, as a document; its client is gone then.
async fn leave(client: Durable, task: TaskId, steps: usize) -> String {
    loop {
        let info = client.task(task).await.unwrap().unwrap();
        let journal = client.journal(task).await.unwrap();
        let done = journal.iter().filter(|entry| entry.key.kind == Kind::Step).count();
        if info.state == TaskState::Suspended && done == steps {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let json = client.export(task).await.unwrap().to_json().unwrap();
    client.shutdown(Duration::ZERO).await;
    json
}

/// The document goes in, and comes out of the store as it was.
async fn arrive(client: &Durable, task: TaskId, json: &str) {
    let export = Export::from_json(json).unwrap();
    let (journal, mut waits) = (export.record.journal.clone(), export.record.waits.clone());
    assert_eq!(client.import(export).await.unwrap(), task);
    let there = client.export(task).await.unwrap().record;
    assert_eq!(there.journal, journal);
    waits.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(there.waits, waits);
    let _worker = client.start_worker(WorkerOptions::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_goes_from_sqlite_to_postgresql_and_back() {
    let server = throwaway::Postgres::start().unwrap();
    let ran = Ran::default();
    let first = client("sqlite::memory:", &ran).await;
    let _worker = first.start_worker(WorkerOptions::new()).await;
    let task = first.spawn::<travel>("Köln".into()).await.unwrap().task_id;
    first.send(task, "ticket", "one").await.unwrap();
    let json = leave(first, task, 4).await;

    let second = client(&format!("{}?schema=test_export", server.url()), &ran).await;
    arrive(&second, task, &json).await;
    second.send(task, "ticket", "two \u{0}").await.unwrap();
    let json = leave(second, task, 6).await;

    let third = client("sqlite::memory:", &ran).await;
    arrive(&third, task, &json).await;
    third.send(task, "ticket", "three").await.unwrap();
    let seen = third.wait::<Vec<String>>(task).await.unwrap();
    let expected =
        ["Köln", "\u{0} Bonn 🚂", "one", "\u{0} Mainz 🚂", "two \u{0}", "\u{0} Basel 🚂", "three"];
    assert_eq!(seen, expected);
    assert_eq!(
        *ran.lock().unwrap(),
        ["Bonn", "Mainz", "Basel"],
        "what is journaled does not run again"
    );
    assert_eq!(third.logs(task).await.unwrap().len(), 1);
}
