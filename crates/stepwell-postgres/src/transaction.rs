//! Exactly once, with the user's own tables: steps, spawns and events in transactions of `sqlx`.

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

/// Adds [`transaction`](TransactionExt::transaction) to the context of tasks whose store is
/// PostgreSQL.
pub trait TransactionExt {
    /// A step that writes to the application's own tables, in the same database: its writes and its
    /// journal entry are one transaction, and so happen exactly once.
    ///
    /// The closure runs on a connection of the store's, within a transaction that it must not end.
    /// Its first statement may set another isolation level than `READ COMMITTED`. Tasks beside
    /// it are not held up; this task is. When it fails, what it wrote is undone, and the step has
    /// failed with its error.
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
    /// [`TaskError::Step`](stepwell_core::TaskError::Step) when the closure fails, its result
    /// cannot be journaled, or the store is of another kind.
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

/// Adds spawns and events within the user's own transactions to clients whose store is PostgreSQL.
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
    /// Spawns a task in the user's transaction, which may have any isolation level: it is there
    /// when that commits.
    ///
    /// With an idempotency key, the answer is the task that has it, if one has been committed; a
    /// transaction of another user with the same key is waited for. Otherwise the answer is a
    /// new task, as always. What it comes to is decided after the commit: where a client has
    /// spawned with the same key meanwhile, or a waiting task is to be reused
    /// ([`Coalesce::Reuse`](stepwell_core::Coalesce::Reuse)), the new task is shown as cancelled,
    /// its failure names the other task, and [`Client::wait`] on it gives the other's output.
    ///
    /// # Errors
    /// As [`Client::spawn`]; the transaction can then only be rolled back.
    async fn spawn_in<T: Task>(
        &self,
        tx: &mut PgConnection,
        params: T::Params,
    ) -> Result<SpawnResult, Error>
    where
        T::Params: Sync;

    /// As [`ClientExt::spawn_in`], for a task type that is known by its name, and with options.
    ///
    /// # Errors
    /// As [`ClientExt::spawn_in`].
    async fn spawn_named_in<P: Serialize + Sync + ?Sized>(
        &self,
        tx: &mut PgConnection,
        task_type: &str,
        params: &P,
        options: SpawnOptions,
    ) -> Result<SpawnResult, Error>;

    /// Emits an event when the user's transaction, which may have any isolation level, has
    /// committed. Whether it is the first of its name shows only then; a further one changes
    /// nothing.
    ///
    /// # Errors
    /// As [`Client::emit_event`]; the transaction can then only be rolled back.
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
