//! PostgreSQL as the store of histories.
//!
//! A history is played by one thread on virtual time, and the store's connections need a runtime on real time. So the
//! store works on threads of its own, and the history waits for each answer.

use std::future::{Future, pending};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use stepwell::postgres::{PostgresOptions, PostgresStore, sqlx};
use stepwell::store::{
    ArrivedMessage, Batch, Changed, Committed, Ends, Happening, HistoryFilter, MessageId, Purge,
    ScheduleFilter, Scheduled, TaskWaits, Wait,
};
use stepwell::{
    BoxFuture, Entry, Name, Page, QueueInfo, Runtime, Scope, Store, StoreError, TaskFilter, TaskId, TaskInfo,
    TaskRecord, TaskTypeInfo, Timestamp, WorkerInfo,
};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// A server on which histories are played, each in a schema of its own.
pub struct Postgres {
    url: String,
    runtime: tokio::runtime::Runtime,
    /// The number of schemas made so far.
    schemas: AtomicU64,
}

impl Postgres {
    /// Plays on the server of this URL, as a user who may create schemas.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn new(url: String) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self { url, runtime, schemas: AtomicU64::new(0) })
    }

    /// Opens a store in a new schema, by the clock of a world.
    pub(crate) fn open(
        &self,
        clock: Arc<dyn Runtime>,
    ) -> BoxFuture<'static, Result<Arc<dyn Store>, StoreError>> {
        let number = self.schemas.fetch_add(1, Ordering::Relaxed);
        let schema = format!("simulation_{}_{number}", std::process::id());
        let options = PostgresOptions::parse(&self.url).and_then(|options| options.schema(&schema));
        let (handle, url) = (self.runtime.handle().clone(), self.url.clone());
        Box::pin(async move {
            let connecting = PostgresStore::connect(options?.clock(clock));
            let store = Arc::new(elsewhere(&handle, connecting).await?);
            Ok(Arc::new(Aside { store, handle, url, schema }) as Arc<dyn Store>)
        })
    }
}

/// Does it on the threads of that runtime.
fn elsewhere<T: Send + 'static>(
    handle: &Handle,
    work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> BoxFuture<'static, Result<T, StoreError>> {
    let (done, answer) = oneshot::channel();
    handle.spawn(async move { done.send(work.await) });
    Box::pin(async { answer.await.unwrap_or(Err(StoreError::Closed)) })
}

/// A store that works on threads of its own, in a schema that is dropped with it.
struct Aside {
    store: Arc<PostgresStore>,
    handle: Handle,
    url: String,
    schema: String,
}

impl Drop for Aside {
    fn drop(&mut self) {
        let (url, schema) = (self.url.clone(), self.schema.clone());
        self.handle.spawn(async move {
            let dropped = drop_schema(&url, &schema).await;
            if let Err(error) = dropped.with_context(|| format!("{schema} stays in the database")) {
                eprintln!("{error:#}");
            }
        });
    }
}

async fn drop_schema(url: &str, schema: &str) -> Result<()> {
    use sqlx::{Connection as _, Executor as _};
    let mut conn = sqlx::PgConnection::connect(url).await?;
    let sql = format!("DROP SCHEMA IF EXISTS {schema} CASCADE");
    conn.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(sql))).await?;
    Ok(conn.close().await?)
}

/// Defines methods that do the same as the store's, on its threads.
macro_rules! aside {
    ($($name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {$(
        fn $name(&self, $($argument: $type),*) -> BoxFuture<'static, Result<$answer, StoreError>> {
            let store = self.store.clone();
            elsewhere(&self.handle, async move { store.$name($($argument),*).await })
        }
    )*};
}

impl Store for Aside {
    fn now(&self) -> Timestamp {
        self.store.now()
    }

    aside! {
        commit(batch: Arc<Batch>) -> Committed;
        task(task_id: TaskId) -> Option<TaskInfo>;
        tasks(filter: TaskFilter) -> Page<TaskInfo>;
        ends(tasks: Vec<TaskId>) -> Ends;
        journal(task_id: TaskId) -> Vec<Entry>;
        waits(scope: Scope, prefix: String, behind: Option<TaskId>, limit: usize) -> Page<TaskWaits>;
        waits_of(task_id: TaskId) -> Vec<Wait>;
        messages(task_id: TaskId, behind: Option<MessageId>) -> Page<ArrivedMessage>;
        import(record: TaskRecord) -> bool;
        queues() -> Vec<QueueInfo>;
        workers() -> Vec<WorkerInfo>;
        schedules(which: ScheduleFilter) -> Page<Scheduled>;
        waiting_types(queues: Vec<Name>) -> Vec<Name>;
        describe(info: TaskTypeInfo) -> ();
        task_types() -> Vec<TaskTypeInfo>;
        record(happenings: Vec<Happening>) -> ();
        history(which: HistoryFilter) -> Page<(u64, Happening)>;
        purge(purge: Purge) -> usize;
    }

    /// The world itself says when something has changed.
    fn changed(&self) -> BoxFuture<'_, Changed> {
        Box::pin(pending())
    }
}
