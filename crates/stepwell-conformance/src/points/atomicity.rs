//! The points of atomicity: all or nothing.

use stepwell_core::store::{Batch, Command, CommandOutcome, Spawned, Transition};
use stepwell_core::{RunId, TaskId, TaskState, WorkerState};

use crate::backend::Backend;
use crate::handle::payloads;
use crate::make::*;
use crate::setup::Setup;

/// Returns a batch with one item of each kind, none of which exists yet. Task 1 is to complete, and
/// task 3 to be cancelled.
fn one_of_everything() -> Batch {
    let mut completes = Transition::new(task_id(1), run_id(1), complete());
    completes.entries = vec![step(2, json("2"))];
    completes.spawns = vec![child_of(1, 10)];
    completes.events = vec![event("of the task", json("1"))];
    completes.messages = vec![message(3, "topic", json("\"of the task\""))];
    Batch {
        transitions: vec![completes],
        commands: vec![Command::Cancel(task_id(4))],
        events: vec![event("of a client", json("1"))],
        messages: vec![message(3, "topic", json("\"of a client\""))],
        spawns: vec![with_key("key", 11)],
        schedules: Vec::new(),
        queues: Vec::new(),
        workers: vec![register(5)],
        claims: vec![claim(5, 10)],
    }
}

/// Checks that a refused batch leaves no trace, and that the next batch is unaffected.
pub async fn atomicity(backend: &impl Backend) {
    if !backend.refuses_duplicates() {
        return;
    }
    let (_setup, store) = Setup::with_handle(backend).await;
    let runs = store.run([new_task(1), new_task(2), new_task(3)]).await;
    store.spawn([new_task(4)]).await;
    for run in &runs {
        store.journals(*run, vec![step(1, json("1"))]).await;
    }
    store.apply(awaiting(runs[2], [for_message("topic", 1)], GO_ON)).await.unwrap();
    let before = store.picture().await;

    let mut twice = Transition::new(runs[1].0, runs[1].1, GO_ON);
    twice.entries = vec![step(1, json("\"again\""))];
    let mut with_entry = one_of_everything();
    with_entry.transitions.push(twice);
    let mut with_task = one_of_everything();
    with_task.spawns.push(new_task(2));
    for (what, batch) in [("an entry's number", with_entry), ("a task's id", with_task)] {
        let refused = store.try_commit(batch).await;
        assert!(refused.is_err(), "{what} was accepted twice: {refused:#?}");
        assert_eq!(
            store.picture().await,
            before,
            "a batch that was refused ({what}) left something behind"
        );
        assert!(!store.signal(heartbeat(5)).await, "its worker is registered");
        let facts = store.look(runs[2]).await;
        assert!(facts.is_empty(), "its messages have arrived: {facts:?}");
    }

    let committed = store.commit(one_of_everything()).await;
    assert!(committed.transitions[0].is_ok());
    assert_eq!(committed.events, [true], "an event of a refused batch was kept");
    assert_eq!(
        committed.spawns,
        [Spawned::Created { claimed: false }],
        "a key of a refused batch was kept"
    );
    assert_eq!(
        store.look(runs[2]).await.messages.len(),
        1,
        "of as many messages as are waited for"
    );
    assert_eq!(store.journal(1).await.len(), 2);
}

/// Returns a transition that journals an entry, spawns task `n`, emits an event, and sends a
/// message to task 3.
fn bringing(run: (TaskId, RunId), n: u128) -> Transition {
    let mut transition = Transition::new(run.0, run.1, GO_ON);
    transition.entries = vec![step(1, number(n))];
    transition.spawns = vec![new_task(n)];
    transition.events = vec![event(&format!("event {n}"), number(n))];
    transition.messages = vec![message(3, "topic", number(n))];
    transition
}

/// Checks that a refused item leaves no trace, and that all other items of its batch stand.
pub async fn refused_items(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let runs = store.run((1..=4).map(new_task)).await;
    store.next(runs[3], complete()).await;
    store.spawn([with_key("key", 5)]).await;
    assert!(store.emit(event("early", json("1"))).await);
    store
        .apply(awaiting(runs[2], [for_message("topic", 1), for_message("topic", 2)], GO_ON))
        .await
        .unwrap();

    let good = [bringing(runs[0], 20), bringing(runs[1], 21)];
    let bad = [bringing((runs[0].0, run_id(99)), 30), bringing(runs[3], 31)];
    let ([first, last], [wrong, ended]) = (good, bad);
    let batch = Batch {
        transitions: vec![wrong, first, ended, last],
        commands: vec![
            Command::Retry(task_id(4)),
            Command::Cancel(task_id(77)),
            Command::Cancel(task_id(5)),
            Command::Wake(task_id(1)),
        ],
        events: vec![event("early", json("2")), event("late", json("2"))],
        messages: vec![message(4, "topic", json("0")), message(77, "topic", json("0"))],
        spawns: vec![with_key("key", 40), new_task(41)],
        schedules: Vec::new(),
        queues: Vec::new(),
        workers: vec![heartbeat(88), register(2)],
        claims: vec![claim(88, 10), claim(2, 1)],
    };
    let committed = store.commit(batch).await;
    let accepted: Vec<_> = committed.transitions.iter().map(Result::is_ok).collect();
    assert_eq!(accepted, [false, true, false, true]);
    let outcomes = [
        CommandOutcome::NotAllowed(TaskState::Completed),
        CommandOutcome::NotFound,
        CommandOutcome::Done,
        CommandOutcome::NotAllowed(TaskState::Running),
    ];
    assert_eq!(committed.commands, outcomes);
    assert_eq!(committed.events, [false, true]);
    assert_eq!(committed.messages, [false, false]);
    assert!(
        matches!(committed.spawns[0], Spawned::Existing { task_id: id, .. } if id == task_id(5))
    );
    assert_eq!(committed.spawns[1], Spawned::Created { claimed: false });
    let states: Vec<_> = committed.workers.iter().map(|status| status.state).collect();
    assert_eq!(states, [WorkerState::Gone, WorkerState::Active]);
    assert!(committed.claims[0].tasks.is_empty(), "a worker that is not registered got something");
    assert_eq!(committed.claims[1].tasks.len(), 1);

    for n in [30, 31, 40] {
        assert!(store.find(n).await.is_none(), "task {n} of a refused item is there");
    }
    for n in [20, 21, 41] {
        assert!(store.find(n).await.is_some(), "task {n} is missing");
    }
    assert_eq!(store.journal(1).await, [step(1, number(20))]);
    assert_eq!(store.journal(4).await, []);
    assert_eq!(payloads(&store.look(runs[2]).await), [number(20), number(21)]);
    for (n, is_new) in [(20, false), (21, false), (30, true), (31, true)] {
        assert_eq!(store.emit(event(&format!("event {n}"), json("0"))).await, is_new, "event {n}");
    }
}
