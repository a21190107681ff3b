//! The oracle's books: what tasks' closures and clients' calls have seen, recorded outside of the
//! engine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stepwell::testing::{Place, World};
use stepwell::{
    Entry, Kind, Outcome, RunId, TaskContext, TaskId, TaskState, Timestamp, WorkflowContext,
};

use crate::params::Delivered;

/// The run of a task that does something.
#[derive(Clone, Copy)]
pub(crate) struct Who {
    pub(crate) task_id: TaskId,
    run_id: RunId,
}

impl From<&TaskContext> for Who {
    fn from(ctx: &TaskContext) -> Self {
        Self { task_id: ctx.task_id, run_id: ctx.run_id }
    }
}

impl From<&WorkflowContext> for Who {
    fn from(ctx: &WorkflowContext) -> Self {
        Self { task_id: ctx.task_id, run_id: ctx.run_id }
    }
}

/// The knowledge about a history.
pub(crate) struct Ledger {
    pub(crate) world: World,
    books: Mutex<Books>,
}

#[derive(Default)]
pub(crate) struct Books {
    /// The tasks that clients received as answers, by their numbers.
    pub(crate) spawned: BTreeMap<usize, TaskId>,
    /// The tasks that clients received as answers, by task type and idempotency key.
    pub(crate) answers: BTreeMap<(String, u8), BTreeSet<TaskId>>,
    /// The tasks that a client has asked to delete or to move.
    pub(crate) deleted: BTreeSet<TaskId>,
    /// The tasks whose rows were damaged; nothing is known of these tasks.
    pub(crate) damaged: BTreeSet<TaskId>,
    /// The numbers of tasks whose transactions were rolled back.
    pub(crate) rolled_back: BTreeSet<usize>,
    /// The tasks that have ended; `purged` says whether ended tasks were purged.
    pub(crate) ended: BTreeSet<TaskId>,
    pub(crate) purged: bool,
    /// The numbers of tasks that a client has retriggered.
    pub(crate) triggered_again: BTreeSet<usize>,
    /// The number of times that a schedule was made.
    pub(crate) schedules: u64,
    /// The accepted messages of each task and topic, in order.
    pub(crate) accepted: BTreeMap<(TaskId, u8), Vec<u64>>,
    /// The last message of each task and topic.
    pub(crate) sent: BTreeMap<(TaskId, u8), u64>,
    /// The first payload that was emitted as each event.
    pub(crate) emitted: BTreeMap<String, String>,
    /// The results of each closure, by task and name.
    pub(crate) ran: BTreeMap<(TaskId, String), Vec<u64>>,
    /// The numbers that failed transactions have written.
    pub(crate) undone_rows: BTreeSet<u64>,
    /// The steps that are transactions.
    pub(crate) transacted: BTreeSet<(TaskId, String)>,
    /// The results that were undone, by task and name.
    pub(crate) undone: BTreeMap<(TaskId, String), Vec<u64>>,
    /// The earliest moment at which a sleep may end.
    naps: BTreeMap<(TaskId, String), Timestamp>,
    /// The time since which a run's worker knows that the run is lost, and the time at which a
    /// closure of the run was first seen afterwards.
    lost: BTreeMap<RunId, (Duration, Option<Duration>)>,
    nonces: u64,
    /// The number of closures that have run.
    pub(crate) closures: u64,
}

/// The time for which a lost run may continue. The time is two looks of a closure, so that the
/// run's worker has had a turn meanwhile.
const LAST_LOOK: Duration = Duration::from_millis(20);

impl Books {
    /// Returns whether the task may be gone, because a client has deleted it, or tasks that ended
    /// were purged.
    pub(crate) fn may_be_removed(&self, task_id: &TaskId) -> bool {
        self.deleted.contains(task_id) || self.purged && self.ended.contains(task_id)
    }
}

impl Ledger {
    pub(crate) fn new(world: World) -> Self {
        Self { world, books: Mutex::default() }
    }

    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports a violation of a check.
    pub(crate) fn fail(&self, check: &str, what: impl std::fmt::Display) {
        self.world.fail(format!("{check}: {what}"));
    }

    pub(crate) fn journal(&self, task_id: TaskId) -> Vec<Entry> {
        self.world.look(self.world.store().journal(task_id)).unwrap_or_default()
    }

    /// Returns whether the store says that this run executes the task.
    fn owns(&self, who: Who) -> bool {
        let task = self.world.look(self.world.store().task(who.task_id)).ok().flatten();
        task.is_some_and(|task| {
            task.run_id == who.run_id
                && matches!(task.state, TaskState::Running | TaskState::Compensating)
        })
    }

    /// Records that a closure begins. The code asked for the closure after it had seen the results
    /// in `seen`. Returns the number that is the closure's own result.
    pub(crate) fn begins(
        &self,
        place: &Place,
        who: Who,
        kind: Kind,
        name: &str,
        seen: &[(String, u64)],
    ) -> u64 {
        let nonce = {
            let mut books = self.books();
            books.nonces += 1;
            books.nonces
        };
        if place.is_dead() {
            return nonce;
        }
        self.world.note(
            &format!("process {}", place.number),
            format_args!("begins the {} {name} of task …{}", kind.as_str(), short(who.task_id)),
        );
        let journal = self.journal(who.task_id);
        if !journal.is_empty() {
            for (name, value) in seen {
                let durable = journal
                    .iter()
                    .any(|entry| is_done(entry, Kind::Step, name) && gives(entry, *value));
                if !durable {
                    self.fail(
                        "barrier",
                        format_args!(
                            "a closure has begun in task {} before the result of {name} was \
                             durable",
                            who.task_id
                        ),
                    );
                }
            }
        }
        // Entries from before a new beginning of the task, or from before its compensation, do not
        // count.
        let done = current(&journal, kind).iter().any(|entry| is_done(entry, kind, name));
        if done && self.owns(who) {
            self.fail(
                "again",
                format_args!("{name} of task {} has a result, and has begun again", who.task_id),
            );
        }
        let mut books = self.books();
        books.closures += 1;
        let ran = if kind == Kind::Step { &mut books.ran } else { &mut books.undone };
        ran.entry((who.task_id, name.to_owned())).or_default().push(nonce);
        drop(books);
        self.goes_on(place, who);
        nonce
    }

    /// Records that the closure of a step's transaction runs, which fails afterwards when `fails`
    /// is set. Returns the number that the closure writes.
    pub(crate) fn transacts(&self, task_id: TaskId, name: &str, fails: bool) -> u64 {
        let mut books = self.books();
        books.nonces += 1;
        books.closures += 1;
        let nonce = books.nonces;
        books.ran.entry((task_id, name.to_owned())).or_default().push(nonce);
        books.transacted.insert((task_id, name.to_owned()));
        if fails {
            books.undone_rows.insert(nonce);
        }
        nonce
    }

    /// Checks, when a step's closure begins, that the run has received everything that the journal
    /// holds. Tasks that were tried again are not checked, because their results are kept by name.
    pub(crate) fn is_no_replay(&self, place: &Place, who: Who, name: &str, delivered: &Delivered) {
        let journal = self.journal(who.task_id);
        let again = journal
            .iter()
            .any(|entry| matches!(entry.key.kind, Kind::Attempt | Kind::Compensating));
        if again || place.is_dead() || !self.owns(who) {
            return;
        }
        let delivered = delivered.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = journal.iter().find(|entry| {
            entry.key.kind == Kind::Step
                && matches!(entry.outcome, Outcome::Done(_))
                && !delivered.contains(entry.key.name.as_str())
        });
        if let Some(missing) = missing {
            self.fail(
                "replay",
                format_args!(
                    "{name} of task {} has begun before {}, which is journaled, was delivered",
                    who.task_id, missing.key
                ),
            );
        }
    }

    /// Records that a closure is still running.
    pub(crate) fn goes_on(&self, place: &Place, who: Who) {
        if place.is_dead() {
            return;
        }
        let now = self.world.passed();
        let mut books = self.books();
        let Some((since, late)) = books.lost.get_mut(&who.run_id) else { return };
        if now <= *since {
            return;
        }
        let late = *late.get_or_insert(now);
        if now >= late + LAST_LOOK {
            let since = *since;
            drop(books);
            self.fail(
                "not told",
                format_args!(
                    "the run {} of task {} goes on, though its worker knows since {since:?} that \
                     it is lost",
                    who.run_id, who.task_id
                ),
            );
        }
    }

    /// Records that the worker of a run has learned that the run is lost.
    pub(crate) fn lose(&self, run_id: RunId) {
        let now = self.world.passed();
        self.books().lost.entry(run_id).or_insert((now, None));
    }

    /// Records that a task asks for a sleep of a duration.
    pub(crate) fn sleeps(&self, task_id: TaskId, name: &str, time: Duration) {
        let due = stepwell::store::after(self.world.now(), time);
        let mut books = self.books();
        let earliest = books.naps.entry((task_id, name.to_owned())).or_insert(due);
        *earliest = due.min(*earliest);
    }

    /// Checks that a sleep has not ended early.
    pub(crate) fn wakes(&self, task_id: TaskId, name: &str) {
        let earliest = self.books().naps.get(&(task_id, name.to_owned())).copied();
        let latest = self.world.latest();
        if earliest.is_some_and(|earliest| latest < earliest) {
            self.fail("early", format_args!(
                "the sleep {name} of task {task_id} has ended, and the store's clock has not come \
                 to its time"
            ));
        }
    }

    /// Checks that an event arrives with the payload that was emitted.
    pub(crate) fn comes(&self, event: &str, payload: u64) {
        let emitted = self.books().emitted.get(event).cloned();
        if emitted.as_deref() != Some(payload.to_string().as_str()) {
            self.fail(
                "event",
                format_args!("{event} came with {payload}, and was emitted with {emitted:?}"),
            );
        }
    }
}

/// Returns the part of a journal in which results of a kind count now.
pub(crate) fn current(journal: &[Entry], kind: Kind) -> &[Entry] {
    let era = journal.rsplit(is_new_beginning).next().unwrap_or_default();
    match era.iter().position(|entry| entry.key.kind == Kind::Compensating) {
        Some(failed) if kind == Kind::Compensated => era.get(failed..).unwrap_or_default(),
        _ => era,
    }
}

/// Returns whether the task runs from its beginning after an entry, once it was compensated.
pub(crate) fn is_new_beginning(entry: &Entry) -> bool {
    entry.key.kind == Kind::Attempt && matches!(entry.outcome, Outcome::Done(_))
}

pub(crate) fn is_done(entry: &Entry, kind: Kind, name: &str) -> bool {
    entry.key.kind == kind
        && entry.key.name.as_str() == name
        && matches!(entry.outcome, Outcome::Done(_))
}

/// Returns whether an entry holds a number as its result.
pub(crate) fn gives(entry: &Entry, value: u64) -> bool {
    let Outcome::Done(payload) = &entry.outcome else { return false };
    payload.decode::<u64>().is_ok_and(|of| of == value)
}

pub(crate) fn short(task_id: TaskId) -> String {
    let id = task_id.to_string();
    id.get(id.len().saturating_sub(6)..).unwrap_or(&id).to_owned()
}
