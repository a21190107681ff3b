//! Lifecycle events: what happens to the tasks of this process, as it happens.

use std::collections::BTreeMap;

use serde_json::Value;
use tokio::sync::broadcast;

use crate::failure::Failure;
use crate::ids::TaskId;
use crate::journal::{Key, Kind, Outcome};
use crate::name::Name;
use crate::notes::{LogLevel, Progress};
use crate::payload::Payload;
use crate::time::Timestamp;

/// What happened to a task. Sent to those who [`subscribe`](crate::Client::subscribe), by the process in which it
/// happened.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Lifecycle {
    /// A task was spawned by a client of this process, or by a schedule that it looks after.
    TaskSpawned {
        /// The task.
        task_id: TaskId,
        /// The name of its type.
        task_type: Name,
    },
    /// A worker began to execute an attempt, from the start or from its journal.
    TaskStarted {
        /// The task.
        task_id: TaskId,
        /// The name of its type.
        task_type: Name,
        /// The attempt, from 1.
        attempt: u32,
    },
    /// A step has a result.
    StepCompleted {
        /// The task.
        task_id: TaskId,
        /// The step: its name, and `#2`, `#3`… for a further call.
        step: String,
    },
    /// A step failed for good, or will be tried again.
    StepFailed {
        /// The task.
        task_id: TaskId,
        /// The step.
        step: String,
        /// Why.
        failure: Failure,
        /// When it is tried again; `None` when it is not.
        retry_at: Option<Timestamp>,
    },
    /// The task has written to its log.
    LogWritten {
        /// The task.
        task_id: TaskId,
        /// How much it matters.
        level: LogLevel,
        /// What it says.
        message: String,
        /// What it is about.
        fields: BTreeMap<String, Value>,
    },
    /// The task has said how far it has come.
    TaskProgressed {
        /// The task.
        task_id: TaskId,
        /// How far.
        progress: Progress,
    },
    /// The task only waits now.
    TaskSuspended {
        /// The task.
        task_id: TaskId,
        /// When it goes on at the latest.
        until: Option<Timestamp>,
    },
    /// The task has its output.
    TaskCompleted {
        /// The task.
        task_id: TaskId,
        /// The output.
        output: Payload,
    },
    /// An attempt failed.
    TaskFailed {
        /// The task.
        task_id: TaskId,
        /// Why.
        failure: Failure,
        /// When the next attempt is due; `None` when that was the last.
        retry_at: Option<Timestamp>,
    },
    /// The task has failed for good, or was cancelled, and what it did is to be undone.
    TaskCompensating {
        /// The task.
        task_id: TaskId,
        /// Why.
        failure: Failure,
    },
    /// A compensation ended: what a step did is undone, or cannot be.
    StepCompensated {
        /// The task.
        task_id: TaskId,
        /// The step, or the name of the cleanup.
        step: String,
        /// Why it failed for good, if it did.
        failure: Option<Failure>,
    },
    /// The task was cancelled.
    TaskCancelled {
        /// The task.
        task_id: TaskId,
    },
}

impl Lifecycle {
    pub(crate) fn of_delivery(task_id: TaskId, key: &Key, outcome: &Outcome) -> Option<Self> {
        let step = key.label();
        match (key.kind, outcome) {
            (Kind::Step, _) => {}
            (Kind::Compensated, Outcome::Done(_)) => {
                return Some(Self::StepCompensated { task_id, step, failure: None });
            }
            (Kind::Compensated, Outcome::Failed(failure)) => {
                return Some(Self::StepCompensated { task_id, step, failure: Some(failure.clone()) });
            }
            _ => return None,
        }
        Some(match outcome {
            Outcome::Done(_) => Self::StepCompleted { task_id, step },
            Outcome::Failed(failure) => {
                Self::StepFailed { task_id, step, failure: failure.clone(), retry_at: None }
            }
            Outcome::Retrying { failure, at } => {
                Self::StepFailed { task_id, step, failure: failure.clone(), retry_at: Some(*at) }
            }
        })
    }
}

/// How many events a subscriber may lag behind before it misses the oldest.
const CAPACITY: usize = 4096;

/// Sends lifecycle events to whoever subscribed; costs nothing when nobody has.
pub(crate) struct Broadcast(broadcast::Sender<Lifecycle>);

impl Broadcast {
    pub(crate) fn new() -> Self {
        Self(broadcast::Sender::new(CAPACITY))
    }

    pub(crate) fn tell(&self, event: impl FnOnce() -> Option<Lifecycle>) {
        if self.0.receiver_count() > 0
            && let Some(event) = event()
        {
            let _ = self.0.send(event);
        }
    }

    pub(crate) fn subscribe(&self) -> Subscription {
        Subscription(self.0.subscribe())
    }
}

/// A stream of lifecycle events, from the moment of [`subscribe`](crate::Client::subscribe) on.
pub struct Subscription(broadcast::Receiver<Lifecycle>);

impl Subscription {
    /// The next event; `None` when the client is gone. A subscriber that lags more than 4,096 events behind misses the
    /// oldest, and a warning is logged.
    pub async fn next(&mut self) -> Option<Lifecycle> {
        loop {
            match self.0.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "a subscriber reads too slowly and misses lifecycle events");
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}
