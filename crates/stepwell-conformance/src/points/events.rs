//! The points of events, which reach every task that awaits them, before or after their emission.

use stepwell_core::TaskState;
use stepwell_core::store::{Batch, NewEvent, NewTask, Transition};

use crate::backend::Backend;
use crate::handle::of;
use crate::make::*;
use crate::setup::Setup;

/// Checks that an event reaches tasks that await it suspended, running, or only later. The event's
/// first emission stands.
pub async fn events(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let [before, running, after, other] =
        store.run((1..=4).map(new_task)).await.try_into().ok().unwrap();
    let waits = || [for_event("event")];
    assert!(store.apply(awaiting(before, waits(), SUSPEND)).await.unwrap().suspended);
    store.apply(awaiting(running, waits(), GO_ON)).await.unwrap();
    store
        .apply(awaiting(other, [for_event("another"), for_message("event", 1)], SUSPEND))
        .await
        .unwrap();

    let batch = events_of([("event", "1"), ("event", "2")]);
    let committed = store.commit(batch).await;
    assert_eq!(committed.events, [true, false]);
    assert!(committed.news.poked.contains(&running.0), "the running task is told of");
    assert!(
        committed.news.ready.iter().any(|(queue, _)| *queue == name("queue")),
        "the claimable task is told of"
    );
    assert!(!store.emit(event("event", json("3"))).await);
    let states = [TaskState::Pending, TaskState::Running, TaskState::Running, TaskState::Suspended];
    for (n, state) in (1..).zip(states) {
        assert_eq!(store.state(n).await, state, "task {n}");
    }

    let claimed = store.claimed(1, 10).await;
    assert_eq!(
        claimed.poked,
        [running.0],
        "a worker that claims learns what arrived for its tasks"
    );
    let expected = [(name("event"), json("1"))];
    assert_eq!((claimed.tasks.len(), claimed.tasks[0].task_id), (1, before.0));
    assert_eq!(claimed.tasks[0].facts.events, expected);
    assert_eq!(store.look(running).await.events, expected);
    assert!(store.claimed(1, 10).await.poked.is_empty(), "it has looked");
    let late = store.apply(awaiting(after, waits(), SUSPEND)).await.unwrap();
    assert!(!late.suspended, "it was suspended, though its event is there");
    assert_eq!(late.facts.events, expected);
    assert_eq!(
        store.look(after).await.events,
        expected,
        "an event stays, as long as it is awaited"
    );

    let mut no_longer = Transition::new(after.0, after.1, LOOK);
    no_longer.waits_removed = waits().map(|wait| wait.key).to_vec();
    assert!(store.apply(no_longer).await.unwrap().facts.is_empty());
    let fresh = store.run_one(5).await;
    assert!(store.look(fresh).await.is_empty(), "a task gets nothing that it does not await");
}

fn events_of<const N: usize>(emitted: [(&str, &str); N]) -> Batch {
    emitting(emitted.map(|(name, payload)| event(name, json(payload))))
}

/// Checks that an event of a queue reaches only that queue's tasks. An event of all queues is
/// another event, and comes before it.
pub async fn events_of_queues(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let in_queue = |queue: &str, n| NewTask { queue: name(queue), ..new_task(n) };
    let a = store.run([in_queue("a", 1), in_queue("a", 2)]).await;
    let b = store.run([in_queue("b", 3), in_queue("b", 4)]).await;
    for run in [a[0], b[0]] {
        assert!(store.apply(awaiting(run, [for_event("event")], SUSPEND)).await.unwrap().suspended);
    }
    for run in [a[1], b[1]] {
        store.apply(awaiting(run, [for_event("event")], GO_ON)).await.unwrap();
    }
    let of_queue = |queue: &str, payload| NewEvent {
        queue: Some(name(queue)),
        ..event("event", json(payload))
    };
    let committed = store.commit(emitting([of_queue("a", "1"), of_queue("a", "2")])).await;
    assert_eq!(committed.events, [true, false]);
    assert_eq!(committed.news.poked, [a[1].0]);
    assert_eq!(
        (store.state(1).await, store.state(3).await),
        (TaskState::Pending, TaskState::Suspended)
    );
    assert_eq!(store.look(a[1]).await.events, [(name("event"), json("1"))]);
    assert!(store.look(b[1]).await.is_empty());

    assert!(store.emit(event("event", json("3"))).await);
    assert_eq!(store.state(3).await, TaskState::Pending);
    assert_eq!(store.look(a[1]).await.events, [(name("event"), json("3"))]);
    assert_eq!(store.look(b[1]).await.events, [(name("event"), json("3"))]);
    assert!(store.emit(of_queue("b", "4")).await);
    assert!(!store.emit(of_queue("b", "5")).await);
    assert_eq!(store.look(b[1]).await.events, [(name("event"), json("3"))]);
}

/// Checks that an event wakes a task once. A woken task that suspends again for another event stays
/// suspended.
pub async fn events_wake_once(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let run = store.run_one(1).await;
    store.apply(awaiting(run, [for_event("first")], SUSPEND)).await.unwrap();
    store.emit(event("first", json("1"))).await;
    let run = of(&store.claim_one(1).await);
    let mut again = awaiting(run, [for_event("second")], SUSPEND);
    again.waits_removed = vec![for_event("first").key];
    assert!(store.apply(again).await.unwrap().suspended);
    assert!(store.claim(1, 1).await.is_empty());
    store.emit(event("second", json("2"))).await;
    assert_eq!(store.claim_one(1).await.facts.events, [(name("second"), json("2"))]);
}
