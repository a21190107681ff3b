//! Whether the database is still the one that a run knows.
//!
//! A server that was promoted, or restored from a backup, goes on under another timeline, and may lack what was committed
//! last: the end of a journal whose run is in memory here. Each call names the timeline, which costs the database nothing.
//! After a change, the database compares the end of a run's journal with what the run knows, once for each run that began
//! before.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sqlx::types::Uuid;
use stepwell_core::store::{Batch, Committed, Next, Spawned, Transition};

#[derive(Default)]
pub(crate) struct Timeline(Mutex<Inside>);

#[derive(Default)]
struct Inside {
    /// What the server calls it; empty for a standby, `None` where the server does not say.
    name: Option<Arc<str>>,
    /// Runs whose journals are known to be on it: claimed, or compared, since it began.
    runs: HashSet<Uuid>,
}

impl Timeline {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The timeline that a batch is sent for, and whether the ends of its journals are to be compared. Both are seen at once:
    /// another batch may find out meanwhile that the database has moved.
    pub(crate) fn of(&self, transitions: &[Transition]) -> (Option<Arc<str>>, bool) {
        let inside = self.inside();
        let doubted = |t: &Transition| t.after.is_some() && !inside.runs.contains(t.run_id.as_uuid());
        (inside.name.clone(), transitions.iter().any(doubted))
    }

    pub(crate) fn moved(&self, name: &str) {
        let mut inside = self.inside();
        if inside.name.as_deref() == Some(name) {
            return;
        }
        if let Some(before) = inside.name.as_ref().filter(|before| !before.is_empty()) {
            tracing::warn!(
                %before, now = name,
                "the database was promoted or restored, and may lack what was committed last: tasks whose journals are shorter than their runs know go on from what is there"
            );
        }
        *inside = Inside { name: Some(name.into()), runs: HashSet::new() };
    }

    /// Learns from a batch that was applied on that timeline.
    pub(crate) fn learn(&self, timeline: Option<&str>, batch: &Batch, committed: &Committed) {
        let mut inside = self.inside();
        if inside.name.as_deref() != timeline {
            return;
        }
        for (transition, result) in batch.transitions.iter().zip(&committed.transitions) {
            let goes_on = matches!(transition.next, Next::Continue { .. } | Next::Suspend { .. });
            if result.is_err() || !goes_on {
                inside.runs.remove(transition.run_id.as_uuid());
            } else if transition.after.is_some() {
                inside.runs.insert(*transition.run_id.as_uuid());
            }
        }
        for (task, spawned) in batch.spawns.iter().zip(&committed.spawns) {
            if matches!(spawned, Spawned::Created { claimed: true }) {
                inside.runs.insert(*task.run_id.as_uuid());
            }
        }
        for task in committed.claims.iter().flat_map(|claimed| &claimed.tasks) {
            // What may be in memory may be from before.
            if task.journal.is_some() {
                inside.runs.insert(*task.run_id.as_uuid());
            }
        }
    }
}
