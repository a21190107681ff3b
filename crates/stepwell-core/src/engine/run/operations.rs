//! The operations of one run: every call of its context that is waited for, and the stage that it
//! is in.
//!
//! ```text
//!   step          Gate ──▶ Open ──▶ Finished ──▶ Delivered
//!   transaction   Gate ──▶ Committing ─────────▶ Delivered
//!   keyed spawn   Gate ──▶ Committing ─────────▶ Delivered
//!   wait          Waiting ─────────▶ Finished ──▶ Delivered
//!   value, spawn, emit, send         Finished ──▶ Delivered
//! ```
//!
//! The operation's future moves it as far as `Finished`; the executor opens gates and delivers, one
//! operation at a time, and during a replay straight from any stage.

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

/// What a delivery does to the store besides its journal entry.
pub(crate) enum Effect {
    None,
    Spawn(Box<NewTask>),
    Emit(NewEvent),
    Send(NewMessage),
    Received(MessageId),
}

/// An operation as its future presents itself to be registered.
pub(crate) enum Request {
    /// A step's closure, or (with the work) something that the store does.
    Gate(Option<Work>),
    /// A step's closure for a further try, of which the task's code knows nothing.
    Again,
    /// It waits for something, or for the time.
    Wait { target: Option<Name>, due_at: Option<Timestamp> },
    /// It is finished as soon as it is asked for.
    Finished(Outcome, Effect),
}

/// What the store does for an operation, within the commit of what was delivered before.
pub(crate) enum Work {
    /// Work of the user's, of a type that only the backend knows.
    Transaction(Box<dyn Any + Send>),
    /// The spawn of a child that may exist already.
    Spawn(Box<NewTask>),
}

pub(crate) struct Operation {
    stage: Stage,
    waker: Option<Waker>,
    /// What it waits for, even when that has arrived.
    wait: Option<Awaited>,
}

/// What is waited for, and until when.
type Awaited = (Option<Name>, Option<Timestamp>);

enum Stage {
    /// Its closure may start once everything up to `after` is durable.
    Gate {
        after: u64,
        work: Option<Work>,
    },
    /// Its closure runs.
    Open,
    /// The store does its work.
    Committing,
    Waiting,
    /// Its result is queued for delivery.
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

/// What was delivered, or began to be waited for, since the last commit.
#[derive(Clone, Default)]
pub(crate) struct Unsent {
    pub(crate) entries: Vec<Entry>,
    pub(crate) spawns: Vec<NewTask>,
    pub(crate) events: Vec<NewEvent>,
    pub(crate) messages: Vec<NewMessage>,
    pub(crate) received: Vec<MessageId>,
    pub(crate) waits_added: BTreeMap<Key, Wait>,
    pub(crate) waits_removed: Vec<Key>,
    /// Entries of the journal that others have taken the place of.
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
    /// Closures that run.
    open: usize,
    waiting: usize,
    /// When waits end by themselves.
    timers: BTreeSet<(Timestamp, Key)>,
    /// Shut gates of closures, in the order in which their barriers become durable. Some may be
    /// gone.
    closures: VecDeque<(u64, Key)>,
    /// The same of steps whose work the store does.
    works: VecDeque<(u64, Key)>,
    /// Who waits for what.
    awaited: HashMap<(Kind, Name), BTreeSet<Key>>,
    /// Waits that the store keeps.
    stored: HashSet<Key>,
    /// Waits that an earlier run began and this one has not come to yet, with their due times.
    inherited: BTreeMap<Key, Option<Timestamp>>,
    /// Messages that were given to a waiter, and still are in the store's mailbox.
    taken: HashSet<MessageId>,
    /// A wait was registered since the store was last asked what has arrived.
    look: bool,
    /// Who waits for what is durable.
    durable_wakers: Vec<Waker>,
    /// Spawns of tasks that have the concurrency key of this one, and do not begin before it has
    /// ended.
    behind: HashSet<Key>,
    /// What the code was told of its changes.
    patches: HashMap<Name, bool>,
    unsent: Unsent,
    pub(crate) delivered_seq: u64,
    durable_seq: u64,
    /// The failures that were delivered.
    failures: Vec<Delivered>,
    /// How many of them were delivered before the code last asked for something: it may have
    /// handled those.
    handled: usize,
    /// A compensation was recorded.
    pub(crate) has_compensations: bool,
    /// Work that nobody is to do any more, until [`unlock`] drops it.
    dropped: Vec<Guarded<Work>>,
    /// What an earlier run of the compensation waited for; for after the replay of the code.
    compensation_waits: Vec<Wait>,
    control: Option<ControlFlow>,
}

/// Why the next result was not delivered.
pub(crate) enum Undelivered {
    /// It is in the journal, and nobody waits for it.
    NoWaiter,
    /// It cannot be read. The task's code is not asked what to do about that, and nothing is
    /// journaled, so that the task can go on from there once it can be.
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

/// What there is to do for the executor while the task's future is pending.
pub(crate) enum Standing {
    /// The next entry of the journal has no waiter.
    Stalled,
    /// The code of a task that is compensated has come as far as it came before.
    Replayed,
    /// Gates are shut, or closures run.
    Busy,
    /// The future waits for nothing that the executor knows of.
    Foreign,
    /// The task only waits, for no longer than then.
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
            // What the journal holds is durable. What was rewound keeps its numbers.
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

    /// The code has been replayed for the closures of its compensations, and is gone: makes way for
    /// them.
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

    /// The due time of a wait that an earlier run began.
    pub(crate) fn stored_due(&self, key: &Key) -> Option<Timestamp> {
        self.inherited.get(key).copied().flatten()
    }

    pub(crate) fn control(&self) -> Option<ControlFlow> {
        self.control
    }

    /// Makes every call answer with the reason to stop. Returns the wakers of those that wait, and
    /// `None` when the run has been told that reason or a greater one.
    pub(crate) fn stop(&mut self, why: ControlFlow) -> Option<Vec<Waker>> {
        if self.control >= Some(why) {
            return None;
        }
        self.control = Some(why);
        let mut told: Vec<_> = self.live.iter_mut().collect();
        told.sort_unstable_by_key(|(key, _)| *key);
        Some(told.into_iter().filter_map(|(_, operation)| operation.waker.take()).collect())
    }

    /// Registers an operation when it is new. Returns how far it has come.
    pub(crate) fn poll(&mut self, key: &Key, request: Option<Request>, waker: &Waker) -> Progress {
        if let Some(request) = request {
            self.register(key, request);
        }
        let control = self.control;
        let Some(operation) = self.live.get_mut(key) else {
            // It was cut short. After a delivery, its future does not poll again.
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
            // What a cancelled task's closure has finished is still journaled, so that a retry
            // finds it.
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

    /// An operation has left that stage for good.
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

    /// Delivers to one operation; gives the waker of its future. `None` when it does not wait for a
    /// delivery.
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

    /// Delivers the next result: from the journal, and when that is used up, of those that are
    /// ready. `Ok(None)` when there is nothing to deliver.
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
            // The journal may have held its delivery, or its future may be gone.
            let waits =
                matches!(self.live.get(&key), Some(Operation { stage: Stage::Finished, .. }));
            if waits {
                readable(&key, &outcome)?;
            }
            if waits && self.control.is_some() && !matches!(outcome, Outcome::Done(_)) {
                // Likely because it was told to stop. A retry of the task tries it again.
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

    /// A message was given to a waiter that is gone. Whoever is to get the next one gets it in its
    /// place, and so on, so that messages come in their order; the last one goes to a waiter
    /// that has none, or is left in the mailbox.
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

    /// Whether the journal's next entry is of a step that the code asks for with another input.
    /// Then the step runs again: what was delivered from there on is kept by name, and the
    /// journal says so.
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
        // What has been asked for already finds its result now.
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

    /// Whether the code is run for the closures of its compensations alone.
    pub(crate) fn is_only_replayed(&self) -> bool {
        self.replay.compensation.is_some()
    }

    /// What the journal holds next, and what the code asks for instead.
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

    /// Opens the gates whose barrier is durable, and gives the wakers of their closures; or, when
    /// no commit is on its way (`idle`), takes out one operation whose work the store does with
    /// the next commit.
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

    /// The store has answered for an operation whose work it does: delivers the outcome if the
    /// store has journaled it, and queues it otherwise.
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

    /// Gives what has arrived to those who wait for it.
    pub(crate) fn arrive(&mut self, facts: Facts) {
        let Facts { events, messages, children, more } = facts;
        // Whether another look finds something else: what is taken now, or no longer awaited, does
        // not come again.
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

    /// Ends the waits whose time has come.
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

    /// Whether the store has to be asked what has arrived.
    pub(crate) fn take_look(&mut self) -> bool {
        std::mem::take(&mut self.look)
    }

    /// Says in the journal by which failures an attempt was ended, if by any: the next attempt
    /// tries those again.
    ///
    /// The error that the code gave carries along where it comes from, or quotes the failure's
    /// text. Besides, the code has not handled a failure after which it asked for nothing more.
    /// Every other failure stays as it is: a later step may have been done because of it.
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

    /// Whether the task runs the changed code. It does unless it came past this point before the
    /// change; the first answer stands, and is journaled when it is yes.
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

    /// Adds what the task says of itself; `false` when a replay says it again.
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
            // One that is not sent yet need not be. Most likely it is among the last.
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

    /// Notes that what is spawned has the concurrency key of this task.
    pub(crate) fn lines_up(&mut self, spawn: &Key) {
        self.behind.insert(spawn.clone());
    }

    /// Whether what was spawned has the concurrency key of this task.
    pub(crate) fn is_behind(&self, spawn: &Key) -> bool {
        self.behind.contains(spawn)
    }

    /// What the journal holds of a step over many items.
    pub(crate) fn take_items(&mut self, key: &Key) -> Vec<(u64, Payload)> {
        self.replay.items.remove(key).unwrap_or_default()
    }

    /// Journals what is done of such a step, in the place of earlier entries. Gives the entry's
    /// place.
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

    /// What is to be committed now.
    pub(crate) fn take_unsent(&mut self, suspending: bool) -> Unsent {
        if suspending {
            // This run never came to them.
            self.unsent.waits_removed.extend(std::mem::take(&mut self.inherited).into_keys());
        }
        self.stored.extend(self.unsent.waits_added.keys().cloned());
        std::mem::take(&mut self.unsent)
    }

    /// Takes out what is the application's: operations with their wakers and their work for the
    /// store, in the order of their keys, and the wakers of those who wait for what is durable.
    pub(crate) fn take_live(&mut self) -> (Vec<Operation>, Vec<Waker>) {
        let mut live: Vec<_> = self.live.drain().collect();
        live.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let live = live.into_iter().map(|(_, operation)| operation).collect();
        (live, std::mem::take(&mut self.durable_wakers))
    }

    /// What was sent last, and all since, was refused: the journal ends with what is durable.
    pub(crate) fn discard_unsent(&mut self) {
        self.unsent = Unsent::default();
        self.delivered_seq = self.durable_seq;
        self.failures.retain(|delivered| delivered.seq <= self.durable_seq);
        self.handled = self.handled.min(self.failures.len());
    }

    /// The last entry that is durable.
    pub(crate) fn durable_seq(&self) -> u64 {
        self.durable_seq
    }

    /// What was sent up to `seq` is durable. Gives the wakers of those who wait for that.
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

/// Unlocks a run's operations, then drops the work that nobody is to do any more: it is the
/// application's, and may use the context when it is dropped.
#[inline]
pub(crate) fn unlock(mut operations: MutexGuard<'_, Operations>) {
    if !operations.dropped.is_empty() {
        let dropped = std::mem::take(&mut operations.dropped);
        drop(operations);
        drop(dropped);
    }
}

/// How far an operation has come.
pub(crate) enum Progress {
    Waits,
    /// Its gate is open: the closure of a step may start, unless it has.
    MayStart,
    Delivered(TaskResult<Outcome>),
}

impl Progress {
    /// What was delivered.
    pub(crate) fn delivered(self) -> Poll<TaskResult<Outcome>> {
        match self {
            Self::Delivered(outcome) => Poll::Ready(outcome),
            Self::Waits | Self::MayStart => Poll::Pending,
        }
    }
}

/// The next of these gates whose barrier is durable.
fn durable(gates: &mut VecDeque<(u64, Key)>, durable_seq: u64) -> Option<(u64, Key)> {
    gates.front().filter(|(after, _)| *after <= durable_seq)?;
    gates.pop_front()
}

/// What open gates let through.
pub(crate) enum Opened {
    /// Closures, to be woken.
    Closures(Vec<Waker>),
    /// One operation whose work the store does.
    Work(Key, Work),
}
