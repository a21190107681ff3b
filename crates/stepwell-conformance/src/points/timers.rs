//! The points of times: what waits for a time waits until then by the store's clock, and not
//! longer.

use stepwell_core::store::{Batch, CancellationPolicy, Finish, NewTask, Next, Wait};
use stepwell_core::{Key, Kind, TaskState};

use crate::backend::Backend;
use crate::handle::of;
use crate::make::*;
use crate::setup::Setup;

/// Checks that a suspended task is claimable at its time: not a microsecond early, and not late.
pub async fn timers(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    assert_eq!(store.0.now(), setup.now(), "the store goes by its runtime's clock");
    let runs = store.run((1..=3).map(new_task)).await;
    assert_eq!(store.claimed(1, 5).await.next_due, None);
    for (run, seconds) in runs.iter().zip([2, 1, 2]) {
        let key = Key { kind: Kind::Timer, name: name("timer"), ordinal: 1 };
        let wait = Wait { key, target: None, due_at: Some(setup.at(SECOND * seconds)) };
        let suspends = awaiting(*run, [wait], suspend_until(setup.at(SECOND * seconds)));
        assert!(store.apply(suspends).await.unwrap().suspended);
    }
    let due = [setup.at(SECOND), setup.at(SECOND * 2)];
    let expected = [
        (SECOND - MICROSECOND, vec![]),
        (MICROSECOND, vec![2]),
        (SECOND - MICROSECOND, vec![]),
        (MICROSECOND, vec![1, 3]),
    ];
    for (n, (step, ids)) in expected.into_iter().enumerate() {
        setup.advance(step);
        let claimed = store.claimed(1, 5).await;
        let found: Vec<_> = claimed.tasks.iter().map(|task| task.task_id).collect();
        assert_eq!(found, ids.into_iter().map(task_id).collect::<Vec<_>>(), "at step {n}");
        assert_eq!(
            claimed.next_due,
            due.get(usize::from(n > 0)).copied().filter(|_| n < 3),
            "at step {n}"
        );
        for task in claimed.tasks {
            let waits = store.0.waits_of(task.task_id).await.unwrap();
            assert_eq!(waits[0].due_at, Some(setup.now()), "as it was fixed when it began");
            assert!(task.facts.is_empty());
            store.next(of(&task), complete()).await;
        }
    }
}

/// Checks that a delayed task is not claimed before its time, and starts at its time whatever its
/// priority. A time that has passed is no delay.
pub async fn delayed_starts(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    store.signal(register(1)).await;
    let start =
        |seconds: u32, n| NewTask { start_at: Some(setup.at(SECOND * seconds)), ..new_task(n) };
    let committed = store.commit(spawns([start(5, 1), start(0, 2)])).await;
    assert!(committed.news.ready.iter().any(|(queue, _)| *queue == name("queue")));
    let info = store.info(1).await;
    assert_eq!((info.state, info.due_at), (TaskState::Pending, Some(setup.at(SECOND * 5))));
    assert_eq!(store.info(2).await.due_at, None);
    let claimed = store.claimed(1, 5).await;
    assert_eq!((claimed.tasks.len(), claimed.next_due), (1, Some(setup.at(SECOND * 5))));
    setup.advance(SECOND * 5 - MICROSECOND);
    store.signal(heartbeat(1)).await;
    assert!(store.claim(1, 5).await.is_empty(), "it started early");
    setup.advance(MICROSECOND);
    let claimed = store.claimed(1, 5).await;
    assert_eq!((claimed.tasks[0].task_id, claimed.next_due), (task_id(1), None));
    assert_eq!(store.info(1).await.due_at, None);
}

/// Checks that a failed attempt is followed by another one at the time that it names, and that
/// attempts are counted.
pub async fn retry_delays(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let mut run = store.run_one(1).await;
    store.journals(run, vec![step(1, json("1"))]).await;
    store.apply(awaiting(run, [for_event("event")], GO_ON)).await.unwrap();
    for attempt in 2..5 {
        let at = setup.at(SECOND);
        let text = format!("attempt {attempt}");
        store.next(run, Next::Retry { failure: failure(&text), at }).await;
        let info = store.info(1).await;
        assert_eq!(
            (info.state, info.attempt, info.due_at),
            (TaskState::Pending, attempt - 1, Some(at))
        );
        assert_eq!(info.failure, Some(failure(&text)));
        store.emit(event("event", json("1"))).await;
        setup.advance(SECOND - MICROSECOND);
        assert!(store.claim(1, 5).await.is_empty(), "it was tried again early");
        setup.advance(MICROSECOND);
        let task = store.claim_one(1).await;
        assert_eq!(
            task.attempt, attempt,
            "attempts are counted by the store, and ended by the engine"
        );
        assert!(task.waits.is_empty(), "the waits of the failed attempt are gone");
        assert_eq!(task.journal.map(|journal| journal.len()), Some(1));
        assert_ne!(task.run_id, run.1, "an attempt is a run of its own");
        run = (task.task_id, task.run_id);
    }
    store.next(run, Next::Retry { failure: failure("no"), at: setup.now() }).await;
    assert_eq!(store.claim_one(1).await.attempt, 5, "a time that has come is at once");
}

/// Checks that a task that is not claimed in time, or takes too long, is cancelled at its time by
/// itself.
pub async fn cancellation_policies(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    store.signal(register(1)).await;
    let policy = |delay: Option<u32>, duration: Option<u32>| CancellationPolicy {
        max_delay: delay.map(|seconds| SECOND * seconds),
        max_duration: duration.map(|seconds| SECOND * seconds),
    };
    let with =
        |n, delay, duration| NewTask { cancellation: policy(delay, duration), ..new_task(n) };
    let other = |task| NewTask { queue: name("other"), ..task };
    store
        .spawn([other(with(1, Some(2), None)), with(2, Some(2), Some(3)), with(3, None, Some(3))])
        .await;
    let delayed = NewTask { start_at: Some(setup.at(SECOND * 9)), ..with(4, Some(4), None) };
    let eager = NewTask { claim_by: Some(worker_id(1)), ..with(5, Some(1), Some(5)) };
    store.spawn([delayed, eager]).await;
    setup.advance(SECOND);
    let claimed = store.claimed(1, 5).await;
    assert_eq!((claimed.tasks.len(), claimed.next_due), (2, Some(setup.at(SECOND))));
    let suspends = of(&claimed.tasks[1]);
    assert!(store.next(suspends, SUSPEND).await.suspended);

    setup.advance(SECOND - MICROSECOND);
    assert!(store.commit(claims([claim(1, 5)])).await.news.finished.is_empty(), "cancelled early");
    setup.advance(MICROSECOND);
    let committed = store.commit(claims([claim(1, 5)])).await;
    assert_eq!(committed.news.finished, [(task_id(1), Finish::Cancelled)]);
    assert_eq!(committed.claims[0].next_due, Some(setup.at(SECOND * 2)));
    setup.advance(SECOND * 2);
    let committed = store.commit(claims([claim(1, 5)])).await;
    // Tasks 2 and 3 began after a second, and may take three. Task 2 runs and is asked to cancel,
    // and task 3 is suspended. Task 4 was not claimed within four seconds, because its start is
    // later.
    let finished: Vec<_> = committed.news.finished.iter().map(|(task_id, _)| *task_id).collect();
    assert!(
        finished.len() == 2 && [3, 4].iter().all(|n| finished.contains(&task_id(*n))),
        "{finished:?}"
    );
    assert_eq!(committed.news.poked, [task_id(2)]);
    assert_eq!(committed.claims[0].poked, [task_id(2)]);
    let info = store.info(2).await;
    assert_eq!((info.state, info.cancel_requested), (TaskState::Running, true));
    assert!(
        !store.info(5).await.cancel_requested,
        "an eager start is a claim: only its duration counts"
    );
    assert!(store.next(of(&claimed.tasks[0]), SUSPEND).await.cancel_requested);
    setup.advance(SECOND);
    let batch = Batch { workers: vec![heartbeat(1)], ..claims([claim(1, 5)]) };
    assert_eq!(store.commit(batch).await.claims[0].poked, [task_id(5)]);
}
