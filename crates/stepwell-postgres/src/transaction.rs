//! Steps, spawns and events in transactions of `sqlx`: exactly once, with the user's own tables.

use std::any::Any;

use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Postgres, Transaction};
use stepwell_core::{
    Client, Delivery, Emit, Error, Guarded, Payload, Spawn, SpawnRequest, SpawnResult, StepName,
    StoreError, TaskContext, UserTransaction,
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
    ///         let sql = "UPDATE accounts SET balance = balance - $2 WHERE id = $1
    ///             RETURNING balance";
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

fn store(client: &Client) -> Result<&PostgresStore, Error> {
    (client.store() as &dyn Any).downcast_ref::<PostgresStore>().ok_or_else(|| {
        let reason =
            "the client's store is not PostgreSQL: use the methods that belong to its store";
        Error::Store(StoreError::Backend(reason.into()))
    })
}

/// Spawns and events in a transaction on the user's own connection, at any isolation level.
///
/// A spawn with an idempotency key is answered with the task that has the key, if such a task is
/// committed. It waits for another user's transaction that has spawned a task with the same key.
///
/// The new task may turn out to be superfluous after the commit: when a client has spawned a task
/// with the same key meanwhile, or when a waiting task is reused
/// ([`Coalesce::Reuse`](stepwell_core::Coalesce::Reuse)). The new task is then cancelled, its
/// failure names the other task, and [`Client::wait`] on it returns the output of the other task.
///
/// Only after the commit is it known whether an event is the first one of its name; a further event
/// changes nothing.
///
/// After an error, the transaction can only be rolled back.
///
/// ```
/// use stepwell_core::Client;
/// use stepwell_postgres::sqlx;
///
/// async fn order(client: &Client, pool: &sqlx::PgPool, item: &str) -> anyhow::Result<()> {
///     let mut tx = pool.begin().await?;
///     sqlx::query("INSERT INTO orders (item) VALUES ($1)").bind(item).execute(&mut *tx).await?;
///     client.spawn_named("ship", item).in_tx(&mut tx).await?;
///     tx.commit().await?; // Either there are both, the order and the task, or neither.
///     Ok(())
/// }
/// ```
impl<'c> UserTransaction<PostgresStore, Spawn> for &'c mut PgConnection {
    type Answer = BoxFuture<'c, Result<SpawnResult, Error>>;

    fn carry_out(self, spawn: Spawn) -> Self::Answer {
        Box::pin(async move {
            let client = spawn.client().clone();
            let shared = &store(&client)?.0;
            let task = spawn.into_task().await?;
            let request = SpawnRequest::of(&task);
            match shared.spawn_within(self, task).await? {
                Some(spawned) => request.answer(spawned),
                None => {
                    let reason = "the database did not say what became of a spawn";
                    Err(StoreError::Backend(reason.into()).into())
                }
            }
        })
    }
}

impl<'c> UserTransaction<PostgresStore, Emit> for &'c mut PgConnection {
    type Answer = BoxFuture<'c, Result<(), Error>>;

    fn carry_out(self, emit: Emit) -> Self::Answer {
        Box::pin(async move {
            let client = emit.client().clone();
            let shared = &store(&client)?.0;
            let event = emit.into_event()?;
            let sql = format!(
                "SELECT {}.emit_within(
                    p_channel => $1, p_event => $2, p_queue => $3, p_payload => $4)",
                shared.options.schema
            );
            let query = sqlx::query(AssertSqlSafe(sql)).persistent(shared.options.prepares);
            let queue = event.queue.as_ref().map_or("", |queue| queue.as_str());
            let query = query.bind(&shared.options.schema).bind(event.name.as_str());
            let query = query.bind(queue).bind(event.payload.as_str());
            query.execute(self).await.map_err(|error| shared.error_within(error))?;
            Ok(())
        })
    }
}

impl<'c, Request> UserTransaction<PostgresStore, Request> for &'c mut Transaction<'_, Postgres>
where
    &'c mut PgConnection: UserTransaction<PostgresStore, Request>,
{
    type Answer = <&'c mut PgConnection as UserTransaction<PostgresStore, Request>>::Answer;

    fn carry_out(self, request: Request) -> Self::Answer {
        let conn: &'c mut PgConnection = self;
        conn.carry_out(request)
    }
}
