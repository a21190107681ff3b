//! A worker's slots: the tasks that it runs, those in its memory, and its free slots.

mod losses;
pub(crate) mod shutdown;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::time::Duration;

use hashbrown::HashMap;
use lru::LruCache;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::base::ids::{TaskId, WorkerId};
use crate::base::journal::Entry;
use crate::base::name::Name;
use crate::base::runtime::BoxFuture;
use crate::engine::Engine;
use crate::engine::commit::hub::LocalWorker;
use crate::engine::run::Run;
use crate::engine::run::executor::{End, Execution};
use crate::engine::task_error::ControlFlow;
use crate::engine::worker::holdings::{Held, Holding};
use crate::engine::worker::slots::losses::HeldRun;
use crate::engine::worker::slots::shutdown::shutdown;
use crate::engine::worker::suspects::SuspectPermit;
use crate::engine::worker_options::WorkerOptions;
use crate::store::{ClaimedTask, Facts, NewTask, StoreError};

pub(crate) struct Slots {
    pub(crate) engine: Arc<Engine>,
    pub(crate) options: WorkerOptions,
    pub(crate) queues: Vec<Name>,
    /// Notified when there may be work, or room for it.
    pub(crate) work: Notify,
    /// Notified when this process has changed a schedule.
    pub(crate) schedules: Notify,
    /// Notified when the worker is shutting down, and its slots are empty.
    pub(crate) empty: Notify,
    /// Cancelled when the store knows the worker.
    pub(crate) registered: CancellationToken,
    /// Ends the worker's loops.
    pub(crate) end: CancellationToken,
    /// Cancelled when the worker has signed off.
    pub(crate) stopped: CancellationToken,
    /// Suspended tasks whose futures were woken by something outside their contexts.
    woken: mpsc::UnboundedSender<TaskId>,
    inside: Mutex<Inside>,
}

struct Inside {
    worker_id: WorkerId,
    /// Set while the worker takes tasks: it is registered, and not shutting down.
    open: bool,
    /// Set when the worker is shutting down.
    closed: bool,
    /// Set when nothing begins any more, because the worker is about to sign off.
    ///
    /// The store then takes back the tasks that it still assigns to the worker.
    sealed: bool,
    free: usize,
    /// Set when claimable tasks are left in the store, which go before new ones.
    backlog: bool,
    /// The number of tasks that the next claim asks for: as many as the worker was notified of.
    wanted: usize,
    runs: HashMap<TaskId, Arc<Run>>,
    /// The runs that the worker owns: those in `runs` and in `handed_over`, and those whose
    /// journals are being loaded.
    held: Held,
    /// The number of runs that were claimed.
    claims: u64,
    /// The number of claims that were sent; `taken_in` is the number of those whose tasks were
    /// started.
    sent: u64,
    taken_in: u64,
    /// Suspended tasks that can go on in place.
    suspended: LruCache<TaskId, Box<Execution>>,
    /// Claims of suspended tasks whose execution has not left its slot yet.
    handed_over: BTreeMap<TaskId, HandedOver>,
}

type HandedOver = (ClaimedTask, Holding, Slot, Option<SuspectPermit>);

impl Slots {
    /// Returns the slots, and the suspended tasks that are woken by something outside their
    /// contexts.
    pub(crate) fn new(
        engine: Arc<Engine>,
        options: WorkerOptions,
        queues: Vec<Name>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<TaskId>) {
        let (woken, suspended_woken) = mpsc::unbounded_channel();
        let inside = Inside {
            worker_id: WorkerId::new(&*engine.runtime),
            open: false,
            closed: false,
            sealed: false,
            free: options.concurrency,
            backlog: true,
            wanted: usize::MAX,
            runs: HashMap::new(),
            held: Held::new(),
            claims: 0,
            sent: 0,
            taken_in: 0,
            suspended: LruCache::unbounded(),
            handed_over: BTreeMap::new(),
        };
        let slots = Self {
            engine,
            options,
            queues,
            work: Notify::new(),
            schedules: Notify::new(),
            empty: Notify::new(),
            registered: CancellationToken::new(),
            end: CancellationToken::new(),
            stopped: CancellationToken::new(),
            woken,
            inside: Mutex::new(inside),
        };
        (Arc::new(slots), suspended_woken)
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the slots, because the store knows the worker.
    pub(crate) fn open(&self) {
        let mut inside = self.inside();
        inside.open = !inside.closed;
        drop(inside);
        self.registered.cancel();
        self.nudge();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.inside().closed
    }

    /// Closes the slots for good.
    pub(crate) fn close(&self) {
        let mut inside = self.inside();
        (inside.open, inside.closed) = (false, true);
    }

    /// Lets no task begin any more, not even one whose claim is on its way.
    pub(crate) fn seal(&self) {
        self.inside().sealed = true;
    }

    /// Drops all suspended tasks from memory.
    pub(crate) fn forget_suspended(&self) {
        let mut suspended = std::mem::replace(&mut self.inside().suspended, LruCache::unbounded());
        // Tasks are dropped in the order of their use, because a cache that is dropped as a whole
        // has no order.
        while let Some(execution) = suspended.pop_lru() {
            drop(execution);
        }
    }

    /// Takes slots for a claim, at most one for each task that there may be.
    ///
    /// Spawns meanwhile find the other slots free.
    pub(crate) fn take_for_claim(&self, polling: bool) -> usize {
        let mut inside = self.inside();
        inside.sent += 1;
        if !inside.open {
            return 0;
        }
        let wanted = std::mem::take(&mut inside.wanted);
        let wanted = if polling || inside.backlog { usize::MAX } else { wanted };
        let taken = wanted.min(inside.free);
        inside.free -= taken;
        // Tasks that find no room wait in the store, before any that is spawned later.
        inside.backlog = wanted > taken;
        taken
    }

    /// Returns slots.
    pub(crate) fn give_back(&self, slots: usize) {
        let mut inside = self.inside();
        inside.free += slots;
        let backlog = inside.backlog;
        self.look_if_empty(inside);
        if backlog && slots > 0 {
            self.work.notify_one();
        }
    }

    /// Counts a claim that was answered, and whose tasks were started.
    pub(crate) fn took_in(&self) {
        self.inside().taken_in += 1;
    }

    /// Returns whether `claims` claims have been taken in, so that `held` includes all that they
    /// brought.
    pub(crate) fn has_taken_in(&self, claims: u64) -> bool {
        self.inside().taken_in >= claims
    }

    /// Returns one of the slots that were taken for a claim.
    pub(crate) fn slot(self: &Arc<Self>) -> Slot {
        Slot(self.clone())
    }

    /// Notes that a claim brought less than it asked for, because nothing is left in the store.
    pub(crate) fn no_backlog(&self) {
        self.inside().backlog = false;
    }

    /// Runs a claimed task in a slot that was taken for it.
    pub(crate) fn start_claimed(
        self: &Arc<Self>,
        mut claimed: ClaimedTask,
        slot: Slot,
        suspect: Option<SuspectPermit>,
    ) {
        let task_id = claimed.task_id;
        if claimed.unreadable.is_some() {
            claimed.journal = Some(Vec::new());
        }
        let mut inside = self.inside();
        if inside.sealed {
            // The worker signs off, which releases the task.
            return drop(inside);
        }
        inside.claims += 1;
        let holding = Holding { run_id: claimed.run_id, claim: inside.claims };
        inside.held.insert(task_id, holding);
        if let Some(journal) = claimed.journal.take() {
            drop(inside);
            // Another worker has run it since: what is in memory here has fallen behind.
            self.forget(task_id);
            return self.begin(claimed, holding, journal, slot, suspect);
        }
        // Another worker may have run it since: what is in memory here has fallen behind then.
        let suspended = inside.suspended.pop(&task_id);
        let (current, behind) = match suspended {
            Some(execution) if execution.run.run_id == claimed.run_id => (Some(execution), None),
            behind => (None, behind),
        };
        if let Some(mut execution) = current {
            inside.runs.insert(task_id, execution.run.clone());
            drop(inside);
            execution.resume(claimed.facts, slot);
            return self.spawn(execution);
        }
        let running = inside.runs.get(&task_id).filter(|run| run.run_id == claimed.run_id).cloned();
        if let Some(run) = running {
            // The execution is on its way out of its slot, and will find this claim. If it is not,
            // the database has lost the claim under which it runs, and it makes room.
            let before = inside.handed_over.insert(task_id, (claimed, holding, slot, suspect));
            drop(inside);
            drop(before);
            if !run.is_suspending() {
                run.stop(ControlFlow::LeaseLost);
            }
            return;
        }
        drop(inside);
        drop(behind);
        self.load(claimed, holding, slot, suspect);
    }

    fn begin(
        self: &Arc<Self>,
        claimed: ClaimedTask,
        holding: Holding,
        journal: Vec<Entry>,
        slot: Slot,
        suspect: Option<SuspectPermit>,
    ) {
        let WorkerOptions { claim_timeout, grace, .. } = self.options;
        let task_id = claimed.task_id;
        let mut execution =
            Execution::new(&self.engine, claimed, journal, slot, suspect, claim_timeout, grace);
        let mut inside = self.inside();
        if inside.sealed || inside.held.get(&task_id) != Some(&holding) {
            // The task was released, or another worker has it, since its journal began to load.
            drop(inside);
            return drop(execution);
        }
        let before = inside.runs.insert(task_id, execution.run.clone());
        drop(inside);
        if let Some(before) = before {
            // The earlier run no longer owns the task.
            before.stop(ControlFlow::LeaseLost);
        }
        execution.start();
        self.spawn(execution);
    }

    fn spawn(self: &Arc<Self>, execution: Box<Execution>) {
        self.engine.hub.add_run(&execution.run);
        let slots = self.clone();
        self.engine.runtime.spawn(Box::pin(async move { slots.run(execution).await }));
    }

    /// Loads the journal and the waits of a task that is no longer in memory, and then runs the
    /// task.
    ///
    /// The task runs only if the worker still owns it.
    fn load(
        self: &Arc<Self>,
        mut claimed: ClaimedTask,
        holding: Holding,
        slot: Slot,
        suspect: Option<SuspectPermit>,
    ) {
        let held =
            HeldRun { slots: self.clone(), task_id: claimed.task_id, run_id: claimed.run_id };
        self.engine.runtime.spawn(Box::pin(async move {
            let (slots, task_id) = (&held.slots, claimed.task_id);
            while slots.holds(task_id, holding) {
                let store = &slots.engine.store;
                let read =
                    async { Ok((store.journal(task_id).await?, store.waits_of(task_id).await?)) };
                let journal = match read.await {
                    Ok((journal, waits)) => {
                        claimed.waits = waits;
                        journal
                    }
                    Err(StoreError::Unreadable(unreadable)) => {
                        claimed.unreadable = Some(unreadable);
                        Vec::new()
                    }
                    // Another worker, or another process, may have a store that is open.
                    Err(StoreError::Closed) => {
                        return slots.abandon(claimed.task_id, claimed.run_id);
                    }
                    Err(error) => {
                        tracing::warn!(%error, %task_id, "cannot load a journal; trying again");
                        slots.engine.runtime.sleep(slots.options.poll_interval).await;
                        continue;
                    }
                };
                return slots.begin(claimed, holding, journal, slot, suspect);
            }
        }));
    }

    /// Returns whether a claimed run is still to be executed.
    fn holds(&self, task_id: TaskId, holding: Holding) -> bool {
        let inside = self.inside();
        !inside.sealed && inside.held.get(&task_id) == Some(&holding)
    }

    async fn run(self: Arc<Self>, mut execution: Box<Execution>) {
        let Run { task_id, run_id, .. } = *execution.run;
        let _held = HeldRun { slots: self.clone(), task_id, run_id };
        loop {
            let run = execution.run.clone();
            let end = execution.execute().await;
            match self.leave(&run, end) {
                Some(again) => execution = again,
                None => return,
            }
        }
    }

    /// Takes an execution out of its slot, and returns it when it has been claimed again meanwhile.
    fn leave(self: &Arc<Self>, run: &Arc<Run>, end: End) -> Option<Box<Execution>> {
        let task_id = run.task_id;
        let mut inside = self.inside();
        let mut dropped = None;
        let is_for_it = |(claimed, ..): &HandedOver| claimed.run_id == run.run_id;
        let handed_over = match inside.handed_over.get(&task_id).is_some_and(is_for_it) {
            true => inside.handed_over.remove(&task_id),
            false => None,
        };
        if let End::Suspended(mut execution) = end {
            if let Some((claimed, _, slot, _)) = handed_over {
                drop(inside);
                execution.resume(claimed.facts, slot);
                return Some(execution);
            }
            let waker = Waker::from(Arc::new(WakeSuspended { task_id, woken: self.woken.clone() }));
            run.waker.register(&waker);
            if run.waker.is_woken() {
                waker.wake();
            }
            inside.suspended.put(task_id, execution);
            if inside.suspended.len() > self.options.max_in_memory {
                dropped = inside.suspended.pop_lru();
            }
        }
        self.engine.hub.remove_run(run);
        if inside.runs.get(&task_id).is_some_and(|current| Arc::ptr_eq(current, run)) {
            inside.runs.remove(&task_id);
        }
        if handed_over.is_none()
            && inside.held.get(&task_id).is_some_and(|held| held.run_id == run.run_id)
        {
            inside.held.remove(&task_id);
        }
        self.look_if_empty(inside);
        // The value is dropped outside of the lock, because its code is the user's.
        drop(dropped);
        if let Some((claimed, holding, slot, suspect)) = handed_over {
            // The task in memory is gone, and goes on from its journal.
            self.load(claimed, holding, slot, suspect);
        }
        None
    }

    /// Returns whether nothing is in a slot, nor on its way into one or out of one.
    pub(crate) fn is_empty(&self) -> bool {
        let inside = self.inside();
        inside.free >= self.options.concurrency && inside.runs.is_empty() && inside.held.is_empty()
    }

    /// Notifies the shutdown when the last run has left.
    fn look_if_empty(&self, inside: MutexGuard<'_, Inside>) {
        let closed = inside.closed;
        drop(inside);
        if closed && self.is_empty() {
            self.empty.notify_waiters();
        }
    }

    /// Returns the runs that execute, ordered by the ids of their tasks.
    fn runs(&self) -> Vec<Arc<Run>> {
        let mut runs: Vec<_> = self.inside().runs.values().cloned().collect();
        runs.sort_unstable_by_key(|run| run.task_id);
        runs
    }

    pub(crate) fn stop_all(&self, why: ControlFlow) {
        self.runs().iter().for_each(|run| run.stop(why));
    }

    /// Returns the runs that the worker owns, and the number of claims that it has sent.
    pub(crate) fn held(&self) -> (Held, u64) {
        let inside = self.inside();
        (inside.held.clone(), inside.sent)
    }
}

impl LocalWorker for Slots {
    fn worker_id(&self) -> WorkerId {
        self.inside().worker_id
    }

    fn serves(&self, queue: &Name) -> bool {
        self.queues.contains(queue)
    }

    fn nudge_for(&self, ready: usize) {
        let mut inside = self.inside();
        inside.wanted = inside.wanted.saturating_add(ready);
        drop(inside);
        self.work.notify_one();
    }

    fn schedules_changed(&self) {
        self.schedules.notify_one();
    }

    fn forget(&self, task_id: TaskId) {
        let suspended = self.inside().suspended.pop(&task_id);
        // The value is dropped outside of the lock, because its code is the user's.
        drop(suspended);
    }

    fn reserve(&self, task: &NewTask) -> Option<WorkerId> {
        let pinned_elsewhere =
            task.code_version.is_some() && task.code_version != self.options.code_version;
        if pinned_elsewhere
            || !self.serves(&task.queue)
            || !self.engine.registry.knows(&task.task_type)
        {
            return None;
        }
        let mut inside = self.inside();
        if !inside.open || inside.backlog || inside.free == 0 {
            return None;
        }
        inside.free -= 1;
        Some(inside.worker_id)
    }

    fn release(&self) {
        self.give_back(1);
    }

    fn start(self: Arc<Self>, task: NewTask) {
        if task.cancellation.max_duration.is_some() {
            // The worker learns from a claim when something is due next.
            self.nudge();
        }
        let claimed = ClaimedTask {
            task_id: task.task_id,
            run_id: task.run_id,
            attempt: 1,
            max_attempts: task.max_attempts,
            crashes: 0,
            task_type: task.task_type,
            queue: task.queue,
            params: task.params,
            headers: task.headers,
            scope: task.scope,
            concurrency_key: task.concurrency_key,
            retry: task.retry,
            journal: Some(Vec::new()),
            waits: Vec::new(),
            facts: Facts::default(),
            unreadable: None,
        };
        self.start_claimed(claimed, self.slot(), None);
    }

    fn shut_down(self: Arc<Self>, deadline: Duration) -> BoxFuture<'static, ()> {
        Box::pin(async move { shutdown(&self, deadline).await })
    }
}

/// A slot in use, while the code of its task runs; the task's last commit needs none.
pub(crate) struct Slot(Arc<Slots>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.give_back(1);
    }
}

/// Wakes a suspended task whose future was woken by something outside its context.
struct WakeSuspended {
    task_id: TaskId,
    woken: mpsc::UnboundedSender<TaskId>,
}

impl Wake for WakeSuspended {
    fn wake(self: Arc<Self>) {
        // Without a worker, nothing is left to be woken.
        let _ = self.woken.send(self.task_id);
    }
}
