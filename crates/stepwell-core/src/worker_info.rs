//! What a store knows of workers.

use std::time::Duration;

use serde::Serialize;

use crate::ids::WorkerId;
use crate::name::Name;
use crate::time::Timestamp;

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
    /// How long it is taken to be alive.
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
    /// It is not registered, or no longer: it has stopped, or its lease ran out.
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
    /// Whether its lease has not run out. One that is not alive is forgotten with the next claim of another worker, which
    /// takes its tasks.
    pub alive: bool,
    /// How many tasks it runs.
    pub running: u64,
    /// Since when.
    pub registered_at: Timestamp,
    /// Until when it is taken to be alive, without another sign of it.
    pub lease_until: Timestamp,
}
