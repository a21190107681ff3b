//! The runs that a worker holds, compared with those that the store holds for it.
//!
//! Ownership is recorded twice: in the worker's memory, and in the store. Lost answers, abandoned
//! callers and failovers can make the two differ. With each heartbeat, the store lists the runs
//! that it holds for the worker. A difference is mended when two comparisons in a row have found
//! it. Claims and ends that are on their way make differences that vanish by themselves.

use std::collections::BTreeSet;

use hashbrown::HashMap;

use crate::base::ids::{RunId, TaskId};

/// A run that a worker holds, from its claim to the moment at which it leaves its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holding {
    pub(crate) run_id: RunId,
    /// The number of the claim, because two claims of a suspended task have the same run.
    pub(crate) claim: u64,
}

/// The runs that a worker holds, by task.
pub(crate) type Held = HashMap<TaskId, Holding>;

/// The differences that two comparisons in a row have found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Runs that the store holds for the worker, and the worker does not hold.
    pub(crate) orphaned: Vec<(TaskId, RunId)>,
    /// Runs that the worker holds, and the store does not hold for it.
    pub(crate) lost: Vec<(TaskId, RunId)>,
}

/// Compares the worker's runs with the store's.
#[derive(Default)]
pub(crate) struct Comparison {
    orphaned: BTreeSet<(TaskId, RunId)>,
    lost: Held,
}

impl Comparison {
    /// Compares `stored`, the store's list, with the runs held `before` the store was asked and
    /// those held `now`.
    pub(crate) fn compare(
        &mut self,
        before: &Held,
        now: &Held,
        stored: &[(TaskId, RunId)],
    ) -> Difference {
        let holds = |held: &Held, (task_id, run_id): &(TaskId, RunId)| {
            held.get(task_id).is_some_and(|holding| holding.run_id == *run_id)
        };
        let orphaned: BTreeSet<_> =
            stored.iter().filter(|run| !holds(before, run) && !holds(now, run)).copied().collect();
        let stored: BTreeSet<_> = stored.iter().copied().collect();
        let lost: Held = now
            .iter()
            .filter(|(task_id, holding)| {
                before.get(*task_id) == Some(holding)
                    && !stored.contains(&(**task_id, holding.run_id))
            })
            .map(|(task_id, holding)| (*task_id, *holding))
            .collect();
        let mut difference = Difference {
            orphaned: orphaned.intersection(&self.orphaned).copied().collect(),
            lost: lost
                .iter()
                .filter(|(task_id, holding)| self.lost.get(*task_id) == Some(holding))
                .map(|(task_id, holding)| (*task_id, holding.run_id))
                .collect(),
        };
        difference.lost.sort_unstable();
        (self.orphaned, self.lost) = (orphaned, lost);
        difference
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn run(n: u128) -> (TaskId, RunId) {
        (Uuid::from_u128(n).into(), Uuid::from_u128(n + 100).into())
    }

    fn held(runs: &[(u128, u64)]) -> Held {
        let holding = |(n, claim): &(u128, u64)| {
            let (task_id, run_id) = run(*n);
            (task_id, Holding { run_id, claim: *claim })
        };
        runs.iter().map(holding).collect()
    }

    #[test]
    fn a_difference_counts_when_it_is_found_twice_in_a_row() {
        let mut comparison = Comparison::default();
        let both = held(&[(1, 1), (2, 2)]);
        assert_eq!(comparison.compare(&both, &both, &[run(1), run(3)]), Difference::default());
        let difference = Difference { orphaned: vec![run(3)], lost: vec![run(2)] };
        assert_eq!(comparison.compare(&both, &both, &[run(1), run(3)]), difference);
        assert_eq!(comparison.compare(&both, &both, &[run(1), run(2)]), Difference::default());
        assert_eq!(comparison.compare(&both, &both, &[run(1), run(3)]), Difference::default());
    }

    #[test]
    fn what_is_on_its_way_is_no_difference() {
        let mut comparison = Comparison::default();
        for claim in 1..5 {
            // A run was claimed while the answer was on its way, and suspended and claimed again
            // each time.
            let (before, now) = (held(&[(1, claim)]), held(&[(1, claim + 1), (2, claim)]));
            assert_eq!(comparison.compare(&before, &now, &[]), Difference::default());
            // A run ended while the answer was on its way.
            assert_eq!(comparison.compare(&now, &before, &[run(2)]), Difference::default());
        }
    }
}
