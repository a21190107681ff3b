//! Operations and their stages.
//!
//! ```text
//!   Gate ─────┬──▶ Open ───────┬──▶ Finished ──▶ Delivered
//!   Waiting ──┤                │       ▲             ▲
//!             └──▶ Committing ─┴───────┘             │
//!             └──────────────────────────────────────┘  from the journal
//! ```
//!
//! Invariant: the counts are the numbers of live operations in their stages. An operation changes
//! its stage only here, and is counted along with it.

use std::mem;
use std::task::Waker;

use hashbrown::HashMap;

use crate::base::journal::{Key, Outcome};
use crate::engine::run::state::Awaited;
use crate::engine::run::state::gates::Work;

/// The stage of an operation.
#[derive(Debug)]
pub(super) enum Stage {
    /// The closure or the work may start when everything up to `after` is durable.
    Gate { after: u64, work: Option<Work> },
    /// The closure runs.
    Open,
    /// The store does the operation's work.
    Committing,
    /// The operation waits for an arrival, or for the time.
    Waiting,
    /// The result is queued for delivery.
    Finished,
    /// The result is delivered, and the future has not taken it yet.
    Delivered(Outcome),
}

impl Stage {
    /// Returns whether an operation may go from this stage to the other one.
    fn may_become(&self, next: &Self) -> bool {
        match next {
            Self::Gate { .. } | Self::Waiting => false,
            Self::Open => matches!(self, Self::Gate { work: None, .. }),
            Self::Committing => matches!(self, Self::Gate { .. }),
            Self::Finished => !matches!(self, Self::Finished | Self::Delivered(_)),
            Self::Delivered(_) => !matches!(self, Self::Delivered(_)),
        }
    }
}

/// An awaited call of the context.
pub(crate) struct Operation {
    stage: Stage,
    waker: Option<Waker>,
    /// The target of the operation's wait, even after it has arrived.
    wait: Option<Awaited>,
}

impl Operation {
    pub(super) fn stage(&self) -> &Stage {
        &self.stage
    }

    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.stage, Stage::Waiting)
    }

    pub(super) fn wait(&self) -> Option<&Awaited> {
        self.wait.as_ref()
    }

    /// Keeps the waker of the operation's future.
    pub(super) fn set_waker(&mut self, waker: &Waker) {
        match &mut self.waker {
            Some(known) => known.clone_from(waker),
            slot => *slot = Some(waker.clone()),
        }
    }

    /// Returns the delivered outcome, if there is one.
    pub(super) fn into_outcome(self) -> Option<Outcome> {
        match self.stage {
            Stage::Delivered(outcome) => Some(outcome),
            _ => None,
        }
    }

    pub(super) fn into_parts(self) -> (Stage, Option<Waker>, Option<Awaited>) {
        (self.stage, self.waker, self.wait)
    }

    /// Sets the stage and the counts, and returns the stage before.
    fn become_(&mut self, next: Stage, counts: &mut Counts) -> Stage {
        debug_assert!(
            self.stage.may_become(&next),
            "an operation goes from {:?} to {next:?}",
            self.stage
        );
        counts.leave(&self.stage);
        counts.enter(&next);
        mem::replace(&mut self.stage, next)
    }
}

/// The numbers of operations in those stages by which the executor decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// The number of gates that are shut.
    pub(super) gates: usize,
    /// The number of closures that run.
    pub(super) open: usize,
    pub(super) waiting: usize,
}

impl Counts {
    fn of(&mut self, stage: &Stage) -> Option<&mut usize> {
        match stage {
            Stage::Gate { .. } => Some(&mut self.gates),
            Stage::Open => Some(&mut self.open),
            Stage::Waiting => Some(&mut self.waiting),
            Stage::Committing | Stage::Finished | Stage::Delivered(_) => None,
        }
    }

    fn enter(&mut self, stage: &Stage) {
        if let Some(count) = self.of(stage) {
            *count += 1;
        }
    }

    fn leave(&mut self, stage: &Stage) {
        if let Some(count) = self.of(stage) {
            *count -= 1;
        }
    }
}

/// The live operations of a run: those whose futures exist and have not taken their results.
#[derive(Default)]
pub(super) struct Operations {
    live: HashMap<Key, Operation>,
    counts: Counts,
}

impl Operations {
    pub(super) fn len(&self) -> usize {
        self.live.len()
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Counts the operations from scratch.
    pub(super) fn census(&self) -> Counts {
        let mut counts = Counts::default();
        self.live.values().for_each(|operation| counts.enter(&operation.stage));
        counts
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.live.keys()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &Operation)> {
        self.live.iter()
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Operation> {
        self.live.get(key)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, key: &Key) -> Option<&mut Operation> {
        self.live.get_mut(key)
    }

    /// Adds an operation, and returns the one that had its key.
    #[inline]
    pub(super) fn insert(
        &mut self,
        key: Key,
        stage: Stage,
        wait: Option<Awaited>,
    ) -> Option<Operation> {
        self.counts.enter(&stage);
        let before = self.live.insert(key, Operation { stage, waker: None, wait })?;
        self.counts.leave(&before.stage);
        Some(before)
    }

    #[inline]
    pub(super) fn remove(&mut self, key: &Key) -> Option<Operation> {
        let operation = self.live.remove(key)?;
        self.counts.leave(&operation.stage);
        Some(operation)
    }

    /// Sets the stage of an operation, and returns the stage before; `None` when the operation is
    /// gone.
    #[inline]
    pub(super) fn set(&mut self, key: &Key, next: Stage) -> Option<Stage> {
        Some(self.live.get_mut(key)?.become_(next, &mut self.counts))
    }

    /// Opens the gate of a closure if it waits for this barrier, and returns the waker of its
    /// future.
    pub(super) fn open(&mut self, key: &Key, barrier: u64) -> Option<Option<Waker>> {
        let operation = self.live.get_mut(key)?;
        match operation.stage {
            Stage::Gate { after, work: None } if after == barrier => {
                operation.become_(Stage::Open, &mut self.counts);
                Some(operation.waker.take())
            }
            _ => None,
        }
    }

    /// Takes the work of an operation whose gate waits for this barrier.
    pub(super) fn begin_work(&mut self, key: &Key, barrier: u64) -> Option<Work> {
        let operation = self.live.get_mut(key)?;
        match &operation.stage {
            Stage::Gate { after, work: Some(_) } if *after == barrier => {}
            _ => return None,
        }
        match operation.become_(Stage::Committing, &mut self.counts) {
            Stage::Gate { work, .. } => work,
            _ => None,
        }
    }

    /// Delivers to an operation, and returns what it was before; `None` when it does not wait for a
    /// delivery.
    #[inline]
    pub(super) fn deliver(&mut self, key: &Key, outcome: Outcome) -> Option<Operation> {
        let operation = self.live.get_mut(key)?;
        if let Stage::Delivered(_) = operation.stage {
            return None;
        }
        let stage = operation.become_(Stage::Delivered(outcome), &mut self.counts);
        Some(Operation { stage, waker: operation.waker.take(), wait: operation.wait.take() })
    }

    /// Returns whether an operation waits for a delivery.
    pub(super) fn waits_for_delivery(&self, key: &Key) -> bool {
        self.get(key).is_some_and(|operation| !matches!(operation.stage, Stage::Delivered(_)))
    }

    /// Takes the wakers of all operations, in the order of their keys.
    pub(super) fn take_wakers(&mut self) -> Vec<Waker> {
        let mut live: Vec<_> = self.live.iter_mut().collect();
        live.sort_unstable_by_key(|(key, _)| *key);
        live.into_iter().filter_map(|(_, operation)| operation.waker.take()).collect()
    }

    /// Takes all operations, in the order of their keys.
    pub(super) fn take_all(&mut self) -> Vec<Operation> {
        self.counts = Counts::default();
        let mut live: Vec<_> = self.live.drain().collect();
        live.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        live.into_iter().map(|(_, operation)| operation).collect()
    }
}
