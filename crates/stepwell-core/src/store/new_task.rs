//! Tasks to be spawned, and the answers to spawns.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::ids::{RunId, TaskId, WorkerId};
use crate::base::invalid_options::InvalidOptions;
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::retry::RetryStrategy;
use crate::base::time::Timestamp;
use crate::store::Headers;
use crate::store::scope::Scope;
#[cfg(doc)]
use crate::store::{Batch, Transition};

/// A task to be spawned.
#[derive(Clone, Debug)]
pub struct NewTask {
    /// The id of the task.
    pub task_id: TaskId,
    /// The id of the task's first run, which is the run of `claim_by`.
    pub run_id: RunId,
    /// The name of the task type.
    pub task_type: Name,
    /// The queue of the task.
    pub queue: Name,
    /// The parameters of the task.
    pub params: Payload,
    /// The headers of the task; stores find a task by the [labels](crate::labels()) among them.
    pub headers: Headers,
    /// The scope that the task is spawned in, within which its keys are unique.
    pub scope: Scope,
    /// The priority of the task: a higher one is claimed first.
    pub priority: i32,
    /// The maximum number of attempts, at least 1.
    pub max_attempts: u32,
    /// The retry strategy: the delays after failed attempts.
    pub retry: RetryStrategy,
    /// The earliest time of the first claim; `None` for at once.
    pub start_at: Option<Timestamp>,
    /// The idempotency key: only the first task of a type and scope with this key is spawned.
    pub idempotency_key: Option<Name>,
    /// The concurrency key: of the tasks of a scope with this key, each starts when the one before
    /// it has ended, in the order of their spawns.
    pub concurrency_key: Option<Name>,
    /// The way in which the spawn coalesces with a waiting task of its type, scope and concurrency
    /// key.
    ///
    /// A waiting task is pending and was never claimed. The store looks at the idempotency key
    /// first. Only tasks in [`Batch::spawns`] and in [`Transition::keyed`] coalesce.
    pub coalesce: Option<Coalesce>,
    /// The version of the code that the task is pinned to: only workers of this version claim it.
    pub code_version: Option<Name>,
    /// The rule by which the store cancels the task.
    pub cancellation: CancellationPolicy,
    /// The task that spawned this one.
    pub parent: Option<TaskId>,
    /// The worker that claims the task in the commit that inserts it (an eager start).
    ///
    /// The store ignores it when the task has a `start_at` or a `concurrency_key`, when its queue
    /// is paused or has limits, or when the worker is not registered.
    pub claim_by: Option<WorkerId>,
}

/// The answer to a spawn when a task of its type, scope and concurrency key waits to be claimed for
/// the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Coalesce {
    /// The spawn returns the waiting task (the last one of several), and no new task is made.
    Reuse,
    /// The waiting tasks are cancelled, and the new one is spawned.
    Replace,
    /// The spawn returns an error.
    Reject,
}

/// The rule by which the store cancels a task by itself; by default it cancels none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct CancellationPolicy {
    /// The longest time from the spawn to the first claim, after which the task is cancelled.
    pub max_delay: Option<Duration>,
    /// The longest time from the first claim to the end, after which the task is cancelled.
    pub max_duration: Option<Duration>,
}

impl CancellationPolicy {
    /// Refuses a duration that no store can add to a date.
    pub(crate) fn check(&self) -> Result<(), InvalidOptions> {
        let Self { max_delay, max_duration } = *self;
        [("max_delay", max_delay), ("max_duration", max_duration)].into_iter().try_for_each(
            |(field, limit)| {
                limit.map_or(Ok(()), |limit| InvalidOptions::check_duration(field, limit))
            },
        )
    }
}

/// The result of the spawn of a [`NewTask`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spawned {
    /// The task was inserted.
    Created {
        /// `true` when the task is running under its `claim_by`.
        claimed: bool,
    },
    /// The store already had a task with the idempotency key.
    Existing {
        /// The id of the task that exists.
        task_id: TaskId,
        /// The latest run of that task.
        run_id: RunId,
        /// The latest attempt of that task.
        attempt: u32,
    },
    /// A task of the same type and concurrency key waits to be claimed for the first time, and the
    /// spawn is to reuse it or to be rejected.
    Waiting {
        /// The id of the waiting task, the last one of several.
        task_id: TaskId,
        /// The run of the waiting task.
        run_id: RunId,
    },
}
