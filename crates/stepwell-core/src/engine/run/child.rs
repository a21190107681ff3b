//! Child tasks, as their parent sees them.

use std::fmt;
use std::marker::PhantomData;

use serde::{Deserialize, Serialize};

use crate::base::failure::{Failure, FailureKind, Sources};
use crate::base::ids::TaskId;
use crate::base::journal::{Entry, Key, Kind, Outcome, to_payload};
use crate::engine::run::outcome::read_step;
use crate::engine::task_error::TaskResult;
use crate::store::{Coalesce, Finish, NewTask, Spawned};

/// What became of a spawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Disposition {
    /// It made a new task.
    Created,
    /// It answered with the task that has its idempotency key, or, when a schedule must not
    /// overlap, with the task of that schedule that has not ended.
    Existing,
    /// It answered with a task of its type and concurrency key that waits to start
    /// ([`SpawnOptions::coalesced`](crate::SpawnOptions::coalesced)).
    Coalesced,
}

impl Disposition {
    /// The word for it: `created`, `existing` or `coalesced`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Existing => "existing",
            Self::Coalesced => "coalesced",
        }
    }
}

/// A task that [`TaskContext::spawn`](crate::TaskContext::spawn) answered with, with an output of
/// type `T`. [`TaskContext::join`](crate::TaskContext::join) waits for it.
pub struct Child<T> {
    task_id: TaskId,
    /// The spawn that answered with it.
    spawn: Key,
    disposition: Disposition,
    output: PhantomData<fn() -> T>,
}

impl<T> Child<T> {
    /// Reads what a spawn was delivered.
    pub(crate) fn read(key: &Key, outcome: Outcome) -> TaskResult<Self> {
        let (task_id, disposition) = match read_step(key, outcome)? {
            Answer::New(task_id) => (task_id, Disposition::Created),
            Answer::There { task_id, disposition } => (task_id, disposition),
        };
        Ok(Self { task_id, spawn: key.clone(), disposition, output: PhantomData })
    }

    /// The task's id.
    pub fn task_id(&self) -> TaskId {
        self.task_id
    }

    /// Whether the spawn made the task. A task that it did not make is not cancelled with this one.
    pub fn disposition(&self) -> Disposition {
        self.disposition
    }

    pub(crate) fn spawn(&self) -> &Key {
        &self.spawn
    }
}

impl<T> Clone for Child<T> {
    fn clone(&self) -> Self {
        let Self { task_id, disposition, output, .. } = *self;
        Self { task_id, spawn: self.spawn.clone(), disposition, output }
    }
}

impl<T> fmt::Debug for Child<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Child({} {})", self.spawn.name, self.task_id)
    }
}

/// How a spawn is journaled: the id alone when the task is new.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Answer {
    New(TaskId),
    There { task_id: TaskId, disposition: Disposition },
}

/// Returns the existing tasks that spawns were answered with, as recorded in a journal.
pub(crate) fn answered_with(journal: &[Entry]) -> Vec<TaskId> {
    let spawns = journal.iter().filter(|entry| entry.key.kind == Kind::Spawn);
    let answers = spawns.filter_map(|entry| match &entry.outcome {
        Outcome::Done(answer) => answer.decode().ok(),
        Outcome::Failed(_) | Outcome::Retrying { .. } => None,
    });
    let there = answers.filter_map(|answer| match answer {
        Answer::There { task_id, .. } => Some(task_id),
        Answer::New(_) => None,
    });
    there.collect()
}

/// What a parent is delivered when it has spawned a new task.
pub(crate) fn created(task_id: TaskId) -> Outcome {
    Outcome::Done(to_payload(&Answer::New(task_id)))
}

/// What a parent is delivered when the store has decided about a spawn.
pub(crate) fn decided(task: &NewTask, spawned: Option<Spawned>) -> Outcome {
    let (task_id, disposition) = match spawned {
        Some(Spawned::Created { .. }) => return created(task.task_id),
        Some(Spawned::Waiting { task_id, .. }) if task.coalesce == Some(Coalesce::Reject) => {
            let message = format!(
                "not spawned: task {task_id}, of the same type and concurrency key, waits to start"
            );
            return Outcome::failed(Failure::new(FailureKind::Error, message));
        }
        Some(Spawned::Existing { task_id, .. }) => (task_id, Disposition::Existing),
        Some(Spawned::Waiting { task_id, .. }) => (task_id, Disposition::Coalesced),
        None => {
            let message = "the store did not say what became of the spawn";
            return Outcome::failed(Failure::new(FailureKind::Error, message));
        }
    };
    Outcome::Done(to_payload(&Answer::There { task_id, disposition }))
}

/// What a parent is delivered when a child ends.
pub(crate) fn outcome(finish: Finish) -> Outcome {
    match finish {
        Finish::Completed(output) => Outcome::Done(output),
        // The numbers in it are of the child's journal.
        Finish::Failed(failure) => {
            Outcome::failed(Failure { sources: Sources::default(), ..failure })
        }
        Finish::Cancelled => {
            Outcome::failed(Failure::new(FailureKind::Cancelled, "the child task was cancelled"))
        }
    }
}
