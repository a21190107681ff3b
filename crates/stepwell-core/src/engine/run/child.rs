//! Child tasks, from the view of their parent.

use std::fmt;
use std::marker::PhantomData;

use serde::{Deserialize, Serialize};

use crate::base::failure::{Failure, FailureKind, Sources};
use crate::base::ids::TaskId;
use crate::base::journal::{Entry, Key, Kind, Outcome, to_payload};
use crate::engine::run::outcome::read_step;
use crate::engine::task_error::TaskResult;
use crate::store::{Coalesce, Finish, NewTask, Spawned};

/// The way in which a spawn was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Disposition {
    /// The spawn made a new task.
    Created,
    /// The spawn was answered with an existing task.
    ///
    /// The task has the same idempotency key. For a schedule that must not overlap, it is the
    /// schedule's task that has not ended.
    Existing,
    /// The spawn was answered with a waiting task of the same type and concurrency key
    /// ([`SpawnOptions::coalesced`](crate::SpawnOptions::coalesced)).
    Coalesced,
}

impl Disposition {
    /// Returns the word for the disposition: `created`, `existing` or `coalesced`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Existing => "existing",
            Self::Coalesced => "coalesced",
        }
    }
}

/// A task that [`TaskContext::spawn`](crate::TaskContext::spawn) was answered with, whose output is
/// of type `T`.
///
/// [`TaskContext::join`](crate::TaskContext::join) waits for its output.
pub struct Child<T> {
    task_id: TaskId,
    /// The key of the spawn that was answered with the task.
    spawn: Key,
    disposition: Disposition,
    output: PhantomData<fn() -> T>,
}

impl<T> Child<T> {
    /// Reads the outcome of a spawn.
    pub(crate) fn read(key: &Key, outcome: Outcome) -> TaskResult<Self> {
        let (task_id, disposition) = match read_step(key, outcome)? {
            Answer::New(task_id) => (task_id, Disposition::Created),
            Answer::There { task_id, disposition } => (task_id, disposition),
        };
        Ok(Self { task_id, spawn: key.clone(), disposition, output: PhantomData })
    }

    /// Returns the task's id.
    pub fn task_id(&self) -> TaskId {
        self.task_id
    }

    /// Returns how the spawn was answered.
    ///
    /// A task that the spawn did not make is not cancelled with this one.
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

/// The journaled form of a spawn: the id alone when the task is new.
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

/// Returns the outcome of a spawn that made a new task.
pub(crate) fn created(task_id: TaskId) -> Outcome {
    Outcome::Done(to_payload(&Answer::New(task_id)))
}

/// Returns the outcome of a spawn that the store has decided.
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

/// Returns the outcome of a join after the child has ended.
pub(crate) fn outcome(finish: Finish) -> Outcome {
    match finish {
        Finish::Completed(output) => Outcome::Done(output),
        // The numbers in the failure are those of the child's journal.
        Finish::Failed(failure) => {
            Outcome::failed(Failure { sources: Sources::default(), ..failure })
        }
        Finish::Cancelled => {
            Outcome::failed(Failure::new(FailureKind::Cancelled, "the child task was cancelled"))
        }
    }
}
