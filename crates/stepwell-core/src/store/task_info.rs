//! Information about tasks: their states, the data that a store returns of each, and the filter of
//! a list.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::failure::Failure;
use crate::base::ids::{RunId, TaskId};
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::retry::RetryStrategy;
use crate::base::time::Timestamp;
use crate::base::unreadable::{OutOfRange, Unreadable};
use crate::store::Headers;
use crate::store::headers::is_label;
use crate::store::scope::Scope;

/// The state of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// The task waits to be claimed.
    Pending,
    /// A worker runs the task.
    Running,
    /// The task waits for a time, an event, a message or a child.
    Suspended,
    /// The task has failed, or was cancelled, and its compensations run; it ends as
    /// [`Failed`](Self::Failed) or [`Cancelled`](Self::Cancelled).
    Compensating,
    /// The task has its output.
    Completed,
    /// The attempts of the task are used up, or it failed in a way that is not tried again.
    Failed,
    /// The task was cancelled.
    Cancelled,
}

impl TaskState {
    /// The list of all states.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Running,
        Self::Suspended,
        Self::Compensating,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Returns whether the task has ended.
    pub const fn is_finished(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// Returns whether the task has ended, or is being compensated before its end.
    pub const fn is_ending(self) -> bool {
        self.is_finished() || matches!(self, Self::Compensating)
    }

    /// Returns the word for the state in stores, filters and exports.
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

    /// Returns the state with this word; `None` when there is none.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

impl std::fmt::Display for TaskState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The data that a store returns of a task.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct TaskInfo {
    /// The id of the task.
    pub task_id: TaskId,
    /// The latest run of the task.
    pub run_id: RunId,
    /// The name of the task's type.
    pub task_type: Name,
    /// The queue of the task.
    pub queue: Name,
    /// The state of the task.
    pub state: TaskState,
    /// The parameters of the task.
    pub params: Payload,
    /// The output of the task, when it has completed.
    pub output: Option<Payload>,
    /// The failure of the task, or of its latest attempt.
    pub failure: Option<Failure>,
    /// The headers of the task.
    pub headers: Headers,
    /// The scope that the task was spawned in, within which its keys are unique; the default when
    /// it was spawned in none.
    #[serde(default, skip_serializing_if = "Scope::is_all")]
    pub scope: Scope,
    /// The priority of the task: a higher one is claimed first.
    pub priority: i32,
    /// The number of the latest attempt; 0 before the first.
    pub attempt: u32,
    /// The maximum number of attempts.
    pub max_attempts: u32,
    /// The retry strategy: the delays after failed attempts.
    pub retry: RetryStrategy,
    /// The longest time from the first claim to the end, after which the task is cancelled.
    pub max_duration: Option<Duration>,
    /// The time at which the store cancels the task by itself.
    pub cancel_at: Option<Timestamp>,
    /// The task that spawned this one.
    pub parent: Option<TaskId>,
    /// The idempotency key of the task.
    pub idempotency_key: Option<Name>,
    /// The concurrency key of the task.
    pub concurrency_key: Option<Name>,
    /// The version of the code that the task is pinned to.
    pub code_version: Option<Name>,
    /// `true` when the task has been asked to cancel.
    pub cancel_requested: bool,
    /// `true` when the task is paused: no worker claims it until it is resumed.
    #[serde(default)]
    pub paused: bool,
    /// The time of the spawn.
    pub spawned_at: Timestamp,
    /// The time of the first claim.
    pub started_at: Option<Timestamp>,
    /// The time of the end.
    pub finished_at: Option<Timestamp>,
    /// The time before which no worker claims the task, if it waits for a time.
    pub due_at: Option<Timestamp>,
}

impl TaskInfo {
    /// Returns the headers and the retry strategy that two columns hold.
    ///
    /// A header `$unreadable` says which of the two cannot be read, so that the rest of the task
    /// can be shown.
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

    /// Returns the number that a column holds, where lists show what can be shown.
    ///
    /// When the number is out of range, the result is the nearest one in range, and the header
    /// `$unreadable` says so.
    #[doc(hidden)]
    pub fn number<T: TryFrom<i64>>(
        headers: &mut Headers,
        what: &str,
        number: i64,
        [least, most]: [T; 2],
    ) -> T {
        T::try_from(number).unwrap_or_else(|_| {
            let error = OutOfRange { number };
            let note = Unreadable::new(what, &error).to_string();
            headers.insert("$unreadable".to_owned(), note.into());
            if number < 0 { least } else { most }
        })
    }
}

/// A filter for a list of tasks; the default passes all tasks, 100 at a time.
///
/// ```
/// # use stepwell_core::{TaskFilter, TaskState};
/// let failed = TaskFilter { state: Some(TaskState::Failed), limit: 20, ..TaskFilter::default() };
/// ```
#[derive(Clone, Debug)]
pub struct TaskFilter {
    /// The state of the tasks; `None` for every state.
    pub state: Option<TaskState>,
    /// The queue of the tasks; `None` for every queue.
    pub queue: Option<Name>,
    /// The type of the tasks; `None` for every type.
    pub task_type: Option<Name>,
    /// The scope that holds the tasks; the default holds every task.
    pub scope: Scope,
    /// The [labels](crate::SpawnOptions::label) that a task must have, all of them.
    pub labels: BTreeMap<String, String>,
    /// The task that spawned the tasks; `None` for any or none.
    pub parent: Option<TaskId>,
    /// The task before which the page begins in the order from the newest: the last one of the
    /// previous page.
    pub before: Option<TaskId>,
    /// The maximum number of tasks.
    pub limit: usize,
}

impl TaskFilter {
    /// Returns the labels that the filter and its scope ask for, each once; `None` when no task can
    /// have all of them.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_shown_is_in_the_row_or_has_a_note() {
        for (number, shown) in [(0, 0), (7, 7), (u32::MAX.into(), u32::MAX)] {
            let mut headers = Headers::new();
            assert_eq!(TaskInfo::number(&mut headers, "`attempt`", number, [0, u32::MAX]), shown);
            assert!(headers.is_empty());
        }
        for (number, shown) in [(-1, 0), (i64::MIN, 0), (1 << 32, u32::MAX), (i64::MAX, u32::MAX)] {
            let mut headers = Headers::new();
            assert_eq!(TaskInfo::number(&mut headers, "`attempt`", number, [0, u32::MAX]), shown);
            let note = headers["$unreadable"].as_str().unwrap();
            assert!(note.contains("`attempt`") && note.contains(&number.to_string()), "{note}");
        }
    }
}
