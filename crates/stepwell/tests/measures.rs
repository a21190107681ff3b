//! Counts and times reach the program's recorder, and only where they are wanted.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test ends by a panic")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use stepwell::{Durable, RetryStrategy, SpawnOptions, TaskContext, TaskResult, WorkerOptions};

static TRIES: AtomicU32 = AtomicU32::new(0);

#[stepwell::task]
async fn flaky(fails: bool, ctx: TaskContext) -> TaskResult<()> {
    ctx.step("try", || async {
        match TRIES.fetch_add(1, Ordering::SeqCst) {
            0 => Err(anyhow::anyhow!("not yet")),
            _ => Ok(()),
        }
    })
    .retry(RetryStrategy::fixed(Duration::from_millis(1)))
    .await?;
    if fails { Err(anyhow::anyhow!("never").into()) } else { Ok(()) }
}

/// What was counted since the last time, by name and labels; of times, how many.
fn counted(snapshotter: &Snapshotter) -> BTreeMap<String, u64> {
    let snapshot = snapshotter.snapshot().into_vec();
    let entries = snapshot.into_iter().map(|(key, _, _, value)| {
        let labels: Vec<_> = key.key().labels().map(|label| label.value().to_owned()).collect();
        let name = format!("{} {}", key.key().name(), labels.join(" "));
        let count = match value {
            DebugValue::Counter(count) => count,
            DebugValue::Histogram(values) => {
                assert!(
                    values
                        .iter()
                        .all(|value| (0.0..60.0).contains(&value.0) || name.contains("items"))
                );
                values.len() as u64
            }
            DebugValue::Gauge(_) => 0,
        };
        (name.trim().to_owned(), count)
    });
    entries.filter(|(_, count)| *count > 0).collect()
}

async fn run(measured: bool) {
    TRIES.store(0, Ordering::SeqCst);
    let builder = Durable::builder().database_url("sqlite::memory:");
    let client = if measured { builder.measure() } else { builder }.build().await.unwrap();
    client.register::<flaky>().await.unwrap();
    client.start_worker(WorkerOptions::new()).await;
    for fails in [false, true] {
        let options = SpawnOptions::new().max_attempts(1);
        let task = client.spawn::<flaky>(fails).options(options).await.unwrap();
        let _ = client.wait::<()>(task.task_id).await;
    }
    client.shutdown(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn counts_and_times_are_measured_where_they_are_wanted() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    recorder.install().unwrap();
    run(false).await;
    assert_eq!(counted(&snapshotter), BTreeMap::new());
    run(true).await;
    let counted = counted(&snapshotter);
    for (name, count) in [
        ("stepwell_tasks_spawned_total flaky", 2),
        ("stepwell_attempts_ended_total flaky completed", 1),
        ("stepwell_attempts_ended_total flaky failed", 1),
        ("stepwell_task_seconds flaky", 1),
        ("stepwell_step_seconds flaky", 3),
        ("stepwell_step_retries_total flaky", 1),
    ] {
        assert_eq!(counted.get(name), Some(&count), "{name}: {counted:#?}");
    }
    assert!(counted["stepwell_attempts_started_total flaky"] >= 2, "{counted:#?}");
    assert!(
        counted["stepwell_commit_seconds"] >= 4 && counted["stepwell_commit_items"] >= 4,
        "{counted:#?}"
    );
}
