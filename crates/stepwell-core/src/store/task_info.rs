//! What a store tells of tasks: their states, what it knows of each, and which to list.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::failure::Failure;
use crate::base::ids::{RunId, TaskId};
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::retry::RetryStrategy;
use crate::base::time::Timestamp;
use crate::base::unreadable::Unreadable;
use crate::store::Headers;
use crate::store::headers::is_label;
use crate::store::scope::Scope;

/// Where a task is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// It waits to be claimed.
    Pending,
    /// A worker runs it.
    Running,
    /// It waits for a time, an event, a message or a child.
    Suspended,
    /// It has failed, or was cancelled, and what it did is being undone; then it is
    /// [`Failed`](Self::Failed) or [`Cancelled`](Self::Cancelled).
    Compensating,
    /// It has its output.
    Completed,
    /// Its attempts are used up.
    Failed,
    /// It was cancelled.
    Cancelled,
}

impl TaskState {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Running,
        Self::Suspended,
        Self::Compensating,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Whether the task has ended.
    pub const fn is_finished(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// Whether the task has ended, or does nothing but that.
    pub const fn is_ending(self) -> bool {
        self.is_finished() || matches!(self, Self::Compensating)
    }

    /// The state's word in stores, filters and exports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Suspended => "suspended",
            Self::Compensating => "compensating",
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
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
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
    /// The scope that it was spawned in: its keys are those of this scope. The default when it was
    /// spawned in none.
    #[serde(default, skip_serializing_if = "Scope::is_all")]
    pub scope: Scope,
    /// Higher ones are claimed first.
    pub priority: i32,
    /// The number of its latest attempt; 0 before the first.
    pub attempt: u32,
    /// How many attempts it has.
    pub max_attempts: u32,
    /// When a failed attempt is followed by another.
    pub retry: RetryStrategy,
    /// How long it may take, from its first claim on.
    pub max_duration: Option<Duration>,
    /// When it is cancelled by itself.
    pub cancel_at: Option<Timestamp>,
    /// The task that spawned it.
    pub parent: Option<TaskId>,
    /// Its idempotency key.
    pub idempotency_key: Option<Name>,
    /// Its concurrency key.
    pub concurrency_key: Option<Name>,
    /// The version of the code that it is pinned to.
    pub code_version: Option<Name>,
    /// Whether it has been asked to cancel.
    pub cancel_requested: bool,
    /// Whether it was paused: no worker claims it until it is resumed.
    #[serde(default)]
    pub paused: bool,
    /// When it was spawned.
    pub spawned_at: Timestamp,
    /// When it was first claimed.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// When it may next be claimed, if it waits for a time.
    pub due_at: Option<Timestamp>,
}

impl TaskInfo {
    /// The headers and the retry strategy of two columns. What cannot be read of them is said by a
    /// header `$unreadable`, so that the rest of the task can be shown.
    #[doc(hidden)]
    pub fn options(headers: &str, retry: &str) -> (Headers, RetryStrategy) {
        let hurt = |what: &str, error: &serde_json::Error| {
            Headers::from([(
                "$unreadable".to_owned(),
                Unreadable::new(what, error).to_string().into(),
            )])
        };
        let mut headers =
            serde_json::from_str(headers).unwrap_or_else(|error| hurt("`headers`", &error));
        let retry = serde_json::from_str(retry).unwrap_or_else(|error| {
            headers.append(&mut hurt("`retry`", &error));
            RetryStrategy::default()
        });
        (headers, retry)
    }
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
    /// Of this scope.
    pub scope: Scope,
    /// With all of these [labels](crate::SpawnOptions::label).
    pub labels: BTreeMap<String, String>,
    /// Spawned by this task.
    pub parent: Option<TaskId>,
    /// Older than this task: the last one of the page before.
    pub before: Option<TaskId>,
    /// How many at most.
    pub limit: usize,
}

impl TaskFilter {
    /// The labels that the filter and its scope ask for, each once; `None` when no task can have
    /// all of them.
    pub fn all_labels(&self) -> Option<BTreeSet<(&str, &str)>> {
        let own = self.labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let all: BTreeSet<_> = own.chain(self.scope.possible_labels()?).collect();
        all.iter().all(|(name, value)| is_label(name, value)).then_some(all)
    }
}

impl Default for TaskFilter {
    fn default() -> Self {
        Self {
            state: None,
            queue: None,
            task_type: None,
            scope: Scope::default(),
            labels: BTreeMap::new(),
            parent: None,
            before: None,
            limit: 100,
        }
    }
}
