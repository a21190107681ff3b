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

pub(crate) mod answers;
pub(crate) mod bisect;
pub(crate) mod eager;
mod gathering;
pub(crate) mod hub;
pub(crate) mod receipt;

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::Instrument as _;

use crate::base::guard::{answer, discard};
use crate::base::runtime::{BoxFuture, Runtime, turn};
use crate::base::time::after;
use crate::engine::commit::answers::{Answers, Spawner, give};
use crate::engine::commit::bisect::Part;
use crate::engine::commit::eager::Eager;
use crate::engine::commit::gathering::{Gathering, Lane};
use crate::engine::commit::hub::Hub;
use crate::engine::commit::receipt::Receipt;
use crate::observe::observer::{ObservedCommit, Observer};
use crate::store::queue::QueueChange;
use crate::store::*;

/// A batch that is on its way.
struct Sent {
    observed: ObservedCommit,
    committing: BoxFuture<'static, Result<Committed, StoreError>>,
    batch: Arc<Batch>,
    answers: Answers,
}

/// The number of turns for which a batch waits for more items, and the longest time of such a wait.
///
/// The time is limited because turns take long where tasks compute.
const PATIENCE: (usize, Duration) = (8, Duration::from_millis(10));
/// The largest batch that is answered at once; a larger one is answered after a turn.
const FEW: usize = 4;

/// The engine's only access to the store for writes.
pub(crate) struct GroupCommit {
    store: Arc<dyn Store>,
    runtime: Arc<dyn Runtime>,
    hub: Arc<Hub>,
    observer: Arc<Observer>,
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
        observer: Arc<Observer>,
    ) -> Arc<Self> {
        let gathering = Mutex::new(Gathering::new(store.lanes()));
        Arc::new(Self { store, runtime, hub, observer, gathering })
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
        self.gather(|gathering| gathering.add_beside(transition, answer));
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
        self.gathering().on_their_way()
    }

    fn gather(self: &Arc<Self>, add: impl FnOnce(&mut Gathering)) {
        let mut gathering = self.gathering();
        add(&mut gathering);
        gathering.added = gathering.added.wrapping_add(1);
        self.set_off(gathering);
    }

    /// Starts to drive a lane in which a batch can leave.
    fn set_off(self: &Arc<Self>, mut gathering: MutexGuard<'_, Gathering>) {
        if let Some((lane, patient)) = gathering.set_off() {
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
            let Some(Sent { observed, committing, batch, answers }) = self.next(&mut held.lane)
            else {
                return;
            };
            patient = true;
            let ObservedCommit { span, begun } = observed;
            let (items, begun) = match committing.instrument(span).await {
                Ok(committed) => {
                    self.observer.committed(begun, &committed);
                    let items = committed.transitions.len() + committed.spawns.len();
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
                    self.observer.commit_failed(&error);
                    self.refused(batch, answers, &error).await;
                    (0, Vec::new())
                }
            };
            let goes_on = self.gathering().came_back(held.lane, items);
            // Tasks start only now: the first commit of a task finds the lane free, and no turns to
            // wait for.
            begun.into_iter().for_each(Eager::start);
            if !goes_on {
                return;
            }
        }
    }

    /// Answers the callers of a batch with the results of their items, and returns the tasks that
    /// start.
    fn answer(&self, committed: Committed, mut answers: Answers) -> Vec<Eager> {
        self.report(&mut answers, &committed);
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
        self.hub.tell(committed.news);
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
                    self.observer.commit_failed(&error);
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
    fn next(self: &Arc<Self>, lane: &mut Lane) -> Option<Sent> {
        let mut gathering = self.gathering();
        let (batch, answers) = gathering.next(lane)?;
        self.set_off(gathering);
        let (observed, batch) = (self.observer.commit_started(&batch), Arc::new(batch));
        Some(Sent { observed, committing: self.store.commit(batch.clone()), batch, answers })
    }

    /// Reports the tasks that a batch has spawned, before anything can report that one of them has
    /// started, and those that it has ended.
    fn report(&self, answers: &mut Answers, committed: &Committed) {
        let spawned = mem::take(&mut answers.spawned).into_iter().zip(&committed.spawns);
        for ((task_id, task_type), spawned) in spawned {
            if let Spawned::Created { .. } = spawned {
                self.observer.spawned(task_id, task_type);
            }
        }
        for (task_id, finish) in &committed.news.finished {
            if !answers.ending.contains(task_id) {
                self.observer.ended_without_a_run(*task_id, finish);
            }
        }
        let scheduled = mem::take(&mut answers.scheduled).into_iter().zip(&committed.schedules);
        for (tasks, _) in scheduled.filter(|(_, outcome)| outcome.has_spawned()) {
            tasks
                .into_iter()
                .for_each(|(task_id, task_type)| self.observer.spawned(task_id, task_type));
        }
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
            gathering.free(self.lane);
            self.commit.set_off(gathering);
        }
    }
}
