//! The point of exclusive claims: a task has one owner at a time, however many workers claim at
//! once.

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use stepwell_core::{RunId, TaskId};

use crate::backend::Backend;
use crate::make::*;
use crate::setup::{Setup, together};

const TASKS: u128 = 300;

/// The future of a worker's claims: tasks, their runs and their attempts.
type Claiming = Pin<Box<dyn Future<Output = Vec<(TaskId, RunId, u32)>> + Send>>;

/// Checks many handles that claim at once while tasks are still spawned. No task is claimed twice,
/// and no task is lost.
pub async fn exclusive_claims(backend: &impl Backend) {
    let setup = Setup::new(backend).await;
    let claimed = Arc::new(AtomicUsize::new(0));
    let handles = setup.handles(5).await;
    let claimers =
        handles.iter().take(4).flat_map(|store| [store, store]).zip(1..).map(|(store, worker)| {
            let (store, claimed) = (store.clone(), claimed.clone());
            let claiming = async move {
                store.signal(register(worker)).await;
                let (mut mine, begin) = (Vec::new(), Instant::now());
                while claimed.load(Ordering::SeqCst) < TASKS as usize
                    && begin.elapsed() < Duration::from_secs(30)
                {
                    // A store in memory answers at once. Without this yield, the claimers would
                    // occupy the threads for good.
                    tokio::task::yield_now().await;
                    let tasks = store.claim(worker, 3).await;
                    claimed.fetch_add(tasks.len(), Ordering::SeqCst);
                    mine.extend(
                        tasks.into_iter().map(|task| (task.task_id, task.run_id, task.attempt)),
                    );
                }
                mine
            };
            Box::pin(claiming) as Claiming
        });
    let spawner = handles[4].clone();
    let spawning = async move {
        for first in (1..=TASKS).step_by(10) {
            spawner.spawn((first..first + 10).map(new_task)).await;
        }
        Vec::new()
    };
    let all = together(claimers.chain([Box::pin(spawning) as _])).await.concat();
    let (mut tasks, mut runs) = (HashSet::new(), HashSet::new());
    for (task_id, run_id, attempt) in &all {
        assert!(tasks.insert(*task_id), "task {task_id} was claimed twice");
        assert!(runs.insert(*run_id), "run {run_id} owns two tasks");
        assert_eq!(*attempt, 1, "task {task_id} was claimed before");
    }
    assert_eq!(all.len(), TASKS as usize, "tasks were lost");
}
