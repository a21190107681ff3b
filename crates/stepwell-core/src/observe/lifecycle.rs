//! Lifecycle events: what happens to the tasks of this process, as it happens.

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

/// What happened to a task. Sent to those who [`subscribe`](crate::Client::subscribe), by the
/// process in which it happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub enum Lifecycle {
    /// A task was spawned by a client of this process, or by a schedule that it looks after.
    #[serde(rename = "task:spawn")]
    TaskSpawned {
        /// The task.
        task_id: TaskId,
        /// The name of its type.
        task_type: Name,
    },
    /// A worker began to execute an attempt, from the start or from its journal.
    #[serde(rename = "task:start")]
    TaskStarted {
        /// The task.
        task_id: TaskId,
        /// The name of its type.
        task_type: Name,
        /// The attempt, from 1.
        attempt: u32,
    },
    /// A step's closure was called, for a try of it. A step that has its result from the journal,
    /// or from a cache, does not start.
    #[serde(rename = "step:start")]
    StepStarted {
        /// The task.
        task_id: TaskId,
        /// The step: its name, and `#2`, `#3`… for a further call.
        step: String,
        /// Which try it is, from 1.
        tries: u32,
    },
    /// A step has a result.
    #[serde(rename = "step:complete")]
    StepCompleted {
        /// The task.
        task_id: TaskId,
        /// The step.
        step: String,
    },
    /// A step failed for good, or will be tried again.
    #[serde(rename = "step:fail")]
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
    #[serde(rename = "log:write")]
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
    #[serde(rename = "task:progress")]
    TaskProgressed {
        /// The task.
        task_id: TaskId,
        /// How far.
        progress: Progress,
    },
    /// The task only waits now.
    #[serde(rename = "task:suspend")]
    TaskSuspended {
        /// The task.
        task_id: TaskId,
        /// When it goes on at the latest.
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
        /// Why.
        failure: Failure,
        /// When the next attempt is due; `None` when that was the last.
        retry_at: Option<Timestamp>,
    },
    /// The task has failed for good, or was cancelled, and what it did is to be undone.
    #[serde(rename = "task:compensate")]
    TaskCompensating {
        /// The task.
        task_id: TaskId,
        /// Why.
        failure: Failure,
    },
    /// A compensation ended: what a step did is undone, or cannot be.
    #[serde(rename = "step:compensate")]
    StepCompensated {
        /// The task.
        task_id: TaskId,
        /// The step, or the name of the cleanup.
        step: String,
        /// Why it failed for good, if it did.
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
    /// What it is called in the history, and by programs that are not written in Rust:
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

    /// The task that it is about.
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

/// How many events a subscriber may lag behind before it misses the oldest.
const CAPACITY: usize = 4096;

/// Sends lifecycle events to whoever subscribed, and into the history if they are kept; costs
/// nothing otherwise.
pub(crate) struct Broadcast {
    /// Made for the first who subscribes: its places take memory.
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

    /// One whose events are kept.
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

    /// Waits until what was told is kept.
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
    /// The next event; `None` when the client is gone. A subscriber that lags more than 4,096
    /// events behind misses the oldest, and a warning is logged.
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
