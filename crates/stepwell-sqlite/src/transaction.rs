//! Exactly once, with the user's own tables.

use rusqlite::Connection;
use serde::Serialize;
use serde::de::DeserializeOwned;
use stepwell_core::{Delivery, Payload, StepName, TaskContext};

use crate::work::Work;

/// Adds [`transaction`](TransactionExt::transaction) to the context of tasks whose store is SQLite.
pub trait TransactionExt {
    /// A step that writes to the application's own tables, in the same database: its writes and its journal entry are one
    /// transaction, and so happen exactly once.
    ///
    /// The closure runs on the store's writer thread, within the commit of many tasks: keep it short, and do slow work
    /// before it. When it fails, what it wrote is undone, and the step has failed with its error. It must not end the
    /// transaction.
    ///
    /// ```
    /// use stepwell_core::{TaskContext, TaskResult};
    /// use stepwell_sqlite::TransactionExt;
    ///
    /// async fn pay(ctx: TaskContext, account: u64, amount: i64) -> TaskResult<()> {
    ///     ctx.transaction("pay", move |tx| {
    ///         tx.execute("UPDATE accounts SET balance = balance - ?2 WHERE id = ?1", (account as i64, amount))?;
    ///         Ok(())
    ///     })
    ///     .await
    /// }
    /// ```
    ///
    /// # Errors
    /// [`TaskError::Step`](stepwell_core::TaskError::Step) when the closure fails, its result cannot be journaled, or the
    /// store is of another kind.
    fn transaction<T, F>(&self, name: impl Into<StepName>, work: F) -> Delivery<T>
    where
        F: FnOnce(&Connection) -> anyhow::Result<T> + Send + 'static,
        T: Serialize + DeserializeOwned;
}

impl TransactionExt for TaskContext {
    fn transaction<T, F>(&self, name: impl Into<StepName>, work: F) -> Delivery<T>
    where
        F: FnOnce(&Connection) -> anyhow::Result<T> + Send + 'static,
        T: Serialize + DeserializeOwned,
    {
        let limit = self.max_payload_bytes();
        let work: Work = Box::new(move |conn| Ok(Payload::encode(&work(conn)?, limit)?));
        self.store_step(name, Box::new(work))
    }
}
