//! Group commit, the same for all backends.
//!
//! While one batch is on its way to the disk, everything that becomes ready gathers. All of it goes
//! in the next batch:
//!
//! ```text
//!   store    ├── a ──┤├──── b c d e ────┤├── f g ──┤
//!   arrives  a  b c d e        f g
//! ```
//!
//! An idle engine commits at once. A busy one shares each sync of the disk among hundreds of tasks.
//! There is no timer and nothing to tune. Callers that were just answered are about to commit
//! again, and the next batch waits a few turns for them.
//!
//! A store that can commit several batches at a time has further lanes. They take light
//! transitions: journal entries and completions that concern only their own task. Light transitions
//! leave beside the batches on their way as soon as they are at least half as many as the largest
//! of these batches has. The database then works while the tasks of the other batch run, and the
//! lanes share many light transitions evenly. Everything else stays in the main lane. Invariant:
//! the main lane keeps its order. A task's suspension is answered before the claim that wakes it is
//! sent.
//!
//! ```text
//!   main     ├── a b c d ──┤├── g h S ──┤
//!   beside        ├── e f ──┤     ├── i j ──┤
//! ```

pub(crate) mod bisect;
pub(crate) mod eager;
pub(crate) mod hub;

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hashbrown::HashSet;
use tokio::sync::oneshot;
use tracing::{Instrument as _, Span};

use crate::base::guard::{answer, discard};
use crate::base::ids::TaskId;
use crate::base::journal::Outcome;
use crate::base::name::Name;
use crate::base::retry::STORE_RETRY;
use crate::base::runtime::{BoxFuture, MaybeSend, Runtime, turn};
use crate::base::time::{after, until};
use crate::engine::commit::bisect::Part;
use crate::engine::commit::eager::Eager;
use crate::engine::commit::hub::Hub;
use crate::observe::lifecycle::{Broadcast, Lifecycle};
use crate::observe::measures::Measures;
use crate::observe::trace;
use crate::store::queue::QueueChange;
use crate::store::*;

pub(crate) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;
/// A future of one item's result, which is ready when the item's batch is durable.
///
/// Invariant: a receipt is followed to its end. An item whose batch fails is lost unless its owner
/// sends it again. [`insist`] does that for items whose answer nobody waits for.
#[must_use = "an item whose batch fails is lost unless its owner sends it again"]
pub(crate) struct Receipt<T>(oneshot::Receiver<Result<T, StoreError>>);

impl<T> Receipt<T> {
    fn new() -> (Answer<T>, Self) {
        let (answer, receiver) = oneshot::channel();
        (answer, Self(receiver))
    }
}

impl<T> Future for Receipt<T> {
    type Output = Result<T, StoreError>;

    /// Returns [`StoreError::Closed`] when nobody is left to answer.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // No adapter moves the answer about, because the answer is large.
        match Pin::new(&mut self.0).poll(cx) {
            Poll::Ready(Ok(answer)) => Poll::Ready(answer),
            Poll::Ready(Err(_)) => Poll::Ready(Err(StoreError::Closed)),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// The caller of a spawn, and the task that starts when the spawn is durable.
pub(crate) struct Spawner {
    answer: Answer<Spawned>,
    eager: Option<Eager>,
}

impl Spawner {
    /// Answers the caller, and returns the task that starts now.
    fn tell(self, spawned: Spawned) -> Option<Eager> {
        let starts = matches!(spawned, Spawned::Created { claimed: true });
        answer(self.answer, Ok(spawned));
        self.eager.filter(|_| starts)
    }
}

/// A batch that is on its way.
type Committing = BoxFuture<'static, Result<Committed, StoreError>>;

/// The callers that wait for the items of a batch; each list is in the order of the batch's list.
#[derive(Default)]
pub(crate) struct Answers {
    pub(crate) transitions: Vec<Answer<Result<Applied, Refused>>>,
    /// The tasks of `transitions` whose runs report their ends themselves.
    pub(crate) ending: Vec<TaskId>,
    pub(crate) commands: Vec<Answer<CommandOutcome>>,
    pub(crate) events: Vec<Answer<bool>>,
    pub(crate) messages: Vec<Answer<bool>>,
    pub(crate) spawns: Vec<Spawner>,
    /// The lengths of consecutive groups of `spawns`, each of which is spawned as a whole or not at
    /// all.
    pub(crate) groups: Vec<usize>,
    /// The tasks of `spawns`, to be reported.
    pub(crate) spawned: Vec<(TaskId, Name)>,
    pub(crate) schedules: Vec<Answer<ScheduleOutcome>>,
    /// The tasks that each of `schedules` spawns, to be reported.
    pub(crate) scheduled: Vec<Vec<(TaskId, Name)>>,
    pub(crate) queues: Vec<Answer<()>>,
    pub(crate) workers: Vec<Answer<WorkerStatus>>,
    pub(crate) claims: Vec<Answer<Claimed>>,
}

impl Answers {
    /// Returns the number of items that can be committed one without the other.
    pub(crate) fn items(&self) -> usize {
        self.transitions.len()
            + self.commands.len()
            + self.events.len()
            + self.messages.len()
            + self.groups.len()
            + self.schedules.len()
            + self.queues.len()
            + self.workers.len()
            + self.claims.len()
    }

    fn refuse(self, error: &StoreError) {
        refuse(self.transitions, error);
        refuse(self.commands, error);
        refuse(self.events, error);
        refuse(self.messages, error);
        refuse(self.spawns.into_iter().map(|spawner| spawner.answer), error);
        refuse(self.schedules, error);
        refuse(self.queues, error);
        refuse(self.workers, error);
        refuse(self.claims, error);
    }
}

/// The index of a lane.
type Lane = usize;
/// The lane for everything; the others take light transitions only.
const MAIN: Lane = 0;

/// The size of a full batch, in bytes of payloads, because a store may limit what it takes at once.
const FULL: usize = 32 << 20;
/// The number of turns for which a batch waits for more items, and the longest time of such a wait.
///
/// The time is limited because turns take long where tasks compute.
const PATIENCE: (usize, Duration) = (8, Duration::from_millis(10));
/// The largest batch that is answered at once; a larger one is answered after a turn.
const FEW: usize = 4;
/// The largest light transition, in bytes of its payloads.
const LIGHT: usize = 64 << 10;
/// The smallest share of a lane, in light transitions.
const SHARE: usize = 16;

#[derive(Default)]
struct Gathering {
    /// Batches that are full, in the order in which they leave.
    full: VecDeque<(Batch, Answers)>,
    batch: Batch,
    answers: Answers,
    /// The bytes of payloads in `batch`.
    bytes: usize,
    /// The number of additions.
    added: usize,
    /// Transitions that concern only their own tasks, and may go in any lane; always empty with one
    /// lane.
    light: Vec<(Transition, Answer<Result<Applied, Refused>>)>,
    /// The number of transitions on their way in each lane.
    ///
    /// It is `usize::MAX` while a batch is about to leave, or when nothing may go beside the batch.
    lanes: Vec<Option<usize>>,
    /// The number of the last batch that left in each lane.
    numbers: Vec<u64>,
    /// The number of batches that have left.
    left: u64,
    /// Set when two transitions of one run may have gathered.
    ///
    /// No transition goes beside such a batch then, neither now nor while it is on its way.
    may_repeat: bool,
    /// Set when the last batch had one item, and nothing has gathered since.
    ///
    /// The next item is then probably from the same owner, and has nobody to wait for.
    lone: bool,
}

impl Gathering {
    fn new(lanes: NonZeroUsize) -> Self {
        Self { lanes: vec![None; lanes.get()], numbers: vec![0; lanes.get()], ..Self::default() }
    }

    fn set(&mut self, lane: Lane, on_its_way: Option<usize>) {
        if let Some(slot) = self.lanes.get_mut(lane) {
            *slot = on_its_way;
        }
    }

    fn add(&mut self, transition: Transition, answer: Answer<Result<Applied, Refused>>) {
        if self.lanes.len() > 1 && is_light(&transition) {
            self.light.push((transition, answer));
        } else {
            self.add_heavy(transition, answer);
        }
    }

    fn add_heavy(&mut self, transition: Transition, answer: Answer<Result<Applied, Refused>>) {
        let bytes = weight(&transition);
        self.batch.transitions.push(transition);
        self.answers.transitions.push(answer);
        self.grow(bytes);
    }

    /// Counts the bytes that were added to the batch, and sets a full batch aside.
    fn grow(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= FULL {
            let full = self.take_batch();
            self.full.push_back(full);
        }
    }

    fn take_batch(&mut self) -> (Batch, Answers) {
        self.bytes = 0;
        (std::mem::take(&mut self.batch), std::mem::take(&mut self.answers))
    }

    /// Returns the lane in which a batch can leave now.
    fn can_leave(&self) -> Option<Lane> {
        let largest = self.lanes.iter().flatten().max();
        let main_is_free = self.lanes.first().is_some_and(Option::is_none);
        if self.may_repeat && largest.is_some() {
            // A batch that is on its way may hang. Heartbeats do not wait for it, and neither do
            // other items that are not transitions.
            return (main_is_free && self.batch.has_more_than_transitions()).then_some(MAIN);
        }
        let heavy = !(self.full.is_empty() && self.batch.is_empty());
        if heavy && main_is_free {
            return Some(MAIN);
        }
        let light = self.light.len();
        let enough = light > 0 && largest.is_none_or(|largest| light >= largest.div_ceil(2));
        // The last lane comes first, so that the main lane stays free for all other items.
        self.lanes.iter().rposition(Option::is_none).filter(|_| enough)
    }

    /// Returns the number of light transitions that leave next, an equal share for each lane.
    fn share(&self) -> usize {
        let on_their_way =
            self.lanes.iter().flatten().fold(0_usize, |sum, lane| sum.saturating_add(*lane));
        let all = self.light.len();
        let share = all.saturating_add(on_their_way).div_ceil(self.lanes.len());
        if self.may_repeat { all } else { share.max(SHARE).min(all) }
    }

    /// Takes the batch without its transitions.
    fn take_without_transitions(&mut self) -> (Batch, Answers) {
        let transitions = std::mem::take(&mut self.batch.transitions);
        let answers = std::mem::take(&mut self.answers.transitions);
        let taken = self.take_batch();
        transitions
            .into_iter()
            .zip(answers)
            .for_each(|(transition, answer)| self.add_heavy(transition, answer));
        taken
    }

    /// Takes the batch that leaves in the lane.
    fn take(&mut self, lane: Lane) -> (Batch, Answers) {
        self.left += 1;
        if let Some(number) = self.numbers.get_mut(lane) {
            *number = self.left;
        }
        if self.may_repeat && self.lanes.iter().any(Option::is_some) {
            self.set(lane, Some(0));
            return self.take_without_transitions();
        }
        let share = self.share();
        let (mut batch, mut answers) = match lane {
            MAIN => self.full.pop_front().unwrap_or_else(|| self.take_batch()),
            _ => Default::default(),
        };
        let heavy = std::mem::take(&mut batch.transitions).into_iter();
        let all =
            self.light.drain(..share).chain(heavy.zip(std::mem::take(&mut answers.transitions)));
        let repeats = self.may_repeat;
        if repeats {
            // A batch holds at most one transition of each run.
            let mut seen = HashSet::new();
            let (first, later) = all.partition::<Vec<_>, _>(|(transition, _)| {
                seen.insert((transition.task_id, transition.run_id))
            });
            (batch.transitions, answers.transitions) = first.into_iter().unzip();
            later.into_iter().for_each(|(transition, answer)| self.add_heavy(transition, answer));
            self.may_repeat = !(self.full.is_empty() && self.batch.is_empty());
        } else {
            (batch.transitions, answers.transitions) = all.unzip();
        }
        let ends =
            |transition: &&Transition| matches!(transition.next, Next::Fail(_) | Next::Cancel);
        answers.ending =
            batch.transitions.iter().filter(ends).map(|transition| transition.task_id).collect();
        self.set(lane, Some(if repeats { usize::MAX } else { batch.transitions.len() }));
        (batch, answers)
    }
}

/// Returns whether a transition concerns only its own task, and is small.
fn is_light(transition: &Transition) -> bool {
    transition.only_journals()
        && weight(transition) <= LIGHT
        && matches!(transition.next, Next::Continue { collect: false } | Next::Complete(_))
}

/// Returns the bytes of a transition's payloads.
fn weight(transition: &Transition) -> usize {
    let entries = transition.entries.iter().map(|entry| match &entry.outcome {
        Outcome::Done(payload) => payload.as_str().len(),
        Outcome::Failed(_) | Outcome::Retrying { .. } => 0,
    });
    let keyed = transition.keyed.iter().map(|keyed| &keyed.task);
    let spawns = transition.spawns.iter().chain(keyed).map(|task| task.params.as_str().len());
    let events = transition.events.iter().map(|event| event.payload.as_str().len());
    let messages = transition.messages.iter().map(|message| message.payload.as_str().len());
    let output =
        if let Next::Complete(output) = &transition.next { output.as_str().len() } else { 0 };
    output + entries.chain(spawns).chain(events).chain(messages).sum::<usize>()
}

/// The engine's only access to the store for writes.
pub(crate) struct GroupCommit {
    store: Arc<dyn Store>,
    runtime: Arc<dyn Runtime>,
    hub: Arc<Hub>,
    lifecycle: Arc<Broadcast>,
    measures: Arc<Measures>,
    gathering: Mutex<Gathering>,
}

/// Defines the method that adds an item of one kind to the batch that is gathering.
macro_rules! door {
    ($name:ident, $list:ident, $item:ty, $answer:ty, $bytes:expr) => {
        pub(crate) fn $name(self: &Arc<Self>, item: $item) -> Receipt<$answer> {
            let (answer, receipt) = Receipt::new();
            let bytes: fn(&$item) -> usize = $bytes;
            self.gather(|gathering| {
                let bytes = bytes(&item);
                gathering.batch.$list.push(item);
                gathering.answers.$list.push(answer);
                gathering.grow(bytes);
            });
            receipt
        }
    };
}

impl GroupCommit {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        runtime: Arc<dyn Runtime>,
        hub: Arc<Hub>,
        lifecycle: Arc<Broadcast>,
        measures: Arc<Measures>,
    ) -> Arc<Self> {
        let gathering = Gathering::new(store.lanes());
        Arc::new(Self {
            store,
            runtime,
            hub,
            lifecycle,
            measures,
            gathering: Mutex::new(gathering),
        })
    }

    door!(command, commands, Command, CommandOutcome, |_| 0);
    door!(emit, events, NewEvent, bool, |event| event.payload.as_str().len());
    door!(send, messages, NewMessage, bool, |message| message.payload.as_str().len());
    door!(change_queue, queues, QueueChange, (), |_| 0);
    door!(signal, workers, WorkerSignal, WorkerStatus, |_| 0);
    door!(claim, claims, Claim, Claimed, |_| 0);

    pub(crate) fn transition(
        self: &Arc<Self>,
        mut transition: Transition,
    ) -> Receipt<Result<Applied, Refused>> {
        if transition.transaction.is_some() {
            match self.store.transact(transition) {
                Ok(transacting) => {
                    let (caller, receipt) = Receipt::new();
                    self.runtime.spawn(Box::pin(async move { answer(caller, transacting.await) }));
                    return receipt;
                }
                Err(back) => transition = back,
            }
        }
        let (answer, receipt) = Receipt::new();
        self.gather(|gathering| gathering.add(transition, answer));
        receipt
    }

    /// Adds a transition beside the one that the run's executor may have on its way.
    pub(crate) fn transition_beside(
        self: &Arc<Self>,
        transition: Transition,
    ) -> Receipt<Result<Applied, Refused>> {
        let (answer, receipt) = Receipt::new();
        self.gather(|gathering| {
            gathering.add_heavy(transition, answer);
            gathering.may_repeat = true;
        });
        receipt
    }

    pub(crate) fn spawn(self: &Arc<Self>, mut task: NewTask) -> Receipt<Spawned> {
        let (answer, receipt) = Receipt::new();
        let eager = Eager::reserve(&self.hub, &mut task);
        self.gather(|gathering| {
            gathering.answers.spawned.push((task.task_id, task.task_type.clone()));
            let bytes = task.params.as_str().len();
            gathering.batch.spawns.push(task);
            gathering.answers.spawns.push(Spawner { answer, eager });
            gathering.answers.groups.push(1);
            gathering.grow(bytes);
        });
        receipt
    }

    pub(crate) fn change_schedule(
        self: &Arc<Self>,
        change: ScheduleChange,
    ) -> Receipt<ScheduleOutcome> {
        let (answer, receipt) = Receipt::new();
        let tasks = change.spawns();
        let params: usize = tasks.iter().map(|task| task.params.as_str().len()).sum();
        let bytes = params + change.plan().map_or(0, |plan| plan.definition.as_str().len());
        let spawned = tasks.iter().map(|task| (task.task_id, task.task_type.clone())).collect();
        self.gather(|gathering| {
            gathering.answers.scheduled.push(spawned);
            gathering.batch.schedules.push(change);
            gathering.answers.schedules.push(answer);
            gathering.grow(bytes);
        });
        receipt
    }

    /// Adds many tasks to one batch.
    pub(crate) fn spawn_many(self: &Arc<Self>, mut tasks: Vec<NewTask>) -> Vec<Receipt<Spawned>> {
        let spawner = |task| {
            let (answer, receipt) = Receipt::new();
            (Spawner { answer, eager: Eager::reserve(&self.hub, task) }, receipt)
        };
        let (spawners, receipts): (Vec<_>, Vec<_>) = tasks.iter_mut().map(spawner).unzip();
        self.gather(|gathering| {
            let spawned = tasks.iter().map(|task| (task.task_id, task.task_type.clone()));
            gathering.answers.spawned.extend(spawned);
            let bytes = tasks.iter().map(|task| task.params.as_str().len()).sum();
            gathering.answers.groups.push(tasks.len());
            gathering.batch.spawns.extend(tasks);
            gathering.answers.spawns.extend(spawners);
            gathering.grow(bytes);
        });
        receipts
    }

    fn gathering(&self) -> MutexGuard<'_, Gathering> {
        self.gathering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the numbers of the batches that are on their way.
    ///
    /// A batch that is still there some time later waits for the store.
    pub(crate) fn on_their_way(&self) -> Vec<u64> {
        let gathering = self.gathering();
        let numbered = gathering.lanes.iter().zip(&gathering.numbers);
        numbered.filter(|(lane, _)| lane.is_some()).map(|(_, number)| *number).collect()
    }

    fn gather(self: &Arc<Self>, add: impl FnOnce(&mut Gathering)) {
        let mut gathering = self.gathering();
        add(&mut gathering);
        gathering.added = gathering.added.wrapping_add(1);
        self.set_off(gathering);
    }

    /// Starts to drive a lane in which a batch can leave.
    fn set_off(self: &Arc<Self>, mut gathering: MutexGuard<'_, Gathering>) {
        let patient = !std::mem::take(&mut gathering.lone);
        if let Some(lane) = gathering.can_leave() {
            gathering.set(lane, Some(usize::MAX));
            drop(gathering);
            self.runtime.spawn(Box::pin(self.clone().drive(lane, patient)));
        }
    }

    /// Sends the gathered items and waits for their commit, until nothing can leave.
    async fn drive(self: Arc<Self>, lane: Lane, mut patient: bool) {
        let mut held = HeldLane { commit: self.clone(), lane };
        loop {
            if patient {
                self.let_others_come().await;
            }
            let Some((span, committing, batch, answers)) = self.next(&mut held.lane) else {
                return;
            };
            patient = true;
            let sent_at = self.runtime.now();
            let committed = committing.instrument(span).await;
            let (items, begun) = match committed {
                Ok(committed) => {
                    let items = committed.transitions.len() + committed.spawns.len();
                    self.measures.with_store(|measures| {
                        measures.commit_items.record(items as f64);
                        measures.commit_seconds.record(until(sent_at, self.runtime.now()));
                    });
                    if items > FEW {
                        // This turn wakes the runtime's other thread before the answers do. A
                        // sleeping thread is woken by the first task that becomes ready, takes only
                        // that one, sleeps, and is woken by the next. Threads that share a core
                        // would change places at each task.
                        turn().await;
                    }
                    let begun = self.answer(committed, answers);
                    // The batch may hold closures of the application.
                    discard(batch);
                    (items, begun)
                }
                Err(error) => {
                    self.failed(&error);
                    self.refused(batch, answers, &error).await;
                    (0, Vec::new())
                }
            };
            let goes_on = self.leave(held.lane, items);
            // Tasks start only now: the first commit of a task finds the lane free, and no turns to
            // wait for.
            begun.into_iter().for_each(Eager::start);
            if !goes_on {
                return;
            }
        }
    }

    /// Frees the lane, unless a batch can leave in it now, and returns whether one can.
    fn leave(&self, lane: Lane, items: usize) -> bool {
        let mut gathering = self.gathering();
        gathering.set(lane, None);
        let goes_on = gathering.can_leave().is_some();
        if goes_on {
            gathering.set(lane, Some(usize::MAX));
        } else {
            gathering.lone = items == 1;
        }
        goes_on
    }

    fn failed(&self, error: &StoreError) {
        tracing::warn!(%error, "a commit failed");
        self.measures.with_store(|measures| measures.commits_failed.increment(1));
    }

    /// Answers the callers of a batch with the results of their items, and returns the tasks that
    /// start.
    fn answer(&self, committed: Committed, answers: Answers) -> Vec<Eager> {
        let news = committed.news;
        self.tell_spawned(answers.spawned, &committed.spawns);
        self.tell_ended(&news, &answers.ending);
        let scheduled = answers.scheduled.into_iter().zip(&committed.schedules);
        for (tasks, _) in scheduled.filter(|(_, outcome)| outcome.has_spawned()) {
            tasks.into_iter().for_each(|(task_id, task_type)| self.tell_spawn(task_id, task_type));
        }
        give(answers.transitions, committed.transitions);
        give(answers.commands, committed.commands);
        give(answers.events, committed.events);
        give(answers.messages, committed.messages);
        let spawns = answers.spawns.into_iter().zip(committed.spawns);
        let begun = spawns.filter_map(|(spawner, result)| spawner.tell(result)).collect();
        give(answers.schedules, committed.schedules);
        let changed = answers.queues.len();
        give(answers.queues, vec![(); changed]);
        give(answers.workers, committed.workers);
        give(answers.claims, committed.claims);
        self.hub.tell(news);
        begun
    }

    /// Answers the callers of a batch that was refused.
    ///
    /// A batch that was refused for some of its items is committed without them.
    async fn refused(&self, batch: Arc<Batch>, answers: Answers, error: &StoreError) {
        // The last part is sent next.
        let mut parts = self.parts(batch, answers, error);
        while let Some((batch, answers)) = parts.pop() {
            if answers.items() == 0 {
                continue;
            }
            let batch = Arc::new(batch);
            match self.store.commit(batch.clone()).await {
                Ok(committed) => self.answer(committed, answers).into_iter().for_each(Eager::start),
                Err(error) => {
                    self.failed(&error);
                    parts.append(&mut self.parts(batch, answers, &error));
                }
            }
        }
    }

    /// Returns the halves of a batch that was refused for an item, the second one first.
    ///
    /// A batch that cannot be halved is refused as a whole: its callers are answered.
    fn parts(&self, batch: Arc<Batch>, answers: Answers, error: &StoreError) -> Vec<Part> {
        if answers.items() < 2 || !error.is_of_an_item() {
            discard(batch);
            answers.refuse(error);
            return Vec::new();
        }
        let mut whole = (Arc::unwrap_or_clone(batch), answers);
        bisect::without_works(&mut whole, error);
        let [first, second] = bisect::halve(whole);
        vec![second, first]
    }

    /// Waits for the callers that are ready by now, or were just answered and are about to commit
    /// again.
    ///
    /// A batch leaves when a turn has brought nothing more. The callers then go together. If the
    /// first ones left alone, the parts would stay apart from then on, each waiting for the other's
    /// commit.
    async fn let_others_come(&self) {
        let (turns, until) = (PATIENCE.0, after(self.runtime.now(), PATIENCE.1));
        for _ in 0..turns {
            let before = self.gathering().added;
            turn().await;
            if self.gathering().added == before || self.runtime.now() > until {
                break;
            }
        }
    }

    /// Takes the next batch in whichever lane it can leave, and sends it to the store.
    fn next(self: &Arc<Self>, lane: &mut Lane) -> Option<(Span, Committing, Arc<Batch>, Answers)> {
        let mut gathering = self.gathering();
        gathering.set(*lane, None);
        *lane = gathering.can_leave()?;
        let (batch, answers) = gathering.take(*lane);
        self.set_off(gathering);
        let span = trace::commit(&batch);
        let batch = Arc::new(batch);
        Some((span, self.store.commit(batch.clone()), batch, answers))
    }

    /// Reports spawned tasks, before anything can report that one of them has started.
    fn tell_spawned(&self, tasks: Vec<(TaskId, Name)>, spawned: &[Spawned]) {
        for ((task_id, task_type), spawned) in tasks.into_iter().zip(spawned) {
            if let Spawned::Created { .. } = spawned {
                self.tell_spawn(task_id, task_type);
            }
        }
    }

    /// Reports tasks that ended without a run: they were cancelled, or killed their last worker.
    fn tell_ended(&self, news: &News, ending: &[TaskId]) {
        for (task_id, finish) in
            news.finished.iter().filter(|(task_id, _)| !ending.contains(task_id))
        {
            let task_id = *task_id;
            self.lifecycle.tell(|| match finish {
                Finish::Completed(_) => None,
                Finish::Failed(failure) => Some(Lifecycle::TaskFailed {
                    task_id,
                    failure: failure.clone(),
                    retry_at: None,
                }),
                Finish::Cancelled => Some(Lifecycle::TaskCancelled { task_id }),
            });
        }
    }

    fn tell_spawn(&self, task_id: TaskId, task_type: Name) {
        self.measures.count_spawn(&task_type);
        self.lifecycle.tell(|| Some(Lifecycle::TaskSpawned { task_id, task_type }));
    }
}

/// A lane that is being driven, which a panic frees.
///
/// No batch could leave in the lane otherwise.
struct HeldLane {
    commit: Arc<GroupCommit>,
    lane: Lane,
}

impl Drop for HeldLane {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut gathering = self.commit.gathering();
            gathering.set(self.lane, None);
            self.commit.set_off(gathering);
        }
    }
}

fn give<T>(answers: Vec<Answer<T>>, results: Vec<T>) {
    answers.into_iter().zip(results).for_each(|(caller, result)| answer(caller, Ok(result)));
}

fn refuse<T>(answers: impl IntoIterator<Item = Answer<T>>, error: &StoreError) {
    answers.into_iter().for_each(|caller| answer(caller, Err(error.clone())));
}

/// Sends an item in the background until the store has answered, or has refused it for good.
///
/// It is for items whose answer nobody waits for.
pub(crate) fn insist<T: MaybeSend + 'static>(
    runtime: &Arc<dyn Runtime>,
    send: impl Fn() -> Receipt<T> + MaybeSend + 'static,
) {
    let sending = until_answered(runtime.clone(), send);
    runtime.spawn(Box::pin(async { _ = sending.await }));
}

/// Sends an item until the store has answered, or has refused it for good.
pub(crate) async fn until_answered<T: MaybeSend + 'static>(
    runtime: Arc<dyn Runtime>,
    send: impl Fn() -> Receipt<T> + MaybeSend + 'static,
) -> Result<T, StoreError> {
    let mut tries = 0;
    loop {
        match send().await {
            Err(error) if error.is_transient() && !matches!(error, StoreError::Closed) => {
                tries += 1;
                let pause = STORE_RETRY.delay(tries, runtime.random()).unwrap_or_default();
                runtime.sleep(pause).await;
            }
            result => return result,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends by a panic")]
mod tests {
    use uuid::Uuid;

    use super::*;

    const JOURNALS: Next = Next::Continue { collect: false };
    const SUSPENDS: Next = Next::Suspend { wake_at: None };

    fn add(gathering: &mut Gathering, run: u128, next: Next) {
        let (answer, _) = Receipt::new();
        let id = Uuid::from_u128(run);
        gathering.add(Transition::new(id.into(), id.into(), next), answer);
    }

    fn gathering() -> Gathering {
        Gathering::new(NonZeroUsize::MIN.saturating_add(1))
    }

    /// Returns the lane in which a batch leaves, and the number of its transitions.
    fn leaves(gathering: &mut Gathering) -> Option<(Lane, usize)> {
        let lane = gathering.can_leave()?;
        let (batch, answers) = gathering.take(lane);
        assert_eq!(batch.transitions.len(), answers.transitions.len());
        Some((lane, batch.transitions.len()))
    }

    #[test]
    fn an_idle_engine_sends_at_once_and_a_busy_one_half_as_much_again_beside() {
        let mut gathering = gathering();
        assert_eq!(leaves(&mut gathering), None);
        (0..4).for_each(|run| add(&mut gathering, run, JOURNALS));
        assert_eq!(
            leaves(&mut gathering),
            Some((1, 4)),
            "the main lane is left to those who need it"
        );
        add(&mut gathering, 4, JOURNALS);
        assert_eq!(leaves(&mut gathering), None, "one is less than half of four");
        add(&mut gathering, 5, JOURNALS);
        assert_eq!(leaves(&mut gathering), Some((MAIN, 2)));
        add(&mut gathering, 6, JOURNALS);
        add(&mut gathering, 7, JOURNALS);
        assert_eq!(leaves(&mut gathering), None, "both lanes are in use");
        gathering.set(1, None);
        assert_eq!(leaves(&mut gathering), Some((1, 2)));
    }

    #[test]
    fn a_crowd_is_shared_among_the_lanes() {
        let mut gathering = gathering();
        (0..100).for_each(|run| add(&mut gathering, run, JOURNALS));
        assert_eq!(leaves(&mut gathering), Some((1, 50)));
        assert_eq!(leaves(&mut gathering), Some((MAIN, 50)));
        (100..160).for_each(|run| add(&mut gathering, run, JOURNALS));
        gathering.set(MAIN, None);
        assert_eq!(leaves(&mut gathering), Some((MAIN, 55)), "as many as make them alike");
        gathering.set(1, None);
        assert_eq!(
            leaves(&mut gathering),
            None,
            "the rest is less than half of what is on its way"
        );
    }

    #[test]
    fn where_there_is_one_lane_all_goes_in_it_in_its_order() {
        let mut gathering = Gathering::new(NonZeroUsize::MIN);
        (0..100).for_each(|run| add(&mut gathering, run, JOURNALS));
        assert_eq!(leaves(&mut gathering), Some((MAIN, 100)));
        add(&mut gathering, 100, JOURNALS);
        assert_eq!(leaves(&mut gathering), None);
    }

    #[test]
    fn what_concerns_others_stays_in_the_main_lane() {
        let mut gathering = gathering();
        gathering.set(MAIN, Some(0));
        add(&mut gathering, 1, SUSPENDS);
        assert_eq!(leaves(&mut gathering), None);
        add(&mut gathering, 2, JOURNALS);
        assert_eq!(leaves(&mut gathering), Some((1, 1)));
        gathering.set(MAIN, None);
        assert_eq!(leaves(&mut gathering), Some((MAIN, 1)));
    }

    #[test]
    fn large_payloads_go_in_several_batches_in_their_order() {
        let mut gathering = gathering();
        let large = || Next::Complete(crate::Payload::from_json("1".repeat(FULL / 2)));
        assert!(!is_light(&Transition::new(
            Uuid::from_u128(1).into(),
            Uuid::from_u128(1).into(),
            large()
        )));
        for run in 0..5 {
            add(&mut gathering, run, large());
        }
        for expected in [Some((MAIN, 2)), Some((MAIN, 2)), Some((MAIN, 1)), None] {
            assert_eq!(leaves(&mut gathering), expected);
            gathering.set(MAIN, None);
        }
    }

    #[test]
    fn a_run_never_has_a_transition_in_each_lane() {
        let mut gathering = gathering();
        gathering.set(MAIN, Some(0));
        add(&mut gathering, 1, JOURNALS);
        assert_eq!(leaves(&mut gathering), Some((1, 1)));
        gathering.set(MAIN, None);
        // The run is stopped as stuck while its entry is on its way.
        add(&mut gathering, 1, Next::Release);
        gathering.may_repeat = true;
        assert_eq!(leaves(&mut gathering), None);
        gathering.set(1, None);
        add(&mut gathering, 1, JOURNALS);
        assert_eq!(leaves(&mut gathering), Some((MAIN, 1)), "one of each run in a batch");
        add(&mut gathering, 2, JOURNALS);
        assert_eq!(leaves(&mut gathering), None, "and none beside it");
        gathering.set(MAIN, None);
        assert_eq!(leaves(&mut gathering), Some((MAIN, 2)));
    }

    #[test]
    fn signs_of_life_pass_a_batch_that_hangs() {
        let mut gathering = gathering();
        gathering.set(MAIN, Some(0));
        add(&mut gathering, 1, JOURNALS);
        assert_eq!(leaves(&mut gathering), Some((1, 1)));
        gathering.set(MAIN, None);
        add(&mut gathering, 1, Next::Release);
        gathering.may_repeat = true;
        let worker_id = Uuid::from_u128(1).into();
        gathering.batch.workers.push(WorkerSignal::Heartbeat { worker_id });
        gathering.answers.workers.push(Receipt::new().0);
        assert_eq!(gathering.can_leave(), Some(MAIN));
        let (batch, answers) = gathering.take(MAIN);
        assert_eq!(
            (batch.workers.len(), answers.workers.len(), batch.transitions.len()),
            (1, 1, 0)
        );
        add(&mut gathering, 1, JOURNALS);
        gathering.set(MAIN, None);
        assert_eq!(leaves(&mut gathering), None, "what is the run's waits");
        gathering.set(1, None);
        assert_eq!(leaves(&mut gathering), Some((MAIN, 1)));
    }
}
