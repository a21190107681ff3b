//! The state of one run: a machine that decides, and does nothing else.
//!
//! The machine has no clock, no store and no observers. Its methods receive the facts that a
//! decision needs, and return what happened. The executor then stamps the time, tells the
//! observer, and wakes the wakers.
//!
//! All awaited calls of the context are operations, each with its stage:
//!
//! ```text
//!   step          Gate ──▶ Open ──▶ Finished ──▶ Delivered
//!   transaction   Gate ──▶ Committing ─────────▶ Delivered
//!   keyed spawn   Gate ──▶ Committing ─────────▶ Delivered
//!   wait          Waiting ─────────▶ Finished ──▶ Delivered
//!   value, spawn, emit, send         Finished ──▶ Delivered
//! ```
//!
//! The operation's future moves it as far as `Finished`. The executor opens gates and delivers one
//! operation at a time. During a replay it delivers from any stage.
//!
//! | file | what it is about |
//! | --- | --- |
//! | `stage.rs` | operations and their stages, which are counted |
//! | `gates.rs` | what may start, because all that was delivered earlier is durable |
//! | `waits.rs` | timers, and what arrives from the store |
//! | `deliver.rs` | the one result that is delivered next |
//! | `replay.rs` | the journal of earlier runs, and code that differs from it |
//! | `failures.rs` | which of the delivered failures ended the attempt |
//! | `written.rs` | the entries of this run, from their delivery until they are durable |
//! | `sound.rs` | what debug builds check |

mod deliver;
mod failures;
mod gates;
mod replay;
mod sound;
mod stage;
mod waits;
mod written;

use std::collections::VecDeque;
use std::sync::MutexGuard;
use std::task::{Poll, Waker};

use hashbrown::{HashMap, HashSet};

use crate::base::guard::Guarded;
use crate::base::journal::{Key, Kind, Outcome, Replay};
use crate::base::name::Name;
use crate::base::time::Timestamp;
use crate::engine::run::state::deliver::Ready;
use crate::engine::run::state::failures::Failures;
use crate::engine::run::state::gates::Gates;
use crate::engine::run::state::stage::{Operation, Operations, Stage};
use crate::engine::run::state::waits::Waits;
use crate::engine::run::state::written::Written;
use crate::engine::task_error::{ControlFlow, TaskResult};
use crate::store::Wait;

pub(crate) use crate::engine::run::state::deliver::{Delivery, Effect, Undelivered};
pub(crate) use crate::engine::run::state::gates::{Opened, Work};
pub(crate) use crate::engine::run::state::written::Unsent;

/// An operation in the form in which its future registers it.
pub(crate) enum Request {
    /// A step's closure, or (with the work) work of the store.
    Gate(Option<Work>),
    /// A step's closure for a further try, of which the task's code knows nothing.
    Again,
    /// A wait for something, or for the time.
    Wait { target: Option<Name>, due_at: Option<Timestamp> },
    /// An operation that is finished when it is registered.
    Finished(Outcome, Effect),
}

/// The progress of an operation.
pub(crate) enum Progress {
    Waits,
    /// The gate is open: the closure of a step may start, unless it has started.
    MayStart,
    Delivered(TaskResult<Outcome>),
}

impl Progress {
    /// Returns the delivered outcome, if there is one.
    pub(crate) fn delivered(self) -> Poll<TaskResult<Outcome>> {
        match self {
            Self::Delivered(outcome) => Poll::Ready(outcome),
            Self::Waits | Self::MayStart => Poll::Pending,
        }
    }
}

/// The situation of a task whose future is pending, by which the executor decides.
#[derive(Debug, PartialEq)]
pub(crate) enum Standing {
    /// No operation waits for the next entry of the journal.
    Stalled,
    /// The code of a task that is compensated has come as far as it came before.
    Replayed,
    /// Gates are shut, or closures run.
    Busy,
    /// The future waits for nothing that the executor knows of.
    Foreign,
    /// The task only waits, until `wake_at` at most.
    Quiescent { wake_at: Option<Timestamp> },
}

/// The number of operations up to which debug builds count them again and again.
const COUNTED: usize = 32;

#[derive(Default)]
pub(crate) struct RunState {
    /// The number of calls of each kind and name.
    ordinals: HashMap<(Kind, Name), u32>,
    operations: Operations,
    gates: Gates,
    waits: Waits,
    /// Results that are queued for delivery.
    ready: VecDeque<Ready>,
    replay: Replay,
    /// The answers to the code's questions about its changes.
    patches: HashMap<Name, bool>,
    failures: Failures,
    written: Written,
    /// Spawns of tasks that have this task's concurrency key, and do not begin before this task has
    /// ended.
    behind: HashSet<Key>,
    /// Set when a compensation was recorded.
    has_compensations: bool,
    /// The waits of an earlier run of the compensation, for use after the replay of the code.
    compensation_waits: Vec<Wait>,
    /// The reason why the run has to stop.
    control: Option<ControlFlow>,
    /// Work that is no longer to be done, until [`unlock`] drops it.
    dropped: Vec<Guarded<Work>>,
}

impl RunState {
    /// Returns the state of a run that begins with this journal and these waits.
    pub(crate) fn new(mut replay: Replay, mut waits: Vec<Wait>) -> Self {
        let compensation_waits =
            if replay.compensation.is_some() { std::mem::take(&mut waits) } else { Vec::new() };
        let patches = std::mem::take(&mut replay.patches);
        let mut recorded = replay.entries.iter().map(|entry| &entry.key).chain(replay.kept.keys());
        Self {
            compensation_waits,
            patches: patches.into_iter().map(|name| (name, true)).collect(),
            waits: Waits::inherited(waits),
            // The entries of the journal are durable, and entries that were rewound keep their
            // numbers.
            written: Written::after(replay.last_seq),
            has_compensations: recorded.any(|key| key.kind == Kind::Compensate),
            replay,
            ..Self::default()
        }
    }

    /// Returns the number of a call, from 1, among the calls of its kind and name.
    pub(crate) fn next_ordinal(&mut self, kind: Kind, name: &Name) -> u32 {
        let ordinal = self.ordinals.entry((kind, name.clone())).or_default();
        *ordinal += 1;
        *ordinal
    }

    /// Registers an operation when it is new, and returns how far it has come.
    pub(crate) fn poll(&mut self, key: &Key, request: Option<Request>, waker: &Waker) -> Progress {
        if let Some(request) = request {
            self.register(key, request);
        }
        let control = self.control;
        let Some(operation) = self.operations.get_mut(key) else {
            // The operation was cut short. Its future does not poll again after a delivery.
            return Progress::Delivered(Err(control.unwrap_or(ControlFlow::LeaseLost).into()));
        };
        match (operation.stage(), control) {
            (Stage::Delivered(_), _) => {
                let outcome = self.operations.remove(key).and_then(Operation::into_outcome);
                outcome.map_or(Progress::Waits, |outcome| Progress::Delivered(Ok(outcome)))
            }
            // A result that a cancelled task's closure has finished is still journaled, so that a
            // retry finds it.
            (Stage::Finished | Stage::Open | Stage::Committing, Some(ControlFlow::Cancelled))
            | (_, None) => {
                let may_start = matches!(operation.stage(), Stage::Open);
                operation.set_waker(waker);
                if may_start { Progress::MayStart } else { Progress::Waits }
            }
            (_, Some(control)) => {
                self.forget(key);
                Progress::Delivered(Err(control.into()))
            }
        }
    }

    fn register(&mut self, key: &Key, request: Request) {
        if key.kind != Kind::Backoff && !matches!(request, Request::Again) {
            self.failures.asked_for_something();
        }
        if let Some(kept) = self.replay.kept.remove(key) {
            if let Request::Gate(work) = request {
                self.dropped.extend(work.map(Guarded::new));
            }
            return self.register_finished(key, kept.outcome, Effect::None);
        }
        match request {
            Request::Finished(outcome, effect) => self.register_finished(key, outcome, effect),
            Request::Gate(work) => {
                let stage = self.gates.shut(key, work, self.written.delivered_seq());
                self.insert(key, stage, None);
            }
            Request::Again => {
                let stage = self.gates.shut(key, None, self.written.delivered_seq());
                self.insert(key, stage, None);
            }
            Request::Wait { target, due_at } => {
                self.waits.begin(key, target.as_ref(), due_at, self.written.unsent());
                self.insert(key, Stage::Waiting, Some((target, due_at)));
            }
        }
    }

    fn register_finished(&mut self, key: &Key, outcome: Outcome, effect: Effect) {
        self.insert(key, Stage::Finished, None);
        self.ready.push_back(Ready { key: key.clone(), outcome, effect });
    }

    fn insert(&mut self, key: &Key, stage: Stage, wait: Option<Awaited>) {
        if let Some(before) = self.operations.insert(key.clone(), stage, wait) {
            let (stage, _, wait) = before.into_parts();
            self.left(key, stage, wait);
        }
    }

    /// Queues the result of an operation.
    pub(crate) fn finish(&mut self, key: &Key, outcome: Outcome, effect: Effect) {
        let Some(before) = self.operations.set(key, Stage::Finished) else { return };
        match before {
            Stage::Gate { work, .. } => self.dropped.extend(work.map(Guarded::new)),
            Stage::Waiting => {
                let wait = self.operations.get(key).and_then(Operation::wait);
                let target = wait.and_then(|(target, _)| target.clone());
                self.waits.no_longer_awaits(key, target);
            }
            Stage::Open | Stage::Committing | Stage::Finished | Stage::Delivered(_) => {}
        }
        self.ready.push_back(Ready { key: key.clone(), outcome, effect });
    }

    /// Forgets an operation whose future was dropped.
    pub(crate) fn forget(&mut self, key: &Key) {
        if let Some(operation) = self.operations.remove(key) {
            let (stage, _, wait) = operation.into_parts();
            self.left(key, stage, wait);
        }
    }

    /// Removes an operation for good from what it was in beside its stage: its work and its wait.
    fn left(&mut self, key: &Key, stage: Stage, wait: Option<Awaited>) {
        let waited = matches!(stage, Stage::Waiting);
        if let Stage::Gate { work, .. } = stage {
            self.dropped.extend(work.map(Guarded::new));
        }
        if let Some(wait) = wait {
            self.waits.end(key, wait, waited, self.written.unsent());
        }
    }

    /// Returns the reason why the run has to stop, if it has to.
    pub(crate) fn control(&self) -> Option<ControlFlow> {
        self.control
    }

    /// Makes every call return the reason to stop, and returns the wakers of the calls that wait.
    ///
    /// Returns `None` when the run has that reason or a greater one already.
    pub(crate) fn stop(&mut self, why: ControlFlow) -> Option<Vec<Waker>> {
        if self.control >= Some(why) {
            return None;
        }
        self.control = Some(why);
        Some(self.operations.take_wakers())
    }

    /// Returns the situation of the task, whose future is pending.
    pub(crate) fn standing(&self) -> Standing {
        debug_assert!(self.operations.len() > COUNTED || self.is_sound(), "the counts are right");
        let counts = self.operations.counts();
        if !self.replay.entries.is_empty() {
            Standing::Stalled
        } else if self.is_replaying() {
            Standing::Replayed
        } else if counts.gates > 0 || counts.open > 0 {
            Standing::Busy
        } else if counts.waiting > 0 {
            Standing::Quiescent { wake_at: self.next_timer() }
        } else {
            Standing::Foreign
        }
    }

    /// Returns whether the task has recorded something to undo.
    pub(crate) fn has_compensations(&self) -> bool {
        self.has_compensations
    }

    /// Notes that a spawned task has the concurrency key of this task.
    pub(crate) fn lines_up(&mut self, spawn: &Key) {
        self.behind.insert(spawn.clone());
    }

    /// Returns whether a spawned task has the concurrency key of this task.
    pub(crate) fn is_behind(&self, spawn: &Key) -> bool {
        self.behind.contains(spawn)
    }

    /// Takes the values of the application: operations with their wakers and their work, in the
    /// order of their keys, and the wakers of those that wait for durable entries.
    pub(crate) fn take_live(&mut self) -> (Vec<Operation>, Vec<Waker>) {
        (self.operations.take_all(), self.written.take_wakers())
    }
}

/// The target of a wait, and its due time.
type Awaited = (Option<Name>, Option<Timestamp>);

/// Unlocks a run's state, then drops the work that is no longer to be done.
///
/// The work is the application's, and may use the context when it is dropped.
#[inline]
pub(crate) fn unlock(mut state: MutexGuard<'_, RunState>) {
    if !state.dropped.is_empty() {
        let dropped = std::mem::take(&mut state.dropped);
        drop(state);
        drop(dropped);
    }
}

#[cfg(test)]
mod tests;
