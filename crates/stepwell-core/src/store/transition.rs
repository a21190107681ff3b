//! Transitions: what runs do to their tasks, and what the store answers.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::base::codec_error::CodecError;
use serde::{Deserialize, Serialize};

use crate::base::failure::Failure;
use crate::base::ids::{RunId, TaskId};
use crate::base::journal::{Entry, Key};
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::time::Timestamp;
use crate::store::{Finish, NewEvent, NewMessage, NewTask, Spawned};

/// What a run did since its last commit. It is refused as a whole unless the run owns the task: the
/// task is running under this `run_id`, and its journal ends where the run has left it.
#[derive(Clone, Debug)]
pub struct Transition {
    /// The task.
    pub task_id: TaskId,
    /// The run: the fencing token.
    pub run_id: RunId,
    /// The number of the last entry that the run knows to be durable; 0 when there is none, `None`
    /// where the run does not say. A database that was restored, or that failed over to a
    /// replica which lacks what was committed last, may have a shorter journal. Then the
    /// transition is refused, and the task is given back as with [`Next::Release`], to
    /// go on from what is there.
    pub after: Option<u64>,
    /// What was delivered, with sequence numbers that follow on those in the journal.
    pub entries: Vec<Entry>,
    /// Entries that these take the place of: they leave the journal, before these come into it.
    pub superseded: Vec<u64>,
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
    /// A step whose work is done by the store, within the batch's own transaction. Its entry is
    /// written only when the work succeeds; otherwise the work is undone, and the rest of the
    /// transition stands.
    pub transaction: Option<UserTransaction>,
    /// A child that the store may already have. It is spawned after `spawns`.
    pub keyed: Option<Box<KeyedSpawn>>,
    /// What becomes of the task.
    pub next: Next,
}

/// A child with an idempotency key, or one that coalesces, so that the store decides whether it is
/// spawned.
#[derive(Clone, Debug)]
pub struct KeyedSpawn {
    /// The child. It has no [`NewTask::claim_by`].
    pub task: NewTask,
    /// The entry that is written to the parent's journal when the child is created, and only then.
    /// When the spawn is answered with another task, the rest of the transition stands.
    pub entry: Entry,
}

impl Transition {
    /// Whether nothing is in it but journal entries and what becomes of the task.
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

    /// A transition with nothing in it but what becomes of the task.
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

/// A message's place in the order of all messages.
pub type MessageId = i64;

/// Something that a task waits for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct Wait {
    /// The operation that waits. Its kind says for what.
    #[serde(flatten)]
    pub key: Key,
    /// The event's name, the message's topic, the child's id; `None` for timers.
    pub target: Option<Name>,
    /// When the wait ends by itself.
    pub due_at: Option<Timestamp>,
}

/// A step's work, of a type that only the backend knows, and what the store is to keep of its
/// result.
type Work = (Box<dyn Any + Send>, Seal);

/// A step that the store does within its own transaction. All copies of it share its work, which is
/// done once.
#[derive(Clone)]
pub struct UserTransaction {
    /// The step.
    pub key: Key,
    /// The sequence number for its entry.
    pub seq: u64,
    work: Arc<Mutex<Option<Work>>>,
}

impl UserTransaction {
    /// A step's work: a type that only the backend knows, a closure over its connection.
    pub fn new(key: Key, seq: u64, work: Box<dyn Any + Send>) -> Self {
        Self { key, seq, work: Arc::new(Mutex::new(Some((work, Seal::default())))) }
    }

    /// Takes out the work, and what the store is to keep of its result. `None` when that was done
    /// before.
    pub fn take(&self) -> Option<(Box<dyn Any + Send>, Seal)> {
        self.work().take()
    }

    /// Whether a store has begun to do the work.
    pub(crate) fn is_taken(&self) -> bool {
        self.work().is_none()
    }

    /// Has the work's result changed before the store keeps it.
    pub(crate) fn seal(&self, sealing: Sealing) {
        if let Some((_, seal)) = &mut *self.work() {
            *seal = Seal(Some(sealing));
        }
    }

    fn work(&self) -> MutexGuard<'_, Option<Work>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes of the result of a [`UserTransaction`] what its journal entry is to hold: by default the
/// result itself.
#[derive(Default)]
pub struct Seal(pub(crate) Option<Sealing>);

pub(crate) type Sealing = Box<dyn FnOnce(&Payload) -> Result<Payload, CodecError> + Send>;

impl Seal {
    /// What the entry is to hold of this result.
    ///
    /// # Errors
    /// When it cannot be encoded. Then the work has failed.
    pub fn seal(self, result: &Payload) -> Result<Payload, CodecError> {
        match self.0 {
            Some(seal) => seal(result),
            None => Ok(result.clone()),
        }
    }
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
    /// It only waits, and gives up its run; the attempt does not count. The store looks for what
    /// its waits wait for, and when there is something, `wake_at` has passed, or the task would
    /// [wait for ever](crate::store#circles), the task stays running instead.
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
    /// The attempt failed, and was the last. A task with compensations is [to be
    /// compensated](crate::store#compensation) first.
    Fail(Failure),
    /// It is cancelled, and so are its children. A task with compensations is to be compensated
    /// first.
    Cancel,
    /// The run gives the task back, unfinished; the attempt does not count.
    Release,
    /// As [`Next::Release`], for another program: nobody claims the task before then.
    Leave {
        /// When it may be claimed.
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
    /// How the task ends by it, if it does.
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

/// What became of a transition.
#[derive(Debug, Default)]
pub struct Applied {
    /// Whether the task is suspended now. `false` after [`Next::Suspend`] means that it still
    /// runs.
    pub suspended: bool,
    /// Whether the task has been asked to cancel.
    pub cancel_requested: bool,
    /// What has arrived for the task's waits, when it was asked for.
    pub facts: Facts,
    /// What the [`UserTransaction`] gave: the step's result, or why its work was undone.
    pub transaction: Option<Result<Payload, anyhow::Error>>,
    /// What became of the [`KeyedSpawn`].
    pub keyed: Option<Spawned>,
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
    /// Messages in their order; of each topic at most as many as there are waits for it. A store
    /// may leave some to a later look.
    pub messages: Vec<ArrivedMessage>,
    /// Children that have ended.
    pub children: Vec<(TaskId, Finish)>,
    /// Whether there may be more than this answer has room for. Then the run looks again, without
    /// what it has got.
    pub more: bool,
}

impl Facts {
    /// Whether nothing has arrived.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.messages.is_empty() && self.children.is_empty() && !self.more
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
