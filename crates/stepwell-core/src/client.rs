//! The client: spawns tasks, talks to them, waits for them, and starts workers.

pub(crate) mod approvals;
pub(crate) mod emit;
pub(crate) mod error;
pub(crate) mod export;
pub(crate) mod queues;
mod register;
pub(crate) mod schedules;
pub(crate) mod spawn;
mod tasks;
pub(crate) mod transaction;
mod transfer;
mod wait;
pub(crate) mod workers;

use std::any::{Any, TypeId};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::base::runtime::Runtime;
use crate::client::error::Error;
use crate::engine::settings::Settings;
use crate::engine::worker::Worker;
use crate::engine::worker::retention::purge;
use crate::engine::worker::slots::Slots;
use crate::engine::worker_options::WorkerOptions;
use crate::engine::{Engine, States};
use crate::observe::history::HistoryEntry;
use crate::observe::lifecycle::Subscription;
use crate::store::page::Page;
use crate::store::{HistoryFilter, Store, TaskState};

/// A client of a store.
///
/// A client is cheap to clone, and all its clones are one client. Applications make a client with
/// `stepwell::Durable::builder()`.
#[derive(Clone)]
pub struct Client {
    engine: Arc<Engine>,
}

/// Application state for [`Client::new`], by its type.
#[derive(Default)]
pub struct State(States);

impl State {
    /// Adds a value that tasks read with [`TaskContext::state`](crate::TaskContext::state).
    ///
    /// The value takes the place of a value of the same type.
    pub fn insert<S: Any + Send + Sync>(&mut self, state: S) {
        self.0.insert(TypeId::of::<S>(), Arc::new(state));
    }
}

impl Client {
    /// Returns a client of the store that executes tasks in the runtime.
    pub fn new(
        store: Arc<dyn Store>,
        runtime: Arc<dyn Runtime>,
        settings: Settings,
        state: State,
    ) -> Self {
        Self { engine: Engine::new(store, runtime, settings, state.0) }
    }

    /// Returns the longest time that this client waits for an answer of the store.
    pub fn answer_timeout(&self) -> Duration {
        self.engine.settings.answer_timeout
    }

    /// Returns the store of this client.
    ///
    /// The store returns payloads as it keeps them: encoded when the client has a codec.
    pub fn store(&self) -> &dyn Store {
        &*self.engine.backend
    }

    /// Starts a worker that claims and executes tasks of the registered types until it is shut
    /// down.
    ///
    /// The worker keeps trying when it cannot reach the store.
    pub async fn start_worker(&self, options: WorkerOptions) -> Worker {
        let queues = match options.queues.is_empty() {
            true => vec![self.engine.settings.queue.clone()],
            false => options.queues.clone(),
        };
        let (slots, woken) = Slots::new(self.engine.clone(), options, queues);
        Worker::start(slots, woken).await
    }

    /// Removes tasks that ended longer ago than `older_than`, with all that belongs to them, and
    /// returns their number.
    ///
    /// The purge removes the tasks of one state, or of all states. It goes in small batches,
    /// between which other commits get their turn. A task is kept while another task needs it. Its
    /// parent needs it until the parent has completed, and so does a task whose spawn was answered
    /// with it. A task that waits for it needs it, too. A task that has failed or was cancelled is
    /// therefore removed before its children, in the same purge.
    ///
    /// # Errors
    /// [`Error::Store`]; tasks that were removed before the error stay removed.
    pub async fn purge(
        &self,
        older_than: Duration,
        state: Option<TaskState>,
    ) -> Result<usize, Error> {
        self.purge_with(older_than, state, |_| ()).await
    }

    /// Removes tasks as [`Client::purge`] does, and reports the number removed so far after each
    /// batch.
    ///
    /// # Errors
    /// The errors of [`Client::purge`].
    pub async fn purge_with(
        &self,
        older_than: Duration,
        state: Option<TaskState>,
        progress: impl FnMut(usize),
    ) -> Result<usize, Error> {
        Ok(purge(&self.engine, older_than, state, progress).await?)
    }

    /// Subscribes to the lifecycle events of this process, from now on.
    pub fn subscribe(&self) -> Subscription {
        self.engine.observer.subscribe()
    }

    /// Returns the kept lifecycle events of all processes whose clients were built to keep them.
    ///
    /// For the next page, and for later events, ask for those after the `id` of the last event.
    /// Only an empty page is known to be the last. A lifecycle event is written after the moment
    /// that it reports. The last events before a crash may therefore be missing, and some events
    /// may be there twice after the database was unreachable. Lifecycle events are removed with
    /// their tasks.
    ///
    /// ```
    /// # use stepwell_core::{Client, Error, HistoryFilter, TaskId};
    /// # async fn show(client: Client, task_id: TaskId) -> Result<(), Error> {
    /// let filter = HistoryFilter { task_id: Some(task_id), ..HistoryFilter::default() };
    /// for entry in client.history(filter).await? {
    ///     println!("{} {}", entry.at, entry.event.map_or("unreadable", |event| event.name()));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn history(&self, filter: HistoryFilter) -> Result<Page<HistoryEntry>, Error> {
        let page = self.engine.answered(self.engine.store.history(filter)).await?;
        let items = page.items.into_iter().map(HistoryEntry::read).collect();
        Ok(Page { items, next: page.next })
    }

    /// Shuts down all workers of this client: waits for running tasks up to the deadline, and
    /// releases the rest.
    pub async fn shutdown(&self, deadline: Duration) {
        let workers = self.engine.hub.workers();
        join_all(workers.into_iter().map(|worker| worker.shut_down(deadline))).await;
        self.engine.observer.flush().await;
    }
}
