//! Lifecycle events: changes of the tasks of this process, as they happen.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::base::failure::Failure;
use crate::base::guard;
use crate::base::ids::TaskId;
use crate::base::journal::{Key, Kind, Outcome};
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::runtime::Runtime;
use crate::base::time::Timestamp;
use crate::observe::history::{Note, record};
use crate::observe::notes::{LogLevel, Progress};
use crate::store::Store;

/// A change of a task, which the process in which it happened sends to its
/// [subscribers](crate::Client::subscribe).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub enum Lifecycle {
    /// A task was spawned by a client of this process, or by a schedule that this process handles.
    #[serde(rename = "task:spawn")]
    TaskSpawned {
        /// The task.
        task_id: TaskId,
        /// The name of the task's type.
        task_type: Name,
    },
    /// A worker began to execute an attempt, from the start or from its journal.
    #[serde(rename = "task:start")]
    TaskStarted {
        /// The task.
        task_id: TaskId,
        /// The name of the task's type.
        task_type: Name,
        /// The number of the attempt, from 1.
        attempt: u32,
    },
    /// A try of a step called its closure.
    ///
    /// A step that has its result from the journal, or from a cache, does not start.
    #[serde(rename = "step:start")]
    StepStarted {
        /// The task.
        task_id: TaskId,
        /// The name of the step, with `#2`, `#3`… for a further call.
        step: String,
        /// The number of the try, from 1.
        tries: u32,
    },
    /// A step has a result.
    #[serde(rename = "step:complete")]
    StepCompleted {
        /// The task.
        task_id: TaskId,
        /// The name of the step.
        step: String,
    },
    /// A step failed for good, or will be tried again.
    #[serde(rename = "step:fail")]
    StepFailed {
        /// The task.
        task_id: TaskId,
        /// The name of the step.
        step: String,
        /// The failure of the step, or of its try.
        failure: Failure,
        /// The time of the next try; `None` when there is none.
        retry_at: Option<Timestamp>,
    },
    /// The task has written to its log.
    #[serde(rename = "log:write")]
    LogWritten {
        /// The task.
        task_id: TaskId,
        /// The level of the line.
        level: LogLevel,
        /// The text of the line.
        message: String,
        /// The fields of the line, by name.
        fields: BTreeMap<String, Value>,
    },
    /// The task has reported its progress.
    #[serde(rename = "task:progress")]
    TaskProgressed {
        /// The task.
        task_id: TaskId,
        /// The progress.
        progress: Progress,
    },
    /// The task was suspended, because it only waits.
    #[serde(rename = "task:suspend")]
    TaskSuspended {
        /// The task.
        task_id: TaskId,
        /// The time at which the task goes on at the latest; `None` when only its waits decide.
        until: Option<Timestamp>,
    },
    /// The task has its output.
    #[serde(rename = "task:complete")]
    TaskCompleted {
        /// The task.
        task_id: TaskId,
        /// The output.
        output: Payload,
    },
    /// An attempt failed.
    #[serde(rename = "task:fail")]
    TaskFailed {
        /// The task.
        task_id: TaskId,
        /// The failure of the attempt.
        failure: Failure,
        /// The time at which the next attempt is due; `None` when that was the last attempt.
        retry_at: Option<Timestamp>,
    },
    /// The task has failed for good, or was cancelled, and its compensations are to run.
    #[serde(rename = "task:compensate")]
    TaskCompensating {
        /// The task.
        task_id: TaskId,
        /// The failure of the task, or the one that stands for its cancellation.
        failure: Failure,
    },
    /// A compensation ended: a step is undone, or cannot be undone.
    #[serde(rename = "step:compensate")]
    StepCompensated {
        /// The task.
        task_id: TaskId,
        /// The name of the step, or of the cleanup.
        step: String,
        /// The failure of the compensation, if it failed for good.
        failure: Option<Failure>,
    },
    /// The task was cancelled.
    #[serde(rename = "task:cancel")]
    TaskCancelled {
        /// The task.
        task_id: TaskId,
    },
}

impl Lifecycle {
    /// Returns the name of the event in the history, and for programs that are not written in Rust:
    /// `task:complete`, `step:fail`, `log:write`…
    pub fn name(&self) -> &'static str {
        match self {
            Self::TaskSpawned { .. } => "task:spawn",
            Self::TaskStarted { .. } => "task:start",
            Self::StepStarted { .. } => "step:start",
            Self::StepCompleted { .. } => "step:complete",
            Self::StepFailed { .. } => "step:fail",
            Self::LogWritten { .. } => "log:write",
            Self::TaskProgressed { .. } => "task:progress",
            Self::TaskSuspended { .. } => "task:suspend",
            Self::TaskCompleted { .. } => "task:complete",
            Self::TaskFailed { .. } => "task:fail",
            Self::TaskCompensating { .. } => "task:compensate",
            Self::StepCompensated { .. } => "step:compensate",
            Self::TaskCancelled { .. } => "task:cancel",
        }
    }

    /// Returns the task that the event belongs to.
    pub fn task_id(&self) -> TaskId {
        match self {
            Self::TaskSpawned { task_id, .. }
            | Self::TaskStarted { task_id, .. }
            | Self::StepStarted { task_id, .. }
            | Self::StepCompleted { task_id, .. }
            | Self::StepFailed { task_id, .. }
            | Self::LogWritten { task_id, .. }
            | Self::TaskProgressed { task_id, .. }
            | Self::TaskSuspended { task_id, .. }
            | Self::TaskCompleted { task_id, .. }
            | Self::TaskFailed { task_id, .. }
            | Self::TaskCompensating { task_id, .. }
            | Self::StepCompensated { task_id, .. }
            | Self::TaskCancelled { task_id, .. } => *task_id,
        }
    }

    pub(crate) fn of_delivery(task_id: TaskId, key: &Key, outcome: &Outcome) -> Option<Self> {
        let step = key.label();
        match (key.kind, outcome) {
            (Kind::Step, _) => {}
            (Kind::Compensated, Outcome::Done(_)) => {
                return Some(Self::StepCompensated { task_id, step, failure: None });
            }
            (Kind::Compensated, Outcome::Failed(failure)) => {
                return Some(Self::StepCompensated {
                    task_id,
                    step,
                    failure: Some((**failure).clone()),
                });
            }
            _ => return None,
        }
        Some(match outcome {
            Outcome::Done(_) => Self::StepCompleted { task_id, step },
            Outcome::Failed(failure) => {
                Self::StepFailed { task_id, step, failure: (**failure).clone(), retry_at: None }
            }
            Outcome::Retrying { failure, at } => Self::StepFailed {
                task_id,
                step,
                failure: (**failure).clone(),
                retry_at: Some(*at),
            },
        })
    }
}

/// The number of unread events of a subscriber above which it misses the oldest.
const CAPACITY: usize = 4096;

/// The sender of lifecycle events to subscribers, and to the history if it is kept.
///
/// The sender costs nothing when there is neither.
pub(crate) struct Broadcast {
    /// The channel, made for the first subscriber, because its places take memory.
    subscribers: OnceLock<broadcast::Sender<Lifecycle>>,
    history: Option<History>,
}

struct History {
    store: Arc<dyn Store>,
    notes: mpsc::UnboundedSender<Note>,
}

impl Broadcast {
    pub(crate) fn new() -> Self {
        Self { subscribers: OnceLock::new(), history: None }
    }

    /// Returns a sender that also keeps its events in the history.
    pub(crate) fn kept(store: Arc<dyn Store>, runtime: Arc<dyn Runtime>) -> Self {
        let (notes, receiver) = mpsc::unbounded_channel();
        runtime.spawn(Box::pin(record(store.clone(), runtime.clone(), receiver)));
        Self { history: Some(History { store, notes }), ..Self::new() }
    }

    pub(crate) fn tell(&self, event: impl FnOnce() -> Option<Lifecycle>) {
        let subscribers =
            self.subscribers.get().filter(|subscribers| subscribers.receiver_count() > 0);
        if self.history.is_none() && subscribers.is_none() {
            return;
        }
        let Some(event) = event() else { return };
        if let Some(History { store, notes }) = &self.history {
            let _ = notes.send(Note::Event(store.now(), event.clone()));
        }
        if let Some(subscribers) = subscribers {
            guard::tell("a subscriber to lifecycle events", || drop(subscribers.send(event)));
        }
    }

    pub(crate) fn subscribe(&self) -> Subscription {
        let subscribers = self.subscribers.get_or_init(|| broadcast::Sender::new(CAPACITY));
        Subscription(subscribers.subscribe())
    }

    /// Waits until the history holds all earlier events.
    pub(crate) async fn flush(&self) {
        let Some(History { notes, .. }) = &self.history else { return };
        let (written, receipt) = oneshot::channel();
        if notes.send(Note::Flush(written)).is_ok() {
            let _ = receipt.await;
        }
    }
}

/// A stream of lifecycle events, from the moment of [`subscribe`](crate::Client::subscribe) on.
pub struct Subscription(broadcast::Receiver<Lifecycle>);

impl Subscription {
    /// Returns the next event; `None` when the client is gone.
    ///
    /// A subscriber that lags more than 4,096 events behind misses the oldest events, and a warning
    /// is logged.
    pub async fn next(&mut self) -> Option<Lifecycle> {
        loop {
            match self.0.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::warn!(
                        missed,
                        "a subscriber reads too slowly and misses lifecycle events"
                    );
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}
