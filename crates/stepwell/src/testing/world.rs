//! A world of several processes on one store, in which a seed decides what happens.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stepwell_core::store::{Batch, Committed};
use stepwell_core::{BoxFuture, Error, MemoryStore, Runtime, Store, StoreError, Timestamp};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::dice::Dice;
use super::fault::{Fault, Faults, Outage, Planned};
use super::fingerprint::Fingerprint;
use super::line::{Line, wait_for};
use super::moment::Moment;
use super::open::Open;
use super::runtime::{Clock, Life, TestRuntime};
use crate::durable::{Durable, DurableBuilder};

/// The number of commits after which a history fails as one that never ends.
const MOST_COMMITS: u64 = 200_000;

/// The streams of random numbers that follow from a seed.
#[derive(Clone, Copy)]
enum Part {
    Own,
    Plan,
    Network,
    Turns,
    /// The first process; others have the numbers after it.
    Process,
    /// The store of the first process; others have the numbers after it.
    Store = 1 << 20,
}

/// A simulated world, which [`simulate`](super::simulate) passes to a history. A clone is cheap,
/// and is the same world.
#[derive(Clone)]
pub struct World(pub(super) Arc<Inner>);

pub(super) struct Inner {
    seed: u64,
    pub(super) store: Arc<dyn Store>,
    /// The function that opens the stores of processes, which answer from their own threads; `None`
    /// when all processes share the world's store in memory.
    open: Option<Open>,
    /// `true` if a process's store is a part of the process, and dies with it.
    pub(super) embedded: bool,
    clock: Arc<Clock>,
    dice: Dice,
    pub(super) network: Dice,
    turns: Arc<Dice>,
    /// The faults that replace those of the seed.
    given: Option<Vec<Planned>>,
    calm: AtomicBool,
    pub(super) version: AtomicU64,
    pub(super) changed: Notify,
    watcher: Mutex<Option<Watcher>>,
    /// The token that is cancelled when the history has to end.
    pub(super) over: CancellationToken,
    state: Mutex<State>,
}

type Watcher = Arc<dyn Fn(&Seen<'_>) + Send + Sync>;
type Start = Arc<dyn Fn(Place) -> BoxFuture<'static, Result<(), Error>> + Send + Sync>;

/// The state of a world that changes.
#[derive(Default)]
pub(super) struct State {
    processes: Vec<Site>,
    pub(super) fingerprint: Fingerprint,
    pub(super) commits: u64,
    pub(super) faults: BTreeMap<&'static str, u64>,
    /// The faults that were suffered.
    pub(super) plan: Vec<Planned>,
    pub(super) timeline: Option<Vec<Moment>>,
    /// The reason of the history's failure.
    pub(super) failure: Option<String>,
    begun: u64,
}

struct Site {
    start: Start,
    life: Arc<Life>,
    /// The store that the process has opened, from its first client to its death.
    store: Option<Arc<dyn Store>>,
    trouble: Option<(Outage, Instant)>,
}

/// An event of the store, for a function that [watches](World::watch).
pub enum Seen<'a> {
    /// The store has applied a batch.
    Applied {
        /// The process that sent the batch; `None` for a client.
        process: Option<usize>,
        /// The number of batches that the store has applied, this one included.
        number: u64,
        /// The batch.
        batch: &'a Batch,
        /// The results of the batch.
        committed: &'a Committed,
    },
    /// The process has died, and its store is closed.
    Died {
        /// The number of the process.
        process: usize,
    },
    /// The process has received the answer to a batch.
    Answered {
        /// The number of the process; `None` for a client.
        process: Option<usize>,
        /// The number of the batch.
        number: u64,
    },
}

/// The place of one process in a world, from its start to its death.
#[derive(Clone)]
pub struct Place {
    /// The world of the process.
    pub world: World,
    /// The number of the process, from 0. A process that takes the place of a dead one has the same
    /// number.
    pub number: usize,
    runtime: Arc<TestRuntime>,
}

impl World {
    pub(super) fn new(
        seed: u64,
        given: Option<Vec<Planned>>,
        recording: bool,
        open: Option<Open>,
        embedded: bool,
    ) -> Result<Self, StoreError> {
        let clock = Arc::new(Clock::new());
        let part = |part: Part| Dice::of(seed, part as u64);
        let runtime = Arc::new(TestRuntime::new(clock.clone(), part(Part::Process)));
        let store = match &open {
            Some(open) => wait_for(open(runtime))?,
            None => Arc::new(MemoryStore::new(runtime)),
        };
        let state = State { timeline: recording.then(Vec::new), ..State::default() };
        Ok(Self(Arc::new(Inner {
            seed,
            store,
            open,
            embedded,
            clock,
            dice: part(Part::Own),
            network: part(Part::Network),
            turns: Arc::new(part(Part::Turns)),
            given,
            calm: AtomicBool::new(false),
            version: AtomicU64::new(0),
            changed: Notify::new(),
            watcher: Mutex::default(),
            over: CancellationToken::new(),
            state: Mutex::new(state),
        })))
    }

    /// Returns the seed.
    pub fn seed(&self) -> u64 {
        self.0.seed
    }

    /// Returns the world's own dice, for the history to use.
    pub fn dice(&self) -> &Dice {
        &self.0.dice
    }

    /// Returns the store itself, without faults.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.0.store
    }

    /// Returns a runtime on the store's clock, for what a history opens besides the world's
    /// processes.
    pub fn runtime(&self) -> Arc<dyn Runtime> {
        self.0.next_runtime(0)
    }

    /// Waits for the store's answer in no virtual time, for reads of the history itself.
    ///
    /// # Errors
    /// The errors of the store.
    pub fn look<T>(
        &self,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        wait_for(answer)
    }

    /// Returns the time by the store's clock.
    pub fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// Returns the latest time that the store's clock has shown so far.
    pub fn latest(&self) -> Timestamp {
        self.0.clock.latest()
    }

    /// Returns how long the world has existed. Drift and jumps of its clocks do not change this
    /// time.
    pub fn passed(&self) -> Duration {
        self.0.clock.passed()
    }

    /// Sets the rate by which the store's clock is too fast, in millionths.
    pub fn drift(&self, millionths: i64) {
        self.0.clock.set_drift(millionths);
    }

    /// Returns whether all faults are over.
    pub fn is_calm(&self) -> bool {
        self.0.is_calm()
    }

    /// Adds an event to the fingerprint of the world, and to the timeline of a replay.
    pub fn note(&self, who: &str, what: fmt::Arguments<'_>) {
        self.0.note(who, what);
    }

    /// Ends the history as failed. The first failure counts.
    pub fn fail(&self, why: impl Into<String>) {
        self.0.fail(why.into());
    }

    /// Sets a function that is called with each event of the store. The first call alone has an
    /// effect.
    pub fn watch(&self, watcher: impl Fn(&Seen<'_>) + Send + Sync + 'static) {
        self.0.watcher().get_or_insert_with(|| Arc::new(watcher));
    }

    /// Makes a client for the history itself, which suffers no faults.
    ///
    /// # Errors
    /// The errors of [`DurableBuilder::build`].
    pub async fn client(
        &self,
        build: impl FnOnce(DurableBuilder) -> DurableBuilder,
    ) -> Result<Durable, Error> {
        let builder = Durable::builder().store(Arc::new(Line::new(self.0.clone(), None)));
        let builder = builder.runtime(self.0.next_runtime(0)).answer_timeout(Duration::MAX);
        build(builder).build().await
    }

    /// Starts the given number of processes, and starts each of them again after it has died. The
    /// call returns when all processes have begun.
    pub async fn run<F, Fut>(&self, processes: usize, start: F)
    where
        F: Fn(Place) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let start: Start = Arc::new(move |place| Box::pin(start(place)));
        for _ in 0..processes {
            let number = {
                let mut state = self.0.state();
                state.processes.push(Site {
                    start: start.clone(),
                    life: Arc::default(),
                    store: None,
                    trouble: None,
                });
                state.processes.len() - 1
            };
            self.begin(number);
        }
    }

    fn begin(&self, number: usize) {
        let offset = match self.0.network.roll(4) {
            0 => i64::try_from(self.0.network.roll(7_200_000_000)).unwrap_or(0) - 3_600_000_000,
            _ => 0,
        };
        let runtime = self.0.next_runtime(offset);
        let start = {
            let mut state = self.0.state();
            let Some(site) = state.processes.get_mut(number) else { return };
            site.life = runtime.life().clone();
            site.start.clone()
        };
        let (place, world) =
            (Place { world: self.clone(), number, runtime: runtime.clone() }, self.clone());
        self.note(&Name(number).to_string(), format_args!("begins"));
        runtime.spawn(Box::pin(async move {
            // A process whose store is unavailable starts again, as a supervisor of processes would
            // do.
            while let Err(error) = start(place.clone()).await {
                if !matches!(error, Error::Store(_)) {
                    return world.fail(format!("a process cannot begin: {error}"));
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }));
    }

    /// Returns the number of processes, dead ones included.
    pub fn processes(&self) -> usize {
        self.0.state().processes.len()
    }

    /// Kills a process if it is alive. Another one follows after `down`.
    pub fn crash(&self, process: usize, down: Duration) {
        let life = self.0.state().processes.get(process).map(|site| site.life.clone());
        let Some(life) = life.filter(|life| !life.is_dead()) else { return };
        self.0.count("crash");
        self.note(&Name(process).to_string(), format_args!("dies"));
        life.end();
        let world = self.clone();
        tokio::spawn(async move {
            life.ended().await;
            let store =
                world.0.state().processes.get_mut(process).and_then(|site| site.store.take());
            drop(store);
            world.0.saw(&Seen::Died { process });
            tokio::time::sleep(down).await;
            world.begin(process);
        });
    }

    /// Starts a fault.
    pub fn inject(&self, fault: &Fault) {
        match *fault {
            Fault::Crash { process, down } => return self.crash(process, down),
            Fault::Freeze { process, time } => {
                let life = self.0.state().processes.get(process).map(|site| site.life.clone());
                let Some(life) = life else { return };
                life.freeze();
                tokio::spawn(async move {
                    tokio::time::sleep(time).await;
                    life.thaw();
                });
            }
            Fault::Outage { process, time, how } => {
                let end = Instant::now() + time;
                for (number, site) in self.0.state().processes.iter_mut().enumerate() {
                    if process.is_none_or(|process| process == number) {
                        site.trouble = Some((how, end));
                    }
                }
            }
            Fault::Jump { micros } => self.0.clock.jump(micros),
        }
        self.0.count(fault.name());
        self.note("world", format_args!("{fault}"));
    }

    /// Draws faults, starts each of them at its time, and waits until all are over. A replay takes
    /// the faults that it was given instead of drawing them.
    pub async fn suffer(&self, faults: &Faults) {
        let plan = match &self.0.given {
            Some(given) => given.clone(),
            None => faults.draw(&Dice::of(self.0.seed, Part::Plan as u64), self.processes()),
        };
        self.0.state().plan.clone_from(&plan);
        let mut end = Duration::ZERO;
        for Planned { at, fault } in &plan {
            tokio::time::sleep(at.saturating_sub(self.passed())).await;
            self.inject(fault);
            end = end.max(self.passed() + fault.lasts());
        }
        // Processes that come back have begun by then.
        tokio::time::sleep((end + Duration::from_millis(1)).saturating_sub(self.passed())).await;
        self.calm();
    }

    /// Declares that all faults are over: from then on the store answers at once. A clock that was
    /// set back is set forward, so that no task waits for times that the clock has shown before.
    pub fn calm(&self) {
        let behind = self.latest().as_microsecond() - self.now().as_microsecond();
        self.0.clock.jump(behind);
        self.0.calm.store(true, Ordering::SeqCst);
        self.note("world", format_args!("all is well from now on"));
    }
}

impl Place {
    /// Builds the process's client.
    ///
    /// # Errors
    /// The errors of [`DurableBuilder::build`]; [`Error::Store`] when the process's store cannot be
    /// opened.
    pub async fn client(
        &self,
        build: impl FnOnce(DurableBuilder) -> DurableBuilder,
    ) -> Result<Durable, Error> {
        self.world.0.open_for(self.number)?;
        let line =
            Line::new(self.world.0.clone(), Some((self.number, self.runtime.life().clone())));
        let builder = Durable::builder().store(Arc::new(line)).runtime(self.runtime.clone());
        build(builder.answer_timeout(Duration::MAX)).build().await
    }

    /// Returns whether the process has died. A dead process executes no code after the turn in
    /// which it died.
    pub fn is_dead(&self) -> bool {
        self.runtime.life().is_dead()
    }

    /// Kills the process as by `kill -9`. Another one follows after `down`.
    pub async fn die(&self, down: Duration) {
        if !self.is_dead() {
            self.world.crash(self.number, down);
        }
        std::future::pending::<()>().await;
    }

    /// Freezes the process, as a closure does that blocks its thread.
    pub fn block(&self, time: Duration) {
        self.world.inject(&Fault::Freeze { process: self.number, time });
    }
}

/// The name of a process in timelines.
pub(super) struct Name(pub(super) usize);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.0)
    }
}

impl Inner {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watcher(&self) -> MutexGuard<'_, Option<Watcher>> {
        self.watcher.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops what the history has given to the world, and what may refer to the world. Otherwise a
    /// cycle of references would keep the world in memory.
    pub(super) fn let_go(&self) {
        let watcher = self.watcher().take();
        let processes = std::mem::take(&mut self.state().processes);
        drop((watcher, processes));
    }

    fn next_runtime(&self, offset: i64) -> Arc<TestRuntime> {
        let begun = {
            let mut state = self.state();
            state.begun += 1;
            state.begun
        };
        let random = Dice::of(self.seed, Part::Process as u64 + begun);
        Arc::new(TestRuntime::simulated(self.clock.clone(), random, offset, self.turns.clone()))
    }

    /// Opens the store of a process, if processes have their own stores.
    fn open_for(&self, process: usize) -> Result<(), StoreError> {
        let Some(open) = &self.open else { return Ok(()) };
        let random = Dice::of(self.seed, Part::Store as u64 + self.state().begun);
        self.set_time();
        let store = wait_for(open(Arc::new(TestRuntime::new(self.clock.clone(), random))))?;
        let earlier =
            self.state().processes.get_mut(process).and_then(|site| site.store.replace(store));
        drop(earlier);
        Ok(())
    }

    /// Returns the store of a process: its own one, or the world's.
    pub(super) fn store_of(&self, process: Option<usize>) -> Arc<dyn Store> {
        let Some(process) = process else { return self.store.clone() };
        let own = self.state().processes.get(process).and_then(|site| site.store.clone());
        own.unwrap_or_else(|| self.store.clone())
    }

    pub(super) fn is_calm(&self) -> bool {
        self.calm.load(Ordering::SeqCst)
    }

    pub(super) fn trouble(&self, process: usize) -> Option<(Outage, Instant)> {
        let state = self.state();
        let trouble = state.processes.get(process)?.trouble;
        trouble.filter(|(_, end)| *end > Instant::now())
    }

    pub(super) fn count(&self, fault: &'static str) {
        *self.state().faults.entry(fault).or_default() += 1;
    }

    pub(super) fn fail(&self, why: String) {
        self.state().failure.get_or_insert(why);
        self.over.cancel();
    }

    pub(super) fn note(&self, who: &str, what: fmt::Arguments<'_>) {
        let at = self.clock.passed();
        let text = what.to_string();
        let mut state = self.state();
        state.fingerprint.add((at, who, &text));
        if let Some(timeline) = &mut state.timeline {
            timeline.push(Moment { at, who: who.to_owned(), what: text });
        }
    }

    /// Sets the time that the store's threads see until the next call.
    pub(super) fn set_time(&self) {
        if self.open.is_some() {
            self.clock.now();
        }
    }

    /// Waits, in no virtual time, for the work of a store that has its own threads.
    pub(super) fn done<T: Send + 'static>(
        &self,
        answer: BoxFuture<'static, Result<T, StoreError>>,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        if self.open.is_none() {
            return answer;
        }
        Box::pin(std::future::ready(wait_for(answer)))
    }

    pub(super) fn commits(&self) -> u64 {
        self.state().commits
    }

    /// Notifies the processes that the store has changed, except the process that knows only this
    /// change.
    pub(super) fn tell_of_change(&self, seen: Option<&AtomicU64>) {
        let version = self.version.fetch_add(1, Ordering::SeqCst);
        if let Some(seen) = seen {
            _ = seen.compare_exchange(version, version + 1, Ordering::SeqCst, Ordering::SeqCst);
        }
        self.changed.notify_waiters();
    }

    pub(super) fn committed(&self, process: Option<usize>, batch: &Batch, committed: &Committed) {
        let mut state = self.state();
        let at = self.clock.passed();
        state.commits += 1;
        let number = state.commits;
        state.fingerprint.commit(at, process, batch, committed);
        if let Some(timeline) = &mut state.timeline {
            let who = process.map_or_else(|| "client".into(), |process| Name(process).to_string());
            timeline.extend(Moment::of(at, &who, batch, committed));
        }
        drop(state);
        if number > MOST_COMMITS {
            self.fail(format!("never ends: it has made {MOST_COMMITS} commits"));
        }
        self.saw(&Seen::Applied { process, number, batch, committed });
    }

    pub(super) fn saw(&self, seen: &Seen<'_>) {
        let watcher = self.watcher().clone();
        if let Some(watcher) = watcher {
            watcher(seen);
        }
    }
}
