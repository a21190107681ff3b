//! One run of a task: the state that its executor and the handles of its context share.

pub(crate) mod child;
pub(crate) mod compensation;
pub(crate) mod delivery;
pub(crate) mod executor;
pub(crate) mod outcome;
pub(crate) mod polled;
pub(crate) mod state;
pub(crate) mod step;
pub(crate) mod step_cache;
pub(crate) mod waker;

use std::collections::BTreeMap;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake as _, Waker};
use std::time::Duration;

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
use crate::engine::run::polled::is_polled;
use crate::engine::run::state::{Effect, Progress, Request, RunState, unlock};
use crate::engine::run::waker::RunWaker;
use crate::engine::task_error::{ControlFlow, TaskError, TaskResult};
use crate::observe::observer::RunObserver;
use crate::store::rules::ending::{attempts, end_of};
use crate::store::scope::Scope;
use crate::store::{ClaimedTask, Next};

/// The state that a run's executor shares with the handles of its context.
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
    pub(crate) observer: RunObserver,
    pub(crate) waker: Arc<RunWaker>,
    pub(crate) cancelled: CancellationToken,
    /// The microseconds since the run's last sign of life.
    ///
    /// They are negative after a heartbeat that asked for longer. The worker's own timers count
    /// them, so that a jump of a clock ends no run.
    quiet: AtomicI64,
    claim_timeout: Duration,
    poked: AtomicBool,
    /// Set while the run is suspended in the store, or is about to be, and has not gone on since.
    suspending: AtomicBool,
    /// The failure with which the task ends after its compensations.
    pub(crate) compensating: Option<Failure>,
    /// The attempt that the code sees: for a task that is compensated, the one that is replayed.
    pub(crate) seen_attempt: u32,
    /// The closures of the steps' compensations, by their records.
    undos: Mutex<BTreeMap<Key, Arc<dyn Undo>>>,
    state: Mutex<RunState>,
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
            observer: engine.observer.of_run(
                claimed.task_id,
                &claimed.task_type,
                replay.compensation.is_some(),
            ),
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
            state: Mutex::new(RunState::new(replay, claimed.waits)),
        }
    }

    /// Returns the next state of the task after this attempt has failed.
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

    /// Keeps the closure of a recorded compensation.
    pub(crate) fn add_undo(&self, record: &Key, undo: Arc<dyn Undo>) {
        self.undos.lock().unwrap_or_else(PoisonError::into_inner).insert(record.clone(), undo);
    }

    pub(crate) fn undo(&self, record: &Key) -> Option<Arc<dyn Undo>> {
        self.undos.lock().unwrap_or_else(PoisonError::into_inner).get(record).cloned()
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, RunState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the run from counting as stuck, for `claim_timeout`, or for `extend` when that is
    /// longer.
    pub(crate) fn sign_of_life(&self, extend: Option<Duration>) {
        let longer =
            extend.map_or(Duration::ZERO, |extend| extend.saturating_sub(self.claim_timeout));
        self.quiet
            .fetch_min(-i64::try_from(longer.as_micros()).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Keeps the run from counting as stuck after the store has refused a commit, which is sent
    /// again after the pause.
    pub(crate) fn wait_for_store(&self, pause: Duration) {
        self.sign_of_life(Some(self.claim_timeout.saturating_add(pause)));
    }

    /// Counts the time that has passed, and returns whether the run is stuck.
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

    /// Notifies the run that something has arrived in the store.
    pub(crate) fn poke(&self) {
        self.poked.store(true, Ordering::Release);
        self.waker.wake_executor();
    }

    pub(crate) fn take_poke(&self) -> bool {
        self.poked.swap(false, Ordering::AcqRel)
    }

    /// Tells the task's code to stop: its calls return the reason.
    pub(crate) fn stop(&self, why: ControlFlow) {
        let Some(wakers) = self.state().stop(why) else { return };
        // The tasks that wait for the token may be anywhere in the application.
        guard::tell("who waits for a task's token", || self.cancelled.cancel());
        wakers.into_iter().for_each(|waker| guard::tell("a waker of a task", || waker.wake()));
        // The executor has to see the reason even when no call of the context waits.
        self.waker.wake_by_ref();
    }

    pub(crate) fn control(&self) -> Option<ControlFlow> {
        self.state().control()
    }

    /// Returns the key of a call, which numbers it among the calls of its name.
    pub(crate) fn begin(self: &Arc<Self>, kind: Kind, name: &StepName) -> TaskResult<Key> {
        if !is_polled(self) {
            return Err(outside(kind, name));
        }
        let name = name.check()?;
        let ordinal = self.state().next_ordinal(kind, &name);
        Ok(Key { kind, name, ordinal })
    }

    /// Returns whether the task runs the changed code.
    pub(crate) fn patched(self: &Arc<Self>, name: &StepName) -> TaskResult<bool> {
        if !is_polled(self) {
            return Err(outside(Kind::Patch, name));
        }
        let name = name.check()?;
        let mut state = self.state();
        state.control().map_or(Ok(()), |control| Err(TaskError::from(control)))?;
        Ok(state.patched(name, self.engine.store.now()))
    }

    /// Returns the due time of a wait.
    ///
    /// A wait that an earlier run began keeps its time. A new one is due at `due_at` of the present
    /// time.
    pub(crate) fn due_at(
        &self,
        key: &Key,
        due_at: impl FnOnce(Timestamp) -> Timestamp,
    ) -> Timestamp {
        let stored = self.state().stored_due(key);
        stored.unwrap_or_else(|| due_at(self.engine.store.now()))
    }

    /// Polls an operation, registers it when it is new, and returns how far it has come.
    pub(crate) fn poll(
        self: &Arc<Self>,
        key: &Key,
        request: &mut Option<Request>,
        waker: &Waker,
    ) -> Progress {
        if !is_polled(self) {
            return Progress::Delivered(Err(outside(key.kind, &StepName::from(key.name.as_str()))));
        }
        let mut state = self.state();
        let progress = state.poll(key, request.take(), waker);
        unlock(state);
        progress
    }

    /// Queues the result of a step's closure that has ended.
    pub(crate) fn finish(&self, key: &Key, outcome: Outcome) {
        let mut state = self.state();
        state.finish(key, outcome, Effect::None);
        unlock(state);
    }

    /// Drops the application's values after the run is over.
    ///
    /// The closure of a compensation may hold the context, which holds the run. Neither would be
    /// freed otherwise.
    pub(crate) fn let_go(&self) {
        let undos = mem::take(&mut *self.undos.lock().unwrap_or_else(PoisonError::into_inner));
        undos.into_values().for_each(discard);
        let (live, wakers) = self.state().take_live();
        live.into_iter().for_each(discard);
        wakers.into_iter().for_each(discard);
    }

    /// Forgets an operation whose future was dropped.
    pub(crate) fn forget(&self, key: &Key) {
        let mut state = self.state();
        state.forget(key);
        unlock(state);
    }
}

fn outside(kind: Kind, name: &StepName) -> TaskError {
    TaskError::OutsideTask { call: format!("{} \"{name}\"", kind.as_str()) }
}
