//! What a store is asked to do on the disk: batches of all kinds, which have the same effect each
//! time.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use stepwell_core::store::{
    Batch, CancellationPolicy, Claim, Command, NewEvent, NewMessage, NewTask, NewWorker, Next,
    ScheduleAction, ScheduleChange, SchedulePlan, Transition, Wait, WorkerSignal,
};
use stepwell_core::{
    BoxFuture, Entry, Headers, Key, Kind, Name, Outcome, Payload, RetryStrategy, RunId, Runtime,
    Scope, TaskId, Timestamp, WorkerId, from_micros,
};
use uuid::Uuid;

const START: i64 = 1_700_000_000_000_000;

/// One thing after the other.
pub(crate) enum Act {
    /// Opens the store, after it was closed if it was open.
    Open,
    Commit(Arc<Batch>),
}

/// A clock that stands still, and numbers that are the same at each try of an act.
#[derive(Default)]
pub(crate) struct Fixed {
    drawn: AtomicU64,
}

impl Fixed {
    pub(crate) fn begin(&self, act: u64) {
        self.drawn.store(act << 32, Ordering::SeqCst);
    }
}

impl Runtime for Fixed {
    fn now(&self) -> Timestamp {
        from_micros(START)
    }

    fn sleep(&self, _duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }

    fn spawn(&self, _future: BoxFuture<'static, ()>) {}

    fn random(&self) -> u64 {
        (self.drawn.fetch_add(1, Ordering::SeqCst) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    }
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(60), future).await.unwrap()
        })
    })
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn json(text: &str) -> Payload {
    Payload::from_json(text)
}

fn long(letters: usize) -> Payload {
    Payload::from_json(format!("\"{}\"", "x".repeat(letters)))
}

fn task_id(n: u128) -> TaskId {
    Uuid::from_u128(n).into()
}

fn run_id(n: u128) -> RunId {
    Uuid::from_u128(0xaaaa_0000_0000 + n).into()
}

fn worker(n: u128) -> WorkerId {
    Uuid::from_u128(0xffff_0000 + n).into()
}

fn task(n: u128) -> NewTask {
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

/// A task that runs at once, so that its run is known.
fn running(n: u128) -> NewTask {
    NewTask { claim_by: Some(worker(1)), ..task(n) }
}

fn key(kind: Kind, text: &str) -> Key {
    Key { kind, name: name(text), ordinal: 1 }
}

fn step(seq: u64, result: Payload) -> Entry {
    let outcome = Outcome::Done(result);
    Entry { seq, key: key(Kind::Step, &format!("step-{seq}")), outcome, at: from_micros(START) }
}

fn goes_on(n: u128, entries: Vec<Entry>, next: Next) -> Batch {
    let transition = Transition { entries, ..Transition::new(task_id(n), run_id(n), next) };
    Batch { transitions: vec![transition], ..Batch::default() }
}

fn spawns(spawns: Vec<NewTask>) -> Batch {
    Batch { spawns, ..Batch::default() }
}

fn plan(version: u128) -> SchedulePlan {
    let next_at = Some(from_micros(START + 60_000_000));
    SchedulePlan { version: Uuid::from_u128(version).into(), definition: json("{}"), next_at }
}

fn schedule(action: ScheduleAction) -> Batch {
    Batch { schedules: vec![ScheduleChange { name: name("nightly"), action }], ..Batch::default() }
}

fn signal(signal: WorkerSignal) -> Batch {
    Batch { workers: vec![signal], ..Batch::default() }
}

fn command(command: Command) -> Batch {
    Batch { commands: vec![command], ..Batch::default() }
}

fn event(text: &str) -> Batch {
    let event = NewEvent { name: name(text), queue: None, payload: json("1") };
    Batch { events: vec![event], ..Batch::default() }
}

fn message(n: u128, payload: Payload) -> Batch {
    let message = NewMessage { task_id: task_id(n), topic: name("topic"), payload };
    Batch { messages: vec![message], ..Batch::default() }
}

/// A batch that no part of the program holds.
pub(crate) fn another() -> Arc<Batch> {
    spawns(vec![task(1_000)]).into()
}

/// A worker that dies when the store is opened again.
fn register(n: u128) -> Batch {
    signal(WorkerSignal::Register(NewWorker {
        worker_id: worker(n),
        name: "host".into(),
        queues: Vec::new(),
        concurrency: 1,
        code_version: None,
        lease: Duration::from_secs(30),
    }))
}

pub(crate) fn program() -> Vec<Act> {
    let claim = Claim {
        worker_id: worker(2),
        queues: vec![name("queue")],
        task_types: vec![name("type")],
        code_version: None,
        limit: 2,
        suspect: u32::MAX,
    };
    let waits = Wait { key: key(Kind::Event, "event"), target: Some(name("event")), due_at: None };
    let mut suspended = goes_on(2, vec![step(1, json("1"))], Next::Suspend { wake_at: None });
    suspended.transitions[0].waits_added = vec![waits];
    let mut children = goes_on(1, vec![step(3, json("3"))], Next::Continue { collect: false });
    children.transitions[0].spawns = vec![NewTask { parent: Some(task_id(1)), ..task(20) }];
    let seen = Uuid::from_u128(1).into();
    let ticks = ScheduleAction::Replace {
        seen,
        plan: plan(2),
        spawns: vec![task(30)],
        unless_running: false,
    };
    let many =
        |from: u128| (from..from + 12).map(|n| NewTask { params: long(900), ..task(n) }).collect();
    let commit = |batch: Batch| Act::Commit(batch.into());
    vec![
        commit(register(1)),
        commit(spawns(vec![running(1), running(2), running(3)])),
        commit(goes_on(1, vec![step(1, json("1"))], Next::Continue { collect: false })),
        commit(suspended),
        commit(schedule(ScheduleAction::Create(plan(1)))),
        commit(goes_on(1, vec![step(2, long(20_000))], Next::Continue { collect: false })),
        commit(message(1, json("\"hello\""))),
        commit(event("event")),
        commit(spawns(many(100))),
        commit(children),
        commit(goes_on(1, vec![step(4, json("4"))], Next::Complete(json("\"done\"")))),
        commit(goes_on(3, Vec::new(), Next::Release)),
        Act::Open,
        commit(register(2)),
        commit(schedule(ticks)),
        commit(Batch { claims: vec![claim], ..Batch::default() }),
        commit(command(Command::Pause(task_id(100)))),
        commit(command(Command::Cancel(task_id(101)))),
        commit(signal(WorkerSignal::Heartbeat { worker_id: worker(2) })),
        Act::Open,
        commit(register(3)),
        commit(spawns(many(200))),
        commit(message(2, long(3_000))),
        commit(command(Command::Delete(task_id(101)))),
        commit(schedule(ScheduleAction::Delete)),
        commit(signal(WorkerSignal::Deregister { worker_id: worker(3) })),
    ]
}
