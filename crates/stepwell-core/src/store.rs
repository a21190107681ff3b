//! The store: the contract of a backend.
//!
//! A store keeps tasks, journals, waits, events, messages and workers. Every change goes through
//! [`Store::commit`], in one atomic batch at a time. The store judges each item of a batch
//! separately: a refused item leaves no trace and does not undo the other items. The engine gathers
//! the batches (group commit), and the store applies them.
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
//! A pending task may also have a `due_at` (a delayed start, a retry). No worker claims the task
//! before that time.
//!
//! The [`rules`] say what each command, end, suspension and death does in each state. A store reads
//! what a rule asks for, and writes what it answers.
//!
//! # Compensation
//!
//! A task does not end as failed or cancelled while something is left to be undone, whatever the
//! cause of that end. Something is left to be undone when the journal holds a [`Kind::Compensate`]
//! entry after its last [`Kind::Compensating`] entry, or when it holds the former and none of the
//! latter. The store then does this instead:
//!
//! - It adds a `Compensating` entry to the journal, with the name `compensating`. The entry holds
//!   the failure, or [`cancelled`](crate::cancelled) for a cancellation.
//! - It makes the task pending, for any worker, and *compensating*.
//! - It removes the waits and the deadline of the task, and answers a request to cancel.
//! - It sets the failure of the task to the failure of the entry, and counts its attempts from 1
//!   again.
//!
//! [`TaskInfo`] and filters show such a task as [`TaskState::Compensating`] until it ends, whether
//! it is pending, running or suspended. The task cannot be cancelled, and its next end is final.
//! When its workers have died too often ([`crash_limit`](crate::crash_limit)), it ends [as it would
//! have](crate::end_of), with the [crash](crate::crashed) among the errors of its compensations. A
//! retry makes an ordinary task of it again: when its journal holds a `Compensating` entry, the
//! retry adds [an entry that says so](crate::retry_entry).
//!
//! # Order within a batch
//!
//! A store applies the lists of a batch in this order: transitions, commands, events, messages,
//! spawns, changes of schedules, changes of queues, worker signals, claims. It applies each list in
//! the order of the list. A claim therefore sees all changes of its batch.
//!
//! A batch holds at most one transition of each run. A store applies transitions in two rounds. The
//! first round writes everything that the transitions write. The second round looks for what some
//! of the transitions wait for ([`Next::Continue`] with `collect`, [`Next::Suspend`]), in the order
//! of the ids of their tasks. A task that suspends therefore finds what another task sent to it in
//! the same batch, and a store may apply many transitions at once.
//!
//! # Circles
//!
//! A store does not suspend a task that would [wait for ever](crate::waits_for_ever). The task
//! stays running, and its facts say of one of the tasks that it waits for that this task is
//! [blocked](crate::blocked), though it has not ended. A task waits for its turn while another task
//! comes before it by its concurrency key. A task waits only for the ends of other tasks when it is
//! suspended without a `due_at` and all its waits are of [`Kind::Child`].
//!
//! # Answers
//!
//! An answer is full when it holds [`ANSWER_BYTES`](crate::ANSWER_BYTES) of parameters, outputs,
//! failures and other data of tasks. The item that fills an answer is its last one. Lists come in
//! [pages](Page), and [`Page::next`] says where the next page begins. An answer to a batch or a
//! claim holds as many arrived facts ([`Facts`]) as there is room for, and [`Facts::more`] tells a
//! run to look again. A claim may leave out the journals that it has no room for.
//!
//! An answer that belongs to one task ([`Store::task`], [`Store::journal`], the waits of a task) is
//! always complete. So is an answer of names, numbers or schemas, which programs bring: queues,
//! workers and task types.

pub(crate) mod error;
pub(crate) mod headers;
pub(crate) mod new_task;
pub(crate) mod page;
pub(crate) mod queue;
pub(crate) mod record;
pub mod rules;
pub(crate) mod schedule;
pub(crate) mod scheduled;
pub(crate) mod scope;
pub(crate) mod spawn_options;
pub(crate) mod task_info;
pub(crate) mod ticks;
pub(crate) mod timing;
pub(crate) mod transition;
pub(crate) mod user_transaction;
pub(crate) mod worker_info;

use std::any::Any;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::base::failure::Failure;
use crate::base::ids::{RunId, TaskId, WorkerId};
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

pub use crate::store::error::StoreError;
pub use crate::store::new_task::{CancellationPolicy, Coalesce, NewTask, Spawned};
pub use crate::store::scheduled::{
    ScheduleAction, ScheduleChange, ScheduleFilter, ScheduleOutcome, SchedulePlan, Scheduled,
};
pub use crate::store::task_info::{TaskFilter, TaskInfo, TaskState};
pub use crate::store::transition::{
    Applied, ArrivedMessage, Facts, KeyedSpawn, MessageId, Next, Refused, Transition, Wait,
};
pub use crate::store::user_transaction::{Seal, UserTransaction};
pub use crate::store::worker_info::{
    NewWorker, OtherWorker, WATCHED, WorkerInfo, WorkerState, WorkerStatus,
};

/// The headers of a task: small values that travel with it beside its parameters (a trace, a
/// tenant).
pub type Headers = BTreeMap<String, serde_json::Value>;

/// A backend that keeps tasks, journals and everything else.
pub trait Store: Any + Send + Sync {
    /// Returns the time of the store's clock, which timers, delays and leases use.
    fn now(&self) -> Timestamp;

    /// Applies the batch atomically and durably, and returns the results in the order of the
    /// batch's lists.
    ///
    /// # Errors
    /// An error means that nothing of the batch was applied. When the error is [of an
    /// item](StoreError::is_of_an_item), the engine finds that item: it has kept the batch, and
    /// sends parts of it.
    fn commit(&self, batch: Arc<Batch>) -> BoxFuture<'static, Result<Committed, StoreError>>;

    /// Returns the number of commits that the store can usefully have at the same time.
    ///
    /// With more than one, the engine sends journal entries and completions past a batch that is on
    /// its way. Default: 1.
    fn lanes(&self) -> NonZeroUsize {
        NonZeroUsize::MIN
    }

    /// Applies one transition with a [`UserTransaction`] beside the batches, where the user's work
    /// may take its time.
    ///
    /// A store returns the transition when it is to go with a batch. A store that passes its
    /// requests on to another store must pass this one on as well, because the other store may
    /// refuse it in a batch.
    ///
    /// # Errors
    /// The error is the transition, of which nothing was applied.
    #[allow(clippy::result_large_err, reason = "it is the argument, handed back")]
    fn transact(&self, transition: Transition) -> Result<Transacting, Transition>;

    /// Returns a task, or `None` when there is no such task.
    fn task(&self, task_id: TaskId) -> BoxFuture<'static, Result<Option<TaskInfo>, StoreError>>;

    /// Returns the tasks that pass the filter, newest first.
    fn tasks(&self, filter: TaskFilter) -> BoxFuture<'static, Result<Page<TaskInfo>, StoreError>>;

    /// Returns how those of the tasks that exist ended, in the order of their ids.
    ///
    /// A task that has not ended has the value `None`. When the page has a next one, the caller
    /// asks again for the tasks after [`Page::next`].
    fn ends(&self, tasks: Vec<TaskId>) -> BoxFuture<'static, Result<Ends, StoreError>>;

    /// Returns the journal of a task, in order; it is empty when there is no such task.
    fn journal(&self, task_id: TaskId) -> BoxFuture<'static, Result<Vec<Entry>, StoreError>>;

    /// Returns the waits of the scope's tasks whose target begins with `prefix`, by task and key.
    ///
    /// The page covers the first `limit` such tasks after `behind`, each with all of those waits.
    fn waits(
        &self,
        scope: Scope,
        prefix: String,
        behind: Option<TaskId>,
        limit: usize,
    ) -> BoxFuture<'static, Result<Page<TaskWaits>, StoreError>>;

    /// Returns the waits of a task, by key.
    fn waits_of(&self, task_id: TaskId) -> BoxFuture<'static, Result<Vec<Wait>, StoreError>>;

    /// Returns the messages that a task has not received, in order, after the message `behind`.
    ///
    /// A task that has failed or was cancelled keeps its messages for a retry. A completed task has
    /// none.
    fn messages(
        &self,
        task_id: TaskId,
        behind: Option<MessageId>,
    ) -> BoxFuture<'static, Result<Page<ArrivedMessage>, StoreError>>;

    /// Imports a task that was exported from a store, so that it goes on in this one.
    ///
    /// A task that has not ended becomes pending, at once or at its due time, and it is
    /// compensating if it was. A running attempt does not count. The result is `false`, and nothing
    /// has changed, when the store already has the task or a task of its type with its idempotency
    /// key.
    fn import(&self, record: TaskRecord) -> BoxFuture<'static, Result<bool, StoreError>>;

    /// Returns all queues that have limits, are paused, or have a task that has not ended, by name.
    fn queues(&self) -> BoxFuture<'static, Result<Vec<QueueInfo>, StoreError>>;

    /// Returns all registered workers, in the order of their ids.
    fn workers(&self) -> BoxFuture<'static, Result<Vec<WorkerInfo>, StoreError>>;

    /// Returns the schedules that pass the filter, in the filter's order.
    fn schedules(
        &self,
        which: ScheduleFilter,
    ) -> BoxFuture<'static, Result<Page<Scheduled>, StoreError>>;

    /// Returns the types of the tasks that are next to be claimed in each of these queues.
    ///
    /// A store looks at the first thousand tasks of each queue or at more, and leaves out suspects.
    fn waiting_types(&self, queues: Vec<Name>)
    -> BoxFuture<'static, Result<Vec<Name>, StoreError>>;

    /// Keeps the description of a task type, in the place of an earlier one.
    fn describe(&self, info: TaskTypeInfo) -> BoxFuture<'static, Result<(), StoreError>>;

    /// Returns the descriptions of task types, by their names.
    fn task_types(&self) -> BoxFuture<'static, Result<Vec<TaskTypeInfo>, StoreError>>;

    /// Adds happenings to the end of the history, in this order.
    ///
    /// A happening belongs to its task, and is removed with it. A store may add or leave out a
    /// happening whose task does not exist.
    fn record(&self, happenings: Vec<Happening>) -> BoxFuture<'static, Result<(), StoreError>>;

    /// Returns a part of the history, in the order of its numbers.
    ///
    /// Invariant: a reader that has read up to a number never finds a new happening at or below
    /// that number.
    fn history(
        &self,
        which: HistoryFilter,
    ) -> BoxFuture<'static, Result<Page<(u64, Happening)>, StoreError>>;

    /// Removes finished tasks, the oldest first, with all that belongs to them, and returns their
    /// number.
    ///
    /// The number is below the limit when nothing is left to remove.
    ///
    /// A task is needed, and stays, while another task may still have to learn how it ended:
    ///
    /// - its parent, or a task that was answered with it ([`Transition::keyed`]), until that task
    ///   has completed, because a failed or cancelled task may be retried;
    /// - a task that waits for it.
    ///
    /// A task that only a removed task needed is removed after that one, if the purge includes it.
    /// A failed or cancelled task does not need a task that it was answered with when it is itself
    /// kept for that task, directly or through other tasks: neither of the two could ever be
    /// removed.
    fn purge(&self, purge: Purge) -> BoxFuture<'static, Result<usize, StoreError>>;

    /// Completes when another process may have written since the last call.
    ///
    /// The future never completes when no other process can write.
    fn changed(&self) -> BoxFuture<'_, Changed>;
}

/// The description of a task type: the schemas of its tasks' parameters and output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct TaskTypeInfo {
    /// The name of the task type.
    pub task_type: Name,
    /// The JSON schema of the parameters.
    pub params: serde_json::Value,
    /// The JSON schema of the output.
    pub output: serde_json::Value,
}

/// A lifecycle event of a task, as the history keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct Happening {
    /// The task that it happened to.
    pub task_id: TaskId,
    /// The time at which it happened.
    pub at: Timestamp,
    /// The [name](crate::Lifecycle::name) of the event.
    pub name: Name,
    /// The event, a [`Lifecycle`](crate::Lifecycle).
    pub event: Payload,
}

/// A filter of the history.
#[derive(Clone, Debug)]
pub struct HistoryFilter {
    /// The task whose events are read; `None` for those of all tasks.
    pub task_id: Option<TaskId>,
    /// The number after which to read; 0 for the beginning.
    pub after: u64,
    /// The maximum number of events.
    pub limit: usize,
}

impl Default for HistoryFilter {
    /// Returns a filter that reads the first thousand events of all tasks.
    fn default() -> Self {
        Self { task_id: None, after: 0, limit: 1_000 }
    }
}

/// The future of a transition that is applied by itself ([`Store::transact`]).
pub type Transacting = BoxFuture<'static, Result<Result<Applied, Refused>, StoreError>>;

/// The kinds of changes that another process may have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// There may be something for workers: tasks that can be claimed, or something that arrived for
    /// a running task.
    pub work: bool,
    /// Tasks may have ended that clients wait for.
    pub finished: bool,
}

impl Changed {
    /// The value for a change that may have been anything.
    pub const ANYTHING: Self = Self { work: true, finished: true };
}

/// A batch of changes, applied as one commit.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The transitions of runs, at most one of each run.
    pub transitions: Vec<Transition>,
    /// The commands of clients.
    pub commands: Vec<Command>,
    /// The events that clients emit.
    pub events: Vec<NewEvent>,
    /// The messages that clients send.
    pub messages: Vec<NewMessage>,
    /// The tasks that clients spawn.
    pub spawns: Vec<NewTask>,
    /// The changes of schedules.
    pub schedules: Vec<ScheduleChange>,
    /// The changes of queues.
    pub queues: Vec<QueueChange>,
    /// The signals of workers, and signals about workers.
    pub workers: Vec<WorkerSignal>,
    /// The requests for work.
    pub claims: Vec<Claim>,
}

impl Batch {
    /// Returns whether the batch holds nothing.
    pub fn is_empty(&self) -> bool {
        self.has_only_claims() && self.claims.is_empty()
    }

    /// Returns whether the batch holds anything but transitions.
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

    /// Returns whether the batch holds nothing but claims.
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

/// The results of a batch, one for each of its items, and the news that it caused.
#[derive(Debug, Default)]
pub struct Committed {
    /// The result of each transition.
    pub transitions: Vec<Result<Applied, Refused>>,
    /// The outcome of each command.
    pub commands: Vec<CommandOutcome>,
    /// A flag for each event, `true` when this was its first emission; a further emission changes
    /// nothing.
    pub events: Vec<bool>,
    /// A flag for each message, `true` when its task exists and has not finished.
    pub messages: Vec<bool>,
    /// The result of each spawn.
    pub spawns: Vec<Spawned>,
    /// The outcome of each change of a schedule.
    pub schedules: Vec<ScheduleOutcome>,
    /// The store's answer to each worker signal; a worker that is gone has stopped, or was declared
    /// dead.
    pub workers: Vec<WorkerStatus>,
    /// The tasks that each claim got.
    pub claims: Vec<Claimed>,
    /// The changes that this process notifies its waiting clients and workers of.
    pub news: News,
}

/// The changes of a batch that clients and workers in this process may wait for.
#[derive(Debug, Default)]
pub struct News {
    /// The queues that got tasks which are claimable now or due later, with the number of these
    /// tasks.
    ///
    /// A queue may occur more than once.
    pub ready: Vec<(Name, usize)>,
    /// The running tasks for which something arrived, or which were asked to cancel.
    pub poked: Vec<TaskId>,
    /// The tasks that ended, and how they ended.
    pub finished: Vec<(TaskId, Finish)>,
}

/// A task and its waits.
pub type TaskWaits = (TaskId, Vec<Wait>);

/// A page of tasks, each with how it ended; `None` for a task that has not ended.
pub type Ends = Page<(TaskId, Option<Finish>)>;

/// The end of a task: its state, with the output or the failure.
#[derive(Clone, Debug, PartialEq)]
pub enum Finish {
    /// The task completed with this output.
    Completed(Payload),
    /// The task failed with this failure, and its attempts are used up.
    Failed(Failure),
    /// The task was cancelled.
    Cancelled,
}

impl Finish {
    /// Returns the end of a task in this state; `None` when the task has not ended.
    ///
    /// An output or a failure that the task's row should have and has not is told in its own place:
    /// the payload cannot be read, or the failure says what is missing.
    pub fn of(state: TaskState, output: Option<Payload>, failure: Option<Failure>) -> Option<Self> {
        let no_output = || Payload::missing("`output`");
        match state {
            TaskState::Completed => Some(Self::Completed(output.unwrap_or_else(no_output))),
            TaskState::Failed => Some(Self::Failed(failure.unwrap_or_else(Failure::missing))),
            TaskState::Cancelled => Some(Self::Cancelled),
            TaskState::Pending
            | TaskState::Running
            | TaskState::Suspended
            | TaskState::Compensating => None,
        }
    }
}

/// An event to be emitted.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// The name of the event.
    pub name: Name,
    /// The queue whose tasks see the event; `None` for all queues.
    pub queue: Option<Name>,
    /// The payload of the event.
    pub payload: Payload,
}

/// A message to be sent.
#[derive(Clone, Debug)]
pub struct NewMessage {
    /// The task to whose mailbox the message goes.
    pub task_id: TaskId,
    /// The topic of the message.
    pub topic: Name,
    /// The payload of the message.
    pub payload: Payload,
}

/// A client's request to change a task.
#[derive(Clone, Copy, Debug)]
pub enum Command {
    /// Ends the task as cancelled; a running task is asked to end, and any other ends at once, with
    /// its children.
    Cancel(TaskId),
    /// Runs a failed or cancelled task again, from its journal, and counts its attempts from 1.
    Retry(TaskId),
    /// Removes a finished task and all that belongs to it, unless another task [needs
    /// it](Store::purge).
    Delete(TaskId),
    /// Makes a suspended task claimable, though nothing that it waits for has arrived.
    Wake(TaskId),
    /// Keeps workers from claiming an unfinished task until it is resumed.
    ///
    /// A running task goes on until it waits or its attempt ends.
    Pause(TaskId),
    /// Lets workers claim a paused task again.
    Resume(TaskId),
}

impl Command {
    /// Returns the task that the command changes.
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

/// The result of a [`Command`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandOutcome {
    /// The command was carried out, or will be: a running task has been asked to cancel.
    Done,
    /// The state of the task does not allow the command.
    NotAllowed(TaskState),
    /// The task is to be deleted, and another task [needs it](Store::purge).
    Needed {
        /// The id of that other task: the parent, or else the task with the lowest id among those
        /// that wait for the task or were answered with it.
        by: TaskId,
    },
    /// There is no such task.
    NotFound,
}

/// A sign of life of a worker, or a request about a worker.
#[derive(Clone, Debug)]
pub enum WorkerSignal {
    /// Registers a new worker.
    Register(NewWorker),
    /// Counts up the heartbeats of a worker, which is alive.
    Heartbeat {
        /// The id of the worker.
        worker_id: WorkerId,
    },
    /// Declares a worker dead that another one has watched for a whole lease without a sign of
    /// life.
    ///
    /// The store removes the worker and makes its tasks pending, except those that fail by
    /// [`crash_limit`](crate::crash_limit). Nothing changes if the worker has sent a heartbeat
    /// since.
    DeclareDead {
        /// The id of the worker.
        worker_id: WorkerId,
        /// The number of its heartbeats, which did not change while it was watched.
        heartbeats: u64,
    },
    /// Asks a worker to end the tasks that it runs, to claim nothing more, and to stop; the worker
    /// is notified by its next heartbeat.
    Drain {
        /// The id of the worker.
        worker_id: WorkerId,
    },
    /// Removes a worker that has stopped, and releases the tasks that still run under it.
    Deregister {
        /// The id of the worker.
        worker_id: WorkerId,
    },
}

/// A request for work.
///
/// The store first does what is due: it makes due tasks claimable and cancels tasks whose
/// [`CancellationPolicy`] says so. A store that learns in another way that a process has died
/// (SQLite does) also makes the tasks of that process's workers pending.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The worker that claims.
    pub worker_id: WorkerId,
    /// The queues, in the order in which to look.
    pub queues: Vec<Name>,
    /// The task types that the worker knows; it gets tasks of these types only.
    pub task_types: Vec<Name>,
    /// The version of the worker's code; it gets no task that is pinned to another version.
    pub code_version: Option<Name>,
    /// The maximum number of tasks.
    pub limit: usize,
    /// The number of crashes in a row up to which one of the tasks may be a suspect.
    ///
    /// A suspect has met at least [`SUSPECT_CRASHES`](crate::SUSPECT_CRASHES) crashes in a row, and
    /// the claim gets none when this number is lower. A suspect counts towards `limit`, and comes
    /// before the tasks of its queue that start.
    pub suspect: u32,
}

/// The tasks that a worker got by a claim.
#[derive(Debug, Default)]
pub struct Claimed {
    /// The tasks that run under the worker now, in the order of the claim's queues.
    ///
    /// The tasks of a queue are ordered by priority, from the highest, and then by the time since
    /// which they were claimable. A suspect comes before the other tasks that start. In a queue
    /// with a rate limit, the tasks that go on after a suspension come before those that start.
    pub tasks: Vec<ClaimedTask>,
    /// The tasks that already ran under the worker, and for which something or a request to cancel
    /// has arrived.
    pub poked: Vec<TaskId>,
    /// The next time at which something is due in any queue, or a claimed queue's rate lets a task
    /// start.
    pub next_due: Option<Timestamp>,
}

/// A selection of the finished tasks to remove.
#[derive(Clone, Debug)]
pub struct Purge {
    /// The time before which the tasks ended.
    pub before: Timestamp,
    /// The state in which the tasks ended; `None` for every state.
    pub state: Option<TaskState>,
    /// The maximum number of tasks to remove, not counting the needed ones.
    pub limit: usize,
}

/// A claimed task, as its executor gets it.
#[derive(Clone, Debug)]
pub struct ClaimedTask {
    /// The id of the task.
    pub task_id: TaskId,
    /// The run that owns the task now.
    ///
    /// A suspended task keeps its run when the worker that ran it claims it. Any other claim makes
    /// a new run, because a database that was restored, or that failed over, may have lost an
    /// earlier claim.
    pub run_id: RunId,
    /// The number of this attempt, from 1.
    pub attempt: u32,
    /// The maximum number of attempts, with those that replace the attempts that a crash has ended.
    pub max_attempts: u32,
    /// The number of crashes in a row that the task has met.
    pub crashes: u32,
    /// The name of the task's type.
    pub task_type: Name,
    /// The queue of the task.
    pub queue: Name,
    /// The parameters of the task.
    pub params: Payload,
    /// The headers of the task.
    pub headers: Headers,
    /// The scope that the task was spawned in, which is also the scope of its children.
    pub scope: Scope,
    /// The concurrency key, by which the task's turn comes.
    pub concurrency_key: Option<Name>,
    /// The retry strategy: the delays after failed attempts.
    pub retry: RetryStrategy,
    /// The journal of the task.
    ///
    /// The journal is `None` for a suspended task that is claimed by the worker that ran it last,
    /// because that worker may have it in memory. The journal is also `None` when it is too long
    /// for the answer; then [`Store::journal`] reads it, and [`Store::waits_of`] reads the waits.
    pub journal: Option<Vec<Entry>>,
    /// The waits of the task, with the due times that were fixed when each wait began; they come
    /// with the journal.
    pub waits: Vec<Wait>,
    /// The facts that have arrived for the waits.
    pub facts: Facts,
    /// The part of the task that could not be read; the run then ends at once, as failed or left to
    /// a newer program.
    pub unreadable: Option<Unreadable>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::failure::FailureKind;

    #[test]
    fn an_end_without_what_belongs_to_it_says_what_is_missing() {
        let Some(Finish::Completed(output)) = Finish::of(TaskState::Completed, None, None) else {
            panic!("the task has ended");
        };
        let error = output.decode::<Option<u32>>().unwrap_err();
        assert!(error.to_string().contains("`output`"), "{error}");
        assert!(output.unreadable().is_some(), "null would be an output");
        let Some(Finish::Failed(failure)) = Finish::of(TaskState::Failed, None, None) else {
            panic!("the task has ended");
        };
        assert_eq!(failure.kind, FailureKind::Payload);
        assert!(failure.message.contains("`failure`"), "{failure}");
        assert_eq!(Finish::of(TaskState::Cancelled, None, None), Some(Finish::Cancelled));
        for state in TaskState::ALL.into_iter().filter(|state| !state.is_finished()) {
            assert_eq!(Finish::of(state, None, None), None);
        }
    }
}
