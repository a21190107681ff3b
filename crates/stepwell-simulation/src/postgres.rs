//! PostgreSQL as the store of histories.
//!
//! One thread plays a history on virtual time, and the store's connections need a runtime on real
//! time. The store therefore works on its own threads, and the history waits for each answer.

use std::future::{Future, pending};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use stepwell::postgres::{PostgresOptions, PostgresStore, TransactionExt as _, sqlx};
use stepwell::store::TaskRecord;
use stepwell::store::{
    ArrivedMessage, Batch, Changed, Committed, Ends, Happening, HistoryFilter, MessageId, Purge,
    ScheduleFilter, Scheduled, TaskWaits, Transacting, Transition, Wait,
};
use stepwell::testing::World;
use stepwell::{
    BoxFuture, Delivery, Durable, Entry, Name, Page, QueueInfo, Runtime, Scope, SpawnOptions,
    Store, StoreError, TaskContext, TaskFilter, TaskId, TaskInfo, TaskTypeInfo, Timestamp,
    WorkerInfo,
};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::params::Params;
use crate::params::Row;
use crate::plan::Transact;
use crate::script::Isolation;

/// A server on which histories are played, each in its own schema.
pub struct Postgres {
    url: String,
    runtime: tokio::runtime::Runtime,
    /// The number of schemas made so far.
    schemas: AtomicU64,
}

impl Postgres {
    /// Returns a backend on the server with this URL, whose user may create schemas.
    ///
    /// # Errors
    /// Fails when the system refuses a thread.
    pub fn new(url: String) -> Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self { url, runtime, schemas: AtomicU64::new(0) })
    }
}

/// The schema of a history, which is dropped with it.
#[derive(Clone)]
pub(crate) struct Schema(Arc<Owned>);

struct Owned {
    server: Arc<Postgres>,
    name: String,
}

impl Schema {
    pub(crate) fn new(server: &Arc<Postgres>) -> Self {
        let number = server.schemas.fetch_add(1, Ordering::Relaxed);
        let name = format!("simulation_{}_{number}", std::process::id());
        Self(Arc::new(Owned { server: server.clone(), name }))
    }

    fn handle(&self) -> &Handle {
        self.0.server.runtime.handle()
    }

    /// Runs a future on the threads of the server's runtime.
    fn elsewhere<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let work =
            async { work.await.map_err(|error| StoreError::Unavailable(format!("{error:#}"))) };
        elsewhere(self.handle(), work)
    }

    async fn connect(&self, clock: Option<Arc<dyn Runtime>>) -> Result<PostgresStore, StoreError> {
        let options = PostgresOptions::parse(&self.0.server.url)?.schema(&self.0.name)?;
        PostgresStore::connect(clock.into_iter().fold(options, PostgresOptions::clock)).await
    }

    /// Opens a store in the schema, by the clock of a world.
    pub(crate) fn open(
        &self,
        clock: Arc<dyn Runtime>,
    ) -> BoxFuture<'static, Result<Arc<dyn Store>, StoreError>> {
        let (schema, handle) = (self.clone(), self.handle().clone());
        Box::pin(async move {
            let connecting = {
                let schema = schema.clone();
                async move { schema.connect(Some(clock)).await }
            };
            let store = Arc::new(elsewhere(&handle, connecting).await?);
            Ok(Arc::new(Aside { store, handle }) as Arc<dyn Store>)
        })
    }

    /// Returns a user of the schema, with a table in it.
    pub(crate) fn user(
        &self,
        clock: Arc<dyn Runtime>,
    ) -> BoxFuture<'static, Result<PostgresUser, StoreError>> {
        let schema = self.clone();
        self.elsewhere(async move {
            let store = schema.connect(Some(clock)).await?;
            let client = Durable::builder().store(Arc::new(store)).build().await?;
            let table = "CREATE TABLE simulated (task text, step text, number bigint)";
            run(&mut schema.session().await?, table.into()).await?;
            Ok(PostgresUser { schema, client })
        })
    }

    /// Opens a connection of the user.
    async fn session(&self) -> Result<PgConnection> {
        let mut conn = PgConnection::connect(&self.0.server.url).await?;
        run(&mut conn, format!("SET search_path TO {}", self.0.name)).await?;
        Ok(conn)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let (url, name) = (self.server.url.clone(), self.name.clone());
        self.server.runtime.spawn(async move {
            let dropped = async {
                let mut conn = PgConnection::connect(&url).await?;
                run(&mut conn, format!("DROP SCHEMA IF EXISTS {name} CASCADE")).await?;
                anyhow::Ok(conn.close().await?)
            };
            if let Err(error) =
                dropped.await.with_context(|| format!("{name} stays in the database"))
            {
                eprintln!("{error:#}");
            }
        });
    }
}

async fn run(conn: &mut PgConnection, sql: String) -> Result<()> {
    conn.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
    Ok(())
}

/// A user of the schema.
pub(crate) struct PostgresUser {
    schema: Schema,
    client: Durable,
}

impl PostgresUser {
    pub(crate) fn transaction(
        &self,
        ctx: &TaskContext,
        name: &str,
        isolation: Isolation,
        write: impl FnOnce() -> (u64, bool) + Send + 'static,
    ) -> Delivery<u64> {
        let (task, step) = (ctx.task_id.to_string(), name.to_owned());
        let insert = format!("INSERT INTO {}.simulated VALUES ($1, $2, $3)", self.schema.0.name);
        ctx.transaction(name, move |tx| {
            Box::pin(async move {
                let (number, fails) = write();
                run(tx, isolation.sql().to_owned()).await?;
                let insert = sqlx::query(AssertSqlSafe(insert)).bind(task).bind(step);
                insert.bind(i64::try_from(number)?).execute(tx).await?;
                anyhow::ensure!(!fails, "simulated");
                Ok(number)
            })
        })
    }

    /// Spawns a task in a transaction. The transaction stays open after the spawn for the time that
    /// the plan says, in which no other client waits for it.
    pub(crate) async fn spawn(
        &self,
        world: &World,
        transact: &Transact,
        task_type: &'static str,
        params: Params,
        options: SpawnOptions,
    ) -> Result<TaskId> {
        let (schema, client, isolation) =
            (self.schema.clone(), self.client.clone(), transact.isolation);
        let (mut conn, task_id) = world.look(self.schema.elsewhere(async move {
            let mut conn = schema.session().await?;
            run(&mut conn, "BEGIN".into()).await?;
            run(&mut conn, isolation.sql().to_owned()).await?;
            let spawned =
                client.spawn_named(task_type, &params).options(options).in_tx(&mut conn).await?;
            Ok((conn, spawned.task_id))
        }))?;
        tokio::time::sleep(transact.open).await;
        let end = if transact.commits { "COMMIT" } else { "ROLLBACK" };
        world.look(self.schema.elsewhere(async move {
            run(&mut conn, end.into()).await?;
            Ok(conn.close().await?)
        }))?;
        Ok(task_id)
    }

    pub(crate) fn rows(&self) -> BoxFuture<'static, Result<Vec<Row>, StoreError>> {
        let schema = self.schema.clone();
        self.schema.elsewhere(async move {
            let mut conn = schema.session().await?;
            let rows: Vec<(String, String, i64)> =
                sqlx::query_as("SELECT task, step, number FROM simulated")
                    .fetch_all(&mut conn)
                    .await?;
            rows.into_iter()
                .map(|(task, step, number)| Ok((task, step, u64::try_from(number)?)))
                .collect()
        })
    }

    /// Damages a task's row, and returns whether the server has allowed it. The server may refuse,
    /// because its columns have types.
    pub(crate) fn damage(
        &self,
        table: &'static str,
        change: &'static str,
        task_id: TaskId,
    ) -> BoxFuture<'static, Result<bool, StoreError>> {
        let schema = self.schema.clone();
        self.schema.elsewhere(async move {
            let sql = format!("UPDATE {table} SET {change} WHERE task_id = '{task_id}'");
            Ok(run(&mut schema.session().await?, sql).await.is_ok())
        })
    }
}

/// Runs a future on the threads of a runtime.
fn elsewhere<T: Send + 'static>(
    handle: &Handle,
    work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> BoxFuture<'static, Result<T, StoreError>> {
    let (done, answer) = oneshot::channel();
    handle.spawn(async move { done.send(work.await) });
    Box::pin(async { answer.await.unwrap_or(Err(StoreError::Closed)) })
}

/// A store that works on its own threads.
struct Aside {
    store: Arc<PostgresStore>,
    handle: Handle,
}

/// Defines methods that call the store's methods of the same names on its threads.
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
        waits(scope: Scope, prefix: String, behind: Option<TaskId>, limit: usize)
            -> Page<TaskWaits>;
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

    fn transact(&self, transition: Transition) -> Result<Transacting, Transition> {
        let transacting = self.store.transact(transition)?;
        Ok(elsewhere(&self.handle, transacting))
    }

    /// Never completes, because the world itself reports changes.
    fn changed(&self) -> BoxFuture<'_, Changed> {
        Box::pin(pending())
    }
}
