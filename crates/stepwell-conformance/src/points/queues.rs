//! The points of queues: limits, pauses, concurrency keys, versions of code, and purges.

use std::time::Duration;

use stepwell_core::store::{Batch, Command, NewTask, Next, Purge, Spawned, Transition};
use stepwell_core::{QueueAction, QueueChange, QueueInfo, QueueLimits, RateLimit, TaskState};

use crate::backend::Backend;
use crate::handle::{Handle, of};
use crate::make::*;
use crate::setup::Setup;

fn change(queue: &str, action: QueueAction) -> Batch {
    Batch { queues: vec![QueueChange { queue: name(queue), action }], ..Batch::default() }
}

fn limits(limits: QueueLimits) -> Batch {
    change("queue", QueueAction::Limit(limits))
}

fn of_key(key: &str, n: u128) -> NewTask {
    NewTask { concurrency_key: Some(name(key)), ..new_task(n) }
}

/// Checks that a queue's limits hold, on all workers together and on each one. A task that stops
/// running makes room, whatever the reason.
pub async fn queue_limits(backend: &impl Backend) {
    let setup = Setup::new(backend).await;
    let [a, b]: [Handle; 2] = setup.handles(2).await.try_into().ok().unwrap();
    a.signal(register(1)).await;
    b.signal(register(2)).await;
    a.commit(limits(QueueLimits {
        max_running: Some(3),
        max_running_per_worker: Some(2),
        rate: None,
    }))
    .await;
    let eager = NewTask { claim_by: Some(worker_id(1)), ..new_task(1) };
    assert_eq!(
        a.spawn([eager]).await,
        [Spawned::Created { claimed: false }],
        "it may not simply be started"
    );
    a.spawn((2..=9).map(new_task)).await;
    let first = a.claim(1, 10).await;
    assert_eq!(first.len(), 2, "on one worker");
    let second = b.claim(2, 10).await;
    assert_eq!(second.len(), 1, "on all workers");
    assert!(a.claim(1, 10).await.is_empty() && b.claim(2, 10).await.is_empty());

    for next in [
        complete(),
        SUSPEND,
        Next::Retry { failure: failure("no"), at: setup.now() },
        Next::Release,
    ] {
        let running = b.list_of(TaskState::Running).await;
        let mine =
            running.iter().find(|task| task.task_id == of(&second[0]).0).unwrap_or(&running[0]);
        let committed = b
            .commit(transitions([stepwell_core::store::Transition::new(
                mine.task_id,
                mine.run_id,
                next,
            )]))
            .await;
        assert!(committed.transitions[0].is_ok());
        assert!(
            committed.news.ready.iter().any(|(queue, _)| queue.as_str() == "queue"),
            "nobody is told of the room"
        );
        let claimed = b.claim(2, 10).await.len() + a.claim(1, 10).await.len();
        assert_eq!(claimed, 1, "room for one");
    }
    let infos = a.queues().await;
    assert_eq!((infos.len(), infos[0].running), (1, 3));
    a.commit(limits(QueueLimits::default())).await;
    assert!(b.claim(2, 10).await.len() > 1, "without limits");
}

/// Checks that a queue's limit holds, however many workers claim at the same time.
pub async fn queue_limits_under_races(backend: &impl Backend) {
    let setup = Setup::new(backend).await;
    let handles = setup.handles(4).await;
    handles[0].commit(limits(QueueLimits { max_running: Some(5), ..QueueLimits::default() })).await;
    handles[0].spawn((1..=60).map(new_task)).await;
    let rounds = (1..).zip(handles.clone()).map(|(worker, handle)| {
        tokio::spawn(async move {
            handle.signal(register(worker)).await;
            let mut done = 0;
            loop {
                let tasks = handle.claim(worker, 3).await;
                assert!(handle.count(TaskState::Running).await <= 5, "more than the queue allows");
                for task in &tasks {
                    handle.next(of(task), complete()).await;
                }
                done += tasks.len();
                if tasks.is_empty() && handle.count(TaskState::Pending).await == 0 {
                    return done;
                }
                tokio::task::yield_now().await;
            }
        })
    });
    let mut done = 0;
    for round in rounds.collect::<Vec<_>>() {
        done += round.await.unwrap();
    }
    assert_eq!(done, 60);
}

/// Checks that a queue's rate allows a number of starts at once, and then one after another. A task
/// that continues after a suspension is no start.
pub async fn queue_rates(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    store.signal(register(1)).await;
    let rate = RateLimit { starts: 2, per: Duration::from_secs(4) };
    store.commit(limits(QueueLimits { rate: Some(rate), ..QueueLimits::default() })).await;
    store.spawn((1..=6).map(new_task)).await;
    let claimed = store.claimed(1, 10).await;
    assert_eq!(claimed.tasks.len(), 2);
    assert_eq!(
        claimed.next_due,
        Some(stepwell_core::after(setup.now(), SECOND * 2)),
        "when the next may start"
    );
    assert!(store.next(of(&claimed.tasks[0]), SUSPEND).await.suspended);
    store.command(Command::Wake(task_id(1))).await;
    assert_eq!(store.claim_one(1).await.task_id, task_id(1), "it only goes on");
    setup.advance(SECOND * 2 - MICROSECOND);
    assert!(store.claim(1, 10).await.is_empty());
    setup.advance(MICROSECOND);
    assert_eq!(store.claim(1, 10).await.len(), 1);
    setup.advance(SECOND * 20);
    assert_eq!(
        store.claim(1, 10).await.len(),
        2,
        "no more than that at once, however long nothing started"
    );
    store.spawn((7..=16).map(new_task)).await;
    setup.clock.set_back(SECOND * 3_600);
    assert_eq!(store.claim(1, 10).await.len(), 2, "a clock that is set back stops nobody");
    assert!(store.claim(1, 10).await.is_empty());
    setup.advance(SECOND * 2);
    assert_eq!(store.claim(1, 10).await.len(), 1, "the rate goes on by the clock as it is now");
}

/// Checks that nothing of a paused queue is claimed, and everything once the queue is resumed.
/// Running tasks are left alone.
pub async fn paused_queues(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let (run, (task, ended)) = (store.run_one(1).await, store.run_one(4).await);
    store.spawn([new_task(5)]).await;
    // The pause holds for the batch that contains it, whatever the batch does first.
    let pause = Batch {
        transitions: vec![Transition::new(task, ended, complete())],
        claims: vec![claim(1, 10)],
        ..change("queue", QueueAction::Pause)
    };
    let committed = store.commit(pause).await;
    assert!(committed.news.ready.is_empty());
    assert!(committed.claims[0].tasks.is_empty(), "the queue is paused");
    store.spawn([new_task(2), NewTask { claim_by: Some(worker_id(1)), ..new_task(3) }]).await;
    assert!(store.claim(1, 10).await.is_empty());
    store.next(run, complete()).await;
    let expected = QueueInfo {
        queue: name("queue"),
        paused: true,
        limits: QueueLimits::default(),
        pending: 3,
        running: 0,
        suspended: 0,
        ready_at: Some(store.info(5).await.spawned_at),
    };
    assert_eq!(store.queues().await, [expected]);
    let committed = store.commit(change("queue", QueueAction::Resume)).await;
    assert_eq!(committed.news.ready.len(), 1, "workers are told");
    assert_eq!(store.claim(1, 10).await.len(), 3);
}

/// Checks that a queue reports since when a task of it could have been claimed. A task whose time
/// or turn has yet to come does not count.
pub async fn waiting_times(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    store.signal(register(1)).await;
    let ready_at = async || store.queues().await.first().and_then(|queue| queue.ready_at);
    let later = setup.at(SECOND * 60);
    store.spawn([NewTask { start_at: Some(later), ..new_task(1) }]).await;
    assert_eq!(ready_at().await, Some(later), "it waits for its time");
    store.spawn([of_key("key", 2)]).await;
    let spawned = Some(store.info(2).await.spawned_at);
    assert!(spawned < Some(later));
    store.spawn([of_key("key", 3), NewTask { priority: 9, ..new_task(4) }]).await;
    assert_eq!(ready_at().await, spawned, "whatever the order in which they are claimed");
    assert_eq!(store.claim(1, 2).await.len(), 2);
    assert_eq!(ready_at().await, Some(later), "the other one of its key has the turn");
}

/// Checks that each task of a key starts when the task before it has ended, in the order of their
/// spawns.
pub async fn concurrency_keys(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    store.signal(register(1)).await;
    let later =
        NewTask { start_at: Some(stepwell_core::after(setup.now(), SECOND)), ..of_key("a", 3) };
    let urgent = NewTask { priority: 9, ..of_key("a", 4) };
    let eager = NewTask { claim_by: Some(worker_id(1)), ..of_key("b", 5) };
    store.spawn([of_key("a", 1), of_key("a", 2), later, urgent, eager, of_key("b", 6)]).await;
    let ids = |tasks: &[stepwell_core::store::ClaimedTask]| {
        tasks.iter().map(|task| task.task_id).collect::<Vec<_>>()
    };
    let first = store.claim(1, 10).await;
    assert_eq!(ids(&first), [task_id(1), task_id(5)], "the first of each key");

    // A task keeps its turn while it is suspended, or waits for its next attempt.
    assert!(store.next(of(&first[0]), SUSPEND).await.suspended);
    assert!(store.claim(1, 10).await.is_empty());
    store.command(Command::Wake(task_id(1))).await;
    let again = store.claim_one(1).await;
    store.next(of(&again), Next::Retry { failure: failure("no"), at: setup.now() }).await;
    let again = store.claim_one(1).await;
    assert_eq!(again.task_id, task_id(1));
    let committed =
        store.commit(transitions([Transition::new(again.task_id, again.run_id, complete())])).await;
    assert_eq!(committed.news.ready.len(), 1, "the turn of the next is told");

    // A task whose turn has not come may be cancelled, and is then skipped.
    let second = store.claim_one(1).await;
    assert_eq!(second.task_id, task_id(2));
    store.command(Command::Cancel(task_id(6))).await;
    store.next(of(&first[1]), complete()).await;
    assert!(store.claim(1, 10).await.is_empty());
    store.next(of(&second), Next::Fail(failure("no"))).await;
    assert!(
        store.claim(1, 10).await.is_empty(),
        "the third is to start later, and the fourth comes after it"
    );
    setup.advance(SECOND);
    store.signal(heartbeat(1)).await;
    let third = store.claim_one(1).await;
    assert_eq!(third.task_id, task_id(3));

    // A retried task joins at the end.
    store.command(Command::Retry(task_id(2))).await;
    store.next(of(&third), complete()).await;
    let fourth = store.claim_one(1).await;
    assert_eq!(fourth.task_id, task_id(4));
    store.next(of(&fourth), complete()).await;
    assert_eq!(store.claim_one(1).await.task_id, task_id(2));
}

/// Checks tasks of a key that are spawned and end at the same time. Each task gets its turn, and
/// never two at once.
pub async fn concurrency_keys_under_races(backend: &impl Backend) {
    let setup = Setup::new(backend).await;
    let handles = setup.handles(4).await;
    let rounds = (1..).zip(handles.clone()).map(|(worker, handle)| {
        tokio::spawn(async move {
            handle.signal(register(worker)).await;
            let mut spawned = 0;
            loop {
                if spawned < 25 {
                    spawned += 1;
                    handle.spawn([of_key("key", worker * 1_000 + spawned)]).await;
                }
                let tasks = handle.claim(worker, 3).await;
                assert!(tasks.len() <= 1, "two of one key");
                for task in &tasks {
                    assert_eq!(handle.count(TaskState::Running).await, 1, "two of one key run");
                    handle.next(of(task), complete()).await;
                }
                if spawned == 25 && handle.count(TaskState::Completed).await == 100 {
                    return;
                }
                tokio::task::yield_now().await;
            }
        })
    });
    for round in rounds.collect::<Vec<_>>() {
        round.await.unwrap();
    }
}

/// Checks that a task that is pinned to a version of the code is left to workers of that version.
/// Workers of a version also take tasks without a version.
pub async fn code_versions(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    store.signal(register(1)).await;
    let pinned = |version: &str, n| NewTask { code_version: Some(name(version)), ..new_task(n) };
    store.spawn([pinned("v1", 1), pinned("v2", 2), new_task(3)]).await;
    let mut of_v2 = claim(1, 10);
    of_v2.code_version = Some(name("v2"));
    let claimed = store.commit(claims([claim(1, 1), of_v2])).await.claims;
    let ids = |n: usize| claimed[n].tasks.iter().map(|task| task.task_id).collect::<Vec<_>>();
    assert_eq!(ids(0), [task_id(3)], "a worker without a version");
    assert_eq!(ids(1), [task_id(2)]);
    assert_eq!(store.info(1).await.code_version, Some(name("v1")));
}

/// Checks that tasks that ended before a moment are purged, the oldest first, in batches, and
/// nothing else.
pub async fn purging(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let runs = store.run((1..=5).map(new_task).chain([with_key("key", 6)])).await;
    store.journals(runs[0], vec![step(1, json("1"))]).await;
    for run in &runs[..2] {
        store.next(*run, complete()).await;
    }
    store.next(runs[2], Next::Fail(failure("no"))).await;
    store.next(runs[5], complete()).await;
    setup.advance(SECOND);
    store.next(runs[3], complete()).await;
    let purge = |before, state, limit| store.0.purge(Purge { before, state, limit });
    let now = setup.now();
    assert_eq!(purge(now, Some(TaskState::Completed), 1).await.unwrap(), 1);
    assert!(
        store.find(1).await.is_none() && store.journal(1).await.is_empty(),
        "the oldest, with its journal"
    );
    assert_eq!(purge(now, Some(TaskState::Completed), 10).await.unwrap(), 2);
    assert_eq!(purge(now, Some(TaskState::Cancelled), 10).await.unwrap(), 0);
    assert_eq!(purge(now, None, 10).await.unwrap(), 1, "the failed one");
    let left: Vec<_> = store.all().await.iter().map(|task| task.state).collect();
    assert_eq!(left, [TaskState::Running, TaskState::Completed]);
    let spawned = store.spawn([with_key("key", 7)]).await;
    assert!(matches!(spawned[0], Spawned::Created { .. }), "its key is free again");
}
