//! One run of a task: what its executor and the handles of its context share.

pub(crate) mod child;
pub(crate) mod compensation;
pub(crate) mod delivery;
pub(crate) mod executor;
pub(crate) mod operations;
pub(crate) mod outcome;
pub(crate) mod polled;
pub(crate) mod step;
pub(crate) mod step_cache;

use std::collections::BTreeMap;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio_util::sync::CancellationToken;

use crate::base::failure::{Failure, Retry};
use crate::base::guard::{self, discard};
use crate::base::ids::{RunId, TaskId};
use crate::base::journal::{Entry, Key, Kind, Outcome, Replay};
use crate::base::name::{Name, StepName};
use crate::base::retry::RetryStrategy;
use crate::base::time::{Timestamp, after};
use crate::engine::Engine;
use crate::engine::run::compensation::Undo;
use crate::engine::run::operations::{Effect, Operations, Progress, Request, unlock};
use crate::engine::run::polled::is_polled;
use crate::engine::task_error::{ControlFlow, TaskError, TaskResult};
use crate::observe::measures::TypeMeasures;
use crate::store::rules::ending::{attempts, end_of};
use crate::store::scope::Scope;
use crate::store::{ClaimedTask, Next};

/// What a run shares between its executor and the handles of its context.
pub(crate) struct Run {
    pub(crate) task_id: TaskId,
    pub(crate) run_id: RunId,
    pub(crate) attempt: u32,
    max_attempts: u32,
    retry: RetryStrategy,
    pub(crate) task_type: Name,
    pub(crate) queue: Name,
    pub(crate) scope: Scope,
    pub(crate) concurrency_key: Option<Name>,
    pub(crate) engine: Arc<Engine>,
    /// Of its task type, where that is wanted.
    pub(crate) measures: Option<Arc<TypeMeasures>>,
    pub(crate) waker: Arc<RunWaker>,
    pub(crate) cancelled: CancellationToken,
    /// For how many microseconds nothing was heard of the run; negative after a heartbeat that
    /// asked for longer. Counted by the worker's own watch, so that a clock that jumps ends no
    /// run.
    quiet: AtomicI64,
    claim_timeout: Duration,
    poked: AtomicBool,
    /// Whether it was suspended in the store, or is about to be, and has not gone on since.
    suspending: AtomicBool,
    /// How the task will have ended, once what it did is undone.
    pub(crate) compensating: Option<Failure>,
    /// The attempt as its code sees it: of a task that is compensated, the one that is replayed.
    pub(crate) seen_attempt: u32,
    /// The closures of the steps' compensations, by their records.
    undos: Mutex<BTreeMap<Key, Arc<dyn Undo>>>,
    operations: Mutex<Operations>,
}

impl Run {
    pub(crate) fn new(
        engine: Arc<Engine>,
        claimed: ClaimedTask,
        journal: Vec<Entry>,
        claim_timeout: Duration,
    ) -> Self {
        let replay = Replay::new(journal);
        Self {
            task_id: claimed.task_id,
            run_id: claimed.run_id,
            attempt: claimed.attempt,
            max_attempts: claimed.max_attempts,
            retry: claimed.retry,
            measures: engine.measures.of(&claimed.task_type),
            task_type: claimed.task_type,
            queue: claimed.queue,
            scope: claimed.scope,
            concurrency_key: claimed.concurrency_key,
            engine,
            waker: Arc::default(),
            cancelled: CancellationToken::new(),
            quiet: AtomicI64::new(0),
            claim_timeout,
            poked: AtomicBool::new(false),
            suspending: AtomicBool::new(false),
            seen_attempt: replay
                .compensation
                .as_ref()
                .map_or(claimed.attempt, |compensation| compensation.attempt),
            compensating: replay
                .compensation
                .as_ref()
                .map(|compensation| compensation.failure.clone()),
            undos: Mutex::default(),
            operations: Mutex::new(Operations::new(replay, claimed.waits)),
        }
    }

    /// What becomes of the task when this attempt has failed.
    pub(crate) fn after_failure(&self, failure: Failure) -> Next {
        let strategy = || self.retry.delay(self.attempt, self.engine.runtime.random());
        let (failure, delay) = match (&self.compensating, failure.retry) {
            (Some(original), _) if self.attempt < attempts(self.max_attempts, true) => {
                (original.clone(), RetryStrategy::exponential().delay(self.attempt, u64::MAX / 2))
            }
            (Some(original), _) => {
                return end_of(original.clone().without_the_rest(failure)).into();
            }
            (None, _) if self.attempt >= self.max_attempts => (failure, None),
            (None, Retry::Never) => (failure, None),
            (None, Retry::After(delay)) => (failure, Some(delay)),
            (None, Retry::ByStrategy) => (failure, strategy()),
        };
        match delay {
            Some(delay) => Next::Retry { failure, at: after(self.engine.store.now(), delay) },
            None => Next::Fail(failure),
        }
    }

    /// Keeps the code of a recorded compensation.
    pub(crate) fn add_undo(&self, record: &Key, undo: Arc<dyn Undo>) {
        self.undos.lock().unwrap_or_else(PoisonError::into_inner).insert(record.clone(), undo);
    }

    pub(crate) fn undo(&self, record: &Key) -> Option<Arc<dyn Undo>> {
        self.undos.lock().unwrap_or_else(PoisonError::into_inner).get(record).cloned()
    }

    pub(crate) fn operations(&self) -> MutexGuard<'_, Operations> {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the run from being taken for stuck, for `claim_timeout` or for `extend` where that is
    /// longer.
    pub(crate) fn sign_of_life(&self, extend: Option<Duration>) {
        let longer =
            extend.map_or(Duration::ZERO, |extend| extend.saturating_sub(self.claim_timeout));
        self.quiet
            .fetch_min(-i64::try_from(longer.as_micros()).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Notes that the store has refused a commit, which is sent again after that pause.
    pub(crate) fn wait_for_store(&self, pause: Duration) {
        self.sign_of_life(Some(self.claim_timeout.saturating_add(pause)));
    }

    /// Counts the time that has passed. Returns whether the run is stuck.
    pub(crate) fn count_quiet(&self, passed: Duration) -> bool {
        let passed = i64::try_from(passed.as_micros()).unwrap_or(i64::MAX);
        let quiet = self.quiet.fetch_add(passed, Ordering::Relaxed).saturating_add(passed);
        u128::try_from(quiet).is_ok_and(|quiet| quiet > self.claim_timeout.as_micros())
    }

    pub(crate) fn set_suspending(&self, suspending: bool) {
        self.suspending.store(suspending, Ordering::Release);
    }

    pub(crate) fn is_suspending(&self) -> bool {
        self.suspending.load(Ordering::Acquire)
    }

    /// Something has arrived in the store.
    pub(crate) fn poke(&self) {
        self.poked.store(true, Ordering::Release);
        self.waker.wake_executor();
    }

    pub(crate) fn take_poke(&self) -> bool {
        self.poked.swap(false, Ordering::AcqRel)
    }

    /// Tells the task's code to stop: its calls answer with the reason.
    pub(crate) fn stop(&self, why: ControlFlow) {
        let Some(wakers) = self.operations().stop(why) else { return };
        // Whoever waits for it may be anywhere in the application.
        guard::tell("who waits for a task's token", || self.cancelled.cancel());
        wakers.into_iter().for_each(|waker| guard::tell("a waker of a task", || waker.wake()));
        // Also when nobody waits through the context, the executor has to see it.
        self.waker.wake_by_ref();
    }

    pub(crate) fn control(&self) -> Option<ControlFlow> {
        self.operations().control()
    }

    /// Gives a call its place among the calls of its name.
    pub(crate) fn begin(self: &Arc<Self>, kind: Kind, name: &StepName) -> TaskResult<Key> {
        if !is_polled(self) {
            return Err(outside(kind, name));
        }
        let name = name.check()?;
        let ordinal = self.operations().next_ordinal(kind, &name);
        Ok(Key { kind, name, ordinal })
    }

    /// Whether the task runs the changed code.
    pub(crate) fn patched(self: &Arc<Self>, name: &StepName) -> TaskResult<bool> {
        if !is_polled(self) {
            return Err(outside(Kind::Patch, name));
        }
        let name = name.check()?;
        let mut operations = self.operations();
        operations.control().map_or(Ok(()), |control| Err(TaskError::from(control)))?;
        Ok(operations.patched(name, self.engine.store.now()))
    }

    /// When a wait that begins now is due: what was fixed when it first began, or `duration` from
    /// now.
    pub(crate) fn due_at(
        &self,
        key: &Key,
        due_at: impl FnOnce(Timestamp) -> Timestamp,
    ) -> Timestamp {
        let stored = self.operations().stored_due(key);
        stored.unwrap_or_else(|| due_at(self.engine.store.now()))
    }

    /// Polls an operation: registers it when it is new. Returns how far it has come.
    pub(crate) fn poll(
        self: &Arc<Self>,
        key: &Key,
        request: &mut Option<Request>,
        waker: &Waker,
    ) -> Progress {
        if !is_polled(self) {
            return Progress::Delivered(Err(outside(key.kind, &StepName::from(key.name.as_str()))));
        }
        let mut operations = self.operations();
        let progress = operations.poll(key, request.take(), waker);
        unlock(operations);
        progress
    }

    /// A step's closure has ended: queues what it gave.
    pub(crate) fn finish(&self, key: &Key, outcome: Outcome) {
        let mut operations = self.operations();
        operations.finish(key, outcome, Effect::None);
        unlock(operations);
    }

    /// Drops what is the application's, once the run is over. A closure that undoes something may
    /// hold the context, and that the run: neither would ever be freed otherwise.
    pub(crate) fn let_go(&self) {
        let undos = mem::take(&mut *self.undos.lock().unwrap_or_else(PoisonError::into_inner));
        undos.into_values().for_each(discard);
        let (live, wakers) = self.operations().take_live();
        live.into_iter().for_each(discard);
        wakers.into_iter().for_each(discard);
    }

    /// The future of an operation is gone.
    pub(crate) fn forget(&self, key: &Key) {
        let mut operations = self.operations();
        operations.forget(key);
        unlock(operations);
    }
}

fn outside(kind: Kind, name: &StepName) -> TaskError {
    TaskError::OutsideTask { call: format!("{} \"{name}\"", kind.as_str()) }
}

/// Wakes the executor of a run, and remembers that the task's future asked for it.
///
/// A delivery wakes the future within the executor's own poll. That must not reach the runtime: it
/// would queue the task once more, and mostly wake another thread for it. So the executor leaves
/// its waker here only while it sleeps.
#[derive(Default)]
pub(crate) struct RunWaker {
    /// The future is to be polled.
    woken: AtomicBool,
    /// The executor is to look again.
    nudged: AtomicBool,
    executor: AtomicWaker,
}

impl RunWaker {
    pub(crate) fn register(&self, waker: &Waker) {
        self.executor.register(waker);
    }

    /// The executor looks itself from now on.
    pub(crate) fn take(&self) {
        drop(self.executor.take());
    }

    /// Whatever happened until now, the executor is about to see.
    pub(crate) fn look(&self) {
        self.nudged.swap(false, Ordering::AcqRel);
    }

    /// Whether the executor can sleep, to be woken by that waker: nothing has happened since it
    /// began to look.
    pub(crate) fn can_sleep(&self, waker: &Waker) -> bool {
        self.executor.register(waker);
        !self.nudged.load(Ordering::Acquire)
    }

    pub(crate) fn wake_executor(&self) {
        self.nudged.store(true, Ordering::Release);
        self.executor.wake();
    }

    pub(crate) fn take_woken(&self) -> bool {
        self.woken.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn is_woken(&self) -> bool {
        self.woken.load(Ordering::Acquire)
    }
}

impl Wake for RunWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            self.wake_executor();
        }
    }
}
