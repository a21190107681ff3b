//! The SQLite store of Stepwell: all state in one file, no server.
//!
//! ```text
//!                ┌── orders ──▶ writer thread ── read-write connection ──┐
//!   SqliteStore ─┤                                                       ├── stepwell.db
//!                └── jobs ────▶ reader thread ── read-only connection ───┘
//!                                                    (WAL, synchronous=FULL)
//! ```
//!
//! A batch is one transaction ([`Store::commit`]), and therefore one sync of the disk. Queries
//! never wait for a commit. Several processes may share the file. Each process learns of the
//! others' commits within 50 ms ([`Store::changed`]), and of another one's death when it next looks
//! for work.
//!
//! The file may also hold the application's own tables: a step's closure writes to them in the
//! transaction that journals the step ([`Work`]).

#![forbid(unsafe_code)]

mod apply;
mod base;
mod file;
mod read;
mod state;
#[cfg(test)]
mod tests;
mod transaction;
mod writer;

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;
use stepwell_core::store::{
    ArrivedMessage, Batch, Changed, Committed, Ends, Happening, HistoryFilter, MessageId, Purge,
    ScheduleFilter, Scheduled, TaskWaits, Transacting, Transition, Wait,
};
use stepwell_core::{
    BoxFuture, Entry, Name, Page, QueueInfo, Runtime, Scope, Store, StoreError, TaskFilter, TaskId,
    TaskInfo, TaskRecord, TaskTypeInfo, Timestamp, WorkerInfo,
};
use tokio::sync::oneshot;

use crate::apply::{import, purge};
use crate::base::error::Fault;
use crate::base::threads::{survive, thread};
use crate::file::checkpoint::Checkpoints;
use crate::file::identity::Identity;
use crate::file::open::{self, Missing};
use crate::read::{history, query, queues, schedules, task_types, waits, workers};
use crate::state::changes::Changes;
use crate::state::liveness::Liveness;
use crate::state::{Writer, ends};
use crate::writer::{Job, Order};

pub use rusqlite;

pub use crate::apply::work::Work;
pub use crate::base::location::Location;
pub use crate::transaction::TransactionExt;

/// A store in an SQLite database.
///
/// Dropping the store finishes the commits in progress, and waits for its threads to end.
pub struct SqliteStore {
    location: Location,
    runtime: Arc<dyn Runtime>,
    changes: Arc<Changes>,
    /// The identity of the files; `None` for a database in memory.
    identity: Option<Arc<Identity>>,
    orders: Option<mpsc::Sender<Order>>,
    /// The queue of the reader's jobs; `None` for a database in memory, whose writer answers
    /// queries.
    jobs: Option<mpsc::Sender<Job>>,
    /// The threads, with the reader first. Invariant: the writer closes last, because the last
    /// connection to close cleans up the write-ahead log, and needs write access.
    threads: Vec<JoinHandle<()>>,
}

impl SqliteStore {
    /// Opens the database, creates it if it does not exist, and migrates its schema. Times come
    /// from the runtime's clock.
    ///
    /// # Errors
    /// [`StoreError::Open`] when the file cannot be opened or created, or is not an SQLite
    /// database. [`StoreError::Corrupt`] when it is damaged. [`StoreError::NewerSchema`] when a
    /// newer Stepwell wrote it. [`StoreError::Locked`] when another program keeps it locked for 5
    /// seconds. The message says what to do.
    pub async fn open(location: Location, runtime: Arc<dyn Runtime>) -> Result<Self, StoreError> {
        Self::open_within(location, runtime, Missing::Migrate, open::BUSY_TIMEOUT).await
    }

    /// Opens a database that exists and has this program's schema. The database is neither created
    /// nor migrated. A database in memory is always new.
    ///
    /// # Errors
    /// The errors of [`SqliteStore::open`]; [`StoreError::Open`] when the file does not exist;
    /// [`StoreError::OlderSchema`] when its schema is older.
    pub async fn open_existing(
        location: Location,
        runtime: Arc<dyn Runtime>,
    ) -> Result<Self, StoreError> {
        Self::open_within(location, runtime, Missing::Refuse, open::BUSY_TIMEOUT).await
    }

    async fn open_within(
        location: Location,
        runtime: Arc<dyn Runtime>,
        missing: Missing,
        busy_timeout: Duration,
    ) -> Result<Self, StoreError> {
        let changes = Arc::new(Changes::new());
        let (orders, ordered) = mpsc::channel();
        let (answer, opened) = oneshot::channel();
        let writer = thread("stepwell-writer", {
            let (location, runtime, changes) = (location.clone(), runtime.clone(), changes.clone());
            move || match open::open(&location, missing, busy_timeout) {
                Ok(opened) => {
                    // The version is read before the caller has the store, so that later commits of
                    // others count as new.
                    let seen = ends::data_version(&opened.writer);
                    let (identity, user_works) = (opened.identity, opened.user_works);
                    survive(|| drop(answer.send(Ok((opened.reader, identity.clone())))));
                    let checkpoints = Checkpoints::new(opened.path.clone());
                    let writer = Writer { location, runtime, user_works, changes, identity };
                    writer.run(
                        &opened.writer,
                        seen,
                        Liveness::new(opened.path),
                        checkpoints,
                        &ordered,
                    );
                }
                Err(error) => _ = answer.send(Err(error)),
            }
        })?;
        let threads = vec![writer];
        let mut store = Self {
            location,
            runtime,
            changes,
            identity: None,
            orders: Some(orders),
            jobs: None,
            threads,
        };
        let (reader, identity) = opened.await.unwrap_or(Err(StoreError::Closed))?;
        store.identity = identity;
        if let Some(conn) = reader {
            let (jobs, queries) = mpsc::channel::<Job>();
            let read = move || queries.iter().for_each(|query| survive(|| query(&conn)));
            let reader = thread("stepwell-reader", read)?;
            store.threads.insert(0, reader);
            store.jobs = Some(jobs);
        }
        Ok(store)
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // A writer that is gone drops the order with the answer's sender, and the receiver
            // returns an error.
            let _ = orders.send(order);
        }
    }

    /// Checks that the database's files are the ones that were opened.
    fn check(identity: Option<&Arc<Identity>>) -> Result<(), StoreError> {
        identity.map_or(Ok(()), |identity| identity.check())
    }

    /// Writes in a transaction.
    fn write<T: Send + 'static>(
        &self,
        write: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let (answer, receipt) = oneshot::channel();
        self.order(Order::Job(self.files().job(write, |written| _ = answer.send(written))));
        Box::pin(answered(receipt))
    }

    fn query<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let (answer, receipt) = oneshot::channel();
        self.read(self.files().job(query, |found| _ = answer.send(found)));
        Box::pin(answered(receipt))
    }

    fn read(&self, job: Job) {
        match &self.jobs {
            Some(jobs) => _ = jobs.send(job),
            None => self.order(Order::Job(job)),
        }
    }

    fn files(&self) -> Files {
        Files { location: self.location.clone(), identity: self.identity.clone() }
    }
}

/// The files on which jobs are done.
#[derive(Clone)]
struct Files {
    location: Location,
    identity: Option<Arc<Identity>>,
}

impl Files {
    /// Makes a job of work on a connection, and of a function that receives the result. The result
    /// counts only if the files are the opened ones before and after the work.
    fn job<T>(
        self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
        then: impl FnOnce(Result<T, StoreError>) + Send + 'static,
    ) -> Job {
        Box::new(move |conn| {
            let check = || SqliteStore::check(self.identity.as_ref());
            let done = check()
                .and_then(|()| work(conn).map_err(|error| Fault::from(error).at(&self.location)));
            then(done.and_then(|done| check().map(|()| done)));
        })
    }
}

impl Store for SqliteStore {
    fn now(&self) -> Timestamp {
        self.runtime.now()
    }

    fn commit(&self, batch: Arc<Batch>) -> BoxFuture<'static, Result<Committed, StoreError>> {
        let (answer, receipt) = oneshot::channel();
        self.order(Order::Commit(batch, answer));
        Box::pin(answered(receipt))
    }

    fn transact(&self, transition: Transition) -> Result<Transacting, Transition> {
        Err(transition)
    }

    fn task(&self, task_id: TaskId) -> BoxFuture<'static, Result<Option<TaskInfo>, StoreError>> {
        self.query(move |conn| query::task(conn, task_id))
    }

    fn tasks(&self, filter: TaskFilter) -> BoxFuture<'static, Result<Page<TaskInfo>, StoreError>> {
        self.query(move |conn| query::tasks(conn, &filter))
    }

    fn ends(&self, tasks: Vec<TaskId>) -> BoxFuture<'static, Result<Ends, StoreError>> {
        self.query(move |conn| query::ends(conn, &tasks))
    }

    fn journal(&self, task_id: TaskId) -> BoxFuture<'static, Result<Vec<Entry>, StoreError>> {
        self.query(move |conn| query::journal(conn, task_id))
    }

    fn waits(
        &self,
        scope: Scope,
        prefix: String,
        behind: Option<TaskId>,
        limit: usize,
    ) -> BoxFuture<'static, Result<Page<TaskWaits>, StoreError>> {
        self.query(move |conn| waits::beginning_with(conn, &scope, &prefix, behind, limit))
    }

    fn waits_of(&self, task_id: TaskId) -> BoxFuture<'static, Result<Vec<Wait>, StoreError>> {
        self.query(move |conn| waits::of(conn, task_id))
    }

    fn messages(
        &self,
        task_id: TaskId,
        behind: Option<MessageId>,
    ) -> BoxFuture<'static, Result<Page<ArrivedMessage>, StoreError>> {
        self.query(move |conn| query::messages(conn, task_id, behind))
    }

    fn import(&self, record: TaskRecord) -> BoxFuture<'static, Result<bool, StoreError>> {
        let now = self.now();
        self.write(move |conn| import::import(conn, now, &record))
    }

    fn queues(&self) -> BoxFuture<'static, Result<Vec<QueueInfo>, StoreError>> {
        self.query(queues::queues)
    }

    fn workers(&self) -> BoxFuture<'static, Result<Vec<WorkerInfo>, StoreError>> {
        let now = self.now();
        self.query(move |conn| workers::workers(conn, now))
    }

    fn schedules(
        &self,
        which: ScheduleFilter,
    ) -> BoxFuture<'static, Result<Page<Scheduled>, StoreError>> {
        self.query(move |conn| schedules::schedules(conn, &which))
    }

    fn waiting_types(
        &self,
        queues: Vec<Name>,
    ) -> BoxFuture<'static, Result<Vec<Name>, StoreError>> {
        self.query(move |conn| workers::waiting_types(conn, &queues))
    }

    fn describe(&self, info: TaskTypeInfo) -> BoxFuture<'static, Result<(), StoreError>> {
        self.write(move |conn| apply::task_types::describe(conn, &info))
    }

    fn task_types(&self) -> BoxFuture<'static, Result<Vec<TaskTypeInfo>, StoreError>> {
        self.query(task_types::task_types)
    }

    fn record(&self, happenings: Vec<Happening>) -> BoxFuture<'static, Result<(), StoreError>> {
        self.write(move |conn| apply::history::record(conn, &happenings))
    }

    fn history(
        &self,
        which: HistoryFilter,
    ) -> BoxFuture<'static, Result<Page<(u64, Happening)>, StoreError>> {
        self.query(move |conn| history::history(conn, &which))
    }

    fn purge(&self, purge: Purge) -> BoxFuture<'static, Result<usize, StoreError>> {
        let (answer, receipt) = oneshot::channel();
        let (files, orders, asked) = (self.files(), self.orders.clone(), purge.clone());
        // The reader passes on what it finds: a future that did so would keep the writer from
        // ending.
        let hand_on = move |found: Result<Vec<TaskId>, StoreError>| match (found, orders) {
            (Ok(found), Some(orders)) => {
                let remove = move |conn: &Connection| purge::remove(conn, &purge, &found);
                let remove = files.job(remove, |removed| _ = answer.send(removed));
                let _ = orders.send(Order::Job(remove));
            }
            (found, _) => _ = answer.send(found.map(|_| 0)),
        };
        self.read(self.files().job(move |conn| purge::find(conn, &asked), hand_on));
        Box::pin(answered(receipt))
    }

    fn changed(&self) -> BoxFuture<'_, Changed> {
        match self.location {
            Location::Memory => Box::pin(std::future::pending()),
            Location::File(_) => Box::pin(async {
                self.changes.next(|| self.order(Order::Look)).await;
                Changed::ANYTHING
            }),
        }
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.jobs = None;
        self.orders = None;
        for thread in self.threads.drain(..) {
            // A step's closure may have held the store's last reference, and a thread cannot join
            // itself.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

async fn answered<T>(receipt: oneshot::Receiver<Result<T, StoreError>>) -> Result<T, StoreError> {
    receipt.await.unwrap_or(Err(StoreError::Closed))
}
