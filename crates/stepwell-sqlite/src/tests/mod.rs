//! Tests of the store as a whole.

mod bad_input;
mod cascade;
mod damage;
mod durability;
mod files;
mod format;
mod numbers;
mod plans;
mod rules;
mod sharing;
mod speed;
mod transactions;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use rusqlite::Connection;
use stepwell_core::store::{
    Batch, CancellationPolicy, Claim, ClaimedTask, Committed, NewTask, NewWorker, Next, Transition,
    WorkerSignal,
};
use stepwell_core::{
    BoxFuture, Entry, Headers, Key, Kind, Name, Outcome, Payload, RetryStrategy, RunId, Runtime,
    Scope, Store, StoreError, TaskId, Timestamp, WorkerId, from_micros,
};
use uuid::Uuid;

use crate::file::open::Missing;
use crate::writer::Order;
use crate::{Location, SqliteStore};

const START: i64 = 1_700_000_000_000_000;

/// A clock that a test moves, and numbers that are the same in each run.
struct Manual {
    micros: AtomicI64,
    drawn: AtomicU64,
}

impl Manual {
    fn new() -> Arc<Self> {
        Arc::new(Self { micros: AtomicI64::new(START), drawn: AtomicU64::new(0) })
    }

    fn advance(&self, duration: Duration) {
        self.micros.fetch_add(duration.as_micros() as i64, Ordering::SeqCst);
    }
}

impl Runtime for Manual {
    fn now(&self) -> Timestamp {
        from_micros(self.micros.load(Ordering::SeqCst))
    }

    fn sleep(&self, _duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }

    fn spawn(&self, _future: BoxFuture<'static, ()>) {}

    fn random(&self) -> u64 {
        (self.drawn.fetch_add(1, Ordering::SeqCst) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
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

fn try_open(path: &Path) -> Result<SqliteStore, StoreError> {
    let location = Location::File(path.to_owned());
    wait(SqliteStore::open_within(
        location,
        Manual::new(),
        Missing::Migrate,
        Duration::from_millis(200),
    ))
}

fn open(path: &Path) -> SqliteStore {
    try_open(path).unwrap()
}

fn commit(store: &SqliteStore, batch: Batch) -> Committed {
    wait(store.commit(batch.into())).unwrap()
}

/// Calls a function with the writer's connection.
fn on_writer<T: Send + 'static>(
    store: &SqliteStore,
    job: impl FnOnce(&Connection) -> T + Send + 'static,
) -> T {
    let (answer, receipt) = tokio::sync::oneshot::channel();
    store.order(Order::Job(Box::new(move |conn| _ = answer.send(job(conn)))));
    wait(receipt).unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn json(text: &str) -> Payload {
    Payload::from_json(text)
}

fn task_id(n: u128) -> TaskId {
    Uuid::from_u128(n).into()
}

fn worker_id(n: u128) -> WorkerId {
    Uuid::from_u128(0xffff_0000 + n).into()
}

fn new_task(n: u128) -> NewTask {
    NewTask {
        task_id: task_id(n),
        run_id: Uuid::from_u128(0xaaaa_0000_0000 + n).into(),
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

fn spawns(tasks: Vec<NewTask>) -> Batch {
    Batch { spawns: tasks, ..Batch::default() }
}

fn register(n: u128) -> Batch {
    let lease = Duration::from_secs(30);
    let signal = WorkerSignal::Register(NewWorker {
        worker_id: worker_id(n),
        name: "host".into(),
        queues: Vec::new(),
        concurrency: 1,
        code_version: None,
        lease,
    });
    Batch { workers: vec![signal], ..Batch::default() }
}

fn deregister(n: u128) -> Batch {
    let signal = WorkerSignal::Deregister { worker_id: worker_id(n) };
    Batch { workers: vec![signal], ..Batch::default() }
}

fn claim(n: u128, limit: usize) -> Batch {
    let claim = Claim {
        worker_id: worker_id(n),
        queues: vec![name("queue")],
        task_types: vec![name("type")],
        code_version: None,
        limit,
        suspect: u32::MAX,
    };
    Batch { claims: vec![claim], ..Batch::default() }
}

fn claimed(mut committed: Committed) -> Vec<ClaimedTask> {
    std::mem::take(&mut committed.claims[0].tasks)
}

fn step(seq: u64, payload: Payload) -> Entry {
    let key = Key { kind: Kind::Step, name: name("step"), ordinal: 1 };
    Entry { seq, key, outcome: Outcome::Done(payload), at: from_micros(START) }
}

fn transition(task_id: TaskId, run_id: RunId, next: Next) -> Transition {
    Transition::new(task_id, run_id, next)
}

fn transitions(transitions: Vec<Transition>) -> Batch {
    Batch { transitions, ..Batch::default() }
}
