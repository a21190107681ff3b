//! The PostgreSQL store of Stepwell: many workers on many machines share the work.
//!
//! ```text
//!                   ┌── batches ─▶ two connections; one call of stepwell.commit(…) each
//!   PostgresStore ──┼── queries ─▶ a small pool
//!                   ├── steps' transactions ─▶ another pool
//!                   └── LISTEN ◀── commits of other processes, one notification each
//! ```
//!
//! A batch is one call of a function in the database. The function applies the batch as sets of
//! rows, whatever the number of its tasks. The statements are in `schema/`, which begins with a
//! diagram of the tables.
//!
//! # When the connection breaks
//!
//! The client does not know then whether the batch on its way was applied. Each process numbers its
//! batches, and the database keeps the last number. The batch is sent again over a new connection:
//! the batch is then either applied, or answered as `repeated`. The results of a repeated batch are
//! read from the tables. A server may therefore restart or fail over while tasks run: the tasks
//! wait, and continue.
//!
//! # The clock
//!
//! All times come from the server's clock, so that workers with different clocks agree about leases
//! and timers. [`Store::now`] estimates the time from the last answer, and is never ahead of the
//! server.

#![forbid(unsafe_code)]

mod batch;
mod beside;
mod connection;
mod read;
mod schema;
mod transaction;
mod values;
mod work;

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

use crate::connection::{Shared, link};

pub use sqlx;

pub use crate::connection::options::PostgresOptions;
pub use crate::transaction::TransactionExt;
pub use crate::work::Work;

/// A store in a PostgreSQL database. A clone is cheap, and shares the connections.
#[derive(Clone)]
pub struct PostgresStore(Arc<Shared>);

impl PostgresStore {
    /// Connects to a database, creates the schema if it does not exist, and migrates it.
    ///
    /// # Errors
    /// [`StoreError::Open`] when the server cannot be reached or refuses the user;
    /// [`StoreError::NewerSchema`] when a newer Stepwell wrote the schema. The message says what to
    /// do.
    pub async fn connect(options: PostgresOptions) -> Result<Self, StoreError> {
        let mut conn = link::open(&options).await?;
        schema::migrate(&mut conn, &options).await?;
        Ok(Self(Arc::new(Shared::over(conn, options).await?)))
    }

    /// Connects to a database whose schema exists and has this program's version. The schema is
    /// neither created nor migrated.
    ///
    /// # Errors
    /// The errors of [`PostgresStore::connect`]; [`StoreError::OlderSchema`] when the schema is
    /// missing or older.
    pub async fn connect_existing(options: PostgresOptions) -> Result<Self, StoreError> {
        let mut conn = link::open(&options).await?;
        schema::require(&mut conn, &options).await?;
        Ok(Self(Arc::new(Shared::over(conn, options).await?)))
    }
}

impl Store for PostgresStore {
    fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    fn commit(&self, batch: Arc<Batch>) -> BoxFuture<'static, Result<Committed, StoreError>> {
        let shared = self.0.clone();
        Box::pin(async move { shared.commit(batch).await })
    }

    fn lanes(&self) -> NonZeroUsize {
        link::LANES
    }

    fn transact(&self, transition: Transition) -> Result<Transacting, Transition> {
        let shared = self.0.clone();
        Ok(Box::pin(async move { shared.transact(transition).await }))
    }

    fn task(&self, task_id: TaskId) -> BoxFuture<'static, Result<Option<TaskInfo>, StoreError>> {
        let shared = self.0.clone();
        Box::pin(async move { shared.task(task_id).await })
    }

    fn tasks(&self, filter: TaskFilter) -> BoxFuture<'static, Result<Page<TaskInfo>, StoreError>> {
        let shared = self.0.clone();
        Box::pin(async move { shared.tasks(filter).await })
    }

    fn ends(&self, tasks: Vec<TaskId>) -> BoxFuture<'static, Result<Ends, StoreError>> {
        let shared = self.0.clone();
        Box::pin(async move { shared.ends(tasks).await })
    }

    fn journal(&self, task_id: TaskId) -> BoxFuture<'static, Result<Vec<Entry>, StoreError>> {
        let shared = self.0.clone();
        Box::pin(async move { shared.journal(task_id).await })
    }

    fn waits(
        &self,
        scope: Scope,
        prefix: String,
        behind: Option<TaskId>,
        limit: usize,
    ) -> BoxFuture<'static, Result<Page<TaskWaits>, StoreError>> {
        let shared = self.0.clone();
        Box::pin(async move { shared.waits(scope, prefix, behind, limit).await })
    }

    fn waits_of(&self, task_id: TaskId) -> BoxFuture<'static, Result<Vec<Wait>, StoreError>> {
        let shared = self.0.clone();
        Box::pin(async move { shared.waits_of(task_id).await })
    }

    fn messages(
        &self,
        task_id: TaskId,
        behind: Option<MessageId>,
    ) -> BoxFuture<'static, Result<Page<ArrivedMessage>, StoreError>> {
        let shared = self.0.clone();
        Box::pin(async move { shared.messages(task_id, behind).await })
    }

    fn import(&self, record: TaskRecord) -> BoxFuture<'static, Result<bool, StoreError>> {
        let shared = self.0.clone();
        Box::pin(async move { shared.import(record).await })
    }

    fn queues(&self) -> BoxFuture<'static, Result<Vec<QueueInfo>, StoreError>> {
        let shared = self.0.clone();
        Box::pin(async move { shared.queues().await })
    }

    fn workers(&self) -> BoxFuture<'static, Result<Vec<WorkerInfo>, StoreError>> {
        let shared = self.0.clone();
        Box::pin(async move { shared.workers().await })
    }

    fn schedules(
        &self,
        which: ScheduleFilter,
    ) -> BoxFuture<'static, Result<Page<Scheduled>, StoreError>> {
        let shared = self.0.clone();
        Box::pin(async move { shared.schedules(which).await })
    }

    fn waiting_types(
        &self,
        queues: Vec<Name>,
    ) -> BoxFuture<'static, Result<Vec<Name>, StoreError>> {
        let shared = self.0.clone();
        Box::pin(async move { shared.waiting_types(queues).await })
    }

    fn describe(&self, info: TaskTypeInfo) -> BoxFuture<'static, Result<(), StoreError>> {
        let shared = self.0.clone();
        Box::pin(async move { shared.describe(info).await })
    }

    fn task_types(&self) -> BoxFuture<'static, Result<Vec<TaskTypeInfo>, StoreError>> {
        let shared = self.0.clone();
        Box::pin(async move { shared.task_types().await })
    }

    fn record(&self, happenings: Vec<Happening>) -> BoxFuture<'static, Result<(), StoreError>> {
        let shared = self.0.clone();
        Box::pin(async move { shared.record(happenings).await })
    }

    fn history(
        &self,
        which: HistoryFilter,
    ) -> BoxFuture<'static, Result<Page<(u64, Happening)>, StoreError>> {
        let shared = self.0.clone();
        Box::pin(async move { shared.history(which).await })
    }

    fn purge(&self, purge: Purge) -> BoxFuture<'static, Result<usize, StoreError>> {
        let shared = self.0.clone();
        Box::pin(async move { shared.purge(purge).await })
    }

    fn changed(&self) -> BoxFuture<'_, Changed> {
        Box::pin(self.0.changed())
    }
}
