//! The operations of one run: all awaited calls of its context, each with its stage.
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

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::MutexGuard;
use std::task::{Poll, Waker};

use hashbrown::hash_map;
use hashbrown::{HashMap, HashSet};

use crate::base::failure::{Failure, FailureKind};
use crate::base::guard::Guarded;
use crate::base::journal::{Compensation, Entry, Key, Kind, Outcome, Replay, to_payload};
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::time::Timestamp;
use crate::engine::run::Run;
use crate::engine::run::outcome::read_arrival;
use crate::engine::run::outcome::read_child;
use crate::engine::run::outcome::read_step;
use crate::engine::task_error::{ControlFlow, TaskError, TaskResult};
use crate::observe::lifecycle::Lifecycle;
use crate::store::{ArrivedMessage, Facts, MessageId, NewEvent, NewMessage, NewTask, Wait};

/// The effect of a delivery on the store, besides its journal entry.
pub(crate) enum Effect {
    None,
    Spawn(Box<NewTask>),
    Emit(NewEvent),
    Send(NewMessage),
    Received(MessageId),
}

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

/// The work of the store for an operation, within the commit of what was delivered earlier.
pub(crate) enum Work {
    /// Work of the user's, of a type that only the backend knows.
    Transaction(Box<dyn Any + Send>),
    /// The spawn of a child that may exist already.
    Spawn(Box<NewTask>),
}

pub(crate) struct Operation {
    stage: Stage,
    waker: Option<Waker>,
    /// The target of the operation's wait, even after it has arrived.
    wait: Option<Awaited>,
}

/// The target of a wait, and its due time.
type Awaited = (Option<Name>, Option<Timestamp>);

enum Stage {
    /// The closure may start when everything up to `after` is durable.
    Gate {
        after: u64,
        work: Option<Work>,
    },
    /// The closure runs.
    Open,
    /// The store does the operation's work.
    Committing,
    Waiting,
    /// The result is queued for delivery.
    Finished,
    Delivered(Outcome),
}

/// A result that is queued for delivery.
struct Ready {
    key: Key,
    outcome: Outcome,
    effect: Effect,
}

/// A failure that was delivered to the code.
struct Delivered {
    seq: u64,
    key: Key,
    failure: Failure,
}

/// The deliveries and the changes of waits since the last commit.
#[derive(Clone, Default)]
pub(crate) struct Unsent {
    pub(crate) entries: Vec<Entry>,
    pub(crate) spawns: Vec<NewTask>,
    pub(crate) events: Vec<NewEvent>,
    pub(crate) messages: Vec<NewMessage>,
    pub(crate) received: Vec<MessageId>,
    pub(crate) waits_added: BTreeMap<Key, Wait>,
    pub(crate) waits_removed: Vec<Key>,
    /// Entries of the journal that later ones have replaced.
    pub(crate) superseded: Vec<u64>,
}

impl Unsent {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.waits_added.is_empty() && self.waits_removed.is_empty()
    }
}

#[derive(Default)]
pub(crate) struct Operations {
    ordinals: HashMap<(Kind, Name), u32>,
    live: HashMap<Key, Operation>,
    replay: Replay,
    ready: VecDeque<Ready>,
    gates: usize,
    /// The number of closures that run.
    open: usize,
    waiting: usize,
    /// The due times of waits.
    timers: BTreeSet<(Timestamp, Key)>,
    /// Shut gates of closures, in the order in which their barriers become durable.
    ///
    /// Operations of some of them may be gone.
    closures: VecDeque<(u64, Key)>,
    /// Shut gates of steps whose work the store does, in the same order.
    works: VecDeque<(u64, Key)>,
    /// The operations that wait for each target.
    awaited: HashMap<(Kind, Name), BTreeSet<Key>>,
    /// Waits that the store keeps.
    stored: HashSet<Key>,
    /// Waits that an earlier run began and this one has not come to yet, with their due times.
    inherited: BTreeMap<Key, Option<Timestamp>>,
    /// Messages that were assigned to a waiter, and are still in the store's mailbox.
    taken: HashSet<MessageId>,
    /// Set when a wait was registered since the store was last asked for arrivals.
    look: bool,
    /// The wakers of those that wait for an entry to become durable.
    durable_wakers: Vec<Waker>,
    /// Spawns of tasks that have this task's concurrency key, and do not begin before this task has
    /// ended.
    behind: HashSet<Key>,
    /// The answers to the code's questions about its changes.
    patches: HashMap<Name, bool>,
    unsent: Unsent,
    pub(crate) delivered_seq: u64,
    durable_seq: u64,
    /// The failures that were delivered.
    failures: Vec<Delivered>,
    /// The number of failures that the code may have handled.
    ///
    /// They were delivered before the code last asked for something.
    handled: usize,
    /// Set when a compensation was recorded.
    pub(crate) has_compensations: bool,
    /// Work that is no longer to be done, until [`unlock`] drops it.
    dropped: Vec<Guarded<Work>>,
    /// The waits of an earlier run of the compensation, for use after the replay of the code.
    compensation_waits: Vec<Wait>,
    control: Option<ControlFlow>,
}

/// The reason why the next result was not delivered.
pub(crate) enum Undelivered {
    /// The result is in the journal, and nobody waits for it.
    NoWaiter,
    /// The result cannot be read.
    ///
    /// The task's code does not learn of the error, and nothing is journaled. The task can go on
    /// from there when the result can be read.
    Unreadable(TaskError),
}

fn readable(key: &Key, outcome: &Outcome) -> Result<(), Undelivered> {
    let Outcome::Done(payload) = outcome else { return Ok(()) };
    payload.unreadable().map_or(Ok(()), |source| {
        Err(Undelivered::Unreadable(TaskError::Payload {
            name: key.label(),
            source: source.clone(),
        }))
    })
}

/// The situation of a task whose future is pending, by which the executor decides.
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

impl Operations {
    pub(crate) fn new(mut replay: Replay, mut waits: Vec<Wait>) -> Self {
        let compensation_waits =
            if replay.compensation.is_some() { std::mem::take(&mut waits) } else { Vec::new() };
        Self {
            compensation_waits,
            patches: std::mem::take(&mut replay.patches)
                .into_iter()
                .map(|name| (name, true))
                .collect(),
            inherited: waits.into_iter().map(|wait| (wait.key, wait.due_at)).collect(),
            // The entries of the journal are durable, and entries that were rewound keep their
            // numbers.
            delivered_seq: replay.last_seq,
            durable_seq: replay.last_seq,
            has_compensations: replay
                .entries
                .iter()
                .map(|entry| &entry.key)
                .chain(replay.kept.keys())
                .any(|key| key.kind == Kind::Compensate),
            replay,
            ..Self::default()
        }
    }

    /// Replaces the operations of the code, which was replayed for its compensations and is gone,
    /// by those of the compensations.
    pub(crate) fn begin_compensation(&mut self) -> Option<Compensation> {
        let mut compensation = self.replay.compensation.take()?;
        let replay = Replay {
            entries: std::mem::take(&mut compensation.entries),
            progress: self.replay.progress,
            last_seq: self.replay.last_seq,
            ..Replay::default()
        };
        *self = Self {
            control: self.control,
            ..Self::new(replay, std::mem::take(&mut self.compensation_waits))
        };
        Some(compensation)
    }

    pub(crate) fn next_ordinal(&mut self, kind: Kind, name: &Name) -> u32 {
        let ordinal = self.ordinals.entry((kind, name.clone())).or_default();
        *ordinal += 1;
        *ordinal
    }

    /// Returns the due time of a wait that an earlier run began.
    pub(crate) fn stored_due(&self, key: &Key) -> Option<Timestamp> {
        self.inherited.get(key).copied().flatten()
    }

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
        let mut told: Vec<_> = self.live.iter_mut().collect();
        told.sort_unstable_by_key(|(key, _)| *key);
        Some(told.into_iter().filter_map(|(_, operation)| operation.waker.take()).collect())
    }

    /// Registers an operation when it is new, and returns how far it has come.
    pub(crate) fn poll(&mut self, key: &Key, request: Option<Request>, waker: &Waker) -> Progress {
        if let Some(request) = request {
            self.register(key, request);
        }
        let control = self.control;
        let Some(operation) = self.live.get_mut(key) else {
            // The operation was cut short. Its future does not poll again after a delivery.
            return Progress::Delivered(Err(control.unwrap_or(ControlFlow::LeaseLost).into()));
        };
        match (&mut operation.stage, control) {
            (Stage::Delivered(_), _) => {
                let operation = self.live.remove(key);
                match operation.map(|operation| operation.stage) {
                    Some(Stage::Delivered(outcome)) => Progress::Delivered(Ok(outcome)),
                    _ => Progress::Waits,
                }
            }
            // A result that a cancelled task's closure has finished is still journaled, so that a
            // retry finds it.
            (Stage::Finished | Stage::Open | Stage::Committing, Some(ControlFlow::Cancelled))
            | (_, None) => {
                match &mut operation.waker {
                    Some(known) => known.clone_from(waker),
                    slot => *slot = Some(waker.clone()),
                }
                if matches!(operation.stage, Stage::Open) {
                    Progress::MayStart
                } else {
                    Progress::Waits
                }
            }
            (_, Some(control)) => {
                self.forget(key);
                Progress::Delivered(Err(control.into()))
            }
        }
    }

    fn register(&mut self, key: &Key, request: Request) {
        if key.kind != Kind::Backoff && !matches!(request, Request::Again) {
            self.handled = self.failures.len();
        }
        let kept = self.replay.kept.remove(key).map(|entry| entry.outcome);
        let (stage, wait, ready) = match (request, kept) {
            (request, Some(outcome)) => {
                if let Request::Gate(work) = request {
                    self.dropped.extend(work.map(Guarded::new));
                }
                (Stage::Finished, None, Some((outcome, Effect::None)))
            }
            (Request::Finished(outcome, effect), None) => {
                (Stage::Finished, None, Some((outcome, effect)))
            }
            (request @ (Request::Gate(_) | Request::Again), None) => {
                let work = if let Request::Gate(work) = request { work } else { None };
                self.gates += 1;
                let gates = if work.is_some() { &mut self.works } else { &mut self.closures };
                // A spawn runs no code, and is committed along with what was delivered before it.
                let after = if let Some(Work::Spawn(_)) = work { 0 } else { self.delivered_seq };
                gates.push_back((after, key.clone()));
                (Stage::Gate { after, work }, None, None)
            }
            (Request::Wait { target, due_at }, None) => {
                self.waiting += 1;
                self.look |= target.is_some();
                if let Some(due_at) = due_at {
                    self.timers.insert((due_at, key.clone()));
                }
                if let Some(target) = &target {
                    self.awaited.entry((key.kind, target.clone())).or_default().insert(key.clone());
                }
                if self.inherited.remove(key).is_some() {
                    self.stored.insert(key.clone());
                } else {
                    let wait = Wait { key: key.clone(), target: target.clone(), due_at };
                    self.unsent.waits_added.insert(key.clone(), wait);
                }
                (Stage::Waiting, Some((target, due_at)), None)
            }
        };
        self.live.insert(key.clone(), Operation { stage, waker: None, wait });
        if let Some((outcome, effect)) = ready {
            self.ready.push_back(Ready { key: key.clone(), outcome, effect });
        }
    }

    pub(crate) fn finish(&mut self, key: &Key, outcome: Outcome, effect: Effect) {
        let Some(operation) = self.live.get_mut(key) else { return };
        match std::mem::replace(&mut operation.stage, Stage::Finished) {
            Stage::Gate { work, .. } => self.dropped.extend(work.map(Guarded::new)),
            Stage::Open => self.open -= 1,
            Stage::Waiting => {
                self.waiting -= 1;
                let target = operation.wait.as_ref().and_then(|(target, _)| target.clone());
                self.no_longer_awaits(key, target);
            }
            _ => {}
        }
        self.ready.push_back(Ready { key: key.clone(), outcome, effect });
    }

    fn no_longer_awaits(&mut self, key: &Key, target: Option<Name>) {
        let Some(target) = target else { return };
        if let hash_map::Entry::Occupied(mut waiting) = self.awaited.entry((key.kind, target)) {
            waiting.get_mut().remove(key);
            if waiting.get().is_empty() {
                waiting.remove();
            }
        }
    }

    /// Removes an operation from its stage and its wait for good.
    fn left(&mut self, key: &Key, stage: Stage, wait: Option<Awaited>) {
        let waited = matches!(stage, Stage::Waiting);
        match stage {
            Stage::Gate { work, .. } => {
                self.gates -= 1;
                self.dropped.extend(work.map(Guarded::new));
            }
            Stage::Open => self.open -= 1,
            Stage::Waiting => self.waiting -= 1,
            Stage::Committing | Stage::Finished | Stage::Delivered(_) => {}
        }
        let Some((target, due_at)) = wait else { return };
        if waited {
            self.no_longer_awaits(key, target);
        }
        if let Some(due_at) = due_at {
            self.timers.remove(&(due_at, key.clone()));
        }
        if self.stored.remove(key) {
            self.unsent.waits_removed.push(key.clone());
        } else {
            self.unsent.waits_added.remove(key);
        }
    }

    pub(crate) fn forget(&mut self, key: &Key) {
        if let Some(Operation { stage, wait, .. }) = self.live.remove(key) {
            self.left(key, stage, wait);
        }
    }

    /// Delivers to one operation, and returns the waker of its future; `None` when it does not wait
    /// for a delivery.
    fn deliver(&mut self, seq: u64, key: &Key, mut outcome: Outcome) -> Option<Option<Waker>> {
        let operation =
            self.live.get_mut(key).filter(|op| !matches!(op.stage, Stage::Delivered(_)))?;
        if let Outcome::Failed(failure) = &mut outcome {
            failure.sources = vec![seq].into();
            self.failures.push(Delivered { seq, key: key.clone(), failure: (**failure).clone() });
        }
        let stage = std::mem::replace(&mut operation.stage, Stage::Delivered(outcome));
        let (waker, wait) = (operation.waker.take(), operation.wait.take());
        self.left(key, stage, wait);
        Some(waker)
    }

    /// Delivers the next result: from the journal, and after its end from the results that are
    /// ready.
    ///
    /// Returns `Ok(None)` when there is nothing to deliver.
    pub(crate) fn deliver_next(&mut self, run: &Run) -> Result<Option<Option<Waker>>, Undelivered> {
        if let Some(entry) = self.replay.entries.front() {
            readable(&entry.key, &entry.outcome)?;
            let (seq, key, outcome) = (entry.seq, entry.key.clone(), entry.outcome.clone());
            let waker = self.deliver(seq, &key, outcome).ok_or(Undelivered::NoWaiter)?;
            self.replay.entries.pop_front();
            return Ok(Some(waker));
        }
        if self.is_replaying() {
            return Ok(None);
        }
        while let Some(Ready { key, outcome, effect }) = self.ready.pop_front() {
            // The journal may have held the delivery, or its future may be gone.
            let waits =
                matches!(self.live.get(&key), Some(Operation { stage: Stage::Finished, .. }));
            if waits {
                readable(&key, &outcome)?;
            }
            if waits && self.control.is_some() && !matches!(outcome, Outcome::Done(_)) {
                // The failure probably came because the run had to stop. A retry of the task tries
                // the operation again.
                let waker = self.live.get_mut(&key).and_then(|operation| operation.waker.take());
                self.forget(&key);
                return Ok(Some(waker));
            }
            let (seq, at) = (self.delivered_seq + 1, run.engine.store.now());
            let Some(waker) = waits.then(|| self.deliver(seq, &key, outcome.clone())).flatten()
            else {
                if let Effect::Received(message) = effect {
                    self.pass_on(&key.name, message, outcome);
                }
                continue;
            };
            self.delivered_seq = seq;
            self.has_compensations |= key.kind == Kind::Compensate;
            let undone = key.kind == Kind::Compensated;
            if !undone || run.compensating.is_some() {
                run.engine.lifecycle.tell(|| Lifecycle::of_delivery(run.task_id, &key, &outcome));
            }
            self.unsent.entries.push(Entry { seq, key, outcome, at });
            match effect {
                Effect::None => {}
                Effect::Spawn(task) => {
                    run.engine.measures.count_spawn(&task.task_type);
                    self.unsent.spawns.push(*task);
                }
                Effect::Emit(event) => self.unsent.events.push(event),
                Effect::Send(message) => self.unsent.messages.push(message),
                Effect::Received(message) => self.unsent.received.push(message),
            }
            return Ok(Some(waker));
        }
        Ok(None)
    }

    /// Passes on a message whose waiter is gone.
    ///
    /// The next waiter receives the message in place of its own, and so on, so that messages come
    /// in their order. The last message goes to a waiter that has none, or stays in the mailbox.
    fn pass_on(&mut self, topic: &Name, mut message: MessageId, mut outcome: Outcome) {
        for ready in self.ready.iter_mut().filter(|ready| ready.key.name == *topic) {
            if let Effect::Received(later) = &mut ready.effect {
                std::mem::swap(later, &mut message);
                std::mem::swap(&mut ready.outcome, &mut outcome);
            }
        }
        match self.awaited.get(&(Kind::Message, topic.clone())).and_then(BTreeSet::first).cloned() {
            Some(key) => self.finish(&key, outcome, Effect::Received(message)),
            None => _ = self.taken.remove(&message),
        }
    }

    pub(crate) fn is_replaying(&self) -> bool {
        !self.replay.entries.is_empty() || self.replay.compensation.is_some()
    }

    /// Returns whether the journal's next entry is of a step that the code asks for with another
    /// input.
    ///
    /// The step runs again in that case. Results that were delivered from there on are kept by
    /// name, and an entry of the journal records the change.
    pub(crate) fn input_changed(&mut self, at: Timestamp) -> bool {
        let Some(entry) = self.replay.entries.front().filter(|_| !self.is_only_replayed()) else {
            return false;
        };
        let asked = self.live.keys().filter(|key| key.differs_by_input(&entry.key)).min();
        let Some(asked) = asked else { return false };
        let seq = entry.seq;
        let name = asked.name.clone();
        self.replay.keep_from(Some(0), &HashSet::new());
        self.delivered_seq += 1;
        self.unsent.entries.push(Entry {
            seq: self.delivered_seq,
            key: Key { kind: Kind::Changed, name, ordinal: 1 },
            outcome: Outcome::Done(to_payload(&seq)),
            at,
        });
        // Operations that are registered already find their results now.
        let mut found: Vec<_> =
            self.live.keys().filter(|key| self.replay.kept.contains_key(*key)).cloned().collect();
        found.sort_unstable();
        for key in found {
            if let Some(Entry { outcome, .. }) = self.replay.kept.remove(&key) {
                if let Some(Operation { stage: Stage::Gate { .. }, .. }) = self.live.get(&key) {
                    self.gates -= 1;
                }
                self.finish(&key, outcome, Effect::None);
            }
        }
        true
    }

    /// Returns whether the code is replayed only for the closures of its compensations.
    pub(crate) fn is_only_replayed(&self) -> bool {
        self.replay.compensation.is_some()
    }

    /// Returns the error that names the journal's next entry, and the operations that the code asks
    /// for instead.
    pub(crate) fn divergence(&self, finished: bool) -> TaskError {
        let next = self.replay.entries.front();
        let seq = next.map_or(0, |entry| entry.seq);
        let expected = next.map_or_else(|| "nothing".into(), |entry| entry.key.to_string());
        let in_journal = |key: &Key| self.replay.entries.iter().any(|entry| entry.key == *key);
        let mut asked: Vec<_> = self.live.keys().filter(|key| !in_journal(key)).collect();
        asked.sort_unstable();
        let asked = match asked.as_slice() {
            _ if finished => "came to its end".into(),
            [] => "waits for something that is not in its context".into(),
            [key] => format!("asked for {key}"),
            keys => {
                let keys: Vec<_> = keys.iter().take(5).map(ToString::to_string).collect();
                format!("asked for {}", keys.join(", "))
            }
        };
        TaskError::Diverged { seq, expected, asked }
    }

    /// Opens the gates whose barrier is durable, and returns the wakers of their closures.
    ///
    /// When no gate of a closure opens and no commit is on its way (`idle`), it takes one operation
    /// whose work the store does with the next commit.
    pub(crate) fn open_gates(&mut self, idle: bool) -> Opened {
        if self.gates == 0 || self.is_replaying() || self.control.is_some() {
            return Opened::Closures(Vec::new());
        }
        let mut wakers = Vec::new();
        let mut opened = 0;
        while let Some((barrier, key)) = durable(&mut self.closures, self.durable_seq) {
            if let Some(operation) = self.live.get_mut(&key)
                && let Stage::Gate { work: None, after } = operation.stage
                && after == barrier
            {
                operation.stage = Stage::Open;
                wakers.extend(operation.waker.take());
                opened += 1;
            }
        }
        self.gates -= opened;
        self.open += opened;
        while opened == 0
            && idle
            && let Some((barrier, key)) = durable(&mut self.works, self.durable_seq)
        {
            if let Some(operation) = self.live.get_mut(&key)
                && let Stage::Gate { work, after } = &mut operation.stage
                && *after == barrier
                && let Some(work) = work.take()
            {
                operation.stage = Stage::Committing;
                self.gates -= 1;
                return Opened::Work(key, work);
            }
        }
        Opened::Closures(wakers)
    }

    /// Ends an operation whose work the store has done.
    ///
    /// The outcome is delivered if the store has journaled it, and is queued otherwise.
    pub(crate) fn deliver_work(
        &mut self,
        key: &Key,
        outcome: Outcome,
        journaled: bool,
    ) -> Option<Waker> {
        if journaled {
            self.delivered_seq += 1;
            self.durable_seq = self.delivered_seq;
            return self.deliver(self.durable_seq, key, outcome).flatten();
        }
        self.finish(key, outcome, Effect::None);
        None
    }

    /// Assigns arrivals to the operations that wait for them.
    pub(crate) fn arrive(&mut self, facts: Facts) {
        let Facts { events, messages, children, more } = facts;
        // Set when another look finds something else. An arrival that is taken now does not come
        // again, and neither does one that is no longer awaited.
        let mut goes_on = events.is_empty() && messages.is_empty() && children.is_empty();
        goes_on |= !self.unsent.waits_removed.is_empty();
        for ArrivedMessage { id, topic, payload } in messages {
            if self.taken.contains(&id) {
                continue;
            }
            let first =
                self.awaited.get(&(Kind::Message, topic)).and_then(BTreeSet::first).cloned();
            if let Some(key) = first {
                goes_on = true;
                self.taken.insert(id);
                self.finish(&key, Outcome::Done(payload), Effect::Received(id));
            }
        }
        for (name, payload) in events {
            for key in self.awaited.remove(&(Kind::Event, name)).unwrap_or_default() {
                goes_on = true;
                self.finish(&key, Outcome::Done(payload.clone()), Effect::None);
            }
        }
        for (child, finish) in children {
            let Ok(target) = Name::new(child.to_string()) else { continue };
            for key in self.awaited.remove(&(Kind::Child, target)).unwrap_or_default() {
                goes_on = true;
                self.finish(&key, crate::engine::run::child::outcome(finish.clone()), Effect::None);
            }
        }
        self.look |= more && goes_on;
    }

    /// Ends the waits that are due.
    pub(crate) fn fire_timers(&mut self, now: Timestamp) {
        while let Some((due_at, key)) =
            self.timers.first().filter(|(due_at, _)| *due_at <= now).cloned()
        {
            self.timers.remove(&(due_at, key.clone()));
            if !matches!(self.live.get(&key), Some(Operation { stage: Stage::Waiting, .. })) {
                continue;
            }
            let outcome = match key.kind {
                Kind::Event | Kind::Message | Kind::Child | Kind::Timeout => {
                    let message = format!("{key} did not come in time");
                    Outcome::failed(Failure::new(FailureKind::Timeout, message))
                }
                _ => Outcome::Done(Payload::null()),
            };
            self.finish(&key, outcome, Effect::None);
        }
    }

    pub(crate) fn next_timer(&self) -> Option<Timestamp> {
        self.timers.first().map(|(due_at, _)| *due_at)
    }

    pub(crate) fn standing(&self) -> Standing {
        if !self.replay.entries.is_empty() {
            Standing::Stalled
        } else if self.is_replaying() {
            Standing::Replayed
        } else if self.gates > 0 || self.open > 0 {
            Standing::Busy
        } else if self.waiting > 0 {
            Standing::Quiescent { wake_at: self.next_timer() }
        } else {
            Standing::Foreign
        }
    }

    pub(crate) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty() || self.look
    }

    /// Returns whether the store has to be asked for arrivals.
    pub(crate) fn take_look(&mut self) -> bool {
        std::mem::take(&mut self.look)
    }

    /// Journals the failures that ended an attempt, if there are any: the next attempt tries those
    /// operations again.
    ///
    /// The error of the code carries its sources, or quotes the text of a failure. Besides, the
    /// code has not handled a failure after which it asked for nothing more. Every other failure
    /// stays as it is: it may be the reason of a later step.
    pub(crate) fn mark_failed_attempt(&mut self, run: &Run, failure: &mut Failure) {
        let mut carried = Vec::from(std::mem::take(&mut failure.sources));
        if self.is_replaying() {
            return;
        }
        let (handled, unhandled) = self.failures.split_at(self.handled);
        carried.retain(|seq| self.failures.iter().any(|delivered| delivered.seq == *seq));
        let text = failure.to_string();
        let is_source = |delivered: &&Delivered| {
            if carried.is_empty() {
                delivered.is_quoted_in(&text)
            } else {
                carried.contains(&delivered.seq)
            }
        };
        let sources = handled.iter().filter(is_source).chain(unhandled);
        failure.sources = sources.map(|delivered| delivered.seq).collect::<Vec<_>>().into();
        if failure.sources.is_empty() {
            return;
        }
        let name = Name::known("attempt");
        self.delivered_seq += 1;
        self.unsent.entries.push(Entry {
            seq: self.delivered_seq,
            key: Key { kind: Kind::Attempt, name, ordinal: run.attempt },
            outcome: Outcome::failed(failure.clone()),
            at: run.engine.store.now(),
        });
    }

    /// Returns whether the task runs the changed code.
    ///
    /// It does unless it came past this point before the change. The first answer stands, and is
    /// journaled when it is `true`.
    pub(crate) fn patched(&mut self, name: Name, at: Timestamp) -> bool {
        if let Some(known) = self.patches.get(&name) {
            return *known;
        }
        let patched = !self.is_replaying();
        if patched {
            self.delivered_seq += 1;
            self.unsent.entries.push(Entry {
                seq: self.delivered_seq,
                key: Key { kind: Kind::Patch, name: name.clone(), ordinal: 1 },
                outcome: Outcome::Done(Payload::null()),
                at,
            });
        }
        self.patches.insert(name, patched);
        patched
    }

    /// Adds a report of the task about itself; `false` when a replay repeats it.
    pub(crate) fn note(
        &mut self,
        kind: Kind,
        name: Name,
        attempt: u32,
        note: Payload,
        at: Timestamp,
    ) -> bool {
        if self.is_replaying()
            || self.control.is_some_and(|control| control != ControlFlow::Cancelled)
        {
            return false;
        }
        self.delivered_seq += 1;
        let key = Key { kind, name, ordinal: attempt };
        if kind == Kind::Progress
            && let Some(earlier) = self.replay.progress.replace(self.delivered_seq)
        {
            // An earlier report that is not sent yet is dropped. It is most likely among the last
            // entries.
            match self.unsent.entries.iter().rposition(|entry| entry.seq <= earlier) {
                Some(place)
                    if self.unsent.entries.get(place).is_some_and(|entry| entry.seq == earlier) =>
                {
                    self.unsent.entries.remove(place);
                }
                _ => self.unsent.superseded.push(earlier),
            }
        }
        self.unsent.entries.push(Entry {
            seq: self.delivered_seq,
            key,
            outcome: Outcome::Done(note),
            at,
        });
        true
    }

    /// Notes that a spawned task has the concurrency key of this task.
    pub(crate) fn lines_up(&mut self, spawn: &Key) {
        self.behind.insert(spawn.clone());
    }

    /// Returns whether a spawned task has the concurrency key of this task.
    pub(crate) fn is_behind(&self, spawn: &Key) -> bool {
        self.behind.contains(spawn)
    }

    /// Takes the journal's chunks of a step over many items.
    pub(crate) fn take_items(&mut self, key: &Key) -> Vec<(u64, Payload)> {
        self.replay.items.remove(key).unwrap_or_default()
    }

    /// Journals the progress of a step over many items, in place of earlier entries, and returns
    /// the entry's number.
    pub(crate) fn add_items(
        &mut self,
        key: &Key,
        chunk: Payload,
        at: Timestamp,
        superseded: Vec<u64>,
    ) -> u64 {
        self.delivered_seq += 1;
        let entry =
            Entry { seq: self.delivered_seq, key: key.clone(), outcome: Outcome::Done(chunk), at };
        self.unsent.entries.push(entry);
        self.unsent.superseded.extend(superseded);
        self.delivered_seq
    }

    pub(crate) fn poll_durable(&mut self, seq: u64, waker: &Waker) -> Poll<()> {
        if self.durable_seq >= seq {
            return Poll::Ready(());
        }
        self.durable_wakers.push(waker.clone());
        Poll::Pending
    }

    /// Takes everything that is to be committed now.
    pub(crate) fn take_unsent(&mut self, suspending: bool) -> Unsent {
        if suspending {
            // This run never came to these waits.
            self.unsent.waits_removed.extend(std::mem::take(&mut self.inherited).into_keys());
        }
        self.stored.extend(self.unsent.waits_added.keys().cloned());
        std::mem::take(&mut self.unsent)
    }

    /// Takes the values of the application: operations with their wakers and their work, in the
    /// order of their keys, and the wakers of those that wait for durable entries.
    pub(crate) fn take_live(&mut self) -> (Vec<Operation>, Vec<Waker>) {
        let mut live: Vec<_> = self.live.drain().collect();
        live.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let live = live.into_iter().map(|(_, operation)| operation).collect();
        (live, std::mem::take(&mut self.durable_wakers))
    }

    /// Discards everything that is not durable, because the store has refused it.
    pub(crate) fn discard_unsent(&mut self) {
        self.unsent = Unsent::default();
        self.delivered_seq = self.durable_seq;
        self.failures.retain(|delivered| delivered.seq <= self.durable_seq);
        self.handled = self.handled.min(self.failures.len());
    }

    /// Returns the number of the last durable entry.
    pub(crate) fn durable_seq(&self) -> u64 {
        self.durable_seq
    }

    /// Notes that all entries up to `seq` are durable, and returns the wakers of those that wait
    /// for that.
    pub(crate) fn committed(&mut self, seq: u64, received: &[MessageId]) -> Vec<Waker> {
        self.durable_seq = self.durable_seq.max(seq);
        for message in received {
            self.taken.remove(message);
        }
        std::mem::take(&mut self.durable_wakers)
    }
}

impl Delivered {
    fn is_quoted_in(&self, text: &str) -> bool {
        let error = match self.key.kind {
            Kind::Child => read_child::<()>(&self.key, Outcome::failed(self.failure.clone())),
            Kind::Step => read_step(&self.key, Outcome::failed(self.failure.clone())),
            _ => read_arrival(&self.key, Outcome::failed(self.failure.clone())),
        };
        error.is_err_and(|error| text.contains(&error.to_string()))
    }
}

/// Unlocks a run's operations, then drops the work that is no longer to be done.
///
/// The work is the application's, and may use the context when it is dropped.
#[inline]
pub(crate) fn unlock(mut operations: MutexGuard<'_, Operations>) {
    if !operations.dropped.is_empty() {
        let dropped = std::mem::take(&mut operations.dropped);
        drop(operations);
        drop(dropped);
    }
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

/// Returns the next of these gates whose barrier is durable.
fn durable(gates: &mut VecDeque<(u64, Key)>, durable_seq: u64) -> Option<(u64, Key)> {
    gates.front().filter(|(after, _)| *after <= durable_seq)?;
    gates.pop_front()
}

/// The operations that open gates let through.
pub(crate) enum Opened {
    /// The wakers of closures.
    Closures(Vec<Waker>),
    /// One operation whose work the store does.
    Work(Key, Work),
}
