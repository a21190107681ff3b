//! The points of spawns that coalesce with a task that waits to start.

use stepwell_core::store::{Command, NewTask, Next, Spawned, TaskState};
use stepwell_core::{Coalesce, Failure, FailureKind};

use crate::backend::Backend;
use crate::handle::of;
use crate::make::*;
use crate::setup::{Setup, rounds, together};

const CREATED: Spawned = Spawned::Created { claimed: false };

fn coalescing(how: Coalesce, n: u128) -> NewTask {
    NewTask { concurrency_key: Some(name("key")), coalesce: Some(how), ..new_task(n) }
}

fn waiting(n: u128) -> Spawned {
    Spawned::Waiting { task_id: task_id(n), run_id: run_id(n) }
}

/// Checks that a spawn coalesces with the last task of its type and key that was never claimed,
/// replaces all such tasks, or is rejected.
pub async fn coalescing_spawns(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    store.signal(register(1)).await;
    use Coalesce::{Reject, Reuse};
    assert_eq!(store.spawn([coalescing(Reuse, 1)]).await, [CREATED]);
    assert_eq!(
        store.spawn([coalescing(Reuse, 2), coalescing(Reject, 3)]).await,
        [waiting(1), waiting(1)]
    );
    let of_type =
        NewTask { task_type: name("other"), queue: name("other"), ..coalescing(Reuse, 4) };
    let of_key = NewTask {
        queue: name("other"),
        concurrency_key: Some(name("Key")),
        ..coalescing(Reject, 5)
    };
    assert_eq!(
        store.spawn([of_type, of_key]).await,
        [CREATED, CREATED],
        "of another type, of another key"
    );

    // A task that has begun is left alone, even when it waits for its next attempt.
    let first = store.claim_one(1).await;
    assert_eq!(first.task_id, task_id(1));
    let later = NewTask { start_at: Some(setup.at(SECOND)), ..coalescing(Reuse, 6) };
    assert_eq!(store.spawn([later]).await, [CREATED]);
    assert_eq!(
        store.spawn([coalescing(Reject, 7)]).await,
        [waiting(6)],
        "one that is not due waits as well"
    );
    store
        .next(
            of(&first),
            Next::Retry { failure: Failure::new(FailureKind::Error, "no"), at: setup.at(SECOND) },
        )
        .await;
    assert_eq!(store.spawn([coalescing(Reuse, 8)]).await, [waiting(6)]);
    store.command(Command::Cancel(task_id(6))).await;
    assert_eq!(
        store.spawn([coalescing(Reuse, 9)]).await,
        [CREATED],
        "the first is between two attempts"
    );

    // The idempotency key comes first.
    let keyed = |n| NewTask { idempotency_key: Some(name("once")), ..coalescing(Reject, n) };
    assert_eq!(store.spawn([keyed(10)]).await, [waiting(9)]);
    assert!(store.find(10).await.is_none());
    store.command(Command::Cancel(task_id(9))).await;
    assert_eq!(
        store.spawn([keyed(11)]).await,
        [CREATED],
        "its key was not taken by one that was rejected"
    );
    let existing = Spawned::Existing { task_id: task_id(11), run_id: run_id(11), attempt: 0 };
    assert_eq!(store.spawn([keyed(12)]).await, [existing]);
}

/// Checks that of several waiting tasks, the last one is reused, or all are replaced. The new task
/// takes its turn after the task that has begun.
pub async fn coalescing_replaces(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    store.signal(register(1)).await;
    let plain = |n| NewTask { coalesce: None, ..coalescing(Coalesce::Reuse, n) };
    store.spawn([plain(1)]).await;
    let first = store.claim_one(1).await;
    store.spawn([plain(2), plain(3)]).await;
    assert_eq!(store.spawn([coalescing(Coalesce::Reuse, 4)]).await, [waiting(3)]);
    let replacing = [coalescing(Coalesce::Replace, 5), coalescing(Coalesce::Reuse, 6), plain(7)];
    let committed = store.commit(spawns(replacing)).await;
    assert_eq!(committed.spawns, [CREATED, waiting(5), CREATED]);
    let mut ended: Vec<_> = committed.news.finished.iter().map(|(task_id, _)| *task_id).collect();
    ended.sort_unstable();
    assert_eq!(ended, [task_id(2), task_id(3)], "those who wait for them are told");
    for (n, state) in
        [(2, TaskState::Cancelled), (3, TaskState::Cancelled), (5, TaskState::Pending)]
    {
        assert_eq!(store.info(n).await.state, state, "task {n}");
    }
    assert_eq!(store.claim(1, 9).await.len(), 0, "the first still runs");
    store.next(of(&first), complete()).await;
    let second = store.claim_one(1).await;
    assert_eq!(second.task_id, task_id(5));
    store.next(of(&second), complete()).await;
    assert_eq!(store.claim_one(1).await.task_id, task_id(7));
}

/// Checks that of several equal spawns at the same time, one makes the task, and all others receive
/// it.
pub async fn coalescing_under_races(backend: &impl Backend) {
    let setup = Setup::new(backend).await;
    let handles = setup.handles(4).await;
    handles[0].signal(register(1)).await;
    for round in rounds() {
        let first = 100 * (round + 1);
        let racing = (0..8).zip(handles.iter().cycle()).map(|(n, store)| {
            let store = store.clone();
            async move { store.spawn([coalescing(Coalesce::Reuse, first + n)]).await.remove(0) }
        });
        let spawned = together(racing).await;
        let created =
            spawned.iter().filter(|spawned| matches!(spawned, Spawned::Created { .. })).count();
        assert_eq!(created, 1, "{spawned:?}");
        let mut waits = handles[0].all().await;
        waits.retain(|task| task.state == TaskState::Pending);
        assert_eq!(waits.len(), 1, "{waits:#?}");
        for answer in &spawned {
            if let Spawned::Waiting { task_id, .. } = answer {
                assert_eq!(*task_id, waits[0].task_id);
            }
        }
        let task = handles[0].claim_one(1).await;
        handles[0].next(of(&task), complete()).await;
    }
}
