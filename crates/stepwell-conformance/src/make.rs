//! Builders for the parts of batches.

use std::time::Duration;

use stepwell_core::store::{
    Batch, CancellationPolicy, Claim, Command, KeyedSpawn, NewEvent, NewMessage, NewTask,
    NewWorker, Next, Transition, Wait, WorkerSignal,
};
use stepwell_core::{
    Entry, Failure, FailureKind, Headers, Key, Kind, Name, Outcome, Payload, RetryStrategy, RunId,
    Scope, TaskId, Timestamp, WorkerId, from_micros,
};
use uuid::Uuid;

/// The lease of a worker that [`register`] makes.
pub(crate) const LEASE: Duration = Duration::from_secs(30);

pub(crate) const SECOND: Duration = Duration::from_secs(1);

pub(crate) const MICROSECOND: Duration = Duration::from_micros(1);

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn json(text: &str) -> Payload {
    Payload::from_json(text)
}

pub(crate) fn number(n: u128) -> Payload {
    Payload::from_json(n.to_string())
}

pub(crate) fn task_id(n: u128) -> TaskId {
    Uuid::from_u128(n).into()
}

/// Returns the first run of the task with a number.
pub(crate) fn run_id(n: u128) -> RunId {
    Uuid::from_u128(0xaaaa_0000_0000_0000 + n).into()
}

pub(crate) fn worker_id(n: u128) -> WorkerId {
    Uuid::from_u128(0xffff_0000_0000_0000 + n).into()
}

pub(crate) fn new_task(n: u128) -> NewTask {
    NewTask {
        task_id: task_id(n),
        run_id: run_id(n),
        task_type: name("type"),
        queue: name("queue"),
        params: json("{\"n\":1}"),
        headers: Headers::new(),
        scope: Scope::default(),
        priority: 0,
        max_attempts: 3,
        retry: RetryStrategy::default(),
        start_at: None,
        idempotency_key: None,
        concurrency_key: None,
        coalesce: None,
        code_version: None,
        cancellation: CancellationPolicy::default(),
        parent: None,
        claim_by: None,
    }
}

pub(crate) fn child_of(parent: u128, n: u128) -> NewTask {
    NewTask { parent: Some(task_id(parent)), ..new_task(n) }
}

/// Returns a transition that spawns a child with a key, with this place in the journal for its
/// entry. The store may have the child already.
pub(crate) fn keyed(parent: (TaskId, RunId), seq: u64, task: NewTask) -> Transition {
    let key = Key { kind: Kind::Spawn, name: name("child"), ordinal: 1 };
    let outcome = Outcome::Done(json(&format!("\"{}\"", task.task_id)));
    let entry = Entry { seq, key, outcome, at: from_micros(1_700_000_000_000_001) };
    let task = NewTask { parent: Some(parent.0), ..task };
    let keyed = Some(Box::new(KeyedSpawn { task, entry }));
    Transition { keyed, ..Transition::new(parent.0, parent.1, GO_ON) }
}

pub(crate) fn with_key(key: &str, n: u128) -> NewTask {
    NewTask { idempotency_key: Some(name(key)), ..new_task(n) }
}

pub(crate) fn spawns(tasks: impl IntoIterator<Item = NewTask>) -> Batch {
    Batch { spawns: tasks.into_iter().collect(), ..Batch::default() }
}

pub(crate) fn transitions(transitions: impl IntoIterator<Item = Transition>) -> Batch {
    Batch { transitions: transitions.into_iter().collect(), ..Batch::default() }
}

pub(crate) fn commands(commands: impl IntoIterator<Item = Command>) -> Batch {
    Batch { commands: commands.into_iter().collect(), ..Batch::default() }
}

pub(crate) fn emitting(events: impl IntoIterator<Item = NewEvent>) -> Batch {
    Batch { events: events.into_iter().collect(), ..Batch::default() }
}

pub(crate) fn sending(messages: impl IntoIterator<Item = NewMessage>) -> Batch {
    Batch { messages: messages.into_iter().collect(), ..Batch::default() }
}

pub(crate) fn signals(workers: impl IntoIterator<Item = WorkerSignal>) -> Batch {
    Batch { workers: workers.into_iter().collect(), ..Batch::default() }
}

pub(crate) fn claims(claims: impl IntoIterator<Item = Claim>) -> Batch {
    Batch { claims: claims.into_iter().collect(), ..Batch::default() }
}

pub(crate) fn register(n: u128) -> WorkerSignal {
    WorkerSignal::Register(new_worker(n))
}

pub(crate) fn new_worker(n: u128) -> NewWorker {
    NewWorker {
        worker_id: worker_id(n),
        name: "host".into(),
        queues: vec![name("queue")],
        concurrency: 10,
        code_version: None,
        lease: LEASE,
    }
}

pub(crate) fn heartbeat(n: u128) -> WorkerSignal {
    WorkerSignal::Heartbeat { worker_id: worker_id(n) }
}

/// Returns a signal that declares a worker dead, if the worker has sent this number of heartbeats.
pub(crate) fn declare_dead(n: u128, heartbeats: u64) -> WorkerSignal {
    WorkerSignal::DeclareDead { worker_id: worker_id(n), heartbeats }
}

pub(crate) fn deregister(n: u128) -> WorkerSignal {
    WorkerSignal::Deregister { worker_id: worker_id(n) }
}

pub(crate) fn claim(n: u128, limit: usize) -> Claim {
    claim_of(n, &["queue"], &["type"], limit)
}

pub(crate) fn claim_of(n: u128, queues: &[&str], task_types: &[&str], limit: usize) -> Claim {
    let names = |texts: &[&str]| texts.iter().map(|text| name(text)).collect();
    Claim {
        worker_id: worker_id(n),
        queues: names(queues),
        task_types: names(task_types),
        code_version: None,
        limit,
        suspect: u32::MAX,
    }
}

/// Returns an event for all queues.
pub(crate) fn event(text: &str, payload: Payload) -> NewEvent {
    NewEvent { name: name(text), queue: None, payload }
}

pub(crate) fn message(n: u128, topic: &str, payload: Payload) -> NewMessage {
    NewMessage { task_id: task_id(n), topic: name(topic), payload }
}

pub(crate) fn step(seq: u64, payload: Payload) -> Entry {
    let key = Key { kind: Kind::Step, name: name("step"), ordinal: 1 };
    Entry { seq, key, outcome: Outcome::Done(payload), at: from_micros(1_700_000_000_000_001) }
}

pub(crate) fn failure(text: &str) -> Failure {
    Failure::new(FailureKind::Error, text)
}

pub(crate) fn complete() -> Next {
    Next::Complete(json("\"output\""))
}

pub(crate) const GO_ON: Next = Next::Continue { collect: false };

pub(crate) const LOOK: Next = Next::Continue { collect: true };

pub(crate) const SUSPEND: Next = Next::Suspend { wake_at: None };

pub(crate) fn suspend_until(at: Timestamp) -> Next {
    Next::Suspend { wake_at: Some(at) }
}

fn wait(kind: Kind, target: &str, ordinal: u32) -> Wait {
    Wait {
        key: Key { kind, name: name(target), ordinal },
        target: Some(name(target)),
        due_at: None,
    }
}

pub(crate) fn for_event(text: &str) -> Wait {
    wait(Kind::Event, text, 1)
}

/// Returns the `ordinal`-th wait for a message with a topic.
pub(crate) fn for_message(topic: &str, ordinal: u32) -> Wait {
    wait(Kind::Message, topic, ordinal)
}

pub(crate) fn for_child(n: u128) -> Wait {
    wait(Kind::Child, &task_id(n).to_string(), 1)
}

/// Returns a transition that adds waits.
pub(crate) fn awaiting(
    task: (TaskId, RunId),
    waits: impl IntoIterator<Item = Wait>,
    next: Next,
) -> Transition {
    Transition { waits_added: waits.into_iter().collect(), ..Transition::new(task.0, task.1, next) }
}
