//! The points of cancellation. Cancellation is immediate for a task that does not run, and a
//! request for a task that runs. Cancellation goes down all generations.

use stepwell_core::TaskState;
use stepwell_core::store::{Command, CommandOutcome, Finish, NewTask, Next, Transition};

use crate::backend::Backend;
use crate::make::*;
use crate::setup::Setup;

/// Checks that a task that does not run is cancelled at once. A task that runs is asked to cancel,
/// may end in any way, and is not tried again.
pub async fn cancellation(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let runs = store.run((1..=6).map(new_task)).await;
    assert!(store.apply(awaiting(runs[0], [for_event("event")], SUSPEND)).await.unwrap().suspended);
    store.spawn([new_task(7), NewTask { start_at: Some(setup.at(SECOND)), ..new_task(8) }]).await;
    for n in [1, 7, 8] {
        let committed = store.commit(commands([Command::Cancel(task_id(n))])).await;
        assert_eq!(committed.commands, [CommandOutcome::Done]);
        assert_eq!(committed.news.finished, [(task_id(n), Finish::Cancelled)]);
        let info = store.info(n).await;
        assert_eq!((info.state, info.due_at), (TaskState::Cancelled, None));
        assert_eq!(info.finished_at, Some(setup.now()));
    }
    setup.advance(SECOND);
    store.emit(event("event", json("1"))).await;
    assert!(store.claim(1, 9).await.is_empty(), "a cancelled task was claimed");

    for run in &runs[1..] {
        let committed = store.commit(commands([Command::Cancel(run.0)])).await;
        assert_eq!(committed.commands, [CommandOutcome::Done]);
        assert_eq!(committed.news.poked, [run.0], "its run is told");
        assert!(committed.news.finished.is_empty());
    }
    let claimed = store.claimed(1, 5).await;
    assert_eq!(claimed.poked.len(), 5, "its worker is told");
    let ends = [
        (GO_ON, TaskState::Running),
        (Next::Cancel, TaskState::Cancelled),
        (complete(), TaskState::Completed),
        (Next::Retry { failure: failure("no"), at: setup.at(SECOND) }, TaskState::Cancelled),
        (Next::Release, TaskState::Cancelled),
    ];
    for ((next, state), (n, run)) in ends.into_iter().zip((2..).zip(&runs[1..])) {
        assert!(store.next(*run, next.clone()).await.cancel_requested, "{next:?}");
        let info = store.info(n).await;
        assert_eq!((info.state, info.cancel_requested), (state, true), "{next:?}");
        let outcome = if state.is_finished() {
            CommandOutcome::NotAllowed(state)
        } else {
            CommandOutcome::Done
        };
        assert_eq!(store.command(Command::Cancel(run.0)).await, outcome);
    }
    assert_eq!(store.command(Command::Cancel(task_id(99))).await, CommandOutcome::NotFound);
}

/// Checks that all descendants of a cancelled task are cancelled, whatever cancelled it.
pub async fn cancellation_of_families(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    // Task 1 has the children 2 to 5. Task 2 has the child 6, and 6 has the child 7.
    store.spawn([new_task(1), child_of(1, 2), child_of(2, 6), child_of(6, 7)]).await;
    let runs = store.run([child_of(1, 3), child_of(1, 4), child_of(1, 5), child_of(5, 8)]).await;
    assert!(store.next(runs[1], SUSPEND).await.suspended);
    store.next(runs[2], complete()).await;
    let committed = store.commit(commands([Command::Cancel(task_id(1))])).await;
    let mut finished: Vec<_> =
        committed.news.finished.iter().map(|(task_id, _)| *task_id).collect();
    finished.sort_unstable();
    assert_eq!(finished, [1, 2, 4, 6, 7].map(task_id));
    assert_eq!(committed.news.poked, [task_id(3)]);
    assert!(store.info(3).await.cancel_requested);
    assert_eq!(store.state(5).await, TaskState::Completed, "what has ended stays as it is");
    let of_ended = store.info(8).await;
    assert_eq!(
        (of_ended.state, of_ended.cancel_requested),
        (TaskState::Running, false),
        "5 was not cancelled"
    );

    // A run that cancels itself cancels its children. A run that is released after a request to
    // cancel does the same.
    for (first, next) in [(20, Next::Cancel), (30, Next::Release)] {
        let run = store.run_one(first).await;
        store.spawn([child_of(first, first + 1), child_of(first + 1, first + 2)]).await;
        store.command(Command::Cancel(run.0)).await;
        assert_eq!(store.state(first + 1).await, TaskState::Pending, "its parent still runs");
        let committed = store.commit(transitions([Transition::new(run.0, run.1, next)])).await;
        assert_eq!(committed.news.finished.len(), 3);
        assert_eq!(store.state(first + 2).await, TaskState::Cancelled);
    }
    let failing = store.run_one(40).await;
    store.spawn([child_of(40, 41)]).await;
    store.next(failing, Next::Fail(failure("no"))).await;
    assert_eq!(store.state(41).await, TaskState::Pending, "a failure is no cancellation");
}

/// Checks that cancellation goes down a family of a thousand generations, and reaches parents that
/// await their children.
pub async fn cancellation_of_generations(backend: &impl Backend) {
    const GENERATIONS: u128 = 1_000;
    let (_setup, store) = Setup::with_handle(backend).await;
    store.spawn([new_task(1)]).await;
    store.spawn((2..=GENERATIONS).map(|n| child_of(n - 1, n))).await;
    let committed = store.commit(commands([Command::Cancel(task_id(1))])).await;
    assert_eq!(committed.news.finished.len(), GENERATIONS as usize);
    assert!(store.all().await.iter().all(|task| task.state == TaskState::Cancelled));

    let parent = store.run_one(5_001).await;
    store.spawn([child_of(5_001, 5_002)]).await;
    assert!(store.apply(awaiting(parent, [for_child(5_002)], SUSPEND)).await.unwrap().suspended);
    store.command(Command::Cancel(task_id(5_002))).await;
    assert_eq!(store.claim_one(1).await.facts.children, [(task_id(5_002), Finish::Cancelled)]);
}
