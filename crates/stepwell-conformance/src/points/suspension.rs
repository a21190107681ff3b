//! The points of suspension: a task is suspended only when there is nothing to do.

use stepwell_core::store::{Command, Transition};
use stepwell_core::{TaskState, Timestamp};

use crate::backend::Backend;
use crate::handle::of;
use crate::make::*;
use crate::setup::Setup;

/// Checks that a task stays running when something has arrived, when its time has come, and when it
/// was asked to cancel.
pub async fn suspension(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let run = store.run_one(1).await;
    store.emit(event("event", json("1"))).await;
    let due = store.next(run, suspend_until(setup.now())).await;
    assert!(!due.suspended, "its time has come");
    let passed = store.next(run, suspend_until(Timestamp::UNIX_EPOCH)).await;
    assert!(!passed.suspended, "its time has passed");
    let mut there = awaiting(run, [for_event("event")], suspend_until(setup.at(SECOND)));
    there.entries = vec![step(1, json("1"))];
    let there = store.apply(there).await.unwrap();
    assert!(!there.suspended && there.facts.events.len() == 1);
    let info = store.info(1).await;
    assert_eq!((info.state, info.attempt, info.due_at), (TaskState::Running, 1, None));
    assert_eq!(store.journal(1).await.len(), 1, "what came with it is written all the same");

    store.command(Command::Cancel(task_id(1))).await;
    let mut removing = Transition::new(run.0, run.1, SUSPEND);
    removing.waits_removed = vec![for_event("event").key];
    let asked = store.apply(removing).await.unwrap();
    assert!(!asked.suspended && asked.cancel_requested, "it was asked to cancel");
    assert_eq!(store.state(1).await, TaskState::Running);
}

/// Checks that a suspended task has given up its run, and that its attempt does not count.
pub async fn suspended_tasks(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let run = store.run_one(1).await;
    let wake_at = setup.at(SECOND);
    let batch = transitions([awaiting(run, [for_event("event")], suspend_until(wake_at))]);
    let mut committed = store.commit(batch).await;
    let applied = committed.transitions.remove(0).unwrap();
    assert!(applied.suspended && applied.facts.is_empty() && !applied.cancel_requested);
    assert_eq!(
        committed.news.ready.first().map(|(queue, _)| queue),
        Some(&name("queue")),
        "it is due later"
    );
    let info = store.info(1).await;
    assert_eq!((info.state, info.attempt, info.due_at), (TaskState::Suspended, 0, Some(wake_at)));
    assert!(store.claim(1, 5).await.is_empty(), "a suspended task was claimed");
    for _ in 0..5 {
        store.command(Command::Wake(run.0)).await;
        let info = store.info(1).await;
        assert_eq!((info.state, info.attempt, info.due_at), (TaskState::Pending, 0, None));
        let task = store.claim_one(1).await;
        assert_eq!(task.attempt, 1, "no attempt was used up");
        assert_eq!(store.waits_of(1).await, [for_event("event")]);
        assert!(task.facts.is_empty());
        assert!(store.next(of(&task), suspend_until(wake_at)).await.suspended);
    }
    // An event ends the wait for the time as well.
    store.emit(event("event", json("1"))).await;
    let info = store.info(1).await;
    assert_eq!((info.state, info.due_at), (TaskState::Pending, None));
}
