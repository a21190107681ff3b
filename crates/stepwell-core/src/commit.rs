//! Group commit: one for all backends.
//!
//! While one batch is on its way to the disk, everything that becomes ready gathers; all of it goes in the next:
//!
//! ```text
//!   store    ├── a ──┤├──── b c d e ────┤├── f g ──┤
//!   arrives  a  b c d e        f g
//! ```
//!
//! An idle engine commits at once; a busy one shares each sync of the disk among hundreds of tasks. There is no timer
//! and nothing to tune.

use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashSet;
use tokio::sync::oneshot;

use crate::hub::Hub;
use crate::ids::TaskId;
use crate::lifecycle::{Broadcast, Lifecycle};
use crate::name::Name;
use crate::queue::QueueChange;
use crate::runtime::{BoxFuture, Runtime, turn};
use crate::store::*;

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;
/// What became of one item of a batch, once its batch is durable.
pub(crate) type Receipt<T> = oneshot::Receiver<Result<T, StoreError>>;

/// A batch on its way.
type Committing = BoxFuture<'static, Result<Committed, StoreError>>;

/// Whoever waits for the items of a batch; each list is in the order of the batch's list.
#[derive(Default)]
struct Answers {
    transitions: Vec<Answer<Result<Applied, Refused>>>,
    commands: Vec<Answer<CommandOutcome>>,
    events: Vec<Answer<bool>>,
    messages: Vec<Answer<bool>>,
    spawns: Vec<Answer<Spawned>>,
    /// The tasks of `spawns`, to be told of.
    spawned: Vec<(TaskId, Name)>,
    queues: Vec<Answer<()>>,
    workers: Vec<Answer<bool>>,
    claims: Vec<Answer<Claimed>>,
}

#[derive(Default)]
struct Gathering {
    batch: Batch,
    answers: Answers,
    on_its_way: bool,
    /// Whether there may be two transitions of one run.
    may_repeat: bool,
}

impl Gathering {
    /// Takes out what is a second transition of its run: a batch holds one of each at most.
    fn put_off_repeated(&mut self) -> Vec<(Transition, Answer<Result<Applied, Refused>>)> {
        let mut seen = HashSet::new();
        let all = std::mem::take(&mut self.batch.transitions).into_iter();
        let (first, later) = all
            .zip(std::mem::take(&mut self.answers.transitions))
            .partition::<Vec<_>, _>(|(transition, _)| seen.insert((transition.task_id, transition.run_id)));
        (self.batch.transitions, self.answers.transitions) = first.into_iter().unzip();
        later
    }
}

/// The one door to the store for everything that writes.
pub(crate) struct GroupCommit {
    store: Arc<dyn Store>,
    runtime: Arc<dyn Runtime>,
    hub: Arc<Hub>,
    lifecycle: Arc<Broadcast>,
    gathering: Mutex<Gathering>,
}

/// Defines the method that adds an item of one kind to the batch that is gathering.
macro_rules! door {
    ($(#[$doc:meta])* $name:ident, $list:ident, $item:ty, $answer:ty) => {
        $(#[$doc])*
        pub(crate) fn $name(self: &Arc<Self>, item: $item) -> Receipt<$answer> {
            let (answer, receipt) = oneshot::channel();
            self.gather(|gathering| {
                gathering.batch.$list.push(item);
                gathering.answers.$list.push(answer);
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
    ) -> Arc<Self> {
        Arc::new(Self { store, runtime, hub, lifecycle, gathering: Mutex::default() })
    }

    door!(gather_transition, transitions, Transition, Result<Applied, Refused>);
    door!(command, commands, Command, CommandOutcome);
    door!(emit, events, NewEvent, bool);
    door!(send, messages, NewMessage, bool);
    door!(change_queue, queues, QueueChange, ());
    door!(signal, workers, WorkerSignal, bool);
    door!(claim, claims, Claim, Claimed);

    pub(crate) fn transition(
        self: &Arc<Self>,
        mut transition: Transition,
    ) -> Receipt<Result<Applied, Refused>> {
        if transition.transaction.is_some() {
            match self.store.transact(transition) {
                Ok(transacting) => {
                    let (answer, receipt) = oneshot::channel();
                    self.runtime.spawn(Box::pin(async move { _ = answer.send(transacting.await) }));
                    return receipt;
                }
                Err(back) => transition = back,
            }
        }
        self.gather_transition(transition)
    }

    /// A transition beside the one that the run's executor may have on its way.
    pub(crate) fn transition_beside(
        self: &Arc<Self>,
        transition: Transition,
    ) -> Receipt<Result<Applied, Refused>> {
        let (answer, receipt) = oneshot::channel();
        self.gather(|gathering| {
            gathering.batch.transitions.push(transition);
            gathering.answers.transitions.push(answer);
            gathering.may_repeat = true;
        });
        receipt
    }

    pub(crate) fn spawn(self: &Arc<Self>, task: NewTask) -> Receipt<Spawned> {
        let (answer, receipt) = oneshot::channel();
        self.gather(|gathering| {
            gathering.answers.spawned.push((task.task_id, task.task_type.clone()));
            gathering.batch.spawns.push(task);
            gathering.answers.spawns.push(answer);
        });
        receipt
    }

    /// Adds many tasks to one batch.
    pub(crate) fn spawn_many(self: &Arc<Self>, tasks: Vec<NewTask>) -> Vec<Receipt<Spawned>> {
        let (answers, receipts): (Vec<_>, Vec<_>) = tasks.iter().map(|_| oneshot::channel()).unzip();
        self.gather(|gathering| {
            let spawned = tasks.iter().map(|task| (task.task_id, task.task_type.clone()));
            gathering.answers.spawned.extend(spawned);
            gathering.batch.spawns.extend(tasks);
            gathering.answers.spawns.extend(answers);
        });
        receipts
    }

    fn gather(self: &Arc<Self>, add: impl FnOnce(&mut Gathering)) {
        let mut gathering = self.gathering.lock().unwrap_or_else(PoisonError::into_inner);
        add(&mut gathering);
        if !gathering.on_its_way && !gathering.batch.is_empty() {
            gathering.on_its_way = true;
            let (committing, answers) = self.send_off(&mut gathering);
            drop(gathering);
            self.runtime.spawn(Box::pin(self.clone().drive(committing, answers)));
        }
    }

    fn send_off(&self, gathering: &mut Gathering) -> (Committing, Answers) {
        let later = if gathering.may_repeat { gathering.put_off_repeated() } else { Vec::new() };
        let batch = std::mem::take(&mut gathering.batch);
        let answers = std::mem::take(&mut gathering.answers);
        gathering.may_repeat = !later.is_empty();
        for (transition, answer) in later {
            gathering.batch.transitions.push(transition);
            gathering.answers.transitions.push(answer);
        }
        (self.store.commit(batch), answers)
    }

    /// Follows a batch to its end, and sends off the next one, until nothing has gathered.
    async fn drive(self: Arc<Self>, mut committing: Committing, mut answers: Answers) {
        loop {
            match committing.await {
                Ok(committed) => {
                    let news = committed.news;
                    self.tell_spawned(answers.spawned, &committed.spawns);
                    give(answers.transitions, committed.transitions);
                    give(answers.commands, committed.commands);
                    give(answers.events, committed.events);
                    give(answers.messages, committed.messages);
                    give(answers.spawns, committed.spawns);
                    let changed = answers.queues.len();
                    give(answers.queues, vec![(); changed]);
                    give(answers.workers, committed.workers);
                    give(answers.claims, committed.claims);
                    self.hub.tell(news);
                }
                Err(error) => {
                    tracing::warn!(%error, "a commit failed");
                    refuse(answers.transitions, &error);
                    refuse(answers.commands, &error);
                    refuse(answers.events, &error);
                    refuse(answers.messages, &error);
                    refuse(answers.spawns, &error);
                    refuse(answers.queues, &error);
                    refuse(answers.workers, &error);
                    refuse(answers.claims, &error);
                }
            }
            match self.next_after_a_turn().await {
                Some(next) => (committing, answers) = next,
                None => return,
            }
        }
    }

    /// The batch of those who were just answered and have something to commit again. They get one turn before the engine
    /// is taken for idle, so that they go together and not the first one alone.
    async fn next_after_a_turn(self: &Arc<Self>) -> Option<(Committing, Answers)> {
        turn().await;
        let mut gathering = self.gathering.lock().unwrap_or_else(PoisonError::into_inner);
        gathering.on_its_way = !gathering.batch.is_empty();
        gathering.on_its_way.then(|| self.send_off(&mut gathering))
    }

    /// Before anybody can tell that one of them has started.
    fn tell_spawned(&self, tasks: Vec<(TaskId, Name)>, spawned: &[Spawned]) {
        for ((task_id, task_type), spawned) in tasks.into_iter().zip(spawned) {
            if let Spawned::Created { .. } = spawned {
                self.lifecycle.tell(|| Some(Lifecycle::TaskSpawned { task_id, task_type }));
            }
        }
    }
}

fn give<T>(answers: Vec<Answer<T>>, results: Vec<T>) {
    for (answer, result) in answers.into_iter().zip(results) {
        // Whoever asked may have gone; what was committed stands.
        let _ = answer.send(Ok(result));
    }
}

fn refuse<T>(answers: Vec<Answer<T>>, error: &StoreError) {
    for answer in answers {
        let _ = answer.send(Err(error.clone()));
    }
}

/// Waits until an item's batch is durable.
pub(crate) async fn durable<T>(receipt: Receipt<T>) -> Result<T, StoreError> {
    receipt.await.unwrap_or(Err(StoreError::Closed))
}
