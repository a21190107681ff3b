//! The part of a journal that is to be undone, and the children that are to be joined.

use std::collections::{BTreeMap, VecDeque};

use hashbrown::{HashMap, HashSet};

use crate::base::failure::Failure;
use crate::base::ids::TaskId;
use crate::base::journal::{Entry, Key, Kind, Outcome, Replay};
use crate::base::payload::Payload;

/// The compensations that a failed or cancelled task leaves to run.
#[derive(Debug)]
pub(crate) struct Compensation {
    /// The failure with which the task will end.
    pub(crate) failure: Failure,
    /// The attempt that ended with this failure.
    pub(crate) attempt: u32,
    /// The operations that were recorded and not undone when the compensation began, the oldest
    /// first: a step, or a cleanup with its payload.
    pub(crate) recorded: Vec<(Key, Payload)>,
    /// The results of the steps.
    pub(crate) results: BTreeMap<Key, Payload>,
    /// The entries that were delivered to the compensation.
    pub(crate) entries: VecDeque<Entry>,
}

impl Replay {
    /// Returns the compensation of a task whose attempt ended with this failure.
    pub(super) fn compensation(&self, failure: Failure, attempt: u32) -> Compensation {
        // A compensation after a failure may have been found needless then, and be needed now. The
        // replay asks again.
        let kept = self.kept.values().filter(|entry| entry.key.kind != Kind::Compensated);
        let mut entries: Vec<_> = kept.chain(&self.entries).collect();
        entries.sort_unstable_by_key(|entry| entry.seq);
        let (mut recorded, mut places) = (BTreeMap::new(), HashMap::new());
        let mut results = BTreeMap::new();
        for Entry { seq, key, outcome, .. } in entries {
            match (key.kind, outcome) {
                (Kind::Compensate, Outcome::Done(payload)) => {
                    places.insert((&key.name, key.ordinal), *seq);
                    recorded.insert(*seq, (key.clone(), payload.clone()));
                }
                (Kind::Compensated, _) => {
                    if let Some(place) = places.get(&(&key.name, key.ordinal)) {
                        recorded.remove(place);
                    }
                }
                (Kind::Step, Outcome::Done(payload)) => {
                    results.insert(key.clone(), payload.clone());
                }
                _ => {}
            }
        }
        let recorded = recorded.into_values().collect();
        Compensation { failure, attempt, recorded, results, entries: VecDeque::new() }
    }

    /// Returns the children that the task has spawned and whose ends it does not know, in the order
    /// of their ids.
    pub(crate) fn unjoined_children(&self) -> Vec<TaskId> {
        let entries = self.entries.iter().chain(self.kept.values());
        let joined: HashSet<TaskId> =
            entries.clone().filter_map(|entry| entry.key.child()).collect();
        let spawned = entries.filter(|entry| entry.key.kind == Kind::Spawn);
        let mut spawned: Vec<TaskId> = spawned
            .filter_map(|entry| match &entry.outcome {
                Outcome::Done(task_id) => task_id.decode().ok(),
                Outcome::Failed(_) | Outcome::Retrying { .. } => None,
            })
            .filter(|child| !joined.contains(child))
            .collect();
        spawned.sort_unstable();
        spawned
    }
}
