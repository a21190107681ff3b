//! Information about workers: registration, the answers to their signals, and what a store returns
//! of each.

use std::time::Duration;

use serde::Serialize;

use crate::base::ids::{RunId, TaskId, WorkerId};
use crate::base::name::Name;
use crate::base::time::Timestamp;

/// The registration of a worker.
#[derive(Clone, Debug)]
pub struct NewWorker {
    /// The id of the worker.
    pub worker_id: WorkerId,
    /// The name of the worker for people to read: a host and a process.
    pub name: String,
    /// The queues that the worker serves, in the order in which it looks.
    pub queues: Vec<Name>,
    /// The maximum number of tasks that the worker runs at the same time.
    pub concurrency: u32,
    /// The version of the worker's code.
    pub code_version: Option<Name>,
    /// The lease: how long the worker may be silent before other workers declare it dead.
    pub lease: Duration,
}

/// The store's answer to a [`WorkerSignal`](crate::store::WorkerSignal).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerStatus {
    /// The state of the worker after the signal; for a worker that was removed, its state before.
    pub state: WorkerState,
    /// The runs that the store counts as running under the worker, in any order.
    ///
    /// The list is filled for a registration and a heartbeat, and empty for other signals.
    pub runs: Vec<(TaskId, RunId)>,
    /// The other workers that the worker is to watch.
    ///
    /// These are the next [`WATCHED`] workers in the order of the ids, which begins again after the
    /// last id. So each worker is watched, however many there are. The list is filled for a
    /// registration and a heartbeat, and empty for other signals.
    pub others: Vec<OtherWorker>,
}

impl From<WorkerState> for WorkerStatus {
    fn from(state: WorkerState) -> Self {
        Self { state, runs: Vec::new(), others: Vec::new() }
    }
}

/// The number of other workers that a worker watches.
pub const WATCHED: usize = 64;

/// A worker, as another worker watches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherWorker {
    /// The id of the worker.
    pub worker_id: WorkerId,
    /// The number of heartbeats of the worker, counted up from 0.
    pub heartbeats: u64,
    /// The lease of the worker, as it was registered.
    pub lease: Duration,
}

/// The state of a worker, as far as the store knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// The worker claims tasks.
    Active,
    /// The worker was asked to end the tasks that it runs, and to stop.
    Draining,
    /// The worker is not registered, because it never was, has stopped, or was declared dead.
    Gone,
}

impl WorkerState {
    /// Returns the word for the state in stores.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Gone => "gone",
        }
    }

    /// Returns the state with this word; `None` when there is none.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Active, Self::Draining, Self::Gone].into_iter().find(|state| state.as_str() == word)
    }
}

/// The data that a store returns of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct WorkerInfo {
    /// The id of the worker.
    pub worker_id: WorkerId,
    /// The name of the worker for people to read.
    pub name: String,
    /// The queues that the worker serves.
    pub queues: Vec<Name>,
    /// The maximum number of tasks that the worker runs at the same time.
    pub concurrency: u32,
    /// The version of the worker's code.
    pub code_version: Option<Name>,
    /// The state of the worker, which is never [`WorkerState::Gone`].
    pub state: WorkerState,
    /// `true` when the worker had a heartbeat within its lease, by the store's clock.
    ///
    /// This field is for people to read. A worker is declared dead because of what other workers
    /// see of it, and not by a clock.
    pub alive: bool,
    /// The number of tasks that the worker runs.
    pub running: u64,
    /// The time of the registration.
    pub registered_at: Timestamp,
    /// The time of the latest heartbeat.
    pub heartbeat_at: Timestamp,
    /// The lease: how long the worker may be silent before other workers declare it dead.
    pub lease: Duration,
}
