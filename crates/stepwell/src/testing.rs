//! For tests of durable programs: virtual time, crashes, a store in memory.
//!
//! In a test with a paused tokio clock, time passes only while everything waits, and then at once: a task that sleeps for
//! a week takes milliseconds.
//!
//! ```
//! use std::time::Duration;
//! use stepwell::testing::{Harness, worker_options};
//! use stepwell::{SpawnOptions, TaskContext};
//!
//! # // A doctest cannot be `#[tokio::test(start_paused = true)]`.
//! # tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(async {
//! let harness = Harness::new();
//! let process = harness.start().await;
//! process.register_fn("patient", |(): (), ctx: TaskContext| async move {
//!     ctx.sleep_for("a week", Duration::from_secs(7 * 24 * 3600)).await
//! }).await?;
//! let worker = process.start_worker(worker_options()).await;
//! let task = process.spawn_named("patient", &(), SpawnOptions::new()).await?;
//! process.wait::<()>(task.task_id).await?;
//! # anyhow::Ok(())
//! # }).unwrap();
//! ```

use std::num::NonZeroUsize;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use stepwell_core::store::{
    Batch, Changed, Committed, Ends, Happening, HistoryFilter, Mailbox, Purge, ScheduleFilter, Scheduled,
    Wait,
};
use stepwell_core::{
    BoxFuture, Entry, Error, MemoryStore, Name, QueueInfo, Runtime, Scope, Store, StoreError, TaskFilter,
    TaskId, TaskInfo, TaskRecord, TaskTypeInfo, Timestamp, WorkerInfo, WorkerOptions, from_micros,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::durable::{Durable, DurableBuilder};

/// A world for a test: a clock, and a store that outlives the processes that use it. To be used in a test with a paused
/// clock: `#[tokio::test(start_paused = true)]`.
pub struct Harness {
    clock: Arc<Clock>,
    store: MemoryStore,
}

impl Default for Harness {
    fn default() -> Self {
        Self::new()
    }
}

impl Harness {
    /// An empty world, on 1 January 2026.
    pub fn new() -> Self {
        let clock = Arc::new(Clock::new());
        let store = MemoryStore::new(Arc::new(TestRuntime::new(clock.clone())));
        Self { clock, store }
    }

    /// A new process on the store, with the defaults.
    pub async fn start(&self) -> Process {
        // Only a database that cannot be opened and invalid names are errors, and there are none.
        match self.start_with(|builder| builder).await {
            Ok(process) => process,
            Err(error) => unreachable!("{error}"),
        }
    }

    /// A new process on the store.
    ///
    /// # Errors
    /// As [`DurableBuilder::build`].
    pub async fn start_with(
        &self,
        build: impl FnOnce(DurableBuilder) -> DurableBuilder,
    ) -> Result<Process, Error> {
        self.start_on(Arc::new(self.store.connect()), build).await
    }

    /// A new process on another store, such as one that wraps the harness's own to inject faults.
    ///
    /// # Errors
    /// As [`DurableBuilder::build`].
    pub async fn start_on(
        &self,
        store: Arc<dyn Store>,
        build: impl FnOnce(DurableBuilder) -> DurableBuilder,
    ) -> Result<Process, Error> {
        let runtime = Arc::new(TestRuntime::new(self.clock.clone()));
        let builder = Durable::builder().store(store).runtime(runtime.clone());
        // A store that answers from another thread takes no time, and the clock does not wait for it.
        let builder = builder.answer_timeout(Duration::MAX);
        Ok(Process { client: build(builder).build().await?, runtime })
    }

    /// A handle on the store.
    pub fn store(&self) -> MemoryStore {
        self.store.connect()
    }

    /// A runtime on the harness's clock, for a store that is opened by hand.
    pub fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TestRuntime::new(self.clock.clone()))
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Sets the wall clock forward, or back, as an administrator might. Timers in progress are not moved.
    pub fn jump(&self, micros: i64) {
        self.clock.jumped.fetch_add(micros, Ordering::SeqCst);
    }
}

/// Options for a worker in virtual time. It polls and shows that it is alive so rarely (its lease is a day) that months
/// pass quickly.
pub fn worker_options() -> WorkerOptions {
    const HOUR: Duration = Duration::from_secs(3600);
    WorkerOptions::new().poll_interval(HOUR).lease(24 * HOUR).claim_timeout(10_000 * HOUR)
}

/// A process of a test's world: a client that can be killed.
pub struct Process {
    client: Durable,
    runtime: Arc<TestRuntime>,
}

impl Process {
    /// Ends the process as `kill -9` does: everything that it runs stops where it is, and nothing is told. What its store
    /// has committed stays.
    pub async fn kill(self) {
        self.runtime.killed.cancel();
        self.runtime.tracker.close();
        self.runtime.tracker.wait().await;
    }

    /// The client.
    pub fn client(&self) -> &Durable {
        &self.client
    }
}

impl Deref for Process {
    type Target = Durable;

    fn deref(&self) -> &Durable {
        &self.client
    }
}

/// A store whose commits go through a function, which may delay, refuse or lose them.
///
/// ```
/// # use std::sync::Arc;
/// # use stepwell::testing::{Harness, Intercepted};
/// # use stepwell::StoreError;
/// # fn f(harness: &Harness) {
/// let full = Intercepted::new(Arc::new(harness.store()), |_store, _batch| {
///     Box::pin(async { Err(StoreError::Full("a test".into())) })
/// });
/// # }
/// ```
pub struct Intercepted<F> {
    store: Arc<dyn Store>,
    commit: F,
    lanes: NonZeroUsize,
    after_reads: Option<AfterReads>,
}

type AfterReads = Box<dyn Fn() -> BoxFuture<'static, Result<(), StoreError>> + Send + Sync>;

/// What became of a commit.
type Commit = BoxFuture<'static, Result<Committed, StoreError>>;

impl<F> Intercepted<F>
where
    F: Fn(Arc<dyn Store>, Batch) -> Commit + Send + Sync + 'static,
{
    /// Wraps the store.
    pub fn new(store: Arc<dyn Store>, commit: F) -> Self {
        let lanes = store.lanes();
        Self { store, commit, lanes, after_reads: None }
    }

    /// Lets the engine send so many commits at a time, whatever the store says.
    pub fn lanes(self, lanes: NonZeroUsize) -> Self {
        Self { lanes, ..self }
    }

    /// Lets a function delay, or put an error in the place of, what was read of tasks, journals and the rest.
    pub fn after_reads(
        self,
        after: impl Fn() -> BoxFuture<'static, Result<(), StoreError>> + Send + Sync + 'static,
    ) -> Self {
        Self { after_reads: Some(Box::new(after)), ..self }
    }
}

impl<F> Intercepted<F> {
    fn read<T: Send + 'static>(
        &self,
        read: BoxFuture<'static, Result<T, StoreError>>,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let Some(after) = &self.after_reads else { return read };
        let after = after();
        Box::pin(async move {
            let result = read.await;
            after.await?;
            result
        })
    }
}

impl<F> Store for Intercepted<F>
where
    F: Fn(Arc<dyn Store>, Batch) -> Commit + Send + Sync + 'static,
{
    fn now(&self) -> Timestamp {
        self.store.now()
    }

    fn commit(&self, batch: Arc<Batch>) -> Commit {
        (self.commit)(self.store.clone(), Arc::unwrap_or_clone(batch))
    }

    fn lanes(&self) -> NonZeroUsize {
        self.lanes
    }

    fn task(&self, task_id: TaskId) -> BoxFuture<'static, Result<Option<TaskInfo>, StoreError>> {
        self.read(self.store.task(task_id))
    }

    fn tasks(&self, filter: TaskFilter) -> BoxFuture<'static, Result<Vec<TaskInfo>, StoreError>> {
        self.read(self.store.tasks(filter))
    }

    fn ends(&self, tasks: Vec<TaskId>) -> BoxFuture<'static, Result<Ends, StoreError>> {
        self.read(self.store.ends(tasks))
    }

    fn journal(&self, task_id: TaskId) -> BoxFuture<'static, Result<Vec<Entry>, StoreError>> {
        self.read(self.store.journal(task_id))
    }

    fn waits(
        &self,
        scope: Scope,
        prefix: String,
        behind: Option<TaskId>,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<(TaskId, Wait)>, StoreError>> {
        self.read(self.store.waits(scope, prefix, behind, limit))
    }

    fn mailbox(&self, task_id: TaskId) -> BoxFuture<'static, Result<Mailbox, StoreError>> {
        self.read(self.store.mailbox(task_id))
    }

    fn import(&self, record: TaskRecord) -> BoxFuture<'static, Result<bool, StoreError>> {
        self.store.import(record)
    }

    fn queues(&self) -> BoxFuture<'static, Result<Vec<QueueInfo>, StoreError>> {
        self.read(self.store.queues())
    }

    fn workers(&self) -> BoxFuture<'static, Result<Vec<WorkerInfo>, StoreError>> {
        self.read(self.store.workers())
    }

    fn schedules(&self, which: ScheduleFilter) -> BoxFuture<'static, Result<Vec<Scheduled>, StoreError>> {
        self.read(self.store.schedules(which))
    }

    fn waiting_types(&self, queues: Vec<Name>) -> BoxFuture<'static, Result<Vec<Name>, StoreError>> {
        self.read(self.store.waiting_types(queues))
    }

    fn describe(&self, info: TaskTypeInfo) -> BoxFuture<'static, Result<(), StoreError>> {
        self.store.describe(info)
    }

    fn task_types(&self) -> BoxFuture<'static, Result<Vec<TaskTypeInfo>, StoreError>> {
        self.read(self.store.task_types())
    }

    fn record(&self, happenings: Vec<Happening>) -> BoxFuture<'static, Result<(), StoreError>> {
        self.store.record(happenings)
    }

    fn history(&self, which: HistoryFilter) -> BoxFuture<'static, Result<Vec<(u64, Happening)>, StoreError>> {
        self.read(self.store.history(which))
    }

    fn purge(&self, purge: Purge) -> BoxFuture<'static, Result<usize, StoreError>> {
        self.store.purge(purge)
    }

    fn changed(&self) -> BoxFuture<'_, Changed> {
        self.store.changed()
    }
}

struct Clock {
    start: Instant,
    jumped: AtomicI64,
}

impl Clock {
    fn new() -> Self {
        Self { start: Instant::now(), jumped: AtomicI64::new(0) }
    }

    fn now(&self) -> Timestamp {
        const START_OF_2026: i64 = 1_767_225_600_000_000;
        let passed = i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX);
        from_micros(START_OF_2026 + passed + self.jumped.load(Ordering::SeqCst))
    }
}

/// The engine's world in a test: the harness's clock, and tasks that end when their process is killed.
struct TestRuntime {
    clock: Arc<Clock>,
    random: AtomicU64,
    killed: CancellationToken,
    tracker: TaskTracker,
}

impl TestRuntime {
    fn new(clock: Arc<Clock>) -> Self {
        let (killed, tracker) = (CancellationToken::new(), TaskTracker::new());
        // Processes must not make the same ids.
        Self { clock, random: AtomicU64::new(rand::random()), killed, tracker }
    }
}

impl Runtime for TestRuntime {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn spawn(&self, future: BoxFuture<'static, ()>) {
        let killed = self.killed.clone();
        let future = async move { killed.run_until_cancelled(future).await.unwrap_or_default() };
        self.tracker.spawn(tokio::task::unconstrained(future));
    }

    /// SplitMix64.
    fn random(&self) -> u64 {
        let mut z = self.random.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
