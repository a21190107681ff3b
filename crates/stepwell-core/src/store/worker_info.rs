//! What a store knows of workers.

use std::time::Duration;

use serde::Serialize;

use crate::base::ids::{RunId, TaskId, WorkerId};
use crate::base::name::Name;
use crate::base::time::Timestamp;

/// A worker as it registers.
#[derive(Clone, Debug)]
pub struct NewWorker {
    /// Its id.
    pub worker_id: WorkerId,
    /// What people know it by: a host and a process.
    pub name: String,
    /// The queues that it serves, in the order in which it looks.
    pub queues: Vec<Name>,
    /// How many tasks it runs at the same time.
    pub concurrency: u32,
    /// The version of its code.
    pub code_version: Option<Name>,
    /// How long it may show no sign of life before others declare it dead.
    pub lease: Duration,
}

/// The store's answer to a [`WorkerSignal`](crate::store::WorkerSignal).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerStatus {
    /// The worker's state after the signal; for one that was removed, its state before.
    pub state: WorkerState,
    /// For a worker that registers or shows that it is alive: the runs that the store holds for
    /// running under it, in any order. Empty for other signals.
    pub runs: Vec<(TaskId, RunId)>,
    /// For a worker that registers or shows that it is alive: other workers, for it to watch. They
    /// are the [`WATCHED`] ones that follow it in the order of their ids, around the circle, so
    /// that each worker is watched however many there are. Empty for other signals.
    pub others: Vec<OtherWorker>,
}

impl From<WorkerState> for WorkerStatus {
    fn from(state: WorkerState) -> Self {
        Self { state, runs: Vec::new(), others: Vec::new() }
    }
}

/// The number of other workers that a worker watches.
pub const WATCHED: usize = 64;

/// A worker as others watch it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherWorker {
    /// Its id.
    pub worker_id: WorkerId,
    /// How often it has shown that it is alive. The number counts up from 0.
    pub heartbeats: u64,
    /// The lease that it registered with.
    pub lease: Duration,
}

/// Whether a worker takes tasks, as far as the store knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// It claims tasks.
    Active,
    /// It was told to end what it runs and to stop.
    Draining,
    /// It is not registered, or no longer: it has stopped, or was declared dead.
    Gone,
}

impl WorkerState {
    /// The state's word in stores.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Gone => "gone",
        }
    }

    /// The state of that word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Active, Self::Draining, Self::Gone].into_iter().find(|state| state.as_str() == word)
    }
}

/// A worker as the store knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct WorkerInfo {
    /// Its id.
    pub worker_id: WorkerId,
    /// What people know it by.
    pub name: String,
    /// The queues that it serves.
    pub queues: Vec<Name>,
    /// How many tasks it runs at most.
    pub concurrency: u32,
    /// The version of its code.
    pub code_version: Option<Name>,
    /// Whether it takes tasks; never [`WorkerState::Gone`].
    pub state: WorkerState,
    /// Whether it has shown that it is alive within its lease, by the store's clock. This is for
    /// people to look at: workers are declared dead by what others see of them, not by a clock.
    pub alive: bool,
    /// How many tasks it runs.
    pub running: u64,
    /// Since when.
    pub registered_at: Timestamp,
    /// When it last showed that it is alive.
    pub heartbeat_at: Timestamp,
    /// How long it may show no sign of life before others declare it dead.
    pub lease: Duration,
}
