//! The points of the order within a batch.

use stepwell_core::store::{Batch, Command, CommandOutcome, Next, Spawned, Transition};
use stepwell_core::{TaskState, WorkerState};

use crate::backend::Backend;
use crate::handle::{Handle, of, payloads};
use crate::make::*;
use crate::setup::Setup;

/// Checks the order of a batch's lists: transitions, commands, events, messages, spawns, schedules,
/// signals, claims. Each list has its own order.
pub async fn order_within_a_batch(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let [ends, fails] = [store.run([with_key("key", 1)]).await[0], store.run_one(2).await];

    // A command may delete or retry a task that a transition ends. A spawn may use a key that this
    // frees. A claim sees everything, also for a worker that is registered in the same batch.
    let batch = Batch {
        transitions: vec![
            Transition {
                entries: vec![step(1, json("1")), step(2, json("2"))],
                ..Transition::new(fails.0, fails.1, Next::Fail(failure("no")))
            },
            Transition::new(ends.0, ends.1, complete()),
        ],
        commands: vec![
            Command::Delete(ends.0),
            Command::Retry(ends.0),
            Command::Retry(fails.0),
            Command::Retry(fails.0),
        ],
        events: vec![event("event", json("1")), event("event", json("2"))],
        messages: vec![
            message(1, "topic", json("1")),
            message(2, "topic", json("1")),
            message(3, "topic", json("1")),
        ],
        spawns: vec![with_key("key", 3), with_key("key", 4)],
        schedules: Vec::new(),
        queues: Vec::new(),
        workers: vec![register(2), register(3), deregister(3)],
        claims: vec![claim(3, 1), claim(2, 1), claim(2, 10)],
    };
    let committed = store.commit(batch).await;
    let accepted: Vec<_> = committed.transitions.iter().map(Result::is_ok).collect();
    assert_eq!(accepted, [true, true]);
    let pending = CommandOutcome::NotAllowed(TaskState::Pending);
    let outcomes = [CommandOutcome::Done, CommandOutcome::NotFound, CommandOutcome::Done, pending];
    assert_eq!(committed.commands, outcomes);
    assert_eq!(committed.events, [true, false]);
    assert_eq!(
        committed.messages,
        [false, true, false],
        "a deleted task, a retried one, one that is yet to be"
    );
    let existing = Spawned::Existing { task_id: task_id(3), run_id: run_id(3), attempt: 0 };
    assert_eq!(committed.spawns, [Spawned::Created { claimed: false }, existing]);
    assert!(committed.workers.iter().all(|status| status.state == WorkerState::Active));
    let claimed = committed
        .claims
        .iter()
        .map(|claimed| claimed.tasks.iter().map(|task| task.task_id).collect());
    assert_eq!(claimed.collect::<Vec<Vec<_>>>(), [vec![], vec![task_id(2)], vec![task_id(3)]]);
    let again = &committed.claims[1].tasks[0];
    assert_eq!(again.journal.as_deref(), Some(&[step(1, json("1")), step(2, json("2"))][..]));
    assert_eq!(again.attempt, 1);
    order_within_a_transition(&store).await;
}

/// Checks that spawns come first, then events, then messages, and the task's end last.
async fn order_within_a_transition(store: &Handle) {
    let run = store.run_one(10).await;
    let mut brings = Transition::new(run.0, run.1, complete());
    brings.spawns = vec![child_of(10, 11)];
    brings.messages = vec![message(11, "topic", json("1")), message(10, "topic", json("2"))];
    store.apply(brings).await.unwrap();
    let child = store.claim_one(1).await;
    let run = of(&child);
    let found = store.apply(awaiting(run, [for_message("topic", 1)], LOOK)).await.unwrap();
    assert_eq!(
        payloads(&found.facts),
        [json("1")],
        "a message to a child that was spawned with it"
    );
}

/// Checks that all transitions of a batch write before any of them looks: a task that suspends
/// finds what a later transition sent.
pub async fn transitions_write_before_they_look(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let mut next = 0;
    for suspends_first in [true, false] {
        let parent = store.run_one(next + 1).await;
        let runs = store.run([new_task(next + 2), child_of(next + 1, next + 3)]).await;
        let text = format!("event {next}");
        let waits = [for_event(&text), for_message("topic", 1), for_child(next + 3)];
        let suspends = awaiting(parent, waits, SUSPEND);
        let mut sends = Transition::new(runs[0].0, runs[0].1, GO_ON);
        sends.events = vec![event(&text, json("1"))];
        sends.messages = vec![message(next + 1, "topic", json("2"))];
        let ends = Transition::new(runs[1].0, runs[1].1, complete());
        let batch = if suspends_first { [suspends, sends, ends] } else { [ends, sends, suspends] };
        let mut committed = store.commit(transitions(batch)).await;
        let looked = committed.transitions.remove(if suspends_first { 0 } else { 2 }).unwrap();
        assert!(!looked.suspended, "it was suspended, though something is there");
        let facts = looked.facts;
        assert_eq!((facts.events.len(), facts.messages.len(), facts.children.len()), (1, 1, 1));
        assert_eq!(store.state(next + 1).await, TaskState::Running);
        next += 10;
    }
}
