//! The store: what a backend must do.
//!
//! A store keeps tasks, journals, waits, events, messages and workers. Everything that changes it goes through
//! [`Store::commit`], one atomic batch at a time, in which each item is judged on its own: a refused item leaves
//! no trace and does not undo the others. The engine gathers batches (see [`crate::commit`]); a store only applies
//! them.
//!
//! # States of a task
//!
//! ```text
//!             claim                 suspend
//!   pending ─────────▶ running ─────────────▶ suspended
//!      ▲  ▲               │ │                      │
//!      │  └───────────────┘ │ complete, fail,      │ an event, a message, a child's
//!      │   retry, release,  │ cancel               │ end, or `due_at`
//!      │   lost lease       ▼                      │
//!      │          completed | failed | cancelled   │
//!      └───────────────────────────────────────────┘
//! ```
//!
//! A pending task may have a `due_at` as well (a delayed start, a retry): it is not claimed before.
//!
//! # Order within a batch
//!
//! Transitions, commands, events, messages, spawns, worker signals, claims; each list in its own order. So a claim
//! sees all that its batch brought.

use std::any::Any;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::ids::{RunId, TaskId, WorkerId};
use crate::journal::{Entry, Key};
use crate::name::Name;
use crate::payload::Payload;
use crate::retry::RetryStrategy;
use crate::runtime::BoxFuture;
use crate::time::Timestamp;

/// Headers: small values that travel with a task beside its parameters (a trace, a tenant).
pub type Headers = BTreeMap<String, serde_json::Value>;

/// A backend.
pub trait Store: Send + Sync + 'static {
    /// The store's clock, by which timers, delays and leases go.
    fn now(&self) -> Timestamp;

    /// Applies the batch atomically and durably. The result is in the order of the batch's lists.
    ///
    /// # Errors
    /// When nothing of the batch was applied.
    fn commit(&self, batch: Batch) -> BoxFuture<'static, Result<Committed, StoreError>>;

    /// One task.
    fn task(&self, task_id: TaskId) -> BoxFuture<'static, Result<Option<TaskInfo>, StoreError>>;

    /// The tasks that pass the filter, newest first.
    fn tasks(&self, filter: TaskFilter) -> BoxFuture<'static, Result<Vec<TaskInfo>, StoreError>>;

    /// A task's journal, in order. Empty when there is no such task.
    fn journal(&self, task_id: TaskId) -> BoxFuture<'static, Result<Vec<Entry>, StoreError>>;

    /// Ready when another process may have written since the last call. Never, where no other process can.
    fn changed(&self) -> BoxFuture<'_, ()>;
}

/// A batch of changes, applied as one.
#[derive(Debug, Default)]
pub struct Batch {
    /// What runs did.
    pub transitions: Vec<Transition>,
    /// What clients ask of tasks.
    pub commands: Vec<Command>,
    /// Events emitted by clients.
    pub events: Vec<NewEvent>,
    /// Messages sent by clients.
    pub messages: Vec<NewMessage>,
    /// Tasks spawned by clients.
    pub spawns: Vec<NewTask>,
    /// Signs of life.
    pub workers: Vec<WorkerSignal>,
    /// Requests for work.
    pub claims: Vec<Claim>,
}

impl Batch {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.has_only_claims() && self.claims.is_empty()
    }

    /// Whether nothing but claims is in it.
    pub fn has_only_claims(&self) -> bool {
        self.transitions.is_empty()
            && self.commands.is_empty()
            && self.events.is_empty()
            && self.messages.is_empty()
            && self.spawns.is_empty()
            && self.workers.is_empty()
    }
}

/// What became of a batch: a result for each of its items, and what others have to be told.
#[derive(Debug, Default)]
pub struct Committed {
    /// For each transition.
    pub transitions: Vec<Result<Applied, Refused>>,
    /// For each command.
    pub commands: Vec<CommandOutcome>,
    /// For each event: whether this was its first emission. A further one changes nothing.
    pub events: Vec<bool>,
    /// For each message: whether its task exists and has not finished.
    pub messages: Vec<bool>,
    /// For each spawn.
    pub spawns: Vec<Spawned>,
    /// For each worker signal: whether the worker is registered. A worker that is not has lost its lease.
    pub workers: Vec<bool>,
    /// For each claim.
    pub claims: Vec<Claimed>,
    /// What the batch caused.
    pub news: News,
}

/// What a batch caused, for those in this process who wait for it.
#[derive(Debug, Default)]
pub struct News {
    /// Queues that got a claimable task, or one that is due later.
    pub ready: Vec<Name>,
    /// Running tasks that something arrived for, or that were asked to cancel.
    pub poked: Vec<TaskId>,
    /// Tasks that ended.
    pub finished: Vec<(TaskId, Finish)>,
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Finish {
    /// With this output.
    Completed(Payload),
    /// With this failure, its attempts used up.
    Failed(Failure),
    /// It was cancelled.
    Cancelled,
}

/// A task to be spawned.
#[derive(Clone, Debug)]
pub struct NewTask {
    /// Its id.
    pub task_id: TaskId,
    /// The id of its first run.
    pub run_id: RunId,
    /// The name of its task type.
    pub task_type: Name,
    /// Its queue.
    pub queue: Name,
    /// Its parameters.
    pub params: Payload,
    /// Its headers.
    pub headers: Headers,
    /// Higher ones are claimed first.
    pub priority: i32,
    /// How many attempts it has; at least 1.
    pub max_attempts: u32,
    /// When a failed attempt is followed by another.
    pub retry: RetryStrategy,
    /// Not to be claimed before; at once when `None`.
    pub start_at: Option<Timestamp>,
    /// Among the tasks of its type, only the first with a key is spawned.
    pub idempotency_key: Option<Name>,
    /// When it is cancelled by itself.
    pub cancellation: CancellationPolicy,
    /// The task that spawned it.
    pub parent: Option<TaskId>,
    /// Eager start: the worker that claims it in the commit that inserts it. Ignored when there is a `start_at`.
    pub claim_by: Option<WorkerId>,
}

/// When a task is cancelled by itself. By default it never is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancellationPolicy {
    /// Cancelled when it was not claimed within this time of being spawned.
    pub max_delay: Option<Duration>,
    /// Cancelled when it has not ended within this time of being claimed for the first time.
    pub max_duration: Option<Duration>,
}

/// What became of a [`NewTask`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spawned {
    /// It was inserted. `claimed` when its `claim_by` has it.
    Created {
        /// Whether it is running under its `claim_by`.
        claimed: bool,
    },
    /// A task with its idempotency key was there before.
    Existing {
        /// That task.
        task_id: TaskId,
        /// Its run.
        run_id: RunId,
        /// Its attempt.
        attempt: u32,
    },
}

/// An event to be emitted.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// Its name.
    pub name: Name,
    /// The queue whose tasks see it; `None` for all of them.
    pub queue: Option<Name>,
    /// What it carries.
    pub payload: Payload,
}

/// A message to be sent.
#[derive(Clone, Debug)]
pub struct NewMessage {
    /// The task whose mailbox it goes to.
    pub task_id: TaskId,
    /// Its topic.
    pub topic: Name,
    /// What it carries.
    pub payload: Payload,
}

/// What a run did since its last commit. It is refused as a whole unless the run owns the task: the task is running
/// under this `run_id`.
#[derive(Debug)]
pub struct Transition {
    /// The task.
    pub task_id: TaskId,
    /// The run: the fencing token.
    pub run_id: RunId,
    /// What was delivered, with sequence numbers that follow on those in the journal.
    pub entries: Vec<Entry>,
    /// Child tasks that the entries spawn.
    pub spawns: Vec<NewTask>,
    /// Events that the entries emit.
    pub events: Vec<NewEvent>,
    /// Messages that the entries send.
    pub messages: Vec<NewMessage>,
    /// Messages that the entries received: they leave the mailbox.
    pub received: Vec<MessageId>,
    /// What the task waits for since its last commit.
    pub waits_added: Vec<Wait>,
    /// What it no longer waits for.
    pub waits_removed: Vec<Key>,
    /// A step whose work is done by the store, within the batch's own transaction. Its entry is written only when the
    /// work succeeds; otherwise the work is undone, and the rest of the transition stands.
    pub transaction: Option<UserTransaction>,
    /// What becomes of the task.
    pub next: Next,
}

impl Transition {
    /// A transition with nothing in it but what becomes of the task.
    pub fn new(task_id: TaskId, run_id: RunId, next: Next) -> Self {
        Self {
            task_id,
            run_id,
            entries: Vec::new(),
            spawns: Vec::new(),
            events: Vec::new(),
            messages: Vec::new(),
            received: Vec::new(),
            waits_added: Vec::new(),
            waits_removed: Vec::new(),
            transaction: None,
            next,
        }
    }
}

/// A message's place in the order of all messages.
pub type MessageId = i64;

/// Something that a task waits for.
#[derive(Clone, Debug, PartialEq)]
pub struct Wait {
    /// The operation that waits. Its kind says for what.
    pub key: Key,
    /// The event's name, the message's topic, the child's id; `None` for timers.
    pub target: Option<Name>,
    /// When the wait ends by itself.
    pub due_at: Option<Timestamp>,
}

/// A step that the store does within its own transaction.
pub struct UserTransaction {
    /// The step.
    pub key: Key,
    /// The sequence number for its entry.
    pub seq: u64,
    /// The work: a type that only the backend knows, a closure over its connection.
    pub work: Box<dyn Any + Send>,
}

impl std::fmt::Debug for UserTransaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserTransaction").field("key", &self.key).finish_non_exhaustive()
    }
}

/// What becomes of a task after a transition.
#[derive(Clone, Debug)]
pub enum Next {
    /// It goes on running. With `collect`, the store looks for what its waits wait for.
    Continue {
        /// Whether to look.
        collect: bool,
    },
    /// It only waits, and gives up its run; the attempt does not count. The store looks for what its waits wait for,
    /// and when there is something, or `wake_at` has passed, the task stays running instead.
    Suspend {
        /// The earliest `due_at` of all its waits.
        wake_at: Option<Timestamp>,
    },
    /// It has this output.
    Complete(Payload),
    /// The attempt failed; the next one may start then.
    Retry {
        /// Why it failed.
        failure: Failure,
        /// When the next attempt is due.
        at: Timestamp,
    },
    /// The attempt failed, and was the last.
    Fail(Failure),
    /// It is cancelled, and so are its children.
    Cancel,
    /// The run gives the task back, unfinished; the attempt does not count.
    Release,
}

/// What became of a transition.
#[derive(Debug, Default)]
pub struct Applied {
    /// Whether the task is suspended now. `false` after [`Next::Suspend`] means that it still runs.
    pub suspended: bool,
    /// Whether the task has been asked to cancel.
    pub cancel_requested: bool,
    /// What has arrived for the task's waits, when it was asked for.
    pub facts: Facts,
    /// What the [`UserTransaction`] gave: the step's result, or why its work was undone.
    pub transaction: Option<Result<Payload, anyhow::Error>>,
}

/// The run does not own the task: another one has it, or it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the run no longer owns its task")]
pub struct Refused;

/// What has arrived for a task's waits. The executor decides who gets what.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Events by name, for those that the task awaits and that have been emitted.
    pub events: Vec<(Name, Payload)>,
    /// Messages in their order; of each topic at most as many as there are waits for it.
    pub messages: Vec<ArrivedMessage>,
    /// Children that have ended.
    pub children: Vec<(TaskId, Finish)>,
}

impl Facts {
    /// Whether nothing has arrived.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.messages.is_empty() && self.children.is_empty()
    }
}

/// A message in a task's mailbox.
#[derive(Clone, Debug, PartialEq)]
pub struct ArrivedMessage {
    /// Its place in the order.
    pub id: MessageId,
    /// Its topic.
    pub topic: Name,
    /// What it carries.
    pub payload: Payload,
}

/// What a client asks of a task.
#[derive(Clone, Copy, Debug)]
pub enum Command {
    /// End it as cancelled. One that runs is asked to; any other ends at once, and so do its children.
    Cancel(TaskId),
    /// Run a failed or cancelled task again, from its journal, counting attempts from 1.
    Retry(TaskId),
    /// Remove a finished task and all that belongs to it.
    Delete(TaskId),
    /// Make a suspended task claimable, though nothing that it waits for has arrived.
    Wake(TaskId),
}

/// What became of a [`Command`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandOutcome {
    /// It was done, or will be: a running task has been asked to cancel.
    Done,
    /// The task's state does not allow it.
    NotAllowed(TaskState),
    /// There is no such task.
    NotFound,
}

/// A sign of life of a worker.
#[derive(Clone, Debug)]
pub enum WorkerSignal {
    /// A new worker, alive for `lease`.
    Register {
        /// Its id.
        worker_id: WorkerId,
        /// What people know it by: a host and a process.
        name: String,
        /// How long it is taken to be alive.
        lease: Duration,
    },
    /// It is alive for another `lease`.
    Heartbeat {
        /// Its id.
        worker_id: WorkerId,
        /// How long it is taken to be alive.
        lease: Duration,
    },
    /// It has stopped. Tasks that still run under it are released.
    Deregister {
        /// Its id.
        worker_id: WorkerId,
    },
}

/// A request for work. Before it answers, the store does what is due: it makes due tasks claimable, cancels tasks
/// whose [`CancellationPolicy`] says so, and takes tasks from dead workers. Such a task is claimable again, or has
/// failed when that was its last attempt.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Who asks.
    pub worker_id: WorkerId,
    /// Queues, in the order in which to look.
    pub queues: Vec<Name>,
    /// Task types that the worker knows. It gets no others.
    pub task_types: Vec<Name>,
    /// How many tasks at most.
    pub limit: usize,
}

/// What a worker got.
#[derive(Debug, Default)]
pub struct Claimed {
    /// Tasks that run under the worker now, highest priority first, then oldest.
    pub tasks: Vec<ClaimedTask>,
    /// Tasks that ran under the worker before, and that something has arrived for (or a request to cancel).
    pub poked: Vec<TaskId>,
    /// When something is due next, in any queue.
    pub next_due: Option<Timestamp>,
}

/// A task as its executor gets it.
#[derive(Clone, Debug)]
pub struct ClaimedTask {
    /// The task.
    pub task_id: TaskId,
    /// The run that owns it now. A suspended task that is claimed by the worker that ran it keeps its run.
    pub run_id: RunId,
    /// The number of this attempt, from 1.
    pub attempt: u32,
    /// How many attempts there are.
    pub max_attempts: u32,
    /// The name of its type.
    pub task_type: Name,
    /// Its queue.
    pub queue: Name,
    /// Its parameters.
    pub params: Payload,
    /// Its headers.
    pub headers: Headers,
    /// When a failed attempt is followed by another.
    pub retry: RetryStrategy,
    /// Its journal; `None` for a suspended task that is claimed by the worker that ran it last, which may have it in
    /// memory.
    pub journal: Option<Vec<Entry>>,
    /// What it waits for, with the due times that were fixed when it began to.
    pub waits: Vec<Wait>,
    /// What has arrived for its waits.
    pub facts: Facts,
}

/// Where a task is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// It waits to be claimed.
    Pending,
    /// A worker runs it.
    Running,
    /// It waits for a time, an event, a message or a child.
    Suspended,
    /// It has its output.
    Completed,
    /// Its attempts are used up.
    Failed,
    /// It was cancelled.
    Cancelled,
}

impl TaskState {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::Running, Self::Suspended, Self::Completed, Self::Failed, Self::Cancelled];

    /// Whether the task has ended.
    pub const fn is_finished(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// The state's word in stores, filters and exports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Suspended => "suspended",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state of that word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

impl std::fmt::Display for TaskState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a store knows of a task.
#[derive(Clone, Debug, Serialize)]
pub struct TaskInfo {
    /// The task.
    pub task_id: TaskId,
    /// Its latest run.
    pub run_id: RunId,
    /// The name of its type.
    pub task_type: Name,
    /// Its queue.
    pub queue: Name,
    /// Where it is in its life.
    pub state: TaskState,
    /// Its parameters.
    pub params: Payload,
    /// Its output, once it has completed.
    pub output: Option<Payload>,
    /// Why it failed, or why its last attempt did.
    pub failure: Option<Failure>,
    /// Its headers.
    pub headers: Headers,
    /// Higher ones are claimed first.
    pub priority: i32,
    /// The number of its latest attempt; 0 before the first.
    pub attempt: u32,
    /// How many attempts it has.
    pub max_attempts: u32,
    /// The task that spawned it.
    pub parent: Option<TaskId>,
    /// Its idempotency key.
    pub idempotency_key: Option<Name>,
    /// Whether it has been asked to cancel.
    pub cancel_requested: bool,
    /// When it was spawned.
    pub spawned_at: Timestamp,
    /// When it was first claimed.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// When it may next be claimed, if it waits for a time.
    pub due_at: Option<Timestamp>,
}

/// Which tasks to list. The default passes all, 100 at a time.
///
/// ```
/// # use stepwell_core::{TaskFilter, TaskState};
/// let failed = TaskFilter { state: Some(TaskState::Failed), limit: 20, ..TaskFilter::default() };
/// ```
#[derive(Clone, Debug)]
pub struct TaskFilter {
    /// Of this state.
    pub state: Option<TaskState>,
    /// In this queue.
    pub queue: Option<Name>,
    /// Of this type.
    pub task_type: Option<Name>,
    /// Spawned by this task.
    pub parent: Option<TaskId>,
    /// Older than this task: the last one of the page before.
    pub before: Option<TaskId>,
    /// How many at most.
    pub limit: usize,
}

impl Default for TaskFilter {
    fn default() -> Self {
        Self { state: None, queue: None, task_type: None, parent: None, before: None, limit: 100 }
    }
}

/// Why a store could not do its work.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store cannot be reached or opened.
    #[error("cannot open the database {location}: {reason}. {advice}")]
    Open {
        /// Where it was looked for.
        location: String,
        /// What went wrong.
        reason: String,
        /// What to do.
        advice: String,
    },
    /// The database was written by a newer Stepwell.
    #[error(
        "the database {location} has schema version {found}, this program knows versions up to {known}: run a newer build of it, or use another database"
    )]
    NewerSchema {
        /// Where it is.
        location: String,
        /// Its version.
        found: i64,
        /// The newest version that this program knows.
        known: i64,
    },
    /// The disk is full. What was to be written is not lost: it is tried again.
    #[error("the disk is full ({0}): free some space, the engine goes on by itself")]
    Full(String),
    /// Another program holds the database's lock.
    #[error("the database is locked ({0}): end the program that holds a transaction open on it")]
    Locked(String),
    /// The database's content is damaged.
    #[error("the database is damaged ({0}): stop all programs that use it, and restore a backup")]
    Corrupt(String),
    /// Any other failure of the backend.
    #[error("the store failed: {0}")]
    Backend(String),
    /// The store has been closed.
    #[error("the store has been closed")]
    Closed,
}
