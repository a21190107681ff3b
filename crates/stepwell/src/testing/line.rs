//! The connection from one process of a simulated world to the store: it may be slow, or cut in one
//! direction or both.

use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use stepwell_core::store::{
    ArrivedMessage, Batch, Changed, Committed, Ends, Happening, HistoryFilter, MessageId, Purge,
    ScheduleFilter, Scheduled, TaskWaits, Transacting, Transition, Wait,
};
use stepwell_core::{
    BoxFuture, Entry, Name, Page, QueueInfo, Scope, Store, StoreError, TaskFilter, TaskId,
    TaskInfo, TaskRecord, TaskTypeInfo, Timestamp, WorkerInfo,
};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::fault::Outage;
use super::runtime::Life;
use super::world::{Inner, Seen};

type Answer<T> = BoxFuture<'static, Result<T, StoreError>>;

/// The store as one process sees it.
#[derive(Clone)]
pub(super) struct Line(Arc<End>);

struct End {
    world: Arc<Inner>,
    /// The process; `None` for a client, which suffers no faults.
    process: Option<(usize, Arc<Life>)>,
    lanes: NonZeroUsize,
    /// The version of the store that the process knows of.
    seen: AtomicU64,
}

impl Line {
    pub(super) fn new(world: Arc<Inner>, process: Option<(usize, Arc<Life>)>) -> Self {
        let lanes =
            NonZeroUsize::MIN.saturating_add(usize::try_from(world.network.roll(3)).unwrap_or(0));
        let seen = AtomicU64::new(world.version.load(Ordering::SeqCst));
        Self(Arc::new(End { world, process, lanes, seen }))
    }

    fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&End) -> Answer<T> + Send + 'static,
        answered: impl FnOnce(&End) + Send + 'static,
    ) -> Answer<T> {
        let end = self.0.clone();
        Box::pin(async move {
            let Some((process, life)) = end.process.clone() else {
                let answer = end.asked(ask).await;
                answered(&end);
                return answer;
            };
            if life.is_dead() {
                return std::future::pending().await;
            }
            let now = Instant::now();
            let (mut there, mut back) = (now + end.pause(), now);
            match end.world.trouble(process) {
                Some((Outage::Refuses, _)) => {
                    sleep_until(there).await;
                    return Err(end.refusal());
                }
                Some((Outage::Hangs, until)) => there = there.max(until),
                Some((Outage::LosesAnswers, until)) => back = back.max(until),
                None => {}
            }
            back = back.max(there + end.pause());
            if back == now {
                let answer = end.asked(ask).await;
                answered(&end);
                return answer;
            }
            // A call in progress reaches the store, even when the process dies meanwhile.
            let (caller, answer) = oneshot::channel();
            let sent = end.clone();
            tokio::spawn(async move {
                sleep_until(there).await;
                if life.is_dead() && (sent.world.embedded || sent.world.network.one_in(2)) {
                    return;
                }
                let answer = sent.asked(ask).await;
                sleep_until(back).await;
                drop(caller.send(answer));
            });
            match answer.await {
                Ok(answer) => {
                    answered(&end);
                    answer
                }
                Err(_) => std::future::pending().await,
            }
        })
    }

    fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn Store) -> Answer<T> + Send + 'static,
    ) -> Answer<T> {
        self.ask(move |end| read(&*end.store()), |_| ())
    }

    /// Calls the store as [`Line::read`] does, and notifies the processes that the store may have
    /// changed.
    fn write<T: Send + 'static>(
        &self,
        write: impl FnOnce(&dyn Store) -> Answer<T> + Send + 'static,
    ) -> Answer<T> {
        self.ask(
            move |end| {
                let (answer, world) = (write(&*end.store()), end.world.clone());
                Box::pin(async move {
                    let answer = answer.await;
                    world.tell_of_change(None);
                    answer
                })
            },
            |_| (),
        )
    }
}

impl End {
    /// Draws the time that a message takes: mostly zero, and sometimes as long as a slow disk
    /// takes.
    fn pause(&self) -> Duration {
        let dice = &self.world.network;
        match dice.roll(100) {
            _ if self.world.is_calm() => Duration::ZERO,
            0..2 => Duration::from_millis(dice.roll(60)),
            2..20 => Duration::from_millis(dice.roll(4)),
            _ => Duration::ZERO,
        }
    }

    /// Draws an error which says that nothing was done, and that a later try may succeed.
    fn refusal(&self) -> StoreError {
        let reason = || "simulated".to_owned();
        match self.world.network.roll(4) {
            0 => StoreError::Full(reason()),
            1 => StoreError::Locked(reason()),
            2 => StoreError::Open { location: reason(), reason: reason(), advice: reason() },
            _ => StoreError::Unavailable(reason()),
        }
    }

    fn asked<T: Send + 'static>(&self, ask: impl FnOnce(&Self) -> Answer<T>) -> Answer<T> {
        self.world.set_time();
        self.world.done(ask(self))
    }

    fn store(&self) -> Arc<dyn Store> {
        self.world.store_of(self.number())
    }

    fn number(&self) -> Option<usize> {
        self.process.as_ref().map(|(number, _)| *number)
    }

    fn commit(&self, batch: Arc<Batch>) -> Answer<Committed> {
        let (world, number) = (self.world.clone(), self.number());
        let committing = world.done(self.store().commit(batch.clone()));
        // The result is ready at once: memory needs no time, and other stores are waited for.
        match now(committing) {
            Ok(result) => {
                if let Ok(committed) = &result {
                    let idle = batch.has_only_claims()
                        && committed.claims.iter().all(|claimed| claimed.tasks.is_empty())
                        && committed.news.ready.is_empty()
                        && committed.news.poked.is_empty()
                        && committed.news.finished.is_empty();
                    if !idle {
                        world.tell_of_change(Some(&self.seen));
                    }
                    world.committed(number, &batch, committed);
                }
                Box::pin(std::future::ready(result))
            }
            Err(committing) => committing,
        }
    }

    fn transacted(&self, asked: Transition, transacting: Transacting) -> Transacting {
        match now(self.world.done(transacting)) {
            Ok(Ok(result)) => {
                self.world.tell_of_change(None);
                // A watcher receives the transaction as a batch of its own.
                let batch = Batch { transitions: vec![asked], ..Batch::default() };
                let mut committed = Committed { transitions: vec![result], ..Committed::default() };
                self.world.committed(self.number(), &batch, &committed);
                Box::pin(std::future::ready(Ok(committed.transitions.remove(0))))
            }
            Ok(Err(error)) => Box::pin(std::future::ready(Err(error))),
            Err(transacting) => transacting,
        }
    }
}

/// Returns the value of a future that is ready at once, or the future.
fn now<T>(mut future: BoxFuture<'static, T>) -> Result<T, BoxFuture<'static, T>> {
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Ok(value),
        Poll::Pending => Err(future),
    }
}

/// Waits for the work of another thread, in no virtual time.
pub(super) fn wait_for<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    // The future has no budget, because the thread has no other future to run.
    let mut future = pin!(tokio::task::unconstrained(future));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

impl Store for Line {
    fn now(&self) -> Timestamp {
        self.0.world.store.now()
    }

    fn commit(&self, batch: Arc<Batch>) -> Answer<Committed> {
        let number = Arc::new(AtomicU64::new(0));
        let told = number.clone();
        self.ask(
            move |end| {
                let answer = end.commit(batch);
                number.store(end.world.commits(), Ordering::Relaxed);
                answer
            },
            move |end| {
                end.world.saw(&Seen::Answered {
                    process: end.number(),
                    number: told.load(Ordering::Relaxed),
                });
            },
        )
    }

    fn lanes(&self) -> NonZeroUsize {
        self.0.lanes
    }

    fn transact(&self, transition: Transition) -> Result<Transacting, Transition> {
        let asked = transition.clone();
        let transacting = self.0.store().transact(transition)?;
        Ok(self.ask(move |end| end.transacted(asked, transacting), |_| ()))
    }

    fn task(&self, task_id: TaskId) -> Answer<Option<TaskInfo>> {
        self.read(move |store| store.task(task_id))
    }

    fn tasks(&self, filter: TaskFilter) -> Answer<Page<TaskInfo>> {
        self.read(move |store| store.tasks(filter))
    }

    fn ends(&self, tasks: Vec<TaskId>) -> Answer<Ends> {
        self.read(move |store| store.ends(tasks))
    }

    fn journal(&self, task_id: TaskId) -> Answer<Vec<Entry>> {
        self.read(move |store| store.journal(task_id))
    }

    fn waits(
        &self,
        scope: Scope,
        prefix: String,
        behind: Option<TaskId>,
        limit: usize,
    ) -> Answer<Page<TaskWaits>> {
        self.read(move |store| store.waits(scope, prefix, behind, limit))
    }

    fn waits_of(&self, task_id: TaskId) -> Answer<Vec<Wait>> {
        self.read(move |store| store.waits_of(task_id))
    }

    fn messages(&self, task_id: TaskId, behind: Option<MessageId>) -> Answer<Page<ArrivedMessage>> {
        self.read(move |store| store.messages(task_id, behind))
    }

    fn import(&self, record: TaskRecord) -> Answer<bool> {
        self.write(move |store| store.import(record))
    }

    fn queues(&self) -> Answer<Vec<QueueInfo>> {
        self.read(|store| store.queues())
    }

    fn workers(&self) -> Answer<Vec<WorkerInfo>> {
        self.read(|store| store.workers())
    }

    fn schedules(&self, which: ScheduleFilter) -> Answer<Page<Scheduled>> {
        self.read(move |store| store.schedules(which))
    }

    fn waiting_types(&self, queues: Vec<Name>) -> Answer<Vec<Name>> {
        self.read(move |store| store.waiting_types(queues))
    }

    fn describe(&self, info: TaskTypeInfo) -> Answer<()> {
        self.write(move |store| store.describe(info))
    }

    fn task_types(&self) -> Answer<Vec<TaskTypeInfo>> {
        self.read(|store| store.task_types())
    }

    fn record(&self, happenings: Vec<Happening>) -> Answer<()> {
        self.read(move |store| store.record(happenings))
    }

    fn history(&self, which: HistoryFilter) -> Answer<Page<(u64, Happening)>> {
        self.read(move |store| store.history(which))
    }

    fn purge(&self, purge: Purge) -> Answer<usize> {
        self.write(move |store| store.purge(purge))
    }

    fn changed(&self) -> BoxFuture<'_, Changed> {
        Box::pin(async {
            let world = &self.0.world;
            loop {
                let changed = world.changed.notified();
                let version = world.version.load(Ordering::SeqCst);
                if self.0.seen.swap(version, Ordering::SeqCst) != version {
                    return Changed::ANYTHING;
                }
                changed.await;
            }
        })
    }
}
