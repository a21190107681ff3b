//! Counters and histograms, for the recorder of the [`metrics`] facade that the program has
//! installed (Prometheus', say).
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
//!
//! A recorder finds a counter by its name and labels, which takes longer than to count. The found
//! counters are therefore kept.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use hashbrown::HashMap;
use metrics::{Counter, Histogram, counter, histogram};

use crate::base::guard;
use crate::base::name::Name;

/// The name of the recorder in the log.
const RECORDER: &str = "the recorder of measures";

/// The end of an attempt on a worker.
#[derive(Clone, Copy)]
pub(crate) enum Ended {
    Completed,
    Suspended,
    Retried,
    Failed,
    Cancelled,
    Compensating,
    Released,
}

impl Ended {
    /// The list of all ends, in the order of their declaration, by which counters are found.
    const ALL: [Self; 7] = [
        Self::Completed,
        Self::Suspended,
        Self::Retried,
        Self::Failed,
        Self::Cancelled,
        Self::Compensating,
        Self::Released,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Suspended => "suspended",
            Self::Retried => "retried",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Compensating => "compensating",
            Self::Released => "released",
        }
    }
}

/// The measures of a client, which cost one comparison when they are not wanted.
#[derive(Default)]
pub(crate) struct Measures {
    wanted: bool,
    types: RwLock<HashMap<Name, Arc<TypeMeasures>>>,
    store: OnceLock<StoreMeasures>,
}

/// The measures of the tasks of one type.
pub(crate) struct TypeMeasures {
    pub(crate) spawned: Counter,
    pub(crate) started: Counter,
    ended: [Counter; Ended::ALL.len()],
    pub(crate) task_seconds: Histogram,
    pub(crate) step_seconds: Histogram,
    pub(crate) step_retries: Counter,
}

/// The measures of the store.
pub(crate) struct StoreMeasures {
    pub(crate) commit_items: Histogram,
    pub(crate) commit_seconds: Histogram,
    pub(crate) commits_failed: Counter,
    pub(crate) leases_lost: Counter,
}

impl Measures {
    pub(crate) fn new(wanted: bool) -> Self {
        Self { wanted, ..Self::default() }
    }

    pub(crate) fn are_wanted(&self) -> bool {
        self.wanted
    }

    /// Returns the measures of a task type; `None` when nothing is to be measured.
    pub(crate) fn of(&self, task_type: &Name) -> Option<Arc<TypeMeasures>> {
        if !self.wanted {
            return None;
        }
        let known =
            self.types.read().unwrap_or_else(PoisonError::into_inner).get(task_type).cloned();
        Some(known.unwrap_or_else(|| {
            let mut types = self.types.write().unwrap_or_else(PoisonError::into_inner);
            let new = || Arc::new(TypeMeasures::new(task_type));
            types.entry(task_type.clone()).or_insert_with(new).clone()
        }))
    }

    /// Counts the spawn of a task of the type.
    pub(crate) fn count_spawn(&self, task_type: &Name) {
        // The recorder is the application's, and a panic in it must not end a worker that spawns
        // for others.
        guard::tell(RECORDER, || {
            if let Some(measures) = self.of(task_type) {
                measures.spawned.increment(1);
            }
        });
    }

    /// Measures the store, if that is wanted.
    pub(crate) fn with_store(&self, measure: impl FnOnce(&StoreMeasures)) {
        if self.wanted {
            guard::tell(RECORDER, || measure(self.store.get_or_init(StoreMeasures::new)));
        }
    }
}

impl TypeMeasures {
    fn new(task_type: &Name) -> Self {
        let label = || task_type.to_string();
        Self {
            spawned: counter!("stepwell_tasks_spawned_total", "task_type" => label()),
            started: counter!("stepwell_attempts_started_total", "task_type" => label()),
            ended: Ended::ALL.map(|ended| {
                let outcome = ended.as_str();
                let (task_type, name) = (label(), "stepwell_attempts_ended_total");
                counter!(name, "task_type" => task_type, "outcome" => outcome)
            }),
            task_seconds: histogram!("stepwell_task_seconds", "task_type" => label()),
            step_seconds: histogram!("stepwell_step_seconds", "task_type" => label()),
            step_retries: counter!("stepwell_step_retries_total", "task_type" => label()),
        }
    }

    pub(crate) fn ended(&self, ended: Ended) {
        if let Some(counter) = self.ended.get(ended as usize) {
            counter.increment(1);
        }
    }
}

impl StoreMeasures {
    fn new() -> Self {
        Self {
            commit_items: histogram!("stepwell_commit_items"),
            commit_seconds: histogram!("stepwell_commit_seconds"),
            commits_failed: counter!("stepwell_commits_failed_total"),
            leases_lost: counter!("stepwell_leases_lost_total"),
        }
    }
}
