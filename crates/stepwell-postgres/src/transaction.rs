//! Steps, spawns and events in transactions of `sqlx`: exactly once, with the user's own tables.

use std::any::Any;

use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;
use stepwell_core::{
    Asked, Client, Delivery, Error, Guarded, Payload, SpawnOptions, SpawnResult, StepName,
    StoreError, Task, TaskContext, async_trait,
};

use crate::PostgresStore;
use crate::work::Work;

/// The extension of [`TaskContext`] with [`transaction`](TransactionExt::transaction), for tasks
/// whose store is PostgreSQL.
pub trait TransactionExt {
    /// Runs a step that writes to the application's own tables in the same database. The writes and
    /// the journal entry are one transaction, and so happen exactly once.
    ///
    /// The closure runs on a connection of the store, within a transaction that it must not end.
    /// The first statement may set another isolation level than `READ COMMITTED`. Other tasks
    /// continue meanwhile, and this task waits. When the closure fails, its writes are rolled back,
    /// and the step fails with its error.
    ///
    /// ```
    /// use stepwell_core::{TaskContext, TaskResult};
    /// use stepwell_postgres::{TransactionExt, sqlx};
    ///
    /// async fn pay(ctx: TaskContext, account: i64, amount: i64) -> TaskResult<i64> {
    ///     ctx.transaction("pay", move |tx| Box::pin(async move {
    ///         let sql = "UPDATE accounts SET balance = balance - $2 WHERE id = $1 RETURNING balance";
    ///         Ok(sqlx::query_scalar(sql).bind(account).bind(amount).fetch_one(tx).await?)
    ///     }))
    ///     .await
    /// }
    /// ```
    ///
    /// # Errors
    /// [`TaskError::Step`](stepwell_core::TaskError::Step) when the closure fails, when its result
    /// cannot be journaled, or when the store is not PostgreSQL.
    fn transaction<T, F>(&self, name: impl Into<StepName>, work: F) -> Delivery<T>
    where
        F: for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, anyhow::Result<T>>
            + Send
            + 'static,
        T: Serialize + DeserializeOwned + Send + 'static;
}

impl TransactionExt for TaskContext {
    fn transaction<T, F>(&self, name: impl Into<StepName>, work: F) -> Delivery<T>
    where
        F: for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, anyhow::Result<T>>
            + Send
            + 'static,
        T: Serialize + DeserializeOwned + Send + 'static,
    {
        let limit = self.max_payload_bytes();
        let work = Guarded::new(work);
        let work: Work = Box::new(move |conn| {
            Box::pin(async move {
                let Some(work) = work.into_inner() else {
                    anyhow::bail!("the transaction has run already")
                };
                Ok(Payload::encode_proven(&work(conn).await?, limit)?)
            })
        });
        self.store_step(name, Box::new(work))
    }
}

/// The extension of [`Client`] with spawns and events within the user's own transactions, for
/// clients whose store is PostgreSQL.
///
/// ```
/// use stepwell_core::{Client, SpawnOptions};
/// use stepwell_postgres::{ClientExt, sqlx};
///
/// async fn order(client: &Client, pool: &sqlx::PgPool, item: &str) -> anyhow::Result<()> {
///     let mut tx = pool.begin().await?;
///     sqlx::query("INSERT INTO orders (item) VALUES ($1)").bind(item).execute(&mut *tx).await?;
///     client.spawn_named_in(&mut tx, "ship", item, SpawnOptions::new()).await?;
///     tx.commit().await?; // Either there are both, the order and the task, or neither.
///     Ok(())
/// }
/// ```
#[async_trait]
pub trait ClientExt {
    /// Spawns a task in the user's transaction, which may have any isolation level. The task exists
    /// when the transaction has committed.
    ///
    /// The result is normally a new task. With an idempotency key, the result is the task that has
    /// the key, if such a task is committed; the call waits for a transaction of another user with
    /// the same key.
    ///
    /// The new task may turn out to be superfluous after the commit: when a client has spawned a
    /// task with the same key meanwhile, or when a waiting task is reused
    /// ([`Coalesce::Reuse`](stepwell_core::Coalesce::Reuse)). The new task is then cancelled, its
    /// failure names the other task, and [`Client::wait`] on it returns the output of the other
    /// task.
    ///
    /// # Errors
    /// The errors of [`Client::spawn`]; the transaction can then only be rolled back.
    async fn spawn_in<T: Task>(
        &self,
        tx: &mut PgConnection,
        params: T::Params,
    ) -> Result<SpawnResult, Error>
    where
        T::Params: Sync;

    /// Spawns a task as [`ClientExt::spawn_in`] does, of a task type known by its name, and with
    /// options.
    ///
    /// # Errors
    /// The errors of [`ClientExt::spawn_in`].
    async fn spawn_named_in<P: Serialize + Sync + ?Sized>(
        &self,
        tx: &mut PgConnection,
        task_type: &str,
        params: &P,
        options: SpawnOptions,
    ) -> Result<SpawnResult, Error>;

    /// Emits an event in the user's transaction, which may have any isolation level. Tasks receive
    /// the event after the commit. Only then is it known whether the event is the first one of its
    /// name; a further event changes nothing.
    ///
    /// # Errors
    /// The errors of [`Client::emit_event`]; the transaction can then only be rolled back.
    async fn emit_event_in<T: Serialize + Sync + ?Sized>(
        &self,
        tx: &mut PgConnection,
        name: &str,
        payload: &T,
        queue: Option<&str>,
    ) -> Result<(), Error>;
}

fn store(client: &Client) -> Result<&PostgresStore, Error> {
    (client.store() as &dyn Any).downcast_ref::<PostgresStore>().ok_or_else(|| {
        let reason =
            "the client's store is not PostgreSQL: use the methods that belong to its store";
        Error::Store(StoreError::Backend(reason.into()))
    })
}

#[async_trait]
impl ClientExt for Client {
    async fn spawn_in<T: Task>(
        &self,
        tx: &mut PgConnection,
        params: T::Params,
    ) -> Result<SpawnResult, Error>
    where
        T::Params: Sync,
    {
        let unfit =
            |source| Error::Payload { what: format!("the parameters of {}", T::NAME), source };
        let params = Payload::encode_proven(&params, usize::MAX).map_err(unfit)?;
        self.spawn_named_in(tx, T::NAME, &params, SpawnOptions::new()).await
    }

    async fn spawn_named_in<P: Serialize + Sync + ?Sized>(
        &self,
        tx: &mut PgConnection,
        task_type: &str,
        params: &P,
        options: SpawnOptions,
    ) -> Result<SpawnResult, Error> {
        let shared = &store(self)?.0;
        let task = self.new_task(task_type, params, options).await?;
        let asked = Asked::of(&task);
        match shared.spawn_within(tx, task).await? {
            Some(spawned) => asked.answer(spawned),
            None => {
                Err(StoreError::Backend("the database did not say what became of a spawn".into())
                    .into())
            }
        }
    }

    async fn emit_event_in<T: Serialize + Sync + ?Sized>(
        &self,
        tx: &mut PgConnection,
        name: &str,
        payload: &T,
        queue: Option<&str>,
    ) -> Result<(), Error> {
        let shared = &store(self)?.0;
        let event = self.new_event(name, payload, queue)?;
        let sql = format!("SELECT {}.emit_within($1, $2, $3, $4)", shared.options.schema);
        let query = sqlx::query(AssertSqlSafe(sql)).persistent(shared.options.prepares);
        let queue = event.queue.as_ref().map_or("", |queue| queue.as_str());
        let query = query.bind(&shared.options.schema).bind(event.name.as_str());
        let query = query.bind(queue).bind(event.payload.as_str());
        query.execute(tx).await.map_err(|error| shared.error_within(error))?;
        Ok(())
    }
}
