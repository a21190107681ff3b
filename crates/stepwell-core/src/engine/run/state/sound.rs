//! The invariants of what is counted and indexed, which debug builds and tests check.

use crate::base::journal::Key;
use crate::engine::run::state::gates::Gates;
use crate::engine::run::state::stage::{Operation, Operations, Stage};
use crate::engine::run::state::waits::Waits;
use crate::engine::run::state::{Awaited, RunState};

impl RunState {
    /// Returns whether all that is counted and indexed agrees with the operations themselves.
    pub(super) fn is_sound(&self) -> bool {
        self.operations.counts() == self.operations.census()
            && self.waits.fit(&self.operations)
            && self.gates.fit(&self.operations)
    }
}

impl Gates {
    /// Returns whether each shut gate is in one of the queues.
    fn fit(&self, operations: &Operations) -> bool {
        let is_queued = |(key, after, has_work): (&Key, u64, bool)| {
            let gates = if has_work { &self.works } else { &self.closures };
            gates.iter().any(|(barrier, gate)| (*barrier, gate) == (after, key))
        };
        let mut gates = operations.iter().filter_map(|(key, operation)| match operation.stage() {
            Stage::Gate { after, work } => Some((key, *after, work.is_some())),
            _ => None,
        });
        gates.all(is_queued)
    }
}

impl Waits {
    /// Returns whether the operations that wait are those in the indexes.
    fn fit(&self, operations: &Operations) -> bool {
        let is_waiting = |key: &Key| operations.get(key).is_some_and(Operation::is_waiting);
        let is_indexed = |(key, (target, due_at)): (&Key, &Awaited)| {
            let awaited = target.clone().map(|target| self.awaited.get(&(key.kind, target)));
            awaited.is_none_or(|keys| keys.is_some_and(|keys| keys.contains(key)))
                && due_at.is_none_or(|due_at| self.timers.contains(&(due_at, key.clone())))
        };
        let due = |key: &Key| operations.get(key).and_then(|waits| waits.wait()?.1);
        let waiting = operations.iter().filter(|(_, operation)| operation.is_waiting());
        waiting.filter_map(|(key, operation)| Some((key, operation.wait()?))).all(is_indexed)
            && self.awaited.values().flatten().all(is_waiting)
            // A wait that was fulfilled keeps its timer until its result is delivered.
            && self.timers.iter().all(|(due_at, key)| due(key) == Some(*due_at))
    }
}
