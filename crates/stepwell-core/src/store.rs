//! The store: what a backend must do.
//!
//! A store keeps tasks, journals, waits, events, messages and workers. Everything that changes it
//! goes through [`Store::commit`], one atomic batch at a time, in which each item is judged on its
//! own: a refused item leaves no trace and does not undo the others. The engine gathers batches
//! (group commit); a store only applies them.
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
//! # Compensation
//!
//! Where a task is to end as failed or cancelled, whatever the cause, and its journal holds a
//! [`Kind::Compensate`] entry behind its last [`Kind::Compensating`] one (or at all), it does not
//! end. Instead a `Compensating` entry is added to its journal, named `compensating`, that holds
//! the failure (for a cancellation, [`cancelled`](crate::cancelled)), and the task becomes
//! pending again, for any worker, as *compensating*: its waits and its deadline are gone, a request
//! to cancel is answered, its failure is that failure, and its attempts count from 1 again.
//! [`TaskInfo`] and filters show it as [`TaskState::Compensating`] until it ends, whether it is
//! pending, running or suspended; it cannot be cancelled, and when it is to end, it ends. When its
//! workers have died too often ([`crash_limit`](crate::crash_limit)), it ends [as it would
//! have](crate::end_of), with the [crash](crate::crashed) among its compensations' errors. A retry
//! makes an ordinary task of it: where its journal holds a `Compensating` entry, it adds [one that
//! says so](crate::begun_anew).
//!
//! # Order within a batch
//!
//! Transitions, commands, events, messages, spawns, changes of schedules, changes of queues, worker
//! signals, claims; each list in its own order. So a claim sees all that its batch brought.
//!
//! A batch holds at most one transition of each run. Transitions are applied in two rounds: first
//! everything that they write, then what some of them look for ([`Next::Continue`] with `collect`,
//! [`Next::Suspend`]), in the order of their tasks' ids. So a task that suspends finds what another
//! one sent it in the same batch, and a store may apply many transitions at once.
//!
//! # Circles
//!
//! A task that would [wait for ever](crate::waits_for_ever) is not suspended. It stays running, and
//! the facts that it is given say of one of the tasks that it waits for that it is
//! [blocked](crate::blocked), though that task has not ended. A task waits for its turn while
//! another one comes before it by its concurrency key. It waits for nothing but the ends of others
//! when it is suspended without a `due_at` and all its waits are of [`Kind::Child`].
//!
//! # Answers
//!
//! An answer is full when it holds [`ANSWER_BYTES`](crate::ANSWER_BYTES) of what tasks were given,
//! gave and failed by; what fills it is the last of it. Lists come in [pages](Page), and
//! [`Page::next`] tells where to go on. Of what has arrived for runs ([`Facts`]), a batch or a
//! claim gets what there is room for, and [`Facts::more`] tells a run to look again. A
//! claim may leave out the journals that it has no room for.
//!
//! Whole are what belongs to one task ([`Store::task`], [`Store::journal`], what it waits for) and
//! what holds names and numbers, or schemas, which programs bring: queues, workers and task types.

pub(crate) mod headers;
pub(crate) mod page;
pub(crate) mod queue;
pub(crate) mod record;
pub(crate) mod rules;
pub(crate) mod schedule;
pub(crate) mod scheduled;
pub(crate) mod scope;
pub(crate) mod spawn_options;
pub(crate) mod task_info;
pub(crate) mod ticks;
pub(crate) mod timing;
pub(crate) mod transition;
pub(crate) mod worker_info;

use std::any::Any;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::failure::{Failure, FailureKind};
use crate::base::ids::{RunId, TaskId, WorkerId};
use crate::base::invalid_options::InvalidOptions;
use crate::base::journal::Entry;
#[cfg(doc)]
use crate::base::journal::Kind;
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::retry::RetryStrategy;
use crate::base::runtime::BoxFuture;
use crate::base::time::Timestamp;
use crate::base::unreadable::Unreadable;
use crate::store::page::Page;
use crate::store::queue::{QueueChange, QueueInfo};
use crate::store::record::TaskRecord;
use crate::store::scope::Scope;

pub use crate::store::scheduled::{
    ScheduleAction, ScheduleChange, ScheduleFilter, ScheduleOutcome, SchedulePlan, Scheduled,
};
pub use crate::store::task_info::{TaskFilter, TaskInfo, TaskState};
pub use crate::store::transition::{
    Applied, ArrivedMessage, Facts, KeyedSpawn, MessageId, Next, Refused, Seal, Transition,
    UserTransaction, Wait,
};
pub use crate::store::worker_info::{
    NewWorker, OtherWorker, WATCHED, WorkerInfo, WorkerState, WorkerStatus,
};

/// Headers: small values that travel with a task beside its parameters (a trace, a tenant).
pub type Headers = BTreeMap<String, serde_json::Value>;

/// A backend.
pub trait Store: Any + Send + Sync {
    /// The store's clock, by which timers, delays and leases go.
    fn now(&self) -> Timestamp;

    /// Applies the batch atomically and durably. The result is in the order of the batch's lists.
    ///
    /// # Errors
    /// When nothing of the batch was applied. When the error is [of an
    /// item](StoreError::is_of_an_item), the engine sends parts of the batch, which it has
    /// kept, to find that.
    fn commit(&self, batch: Arc<Batch>) -> BoxFuture<'static, Result<Committed, StoreError>>;

    /// How many commits it can usefully have at the same time: where that is more than one, the
    /// engine sends journal entries and completions past a batch that is on its way. One by
    /// default.
    fn lanes(&self) -> NonZeroUsize {
        NonZeroUsize::MIN
    }

    /// Applies one transition that has a [`UserTransaction`] beside the batches, where the user's
    /// work may take its time; gives it back where it is to go with a batch. A store that
    /// passes on what it is asked to another one passes this on as well, since the other one
    /// may refuse it in a batch.
    ///
    /// # Errors
    /// The transition, when nothing of it was applied.
    #[allow(clippy::result_large_err, reason = "it is the argument, handed back")]
    fn transact(&self, transition: Transition) -> Result<Transacting, Transition>;

    /// One task.
    fn task(&self, task_id: TaskId) -> BoxFuture<'static, Result<Option<TaskInfo>, StoreError>>;

    /// The tasks that pass the filter, newest first.
    fn tasks(&self, filter: TaskFilter) -> BoxFuture<'static, Result<Page<TaskInfo>, StoreError>>;

    /// Of those of the tasks that are there, by their ids: how they ended, `None` for those that
    /// have not. Where there is a next page, the tasks behind its place are to be asked for
    /// once more.
    fn ends(&self, tasks: Vec<TaskId>) -> BoxFuture<'static, Result<Ends, StoreError>>;

    /// A task's journal, in order. Empty when there is no such task.
    fn journal(&self, task_id: TaskId) -> BoxFuture<'static, Result<Vec<Entry>, StoreError>>;

    /// What tasks of the scope wait for whose target begins so, by task and key: of the first
    /// `limit` such tasks behind that one. Each task comes with all of it.
    fn waits(
        &self,
        scope: Scope,
        prefix: String,
        behind: Option<TaskId>,
        limit: usize,
    ) -> BoxFuture<'static, Result<Page<TaskWaits>, StoreError>>;

    /// Returns what a task waits for, by key.
    fn waits_of(&self, task_id: TaskId) -> BoxFuture<'static, Result<Vec<Wait>, StoreError>>;

    /// The messages that a task has not received, in order, behind that one. A task that has failed
    /// or was cancelled keeps them for a retry; one that has completed has none.
    fn messages(
        &self,
        task_id: TaskId,
        behind: Option<MessageId>,
    ) -> BoxFuture<'static, Result<Page<ArrivedMessage>, StoreError>>;

    /// Puts in a task that was exported from a store, to go on in this one: one that has not ended
    /// is pending, at once or when it was due (a running attempt does not count), and
    /// compensating if it was. `false`, and nothing has changed, when the store has the
    /// task, or one of its type with its idempotency key.
    fn import(&self, record: TaskRecord) -> BoxFuture<'static, Result<bool, StoreError>>;

    /// All queues that have limits, are paused, or have a task that has not ended, by name.
    fn queues(&self) -> BoxFuture<'static, Result<Vec<QueueInfo>, StoreError>>;

    /// All workers that are registered, in the order of their ids.
    fn workers(&self) -> BoxFuture<'static, Result<Vec<WorkerInfo>, StoreError>>;

    /// The schedules that pass the filter, in its order.
    fn schedules(
        &self,
        which: ScheduleFilter,
    ) -> BoxFuture<'static, Result<Page<Scheduled>, StoreError>>;

    /// The types of the tasks that are to be claimed next in each of these queues, at least of the
    /// first thousand.
    fn waiting_types(&self, queues: Vec<Name>)
    -> BoxFuture<'static, Result<Vec<Name>, StoreError>>;

    /// Keeps what is known of a task type, in the place of what was known before.
    fn describe(&self, info: TaskTypeInfo) -> BoxFuture<'static, Result<(), StoreError>>;

    /// What is known of task types, by their names.
    fn task_types(&self) -> BoxFuture<'static, Result<Vec<TaskTypeInfo>, StoreError>>;

    /// Adds to the history, in this order and behind all that is there. It belongs to the tasks
    /// that it is about, and goes with them; of a task that is not there, it may be added or
    /// not.
    fn record(&self, happenings: Vec<Happening>) -> BoxFuture<'static, Result<(), StoreError>>;

    /// What is in the history, by its numbers. Whoever has read up to a number never finds anything
    /// new at or below it.
    fn history(
        &self,
        which: HistoryFilter,
    ) -> BoxFuture<'static, Result<Page<(u64, Happening)>, StoreError>>;

    /// Removes finished tasks, the oldest first, and all that belongs to them. Returns how many:
    /// fewer than the limit when nothing is left to remove.
    ///
    /// A task is needed, and left where it is, while another task may have yet to learn how it
    /// ended: its parent or one that was answered with it ([`Transition::keyed`]), until that has
    /// completed, since one that has failed or was cancelled may be retried; and one that waits for
    /// it. What a removed task needed is removed behind it, where the purge includes it. A task
    /// that has failed or was cancelled does not need one that it was answered with and that it is
    /// itself kept for, directly or by way of others: neither could ever be removed.
    fn purge(&self, purge: Purge) -> BoxFuture<'static, Result<usize, StoreError>>;

    /// Ready when another process may have written since the last call. Never, where no other
    /// process can.
    fn changed(&self) -> BoxFuture<'_, Changed>;
}

/// What is known of a task type: the schemas of what its tasks are given, and of what they give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct TaskTypeInfo {
    /// Its name.
    pub task_type: Name,
    /// The JSON schema of its parameters.
    pub params: serde_json::Value,
    /// The JSON schema of its output.
    pub output: serde_json::Value,
}

/// Something that happened to a task, as it is kept in the history.
#[derive(Clone, Debug, PartialEq)]
pub struct Happening {
    /// The task.
    pub task_id: TaskId,
    /// When.
    pub at: Timestamp,
    /// [What it is called](crate::Lifecycle::name).
    pub name: Name,
    /// A [`Lifecycle`](crate::Lifecycle).
    pub event: Payload,
}

/// Which part of the history to read.
#[derive(Clone, Debug)]
pub struct HistoryFilter {
    /// Of this task; of all when `None`.
    pub task_id: Option<TaskId>,
    /// What comes behind this number; 0 for the beginning.
    pub after: u64,
    /// How much at most.
    pub limit: usize,
}

impl Default for HistoryFilter {
    /// The first thousand of all.
    fn default() -> Self {
        Self { task_id: None, after: 0, limit: 1_000 }
    }
}

/// A transition that is applied by itself ([`Store::transact`]).
pub type Transacting = BoxFuture<'static, Result<Result<Applied, Refused>, StoreError>>;

/// What another process may have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Something for workers: tasks that can be claimed, or something that arrived for one that
    /// runs.
    pub work: bool,
    /// The end of tasks, for those who wait for it.
    pub finished: bool,
}

impl Changed {
    /// It may have been anything.
    pub const ANYTHING: Self = Self { work: true, finished: true };
}

/// A batch of changes, applied as one.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// What runs did, one transition of each run at most.
    pub transitions: Vec<Transition>,
    /// What clients ask of tasks.
    pub commands: Vec<Command>,
    /// Events emitted by clients.
    pub events: Vec<NewEvent>,
    /// Messages sent by clients.
    pub messages: Vec<NewMessage>,
    /// Tasks spawned by clients.
    pub spawns: Vec<NewTask>,
    /// What becomes of schedules.
    pub schedules: Vec<ScheduleChange>,
    /// What becomes of queues.
    pub queues: Vec<QueueChange>,
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

    /// Whether anything but transitions is in it.
    pub(crate) fn has_more_than_transitions(&self) -> bool {
        !(self.commands.is_empty()
            && self.events.is_empty()
            && self.messages.is_empty()
            && self.spawns.is_empty()
            && self.schedules.is_empty()
            && self.queues.is_empty()
            && self.workers.is_empty()
            && self.claims.is_empty())
    }

    /// Whether nothing but claims is in it.
    pub fn has_only_claims(&self) -> bool {
        self.transitions.is_empty()
            && self.commands.is_empty()
            && self.events.is_empty()
            && self.messages.is_empty()
            && self.spawns.is_empty()
            && self.schedules.is_empty()
            && self.queues.is_empty()
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
    /// For each change of a schedule.
    pub schedules: Vec<ScheduleOutcome>,
    /// For each worker signal: what is known of the worker. One that is gone was declared dead.
    pub workers: Vec<WorkerStatus>,
    /// For each claim.
    pub claims: Vec<Claimed>,
    /// What the batch caused.
    pub news: News,
}

/// What a batch caused, for those in this process who wait for it.
#[derive(Debug, Default)]
pub struct News {
    /// Queues that got claimable tasks, or some that are due later, and how many. A queue may be
    /// there several times.
    pub ready: Vec<(Name, usize)>,
    /// Running tasks that something arrived for, or that were asked to cancel.
    pub poked: Vec<TaskId>,
    /// Tasks that ended.
    pub finished: Vec<(TaskId, Finish)>,
}

/// A task, and what it waits for.
pub type TaskWaits = (TaskId, Vec<Wait>);

/// Tasks, and how they ended, if they have.
pub type Ends = Page<(TaskId, Option<Finish>)>;

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

impl Finish {
    /// How a task in that state ended, if it has.
    pub fn of(state: TaskState, output: Option<Payload>, failure: Option<Failure>) -> Option<Self> {
        let unknown = || Failure::new(FailureKind::Error, "unknown");
        match state {
            TaskState::Completed => Some(Self::Completed(output.unwrap_or_else(Payload::null))),
            TaskState::Failed => Some(Self::Failed(failure.unwrap_or_else(unknown))),
            TaskState::Cancelled => Some(Self::Cancelled),
            TaskState::Pending
            | TaskState::Running
            | TaskState::Suspended
            | TaskState::Compensating => None,
        }
    }
}

/// A task to be spawned.
#[derive(Clone, Debug)]
pub struct NewTask {
    /// Its id.
    pub task_id: TaskId,
    /// The id of its run, under which its `claim_by` has it.
    pub run_id: RunId,
    /// The name of its task type.
    pub task_type: Name,
    /// Its queue.
    pub queue: Name,
    /// Its parameters.
    pub params: Payload,
    /// Its headers. Stores find it by the [labels](crate::labels()) among them.
    pub headers: Headers,
    /// The scope that it is spawned in: the key space of its keys.
    pub scope: Scope,
    /// Higher ones are claimed first.
    pub priority: i32,
    /// How many attempts it has; at least 1.
    pub max_attempts: u32,
    /// When a failed attempt is followed by another.
    pub retry: RetryStrategy,
    /// Not to be claimed before; at once when `None`.
    pub start_at: Option<Timestamp>,
    /// Among the tasks of its type and scope, only the first with a key is spawned.
    pub idempotency_key: Option<Name>,
    /// Of the tasks of its scope with one key, each starts when the one before has ended, in the
    /// order in which they were spawned.
    pub concurrency_key: Option<Name>,
    /// What becomes of it when a task of its type, scope and concurrency key is waiting: pending,
    /// and never claimed. The store looks at the idempotency key first. Only tasks in
    /// [`Batch::spawns`] and in [`Transition::keyed`] coalesce.
    pub coalesce: Option<Coalesce>,
    /// Only workers of this version of the code claim it.
    pub code_version: Option<Name>,
    /// When it is cancelled by itself.
    pub cancellation: CancellationPolicy,
    /// The task that spawned it.
    pub parent: Option<TaskId>,
    /// Eager start: the worker that claims it in the commit that inserts it. Ignored when there is
    /// a `start_at` or a `concurrency_key`, or the queue is paused or has limits.
    pub claim_by: Option<WorkerId>,
}

/// What becomes of a spawn when a task of its type and concurrency key is waiting to be claimed for
/// the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Coalesce {
    /// The spawn answers with the waiting task (of several, the last), and no new one is made.
    Reuse,
    /// The waiting tasks are cancelled, and the new one is spawned.
    Replace,
    /// The spawn is an error.
    Reject,
}

/// When a task is cancelled by itself. By default it never is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct CancellationPolicy {
    /// Cancelled when it was not claimed within this time of being spawned.
    pub max_delay: Option<Duration>,
    /// Cancelled when it has not ended within this time of being claimed for the first time.
    pub max_duration: Option<Duration>,
}

impl CancellationPolicy {
    /// Finds a duration that no store can add to a date.
    pub(crate) fn check(&self) -> Result<(), InvalidOptions> {
        let Self { max_delay, max_duration } = *self;
        [("max_delay", max_delay), ("max_duration", max_duration)].into_iter().try_for_each(
            |(field, limit)| {
                limit.map_or(Ok(()), |limit| InvalidOptions::check_duration(field, limit))
            },
        )
    }
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
    /// A task of its type and concurrency key waits to be claimed for the first time, the last of
    /// several, and it is to be reused, or the spawn rejected.
    Waiting {
        /// That task.
        task_id: TaskId,
        /// Its run.
        run_id: RunId,
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

/// What a client asks of a task.
#[derive(Clone, Copy, Debug)]
pub enum Command {
    /// End it as cancelled. One that runs is asked to; any other ends at once, and so do its
    /// children.
    Cancel(TaskId),
    /// Run a failed or cancelled task again, from its journal, counting attempts from 1.
    Retry(TaskId),
    /// Remove a finished task and all that belongs to it, unless another one [needs
    /// it](Store::purge).
    Delete(TaskId),
    /// Make a suspended task claimable, though nothing that it waits for has arrived.
    Wake(TaskId),
    /// Let no worker claim an unfinished task until it is resumed. One that runs goes on until it
    /// waits, or its attempt ends.
    Pause(TaskId),
    /// Let a paused task be claimed again.
    Resume(TaskId),
}

impl Command {
    /// The task that it is about.
    pub const fn task_id(&self) -> TaskId {
        match self {
            Self::Cancel(task_id)
            | Self::Retry(task_id)
            | Self::Delete(task_id)
            | Self::Wake(task_id)
            | Self::Pause(task_id)
            | Self::Resume(task_id) => *task_id,
        }
    }
}

/// What became of a [`Command`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandOutcome {
    /// It was done, or will be: a running task has been asked to cancel.
    Done,
    /// The task's state does not allow it.
    NotAllowed(TaskState),
    /// It is to be deleted, and another task [needs it](Store::purge).
    Needed {
        /// That task: its parent, or else of those that wait for it, or were answered with it, the
        /// one with the lowest id.
        by: TaskId,
    },
    /// There is no such task.
    NotFound,
}

/// A sign of life of a worker, or what is asked of it.
#[derive(Clone, Debug)]
pub enum WorkerSignal {
    /// There is a new worker.
    Register(NewWorker),
    /// It is alive: its number of heartbeats counts up.
    Heartbeat {
        /// Its id.
        worker_id: WorkerId,
    },
    /// Declares a worker dead that another one has watched for a whole lease without seeing a sign
    /// of life: it is removed, and its tasks are given back ([`crash_limit`](crate::crash_limit)
    /// says which of them fail). Nothing changes if the worker has shown that it is alive since.
    DeclareDead {
        /// Its id.
        worker_id: WorkerId,
        /// The number of its heartbeats that was seen all the time.
        heartbeats: u64,
    },
    /// It is to end what it runs, claim nothing more, and stop. It learns of that by its next
    /// heartbeat.
    Drain {
        /// Its id.
        worker_id: WorkerId,
    },
    /// It has stopped. Tasks that still run under it are released.
    Deregister {
        /// Its id.
        worker_id: WorkerId,
    },
}

/// A request for work. Before it answers, the store does what is due: it makes due tasks claimable
/// and cancels tasks whose [`CancellationPolicy`] says so. A store that learns in another way that
/// a process has died (SQLite does) also gives back the tasks of its workers.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Who asks.
    pub worker_id: WorkerId,
    /// Queues, in the order in which to look.
    pub queues: Vec<Name>,
    /// Task types that the worker knows. It gets no others.
    pub task_types: Vec<Name>,
    /// The version of its code. It gets no tasks that are pinned to another.
    pub code_version: Option<Name>,
    /// How many tasks at most.
    pub limit: usize,
    /// One of the tasks may be a suspect, which has met at least
    /// [`SUSPECT_CRASHES`](crate::SUSPECT_CRASHES) crashes in a row, and so many at most; none
    /// where this is less. A suspect counts towards `limit`, and comes before the tasks of its
    /// queue that start.
    pub suspect: u32,
}

/// What a worker got.
#[derive(Debug, Default)]
pub struct Claimed {
    /// Tasks that run under the worker now, highest priority first, then oldest. In a queue with a
    /// rate limit, those that go on after a suspension come before those that start.
    pub tasks: Vec<ClaimedTask>,
    /// Tasks that ran under the worker before, and that something has arrived for (or a request to
    /// cancel).
    pub poked: Vec<TaskId>,
    /// When something is due next, in any queue, or a claimed queue's rate lets the next task
    /// start.
    pub next_due: Option<Timestamp>,
}

/// Which finished tasks to remove.
#[derive(Clone, Debug)]
pub struct Purge {
    /// Those that ended before.
    pub before: Timestamp,
    /// Those that ended so; `None` for all of them.
    pub state: Option<TaskState>,
    /// How many at most. Those that are needed do not count.
    pub limit: usize,
}

/// A task as its executor gets it.
#[derive(Clone, Debug)]
pub struct ClaimedTask {
    /// The task.
    pub task_id: TaskId,
    /// The run that owns it now. A suspended task that is claimed by the worker that ran it keeps
    /// its run; any other claim makes a new one, since a database that was restored, or that
    /// failed over, may have lost an earlier claim.
    pub run_id: RunId,
    /// The number of this attempt, from 1.
    pub attempt: u32,
    /// How many attempts there are, with those that replace attempts that a crash has ended.
    pub max_attempts: u32,
    /// How many crashes in a row the task has met.
    pub crashes: u32,
    /// The name of its type.
    pub task_type: Name,
    /// Its queue.
    pub queue: Name,
    /// Its parameters.
    pub params: Payload,
    /// Its headers.
    pub headers: Headers,
    /// The scope that it was spawned in, which its children are in as well.
    pub scope: Scope,
    /// The key by which its turn comes.
    pub concurrency_key: Option<Name>,
    /// When a failed attempt is followed by another.
    pub retry: RetryStrategy,
    /// Its journal. It is `None` for a suspended task that is claimed by the worker that ran it
    /// last, which may have it in memory, and where it is too long for the answer: then
    /// [`Store::journal`] reads it, and [`Store::waits_of`] the waits.
    pub journal: Option<Vec<Entry>>,
    /// What it waits for, with the due times that were fixed when it began to. They come with the
    /// journal.
    pub waits: Vec<Wait>,
    /// What has arrived for its waits.
    pub facts: Facts,
    /// What of it could not be read. The run then ends at once: as failed, or left to a newer
    /// program.
    pub unreadable: Option<Unreadable>,
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
        "the database {location} has schema version {found}, this program knows versions up to \
         {known}: run a newer build of it, or use another database"
    )]
    NewerSchema {
        /// Where it is.
        location: String,
        /// Its version.
        found: i64,
        /// The newest version that this program knows.
        known: i64,
    },
    /// The database was written by an older Stepwell, or by none, and is to be left as it is.
    #[error(
        "the database {location} has {}, this program needs version {known}: bring it up to date \
         with `stepwell migrate`, when the programs that use it can read that",
        tables_of(*found)
    )]
    OlderSchema {
        /// Where it is.
        location: String,
        /// Its version; 0 when there is nothing of Stepwell in it.
        found: i64,
        /// The version that this program needs.
        known: i64,
    },
    /// The disk is full. What was to be written is not lost: it is tried again.
    #[error("the disk is full ({0}): free some space, the engine goes on by itself")]
    Full(String),
    /// Another program holds the database's lock.
    #[error("the database is locked ({0}): end the program that holds a transaction open on it")]
    Locked(String),
    /// The path no longer names the file that this process has open: somebody has deleted, moved or
    /// replaced it. What was to be written is not accepted.
    #[error(
        "{what} was {fate} while this program had it open, and so nothing is accepted: what is \
         written now would not be there afterwards. {advice}"
    )]
    Detached {
        /// The file: of the database, or of its write-ahead log.
        what: String,
        /// What became of it.
        fate: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// The database's content is damaged.
    #[error("the database is damaged ({0}): stop all programs that use it, and restore a backup")]
    Corrupt(String),
    /// What was asked for holds a row that cannot be read.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// A payload cannot be encoded just now: its codec fails, whatever it is given.
    #[error("{0}")]
    Encode(String),
    /// A payload cannot be encoded, and others can: its codec does not take it.
    #[error("{0}")]
    NotEncodable(String),
    /// The backend cannot work just now, whatever it is asked: it is out of memory or of
    /// connections, a device fails, it lacks a privilege or a table, a time limit passed.
    #[error("the store cannot work just now: {0}")]
    Unavailable(String),
    /// The store has not answered for as long as the client waits. What was asked for may have been
    /// done, or may still be.
    #[error(
        "the store has not answered within {0:?}, and it is not known whether it will still do \
         what was asked for: look before it is asked for again, or give spawns an idempotency key"
    )]
    Unanswered(Duration),
    /// Any other failure of the backend: it does not accept what it was asked.
    #[error("the store failed: {0}")]
    Backend(String),
    /// The store has been closed.
    #[error("the store has been closed")]
    Closed,
}

impl StoreError {
    /// Whether the same may be accepted later, as it is.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Open { .. }
            | Self::NewerSchema { .. }
            | Self::OlderSchema { .. }
            | Self::Full(_)
            | Self::Locked(_)
            | Self::Detached { .. }
            | Self::Encode(_)
            | Self::Unavailable(_)
            | Self::Unanswered(_)
            | Self::Closed => true,
            Self::Corrupt(_) | Self::Unreadable(_) | Self::NotEncodable(_) | Self::Backend(_) => {
                false
            }
        }
    }

    /// Whether something of what the store was asked is what fails, and not the store as a whole.
    /// Then the engine finds out which: it sends the rest without it.
    pub const fn is_of_an_item(&self) -> bool {
        matches!(self, Self::Encode(_)) || !self.is_transient()
    }
}

fn tables_of(version: i64) -> String {
    match version {
        0 => "no tables of Stepwell".into(),
        version => format!("schema version {version}"),
    }
}
