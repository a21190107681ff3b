//! Transitions: the changes that runs make to their tasks, and the store's answers.

use serde::{Deserialize, Serialize};

use crate::base::failure::Failure;
use crate::base::ids::{RunId, TaskId};
use crate::base::journal::{Entry, Key};
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::time::Timestamp;
use crate::store::user_transaction::UserTransaction;
use crate::store::{Finish, NewEvent, NewMessage, NewTask, Spawned};

/// The changes that a run made since its last commit.
///
/// The store refuses a transition as a whole unless the run owns the task: the task is running
/// under this `run_id`, and its journal ends where the run has left it.
#[derive(Clone, Debug)]
pub struct Transition {
    /// The id of the task.
    pub task_id: TaskId,
    /// The id of the run, which is the fencing token.
    pub run_id: RunId,
    /// The number of the last entry that the run knows to be durable; 0 when there is none, `None`
    /// when the run does not say.
    ///
    /// The journal may be shorter in a database that was restored, or that failed over to a
    /// replica without the latest commits. Then the store refuses the transition and makes the
    /// task pending as with [`Next::Release`], so that it goes on from the journal that exists.
    pub after: Option<u64>,
    /// The entries that were delivered, with sequence numbers that follow on the journal's.
    pub entries: Vec<Entry>,
    /// The numbers of the entries that the new entries replace; they leave the journal before the
    /// new ones enter it.
    pub superseded: Vec<u64>,
    /// The child tasks that the entries spawn.
    pub spawns: Vec<NewTask>,
    /// The events that the entries emit.
    pub events: Vec<NewEvent>,
    /// The messages that the entries send.
    pub messages: Vec<NewMessage>,
    /// The messages that the entries received, which leave the mailbox.
    pub received: Vec<MessageId>,
    /// The waits that the task began since its last commit.
    pub waits_added: Vec<Wait>,
    /// The operations of the task that wait no longer.
    pub waits_removed: Vec<Key>,
    /// A step whose work the store does within the transaction of the batch.
    ///
    /// The entry of the step is written only when the work succeeds. Otherwise the work is undone,
    /// and the rest of the transition stands.
    pub transaction: Option<UserTransaction>,
    /// A child that the store may already have, which is spawned after `spawns`.
    pub keyed: Option<Box<KeyedSpawn>>,
    /// The next state of the task.
    pub next: Next,
}

/// A child whose spawn the store decides on, because it has an idempotency key or coalesces.
#[derive(Clone, Debug)]
pub struct KeyedSpawn {
    /// The child, without a [`NewTask::claim_by`].
    pub task: NewTask,
    /// The entry that is written to the parent's journal when the child is created, and only then.
    ///
    /// When the spawn is answered with another task, the rest of the transition stands.
    pub entry: Entry,
}

impl Transition {
    /// Returns whether the transition holds nothing but journal entries and the next state of the
    /// task.
    pub fn only_journals(&self) -> bool {
        self.spawns.is_empty()
            && self.events.is_empty()
            && self.messages.is_empty()
            && self.received.is_empty()
            && self.waits_added.is_empty()
            && self.waits_removed.is_empty()
            && self.superseded.is_empty()
            && self.transaction.is_none()
            && self.keyed.is_none()
    }

    /// Returns a transition that holds only the next state of the task.
    pub fn new(task_id: TaskId, run_id: RunId, next: Next) -> Self {
        Self {
            task_id,
            run_id,
            after: None,
            entries: Vec::new(),
            superseded: Vec::new(),
            spawns: Vec::new(),
            events: Vec::new(),
            messages: Vec::new(),
            received: Vec::new(),
            waits_added: Vec::new(),
            waits_removed: Vec::new(),
            transaction: None,
            keyed: None,
            next,
        }
    }
}

/// The place of a message in the order of all messages.
pub type MessageId = i64;

/// A wait of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct Wait {
    /// The operation that waits; its kind says for what.
    #[serde(flatten)]
    pub key: Key,
    /// The name of the event, the topic of the message or the id of the child; `None` for timers.
    pub target: Option<Name>,
    /// The time at which the wait ends by itself.
    pub due_at: Option<Timestamp>,
}

/// The next state of a task, after a transition.
#[derive(Clone, Debug)]
pub enum Next {
    /// The task goes on running.
    Continue {
        /// `true` when the store is to look for what the task's waits wait for.
        collect: bool,
    },
    /// The task only waits, and gives up its run; the attempt does not count.
    ///
    /// The store looks for what the task's waits wait for. The task stays running instead when the
    /// store finds something, when `wake_at` has passed, or when the task would [wait for
    /// ever](crate::store#circles).
    Suspend {
        /// The earliest `due_at` of all waits of the task.
        wake_at: Option<Timestamp>,
    },
    /// The task completes with this output.
    Complete(Payload),
    /// The attempt failed, and the next one may start at the given time.
    Retry {
        /// The failure of the attempt.
        failure: Failure,
        /// The time at which the next attempt is due.
        at: Timestamp,
    },
    /// The attempt failed, and was the last one.
    ///
    /// A task with compensations is [to be compensated](crate::store#compensation) first.
    Fail(Failure),
    /// The task is cancelled, with its children.
    ///
    /// A task with compensations is to be compensated first.
    Cancel,
    /// The run returns the task to its queue, unfinished; the attempt does not count.
    Release,
    /// The run returns the task as with [`Next::Release`], but for another program: no worker
    /// claims the task before the given time.
    Leave {
        /// The time from which on the task may be claimed.
        until: Timestamp,
    },
}

impl From<Finish> for Next {
    fn from(finish: Finish) -> Self {
        match finish {
            Finish::Completed(output) => Self::Complete(output),
            Finish::Failed(failure) => Self::Fail(failure),
            Finish::Cancelled => Self::Cancel,
        }
    }
}

impl Next {
    /// Returns the end of the task; `None` when the task does not end by this.
    pub fn finish(&self) -> Option<Finish> {
        match self {
            Self::Complete(output) => Some(Finish::Completed(output.clone())),
            Self::Fail(failure) => Some(Finish::Failed(failure.clone())),
            Self::Cancel => Some(Finish::Cancelled),
            Self::Continue { .. }
            | Self::Suspend { .. }
            | Self::Retry { .. }
            | Self::Release
            | Self::Leave { .. } => None,
        }
    }
}

/// The result of a transition that was applied.
#[derive(Debug, Default)]
pub struct Applied {
    /// `true` when the task is suspended now; `false` after [`Next::Suspend`] means that it still
    /// runs.
    pub suspended: bool,
    /// `true` when the task has been asked to cancel.
    pub cancel_requested: bool,
    /// The facts that have arrived for the waits of the task, if the transition asked for them.
    pub facts: Facts,
    /// The result of the [`UserTransaction`]: the step's result, or the reason why its work was
    /// undone.
    pub transaction: Option<Result<Payload, anyhow::Error>>,
    /// The result of the [`KeyedSpawn`].
    pub keyed: Option<Spawned>,
}

/// The error of a run that does not own its task: another run has the task, or the task has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the run no longer owns its task")]
pub struct Refused;

/// The facts that have arrived for the waits of a task; the executor assigns them to the waits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// The emitted events among those that the task awaits, by name.
    pub events: Vec<(Name, Payload)>,
    /// The messages in their order, of each topic at most as many as there are waits for it.
    ///
    /// A store may leave some messages to a later look.
    pub messages: Vec<ArrivedMessage>,
    /// The children that have ended.
    pub children: Vec<(TaskId, Finish)>,
    /// `true` when there may be more than this answer has room for; the run then looks again,
    /// without the facts that it has got.
    pub more: bool,
}

impl Facts {
    /// Returns whether nothing has arrived, and nothing more may have.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.messages.is_empty() && self.children.is_empty() && !self.more
    }
}

/// A message in the mailbox of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct ArrivedMessage {
    /// The place of the message in the order of all messages.
    pub id: MessageId,
    /// The topic of the message.
    pub topic: Name,
    /// The payload of the message.
    pub payload: Payload,
}
