//! The check that the database is still the one that a run knows.
//!
//! A server that was promoted, or restored from a backup, continues on another timeline. The server
//! may lack the last commits: the end of a journal whose run is in memory here. Each call names the
//! timeline, which costs the database nothing. After a change of the timeline, the database
//! compares the end of a run's journal with what the run knows, once for each run that started
//! before.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashSet;
use sqlx::types::Uuid;
use stepwell_core::store::{Batch, Committed, Next, Spawned, Transition};

#[derive(Default)]
pub(crate) struct Timeline(Mutex<Inside>);

#[derive(Default)]
struct Inside {
    /// The server's name of the timeline: empty for a standby, `None` when the server does not say.
    name: Option<Arc<str>>,
    /// The runs whose journals are known to be on the timeline: they were claimed or compared since
    /// it began.
    runs: HashSet<Uuid>,
}

impl Timeline {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the timeline for a batch, and whether the ends of its journals must be compared.
    /// Both values are read under one lock, because another batch may learn meanwhile that the
    /// timeline has changed.
    pub(crate) fn of(&self, transitions: &[Transition]) -> (Option<Arc<str>>, bool) {
        let inside = self.inside();
        let doubted =
            |t: &Transition| t.after.is_some() && !inside.runs.contains(t.run_id.as_uuid());
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
                "the database was promoted or restored, and may lack what was committed last: \
                 tasks whose journals are shorter than their runs know go on from what is there"
            );
        }
        *inside = Inside { name: Some(name.into()), runs: HashSet::new() };
    }

    /// Learns from a batch that was applied on the timeline. When the ends of journals were
    /// compared, the runs that continue are known.
    pub(crate) fn learn(
        &self,
        timeline: Option<&str>,
        compared: bool,
        batch: &Batch,
        committed: &Committed,
    ) {
        let mut inside = self.inside();
        if inside.name.as_deref() != timeline {
            return;
        }
        for (transition, result) in batch.transitions.iter().zip(&committed.transitions) {
            // A suspended run may continue elsewhere, and is compared once when it continues here.
            let goes_on = match (&transition.next, result) {
                (Next::Continue { .. }, Ok(_)) => true,
                (Next::Suspend { .. }, Ok(applied)) => !applied.suspended,
                _ => false,
            };
            if !goes_on {
                inside.runs.remove(transition.run_id.as_uuid());
            } else if compared && transition.after.is_some() {
                inside.runs.insert(*transition.run_id.as_uuid());
            }
        }
        for (task, spawned) in batch.spawns.iter().zip(&committed.spawns) {
            if matches!(spawned, Spawned::Created { claimed: true }) {
                inside.runs.insert(*task.run_id.as_uuid());
            }
        }
        for task in committed.claims.iter().flat_map(|claimed| &claimed.tasks) {
            // An execution in memory may be from before the change.
            if task.journal.is_some() {
                inside.runs.insert(*task.run_id.as_uuid());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use stepwell_core::store::{Applied, Refused};

    use super::*;

    #[test]
    fn runs_that_may_go_on_elsewhere_are_not_remembered() {
        let timeline = Timeline::default();
        let learn = |next: Next, result: Result<Applied, Refused>| {
            let id = Uuid::from_u128(1);
            let transition =
                Transition { after: Some(1), ..Transition::new(id.into(), id.into(), next) };
            let batch = Batch { transitions: vec![transition], ..Batch::default() };
            let committed = Committed { transitions: vec![result], ..Committed::default() };
            timeline.learn(None, true, &batch, &committed);
            timeline.inside().runs.len()
        };
        let applied = |suspended| Ok(Applied { suspended, ..Applied::default() });
        assert_eq!(learn(Next::Continue { collect: false }, applied(false)), 1);
        assert_eq!(learn(Next::Suspend { wake_at: None }, applied(false)), 1, "it goes on here");
        assert_eq!(learn(Next::Suspend { wake_at: None }, applied(true)), 0);
        assert_eq!(learn(Next::Continue { collect: false }, applied(false)), 1);
        assert_eq!(learn(Next::Continue { collect: false }, Err(Refused)), 0);
    }
}
