//! The points of claims: which worker receives which task.

use stepwell_core::store::{Batch, Claimed, NewTask, Next, TaskState};
use stepwell_core::{RetryStrategy, TaskId};

use crate::backend::Backend;
use crate::handle::of;
use crate::make::*;
use crate::setup::Setup;

fn ids(claimed: &Claimed) -> Vec<TaskId> {
    claimed.tasks.iter().map(|task| task.task_id).collect()
}

/// Checks the order within a queue: the highest priority, then what became ready first, then the
/// lowest id.
pub async fn claim_order(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    store.signal(register(1)).await;
    let with_priority = |priority, n| NewTask { priority, ..new_task(n) };
    store
        .spawn([
            new_task(9),
            with_priority(i32::MIN, 1),
            with_priority(i32::MAX, 8),
            with_priority(-1, 2),
        ])
        .await;
    let delayed = NewTask { start_at: Some(setup.at(SECOND * 2)), ..new_task(3) };
    store.spawn([delayed]).await;
    setup.advance(MICROSECOND);
    store.spawn([new_task(7), new_task(6)]).await;
    setup.advance(SECOND * 2);
    store.spawn([new_task(5)]).await;
    // Task 3 becomes ready by this claim, together with task 5.
    let claimed = store.claimed(1, 100).await;
    let expected = [8, 9, 6, 7, 3, 5, 2, 1].map(task_id);
    assert_eq!(ids(&claimed), expected);

    // A released task is ready again, and comes after the tasks that already wait.
    for task in &claimed.tasks[1..3] {
        store.next(of(task), Next::Release).await;
        setup.advance(MICROSECOND);
    }
    store.spawn([new_task(4)]).await;
    let mut order = Vec::new();
    for _ in 0..3 {
        order.extend(ids(&store.claimed(1, 1).await));
    }
    assert_eq!(order, [9, 6, 4].map(task_id));

    // A task that was left to other programs is claimed by no worker before the given time, and its
    // attempt does not count.
    let until = setup.at(SECOND * 10);
    store.next(of(&claimed.tasks[0]), Next::Leave { until }).await;
    setup.advance(SECOND * 9);
    assert_eq!(ids(&store.claimed(1, 1).await), []);
    setup.advance(SECOND * 2);
    let left = store.claim_one(1).await;
    assert_eq!((left.task_id, left.attempt), (task_id(8), 1));
}

/// Checks that a claim returns tasks of its queues in their order, of the types that its worker
/// knows, up to its limit.
pub async fn claim_filters(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let of_queue = |queue: &str, task_type: &str, n| NewTask {
        queue: name(queue),
        task_type: name(task_type),
        ..new_task(n)
    };
    let urgent = NewTask { priority: 5, ..of_queue("a", "x", 4) };
    store
        .spawn([of_queue("a", "x", 1), of_queue("a", "y", 2), of_queue("b", "x", 3), urgent])
        .await;
    store.spawn([of_queue("b", "y", 5), of_queue("c", "x", 6)]).await;
    let claims_of = |claim| async { ids(&store.commit(claims([claim])).await.claims[0]) };
    assert!(
        claims_of(claim_of(1, &["a", "b"], &["x"], 9)).await.is_empty(),
        "the worker is not registered"
    );
    store.signal(register(1)).await;
    assert!(claims_of(claim_of(1, &[], &["x", "y"], 9)).await.is_empty());
    assert!(claims_of(claim_of(1, &["a"], &[], 9)).await.is_empty());
    assert!(claims_of(claim_of(1, &["a", "b"], &["x", "y"], 0)).await.is_empty());
    assert!(claims_of(claim_of(1, &["d", "A"], &["x", "X"], 9)).await.is_empty());
    assert_eq!(
        claims_of(claim_of(1, &["b", "a"], &["x", "unknown"], 2)).await,
        [3, 4].map(task_id)
    );
    assert_eq!(claims_of(claim_of(1, &["b", "a"], &["y", "x"], 9)).await, [5, 1, 2].map(task_id));
    assert!(claims_of(claim_of(1, &["b", "a"], &["y", "x"], 9)).await.is_empty());
    assert_eq!(store.state(6).await, TaskState::Pending, "nobody asked for its queue");

    // Several claims of one batch receive different tasks.
    store.spawn((10..16).map(new_task)).await;
    let batch =
        Batch { workers: vec![register(2)], ..claims([claim(1, 2), claim(2, 2), claim(1, 10)]) };
    let claimed: Vec<_> = store.commit(batch).await.claims.iter().map(ids).collect();
    assert_eq!(
        claimed,
        [vec![10, 11], vec![12, 13], vec![14, 15]]
            .map(|ids| ids.into_iter().map(task_id).collect::<Vec<_>>())
    );
}

/// Checks that a task comes as it was spawned, and that its claim can be seen.
pub async fn claimed_tasks(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let mut new = new_task(1);
    new.headers.insert("trace".into(), "abc".into());
    new.priority = 7;
    new.retry = RetryStrategy::Exponential {
        base: SECOND,
        factor: 1.5,
        max: SECOND * 1_000,
        jitter: 0.125,
    };
    let committed =
        store.commit(Batch { workers: vec![register(1)], ..spawns([new.clone()]) }).await;
    assert_eq!(
        committed.news.ready.first().map(|(queue, _)| queue),
        Some(&name("queue")),
        "it is told as news"
    );
    let info = store.info(1).await;
    assert_eq!((info.state, info.attempt, info.started_at), (TaskState::Pending, 0, None));
    setup.advance(SECOND);
    let task = store.claim_one(1).await;
    assert_eq!(task.task_id, new.task_id);
    assert_ne!(
        task.run_id, new.run_id,
        "another claim, of which the database may know nothing, has another run"
    );
    assert_eq!(store.info(1).await.run_id, task.run_id);
    assert_eq!((task.attempt, task.max_attempts), (1, 3));
    assert_eq!((&task.task_type, &task.queue), (&new.task_type, &new.queue));
    assert_eq!((&task.params, &task.headers, &task.retry), (&new.params, &new.headers, &new.retry));
    assert_eq!(task.journal, Some(vec![]));
    assert!(task.waits.is_empty() && task.facts.is_empty());
    let info = store.info(1).await;
    assert_eq!((info.state, info.attempt), (TaskState::Running, 1));
    assert_eq!((info.started_at, info.spawned_at), (Some(setup.now()), setup.now() - SECOND));
}
