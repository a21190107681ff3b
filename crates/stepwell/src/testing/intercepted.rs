//! A store whose answers a test decides.

use std::num::NonZeroUsize;
use std::sync::Arc;

use stepwell_core::store::{
    ArrivedMessage, Batch, Changed, Committed, Ends, Happening, HistoryFilter, MessageId, Purge,
    ScheduleFilter, Scheduled, TaskWaits, Transacting, Transition, Wait,
};
use stepwell_core::{
    BoxFuture, Entry, Name, Page, QueueInfo, Scope, Store, StoreError, TaskFilter, TaskId,
    TaskInfo, TaskRecord, TaskTypeInfo, Timestamp, WorkerInfo,
};

/// A store whose commits go through a function, which may delay, refuse or lose them. A store that
/// applies transactions of steps beside the commits ([`Store::transact`]) does so without the
/// function.
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

/// The result of a commit.
type Commit = BoxFuture<'static, Result<Committed, StoreError>>;

impl<F> Intercepted<F>
where
    F: Fn(Arc<dyn Store>, Batch) -> Commit + Send + Sync + 'static,
{
    /// Wraps a store, whose commits go through the function.
    pub fn new(store: Arc<dyn Store>, commit: F) -> Self {
        let lanes = store.lanes();
        Self { store, commit, lanes, after_reads: None }
    }

    /// Sets the number of commits that the engine may send at a time. Default: the number of the
    /// wrapped store.
    pub fn lanes(self, lanes: NonZeroUsize) -> Self {
        Self { lanes, ..self }
    }

    /// Sets a function that runs after each read, of tasks, journals and other data. The function
    /// may delay the answer, or replace it by an error.
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

    fn transact(&self, transition: Transition) -> Result<Transacting, Transition> {
        self.store.transact(transition)
    }

    fn task(&self, task_id: TaskId) -> BoxFuture<'static, Result<Option<TaskInfo>, StoreError>> {
        self.read(self.store.task(task_id))
    }

    fn tasks(&self, filter: TaskFilter) -> BoxFuture<'static, Result<Page<TaskInfo>, StoreError>> {
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
    ) -> BoxFuture<'static, Result<Page<TaskWaits>, StoreError>> {
        self.read(self.store.waits(scope, prefix, behind, limit))
    }

    fn waits_of(&self, task_id: TaskId) -> BoxFuture<'static, Result<Vec<Wait>, StoreError>> {
        self.read(self.store.waits_of(task_id))
    }

    fn messages(
        &self,
        task_id: TaskId,
        behind: Option<MessageId>,
    ) -> BoxFuture<'static, Result<Page<ArrivedMessage>, StoreError>> {
        self.read(self.store.messages(task_id, behind))
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

    fn schedules(
        &self,
        which: ScheduleFilter,
    ) -> BoxFuture<'static, Result<Page<Scheduled>, StoreError>> {
        self.read(self.store.schedules(which))
    }

    fn waiting_types(
        &self,
        queues: Vec<Name>,
    ) -> BoxFuture<'static, Result<Vec<Name>, StoreError>> {
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

    fn history(
        &self,
        which: HistoryFilter,
    ) -> BoxFuture<'static, Result<Page<(u64, Happening)>, StoreError>> {
        self.read(self.store.history(which))
    }

    fn purge(&self, purge: Purge) -> BoxFuture<'static, Result<usize, StoreError>> {
        self.store.purge(purge)
    }

    fn changed(&self) -> BoxFuture<'_, Changed> {
        self.store.changed()
    }
}
