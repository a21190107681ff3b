//! What tasks are given, and what they see.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::script::Script;

/// The name of the task type.
pub(crate) const TASK: &str = "script";

/// A task's parameters.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Params {
    /// Its place among those that the history spawns; `None` for others.
    pub(crate) number: Option<usize>,
    pub(crate) script: Script,
    /// The idempotency key that it was spawned with.
    #[serde(default)]
    pub(crate) once: Option<u8>,
    /// The version that it is pinned to.
    #[serde(default)]
    pub(crate) version: Option<u8>,
    /// Whether a workflow fails at its end.
    #[serde(default)]
    pub(crate) fails: bool,
}

impl Params {
    /// Of a task that no step of the plan spawns.
    pub(crate) fn of(script: Script) -> Self {
        Self { number: None, script, once: None, version: None, fails: false }
    }
}

/// The results of steps that a task has seen, by their names.
pub(crate) type Seen = Vec<(String, u64)>;

/// The names of steps whose results a run has seen.
pub(crate) type Delivered = Arc<Mutex<BTreeSet<String>>>;

/// A row of the user's: a task, a step of it, and the number that the step gave.
pub(crate) type Row = (String, String, u64);
