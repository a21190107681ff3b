//! The parameters of tasks, and their results.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::script::Script;

/// The name of the task type.
pub(crate) const TASK: &str = "script";

/// A task's parameters.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Params {
    /// The place of the task among those that the history spawns; `None` for other tasks.
    pub(crate) number: Option<usize>,
    pub(crate) script: Script,
    /// The idempotency key with which the task was spawned.
    #[serde(default)]
    pub(crate) once: Option<u8>,
    /// The version to which the task is pinned.
    #[serde(default)]
    pub(crate) version: Option<u8>,
    /// Makes a workflow fail at its end.
    #[serde(default)]
    pub(crate) fails: bool,
}

impl Params {
    /// Returns the parameters of a task that no step of the plan spawns.
    pub(crate) fn of(script: Script) -> Self {
        Self { number: None, script, once: None, version: None, fails: false }
    }
}

/// The results of steps that a task has seen, by their names.
pub(crate) type Seen = Vec<(String, u64)>;

/// The names of steps whose results a run has seen.
pub(crate) type Delivered = Arc<Mutex<BTreeSet<String>>>;

/// A row of the user: a task, a step of the task, and the number that the step returned.
pub(crate) type Row = (String, String, u64);
