//! Counts and times, for whatever recorder of the [`metrics`] facade the program has installed (Prometheus', say).
//!
//! | | |
//! | --- | --- |
//! | `stepwell_tasks_spawned_total` | by `task_type` |
//! | `stepwell_attempts_started_total` | by `task_type`; also when a task goes on after it was suspended |
//! | `stepwell_attempts_ended_total` | by `task_type` and `outcome`: `completed`, `suspended`, `retried`, `failed`, `cancelled`, `compensating`, `released` |
//! | `stepwell_task_seconds` | by `task_type`: from the spawn to the completion |
//! | `stepwell_step_seconds` | by `task_type`: a try of a step's closure |
//! | `stepwell_step_retries_total` | by `task_type` |
//! | `stepwell_commit_seconds`, `stepwell_commit_items` | batches: how long each took, and how many transitions and spawns went with it |
//! | `stepwell_commits_failed_total` | |
//! | `stepwell_leases_lost_total` | |

use std::time::Duration;

use metrics::{counter, histogram};

use crate::ids::TaskId;
use crate::name::Name;
use crate::time::{Timestamp, until};

/// Measures, or does not: what is not wanted costs a comparison.
#[derive(Clone, Copy)]
pub(crate) struct Measures {
    pub(crate) wanted: bool,
}

impl Measures {
    pub(crate) fn spawned(self, task_type: &Name) {
        if self.wanted {
            counter!("stepwell_tasks_spawned_total", "task_type" => task_type.to_string()).increment(1);
        }
    }

    pub(crate) fn started(self, task_type: &Name) {
        if self.wanted {
            counter!("stepwell_attempts_started_total", "task_type" => task_type.to_string()).increment(1);
        }
    }

    pub(crate) fn ended(self, task_type: &Name, outcome: &'static str) {
        if self.wanted {
            let task_type = task_type.to_string();
            counter!("stepwell_attempts_ended_total", "task_type" => task_type, "outcome" => outcome)
                .increment(1);
        }
    }

    pub(crate) fn completed(self, task_type: &Name, task_id: TaskId, now: Timestamp) {
        if self.wanted
            && let Some(spawned) = task_id.made_at()
        {
            histogram!("stepwell_task_seconds", "task_type" => task_type.to_string())
                .record(until(spawned, now));
        }
    }

    /// Only where it is wanted.
    pub(crate) fn step_tried(self, task_type: &Name, took: Duration, again: bool) {
        histogram!("stepwell_step_seconds", "task_type" => task_type.to_string()).record(took);
        if again {
            counter!("stepwell_step_retries_total", "task_type" => task_type.to_string()).increment(1);
        }
    }

    pub(crate) fn committed(self, items: usize, took: Duration) {
        if self.wanted {
            histogram!("stepwell_commit_items").record(items as f64);
            histogram!("stepwell_commit_seconds").record(took);
        }
    }

    pub(crate) fn commit_failed(self) {
        if self.wanted {
            counter!("stepwell_commits_failed_total").increment(1);
        }
    }

    pub(crate) fn lease_lost(self) {
        if self.wanted {
            counter!("stepwell_leases_lost_total").increment(1);
        }
    }
}
