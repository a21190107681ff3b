//! What goes on around a task: logs, progress, labels, running it again, forgetting it.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use stepwell::sqlite::TransactionExt as _;
use stepwell::testing::{Harness, Process, worker_options};
use stepwell::*;

#[stepwell::task]
async fn talks(times: u64, ctx: TaskContext) -> TaskResult<u64> {
    ctx.log(LogLevel::Info, "begins", [("times", times.into())]);
    for n in 1..=times {
        ctx.step(("step", n), || async {
            ctx.log(LogLevel::Debug, format!("in step {n}"), []);
            ctx.progress(n, times, "counting");
            Ok(())
        })
        .await?;
    }
    ctx.await_event::<()>("go on", None).await?;
    ctx.log(LogLevel::Warn, "ends", [("list", json!([1, 2]))]);
    Ok(times)
}

async fn start(harness: &Harness) -> Process {
    let process = harness.start().await;
    process.register::<talks>().await.unwrap();
    process.start_worker(worker_options()).await;
    process
}

async fn suspended(process: &Process, task: TaskId) {
    while process.task(task).await.unwrap().unwrap().state != TaskState::Suspended {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn logs_and_progress_are_kept_with_the_task_and_not_written_again_by_a_replay() {
    let harness = Harness::new();
    let process = start(&harness).await;
    let mut events = process.subscribe();
    let task = process.spawn::<talks>(5).await.unwrap().task_id;
    suspended(&process, task).await;
    let snapshot = process.snapshot(task).await.unwrap();
    let progress = Progress { current: 5, total: Some(5), message: Some("counting".into()) };
    assert_eq!(snapshot.progress, Some(progress.clone()));
    process.kill().await;

    let process = start(&harness).await;
    process.emit_event("go on", &()).await.unwrap();
    process.wait::<u64>(task).await.unwrap();
    let lines = process.logs(task).await.unwrap();
    let said: Vec<_> = lines.iter().map(|line| (line.level, line.message.as_str())).collect();
    let mut expected = vec![(LogLevel::Info, "begins")];
    let steps: Vec<_> = (1..=5).map(|n| format!("in step {n}")).collect();
    expected.extend(steps.iter().map(|step| (LogLevel::Debug, step.as_str())));
    expected.push((LogLevel::Warn, "ends"));
    assert_eq!(said, expected);
    assert_eq!((lines[0].attempt, &lines[0].fields["times"]), (1, &json!(5)));
    assert_eq!(lines[6].fields["list"], json!([1, 2]));
    assert!(lines.is_sorted_by_key(|line| line.at));
    let journal = process.journal(task).await.unwrap();
    let kept = journal.iter().filter(|entry| entry.key.kind == Kind::Progress).count();
    assert_eq!(kept, 1, "only the latest progress is kept");

    let mut told = Vec::new();
    while told.len() < 11 {
        match events.next().await.unwrap() {
            Lifecycle::LogWritten { message, .. } => told.push(message),
            Lifecycle::TaskProgressed { progress, .. } => told.push(progress.current.to_string()),
            _ => {}
        }
    }
    assert_eq!(
        told.join(" "),
        "begins in step 1 1 in step 2 2 in step 3 3 in step 4 4 in step 5 5"
    );
}

#[tokio::test(start_paused = true)]
async fn a_log_in_a_compensation_is_kept_and_does_not_end_it() {
    let harness = Harness::new();
    let process = harness.start().await;
    let fails = |(): (), ctx: TaskContext| async move {
        let log = ctx.clone();
        ctx.step("a", || async { Ok(()) })
            .compensate(move |()| {
                log.log(LogLevel::Info, "undoing", []);
                log.progress(1, 1, None);
                async { Ok(()) }
            })
            .await?;
        ctx.progress(0, 1, None);
        Err::<(), _>(TaskError::permanent(anyhow::anyhow!("no")))
    };
    process.register_fn("fails", fails).await.unwrap();
    process.start_worker(worker_options()).await;
    let task = process.spawn_named("fails", &()).await.unwrap().task_id;
    process.wait::<()>(task).await.unwrap_err();
    assert_eq!(process.logs(task).await.unwrap()[0].message, "undoing");
    assert_eq!(process.snapshot(task).await.unwrap().progress.unwrap().current, 1);
    process.retry(task).await.unwrap();
    process.wait::<()>(task).await.unwrap_err();
    assert_eq!(process.logs(task).await.unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn tasks_are_found_by_labels_and_triggered_again() {
    let harness = Harness::new();
    let process = start(&harness).await;
    process.emit_event("go on", &()).await.unwrap();
    let options = |tenant: &str| {
        SpawnOptions::new().label("tenant", tenant).priority(3).idempotency_key(tenant)
    };
    for tenant in ["a", "b"] {
        let task = process.spawn::<talks>(1).options(options(tenant)).await.unwrap().task_id;
        process.wait::<u64>(task).await.unwrap();
    }
    let of_a = TaskFilter {
        labels: BTreeMap::from([("tenant".into(), "a".into())]),
        ..TaskFilter::default()
    };
    let found = process.tasks(of_a.clone()).await.unwrap();
    assert_eq!(found.items.len(), 1);
    let again = process.retrigger(found.items[0].task_id).await.unwrap();
    assert!(again.created());
    assert_eq!(process.wait::<u64>(again.task_id).await.unwrap(), 1);
    let found = process.tasks(of_a).await.unwrap();
    assert_eq!(found.items.len(), 2);
    assert_eq!(
        (found.items[0].priority, &found.items[0].params, &found.items[0].headers),
        (3, &found.items[1].params, &found.items[1].headers)
    );
    let unknown = process.retrigger(TaskId::from(uuid::Uuid::nil())).await.unwrap_err();
    assert!(matches!(unknown, Error::NotFound(_)));
}

#[tokio::test(start_paused = true)]
async fn ended_tasks_are_forgotten_after_their_time() {
    let harness = Harness::new();
    let day = Duration::from_secs(24 * 3600);
    let process = harness.start_with(|builder| builder.retention(day)).await.unwrap();
    process.register::<talks>().await.unwrap();
    process.start_worker(worker_options()).await;
    let waits = process.spawn::<talks>(1).await.unwrap().task_id;
    let nothing = |(): (), _ctx: TaskContext| async { Ok(()) };
    process.register_fn("nothing", nothing).await.unwrap();
    let ended = process.spawn_named("nothing", &()).await.unwrap().task_id;
    process.wait::<()>(ended).await.unwrap();
    tokio::time::sleep(day - Duration::from_secs(120)).await;
    assert!(process.task(ended).await.unwrap().is_some());
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(process.task(ended).await.unwrap().is_none());
    assert!(process.task(waits).await.unwrap().is_some(), "it has not ended");
}

#[tokio::test]
async fn a_line_that_a_transaction_writes_comes_after_it() {
    let client = Durable::builder().database_url("sqlite::memory:").build().await.unwrap();
    let writes = |(): (), ctx: TaskContext| async move {
        let inside = ctx.clone();
        let write = move |_: &_| {
            inside.log(LogLevel::Info, "inside", []);
            inside.progress(1, 2, "writing");
            Ok(())
        };
        ctx.transaction("write", write).await?;
        ctx.log(LogLevel::Info, "after", []);
        ctx.step("last", || async { Ok(()) }).await?;
        Ok(())
    };
    client.register_fn("writes", writes).await.unwrap();
    let mut events = client.subscribe();
    client.start_worker(worker_options()).await;
    let task = client.spawn_named("writes", &()).await.unwrap().task_id;
    let ended = tokio::time::timeout(Duration::from_secs(30), client.wait::<()>(task)).await;
    ended.expect("it hangs").unwrap();
    let logs = client.logs(task).await.unwrap();
    let lines: Vec<_> = logs.iter().map(|line| line.message.as_str()).collect();
    assert_eq!(lines, ["inside", "after"]);
    let mut starts = 0;
    loop {
        match events.next().await.unwrap() {
            Lifecycle::TaskStarted { .. } => starts += 1,
            Lifecycle::TaskCompleted { .. } => break,
            _ => {}
        }
    }
    assert_eq!(starts, 1, "the run keeps its task");
}
