//! Answers that would be too long for PostgreSQL come in parts.

use std::sync::Arc;
use std::time::Duration;

use stepwell::{Durable, Store as _, TaskContext, TaskState, Worker, WorkerOptions};
use stepwell_postgres::sqlx::Row as _;

use crate::database::Database;

const TASKS: usize = 12;
const STEPS: usize = 5;

fn long(what: &str) -> String {
    format!("{what:>500}")
}

/// A process whose tasks have long parameters, steps, messages, children and events.
async fn process(database: &Database) -> (Durable, Worker) {
    let client = Durable::builder().store(Arc::new(database.open().await)).build().await.unwrap();
    client
        .register_fn("child", |text: String, _: TaskContext| async move { Ok(text) })
        .await
        .unwrap();
    let work = |(n, params): (usize, String), ctx: TaskContext| async move {
        assert_eq!(params, long("params"));
        for step in 0..STEPS {
            let done = ctx.step(("step", step), || async { Ok(long("step")) }).await?;
            assert_eq!(done, long("step"));
        }
        let child = ctx.spawn_named::<_, String>("child", "child", &long("child")).await?;
        let (heard, one, two, joined) = tokio::try_join!(
            ctx.await_event::<String>(("event", n), None),
            ctx.recv::<String>("topic", None),
            ctx.recv::<String>("topic", None),
            ctx.join::<String>(&child),
        )?;
        assert_eq!([heard, one, two, joined], ["event", "one", "two", "child"].map(long));
        Ok(long("done"))
    };
    client.register_fn("work", work).await.unwrap();
    let worker = client.start_worker(WorkerOptions::new().concurrency(TASKS)).await;
    (client, worker)
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_with_more_than_an_answer_holds_go_on() {
    let database = Database::new();
    let store = database.open().await;
    // A few of the payloads.
    let few = "CREATE OR REPLACE FUNCTION answer_bytes() RETURNS bigint LANGUAGE sql IMMUTABLE AS \
               'SELECT 1800::bigint'";
    database.sql(few).await;
    let (client, worker) = process(&database).await;
    let mut tasks = Vec::new();
    for n in 0..TASKS {
        tasks.push(client.spawn_named("work", &(n, long("params"))).await.unwrap());
    }
    for task in &tasks {
        while client.task(task.task_id).await.unwrap().unwrap().state != TaskState::Suspended {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    worker.shutdown().await;
    for (n, task) in tasks.iter().enumerate() {
        client.emit_event(format!("event:{n}"), &long("event")).await.unwrap();
        client.send(task.task_id, "topic", &long("one")).await.unwrap();
        client.send(task.task_id, "topic", &long("two")).await.unwrap();
    }
    let messages = store.messages(tasks[0].task_id, None).await.unwrap();
    assert_eq!((messages.items.len(), messages.next), (2, None));

    // Another process claims them all at once: with their journals, and all that has arrived.
    let (client, worker) = process(&database).await;
    for task in &tasks {
        let done =
            tokio::time::timeout(Duration::from_secs(30), client.wait::<String>(task.task_id));
        assert_eq!(done.await.expect("it waits for ever").unwrap(), long("done"));
        let journal = store.journal(task.task_id).await.unwrap();
        let seqs: Vec<u64> = journal.iter().map(|entry| entry.seq).collect();
        assert_eq!(seqs, (1..=journal.len() as u64).collect::<Vec<_>>());
        assert!(journal.len() > STEPS + 4);
    }
    worker.shutdown().await;
}

#[tokio::test]
async fn the_database_has_the_budget_of_the_contract() {
    let database = Database::new();
    database.open().await;
    let bytes: i64 = database.sql("SELECT answer_bytes()").await[0].get(0);
    assert_eq!(usize::try_from(bytes).unwrap(), stepwell::store::ANSWER_BYTES);
}

/// Names take room as well.
#[tokio::test(flavor = "multi_thread")]
async fn steps_with_long_names_and_nothing_else_come_in_parts() {
    let database = Database::new();
    let store = database.open().await;
    let few = "CREATE OR REPLACE FUNCTION answer_bytes() RETURNS bigint LANGUAGE sql IMMUTABLE AS \
               'SELECT 1800::bigint'";
    database.sql(few).await;
    let client = Durable::builder().store(Arc::new(store.clone())).build().await.unwrap();
    let work = |(): (), ctx: TaskContext| async move {
        for step in 0..STEPS {
            ctx.step(format!("{step:250}"), || async { Ok(()) }).await?;
        }
        ctx.await_event::<()>("go", None).await
    };
    client.register_fn("work", work).await.unwrap();
    let worker = client.start_worker(WorkerOptions::new()).await;
    let mut tasks = Vec::new();
    for _ in 0..TASKS {
        tasks.push(client.spawn_named("work", &()).await.unwrap().task_id);
    }
    for task in &tasks {
        while client.task(*task).await.unwrap().unwrap().state != TaskState::Suspended {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    worker.shutdown().await;
    client.emit_event("go", &()).await.unwrap();
    let claim = stepwell_core::store::Claim {
        worker_id: uuid::Uuid::from_u128(1).into(),
        queues: vec![stepwell_core::Name::new("default").unwrap()],
        task_types: vec![stepwell_core::Name::new("work").unwrap()],
        code_version: None,
        limit: TASKS,
        suspect: 0,
    };
    let new = stepwell_core::store::NewWorker {
        worker_id: claim.worker_id,
        name: "worker".into(),
        queues: claim.queues.clone(),
        concurrency: 100,
        code_version: None,
        lease: Duration::from_secs(30),
    };
    let workers = vec![stepwell_core::store::WorkerSignal::Register(new)];
    let batch = stepwell_core::store::Batch { workers, claims: vec![claim], ..Default::default() };
    let claimed = store.commit(batch.into()).await.unwrap().claims.remove(0).tasks;
    let with = claimed.iter().filter(|task| task.journal.is_some()).count();
    assert_eq!(
        (claimed.len(), with),
        (TASKS, 1),
        "the others' journals are left to be read by themselves"
    );
    let journal = store.journal(tasks[0]).await.unwrap();
    let seqs: Vec<u64> = journal.iter().map(|entry| entry.seq).collect();
    assert_eq!(seqs, (1..=journal.len() as u64).collect::<Vec<_>>());
}

/// Sizes that PostgreSQL would refuse: run by hand, it takes minutes and some GiB of memory and
/// disk.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "it takes minutes and some GiB"]
async fn journals_of_more_than_a_gibibyte_are_claimed() {
    const ENTRY: usize = 20 << 20;
    let database = Database::new();
    database.open().await;
    let client = Durable::builder()
        .store(Arc::new(database.open().await))
        .max_payload_bytes(64 << 20)
        .build()
        .await
        .unwrap();
    let work = |steps: usize, ctx: TaskContext| async move {
        let mut bytes = 0;
        for step in 0..steps {
            bytes += ctx.step(("step", step), || async { Ok("x".repeat(ENTRY)) }).await?.len();
        }
        ctx.await_event::<()>("go", None).await?;
        Ok(bytes)
    };
    client.register_fn("work", work).await.unwrap();
    let options = || WorkerOptions::new().concurrency(2).max_in_memory(0);
    let worker = client.start_worker(options()).await;
    // One task with 1.1 GiB, and forty with 40 MiB.
    let mut tasks = vec![(57, client.spawn_named("work", &57).await.unwrap())];
    for _ in 0..20 {
        tasks.push((2, client.spawn_named("work", &2).await.unwrap()));
    }
    for (_, task) in &tasks {
        while client.task(task.task_id).await.unwrap().unwrap().state != TaskState::Suspended {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    worker.shutdown().await;
    client.emit_event("go", &()).await.unwrap();
    let worker = client.start_worker(options().concurrency(60)).await;
    for (steps, task) in tasks {
        assert_eq!(client.wait::<usize>(task.task_id).await.unwrap(), steps * ENTRY);
    }
    worker.shutdown().await;
}
