//! Batches whose answers are lost: each is applied once, and its results are found.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use stepwell::{Store as _, TaskContext, TaskFilter, TaskState, WorkerOptions};

use tokio::task::JoinSet;

use crate::database::Database;
use crate::lossy_network::LossyNetwork;

/// How many tasks run at a time.
const CROWD: usize = 8;
const STEPS: usize = 4;
/// How many answers are to be lost.
const ENOUGH: u64 = 30;

#[tokio::test(flavor = "multi_thread")]
async fn spawns_steps_and_ends_are_applied_once_though_answers_are_lost() {
    let database = Database::new();
    let store = database.open().await;
    let network = LossyNetwork::to(&database).await;
    let client = network.client(&database).await;
    let ran: Arc<Mutex<BTreeMap<(usize, usize), usize>>> = Arc::default();
    let counts = ran.clone();
    let work = move |task: usize, ctx: TaskContext| {
        let counts = counts.clone();
        async move {
            for step in 0..STEPS {
                ctx.step(("work", step), || async {
                    *counts.lock().unwrap().entry((task, step)).or_default() += 1;
                    Ok(step)
                })
                .await?;
            }
            Ok(task)
        }
    };
    client.register_fn("work", work).await.unwrap();
    let worker = client.start_worker(WorkerOptions::new()).await;

    let mut spawned = Vec::new();
    while network.lost() < ENOUGH {
        let mut callers = JoinSet::new();
        for task in spawned.len()..spawned.len() + CROWD {
            let client = client.clone();
            callers.spawn(async move {
                let spawned = client.spawn_named("work", &task).await.unwrap();
                assert_eq!(client.wait::<usize>(spawned.task_id).await.unwrap(), task);
                spawned.task_id
            });
        }
        spawned.append(&mut callers.join_all().await);
    }
    worker.shutdown().await;

    let ran = ran.lock().unwrap().clone();
    assert_eq!(ran.len(), spawned.len() * STEPS);
    assert!(ran.values().all(|times| *times == 1), "{ran:?}");
    let all =
        store.tasks(TaskFilter { limit: 10_000, ..TaskFilter::default() }).await.unwrap().items;
    assert_eq!(all.len(), spawned.len(), "no spawn was applied twice");
    assert!(all.iter().all(|task| task.state == TaskState::Completed && task.attempt == 1));
    for task_id in spawned {
        assert_eq!(store.journal(task_id).await.unwrap().len(), STEPS);
    }
}
