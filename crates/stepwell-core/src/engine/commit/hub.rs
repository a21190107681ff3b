//! The waits within this process: of callers for the end of a task, of runs for arrivals, of
//! workers for work.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use hashbrown::HashMap;
use lru::LruCache;
use tokio::sync::{Notify, oneshot};

use crate::base::guard;
use crate::base::ids::{TaskId, WorkerId};
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::runtime::{BoxFuture, MaybeSend, MaybeSync};
use crate::engine::run::Run;
use crate::store::page::Page;
use crate::store::{Finish, NewTask, News, Store, StoreError};

/// The largest output that is kept for callers that come a moment later, in bytes.
const SMALL_OUTPUT: usize = 256;
/// The number of outputs that are kept.
const OUTPUTS: usize = 10_000;

/// The end of a task that a caller waits for; `None` when there is no such task.
pub(crate) type End = Result<Option<Finish>, StoreError>;

/// Outputs by their tasks, in a map that grows with its content.
///
/// A bounded map would take all of its memory at once.
struct Outputs(LruCache<TaskId, Payload>);

impl Default for Outputs {
    fn default() -> Self {
        Self(LruCache::unbounded())
    }
}

/// A worker of this process, as the rest of the engine knows it.
pub(crate) trait LocalWorker: MaybeSend + MaybeSync {
    fn worker_id(&self) -> WorkerId;
    /// Returns whether the worker claims tasks of the queue.
    fn serves(&self, queue: &Name) -> bool;
    /// Notifies the worker that `ready` tasks became claimable.
    fn nudge_for(&self, ready: usize);
    /// Notifies the worker that this process has changed a schedule.
    fn schedules_changed(&self);
    /// Drops a suspended task that has ended.
    fn forget(&self, task_id: TaskId);
    /// Takes a slot for a task that is about to be spawned.
    ///
    /// Returns `None` when no slot is free, or other tasks wait for it.
    fn reserve(&self, task: &NewTask) -> Option<WorkerId>;
    /// Returns a slot that was taken for a task that was not spawned.
    fn release(&self);
    /// Runs a task that was spawned, in the slot that was taken for it.
    fn start(self: Arc<Self>, task: NewTask);
    /// Waits for running tasks up to the deadline, and releases the rest.
    fn shut_down(self: Arc<Self>, deadline: Duration) -> BoxFuture<'static, ()>;

    /// Notifies the worker that any number of tasks may have become claimable.
    fn nudge(&self) {
        self.nudge_for(usize::MAX);
    }
}

/// The hub, which takes the news of each commit to all that wait for it.
#[derive(Default)]
pub(crate) struct Hub {
    waiting: Mutex<HashMap<TaskId, Vec<oneshot::Sender<End>>>>,
    /// Tasks that callers wait for, and that are still to be looked up in the store.
    unseen: Mutex<BTreeSet<TaskId>>,
    /// Notified when there are such tasks.
    pub(crate) look: Notify,
    /// The runs by their tasks, held weakly, because a run holds the engine and the engine holds
    /// the hub.
    runs: Mutex<HashMap<TaskId, Weak<Run>>>,
    workers: Mutex<Vec<Weak<dyn LocalWorker>>>,
    /// Small outputs of tasks that ended a moment ago, for callers that spawn many tasks and then
    /// wait for them.
    outputs: Mutex<Outputs>,
}

impl Hub {
    pub(crate) fn tell(&self, news: News) {
        let workers = self.workers();
        for (task_id, finish) in news.finished {
            // A task that was cancelled while it was suspended is of no use in memory.
            workers.iter().for_each(|worker| worker.forget(task_id));
            // The run is removed first: a caller that begins to wait from now on has to look into
            // the store.
            lock(&self.runs).remove(&task_id);
            if let Finish::Completed(output) = &finish
                && output.as_str().len() <= SMALL_OUTPUT
            {
                let outputs = &mut lock(&self.outputs).0;
                outputs.put(task_id, output.clone());
                if outputs.len() > OUTPUTS {
                    outputs.pop_lru();
                }
            }
            self.answer(task_id, &Ok(Some(finish)));
        }
        for task_id in news.poked {
            self.poke(task_id);
        }
        if !news.ready.is_empty() {
            for worker in workers {
                let served = news.ready.iter().filter(|(queue, _)| worker.serves(queue));
                let ready = served.map(|(_, tasks)| tasks).sum();
                if ready > 0 {
                    worker.nudge_for(ready);
                }
            }
        }
    }

    fn answer(&self, task_id: TaskId, end: &End) {
        for waiter in lock(&self.waiting).remove(&task_id).unwrap_or_default() {
            guard::answer(waiter, end.clone());
        }
    }

    /// Requests that the task is looked up in the store, together with other such tasks.
    pub(crate) fn look_at(&self, task_id: TaskId) {
        lock(&self.unseen).insert(task_id);
        self.look.notify_one();
    }

    /// Requests that all tasks with waiting callers are looked up in the store.
    ///
    /// Another process may have ended them.
    pub(crate) fn look_at_all(&self) {
        let waiting: Vec<_> = lock(&self.waiting).keys().copied().collect();
        lock(&self.unseen).extend(waiting);
        self.look.notify_one();
    }

    /// Looks tasks up in the store until none are left to be looked up.
    pub(crate) async fn look_at_unseen(&self, store: &dyn Store) {
        loop {
            let mut tasks: Vec<_> = std::mem::take(&mut *lock(&self.unseen)).into_iter().collect();
            if tasks.is_empty() {
                return;
            }
            while !tasks.is_empty() {
                match store.ends(tasks.clone()).await {
                    Ok(Page { items, next }) => {
                        let seen = |task_id: &TaskId| next.is_none_or(|next| *task_id <= next);
                        let rest = tasks.split_off(tasks.partition_point(seen));
                        let mut ends: HashMap<_, _> = items.into_iter().collect();
                        for task_id in std::mem::replace(&mut tasks, rest) {
                            match ends.remove(&task_id) {
                                Some(None) => {}
                                ended_or_missing => {
                                    self.answer(task_id, &Ok(ended_or_missing.flatten()));
                                }
                            }
                        }
                    }
                    Err(error) => {
                        tasks
                            .drain(..)
                            .for_each(|task_id| self.answer(task_id, &Err(error.clone())));
                    }
                }
            }
        }
    }

    /// Returns the end of a task, when a commit of this process ends it, or it is seen in the
    /// store.
    pub(crate) fn when_finished(&self, task_id: TaskId) -> oneshot::Receiver<End> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = lock(&self.waiting);
        let waiters = waiting.entry(task_id).or_default();
        // Callers that gave up must not accumulate here.
        waiters.retain(|waiter| !waiter.is_closed());
        waiters.push(sender);
        receiver
    }

    /// Returns the output of a task that completed a moment ago.
    ///
    /// Invariant: the output never changes, because a completed task never runs again.
    pub(crate) fn output(&self, task_id: TaskId) -> Option<Payload> {
        lock(&self.outputs).0.get(&task_id).cloned()
    }

    /// Removes the output of a deleted task.
    pub(crate) fn forget_output(&self, task_id: TaskId) {
        lock(&self.outputs).0.pop(&task_id);
    }

    pub(crate) fn forget_waiters(&self, task_id: TaskId) {
        let mut waiting = lock(&self.waiting);
        if let Some(waiters) = waiting.get_mut(&task_id) {
            waiters.retain(|waiter| !waiter.is_closed());
            if waiters.is_empty() {
                waiting.remove(&task_id);
            }
        }
    }

    pub(crate) fn add_run(&self, run: &Arc<Run>) {
        lock(&self.runs).insert(run.task_id, Arc::downgrade(run));
    }

    pub(crate) fn remove_run(&self, run: &Arc<Run>) {
        let mut runs = lock(&self.runs);
        if runs.get(&run.task_id).is_some_and(|current| current.as_ptr() == Arc::as_ptr(run)) {
            runs.remove(&run.task_id);
        }
    }

    /// Returns whether this process runs the task, and will therefore be notified of its end.
    pub(crate) fn runs(&self, task_id: TaskId) -> bool {
        lock(&self.runs).contains_key(&task_id)
    }

    /// Notifies a run of this process that something has arrived for it.
    pub(crate) fn poke(&self, task_id: TaskId) {
        let run = lock(&self.runs).get(&task_id).and_then(Weak::upgrade);
        if let Some(run) = run {
            run.poke();
        }
    }

    pub(crate) fn add_worker(&self, worker: Weak<dyn LocalWorker>) {
        let mut workers = lock(&self.workers);
        workers.retain(|worker| worker.strong_count() > 0);
        workers.push(worker);
    }

    /// Returns a worker of this process that can take the task now, and takes its slot.
    pub(crate) fn reserve(&self, task: &NewTask) -> Option<(WorkerId, Arc<dyn LocalWorker>)> {
        if task.start_at.is_some() || task.concurrency_key.is_some() {
            return None;
        }
        self.workers().into_iter().find_map(|worker| Some((worker.reserve(task)?, worker)))
    }

    pub(crate) fn workers(&self) -> Vec<Arc<dyn LocalWorker>> {
        lock(&self.workers).iter().filter_map(Weak::upgrade).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
