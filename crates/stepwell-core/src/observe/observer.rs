//! The observer: the engine tells it once of each thing that happens.
//!
//! ```text
//!   engine ──▶ Observer ─┬─▶ lifecycle ──▶ subscribers (this process, at once)
//!                        │           └───▶ history     (the store, in the background)
//!                        ├─▶ measures  ──▶ the recorder of the `metrics` facade
//!                        └─▶ trace     ──▶ the collector of spans
//! ```
//!
//! Its methods are named for what happened. Without subscribers, history, recorder and collector, a
//! call costs a few comparisons: it allocates nothing, and reads no clock.

use std::sync::Arc;

use tracing::Span;

use crate::base::ids::{RunId, TaskId, WorkerId};
use crate::base::journal::{Key, Kind, Outcome};
use crate::base::name::Name;
use crate::base::runtime::Runtime;
use crate::base::time::{Timestamp, until};
use crate::observe::lifecycle::{Broadcast, Lifecycle, Subscription};
use crate::observe::measures::{Ended, Measures, TypeMeasures};
use crate::observe::notes::{Line, Progress};
use crate::observe::trace;
use crate::store::rules::ending::cancelled;
use crate::store::{Batch, Committed, Finish, Headers, Next, Store, StoreError};

/// The observer of an engine.
pub(crate) struct Observer {
    /// The store, whose clock times tasks.
    store: Arc<dyn Store>,
    /// The runtime, whose clock times commits.
    runtime: Arc<dyn Runtime>,
    lifecycle: Broadcast,
    measures: Measures,
}

impl Observer {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        runtime: Arc<dyn Runtime>,
        keep_history: bool,
        measure: bool,
    ) -> Arc<Self> {
        let lifecycle = match keep_history {
            true => Broadcast::kept(store.clone(), runtime.clone()),
            false => Broadcast::new(),
        };
        Arc::new(Self { store, runtime, lifecycle, measures: Measures::new(measure) })
    }

    /// Subscribes to lifecycle events, from now on.
    pub(crate) fn subscribe(&self) -> Subscription {
        self.lifecycle.subscribe()
    }

    /// Waits until the history holds all that has happened.
    pub(crate) async fn flush(&self) {
        self.lifecycle.flush().await;
    }

    /// Observes that a client or a schedule has spawned a task.
    pub(crate) fn spawned(&self, task_id: TaskId, task_type: Name) {
        self.measures.count_spawn(&task_type);
        self.lifecycle.tell(|| Some(Lifecycle::TaskSpawned { task_id, task_type }));
    }

    /// Observes that a task ended without a run: it was cancelled, or killed its last worker.
    pub(crate) fn ended_without_a_run(&self, task_id: TaskId, finish: &Finish) {
        self.lifecycle.tell(|| match finish {
            Finish::Completed(_) => None,
            Finish::Failed(failure) => {
                let failure = failure.clone();
                Some(Lifecycle::TaskFailed { task_id, failure, retry_at: None })
            }
            Finish::Cancelled => Some(Lifecycle::TaskCancelled { task_id }),
        });
    }

    /// Observes that a batch is sent to the store.
    pub(crate) fn commit_started(&self, batch: &Batch) -> ObservedCommit {
        let begun = self.measures.are_wanted().then(|| self.runtime.now());
        ObservedCommit { span: trace::commit(batch), begun }
    }

    /// Observes that a batch is durable.
    pub(crate) fn committed(&self, begun: Option<Timestamp>, committed: &Committed) {
        let Some(begun) = begun else { return };
        self.measures.with_store(|measures| {
            let items = committed.transitions.len() + committed.spawns.len();
            measures.commit_items.record(items as f64);
            measures.commit_seconds.record(until(begun, self.runtime.now()));
        });
    }

    /// Observes that the store has refused a batch.
    pub(crate) fn commit_failed(&self, error: &StoreError) {
        tracing::warn!(%error, "a commit failed");
        self.measures.with_store(|measures| measures.commits_failed.increment(1));
    }

    /// Observes that a worker asks for work, and returns the span of the claim.
    pub(crate) fn claim_started(&self, worker_id: WorkerId, limit: usize) -> Span {
        trace::claim(worker_id, limit)
    }

    /// Observes that a claim was answered.
    pub(crate) fn claimed(&self, claim: &Span, tasks: usize) {
        claim.record("claimed", tasks);
    }

    /// Observes that a worker of this process was declared dead.
    pub(crate) fn lease_lost(&self) {
        self.measures.with_store(|measures| measures.leases_lost.increment(1));
    }

    /// Observes that a task has written to its log.
    pub(crate) fn log_written(&self, task_id: TaskId, line: Line) {
        let Line { level, message, fields } = line;
        self.lifecycle.tell(|| Some(Lifecycle::LogWritten { task_id, level, message, fields }));
    }

    /// Observes that a task has reported its progress.
    pub(crate) fn progressed(&self, task_id: TaskId, progress: Progress) {
        self.lifecycle.tell(|| Some(Lifecycle::TaskProgressed { task_id, progress }));
    }

    /// Returns the observer of a run; the run may compensate its task.
    pub(crate) fn of_run(
        self: &Arc<Self>,
        task_id: TaskId,
        task_type: &Name,
        compensates: bool,
    ) -> RunObserver {
        let measures = self.measures.of(task_type);
        RunObserver { observer: self.clone(), task_id, measures, compensates }
    }
}

/// A batch on its way to the store.
pub(crate) struct ObservedCommit {
    pub(crate) span: Span,
    /// The time at which the batch was sent, if it is measured.
    pub(crate) begun: Option<Timestamp>,
}

/// The observer of one run.
pub(crate) struct RunObserver {
    observer: Arc<Observer>,
    task_id: TaskId,
    /// The measures of the task's type, if they are recorded.
    measures: Option<Arc<TypeMeasures>>,
    compensates: bool,
}

/// An attempt, as its span names it.
#[derive(Clone, Copy)]
pub(crate) struct Attempt<'a> {
    pub(crate) run_id: RunId,
    pub(crate) attempt: u32,
    pub(crate) task_type: &'a Name,
    pub(crate) headers: &'a Headers,
}

/// A try of a step's closure that runs.
pub(crate) struct ObservedTry {
    pub(crate) span: Span,
    /// The time at which the try began, if it is measured.
    begun: Option<Timestamp>,
}

impl RunObserver {
    fn tell(&self, event: impl FnOnce() -> Option<Lifecycle>) {
        self.observer.lifecycle.tell(event);
    }

    /// Observes that a worker begins to execute an attempt, from the start or from its journal, and
    /// returns the span of the run.
    pub(crate) fn attempt_started(&self, attempt: Attempt<'_>) -> Span {
        let span = self.attempt_resumed(attempt);
        self.tell(|| {
            let Attempt { attempt, task_type, .. } = attempt;
            let (task_id, task_type) = (self.task_id, task_type.clone());
            Some(Lifecycle::TaskStarted { task_id, task_type, attempt })
        });
        span
    }

    /// Observes that an attempt goes on in place after a suspension, and returns the span of the
    /// run.
    pub(crate) fn attempt_resumed(&self, attempt: Attempt<'_>) -> Span {
        if let Some(measures) = &self.measures {
            measures.started.increment(1);
        }
        let Attempt { run_id, attempt, task_type, headers } = attempt;
        trace::run(task_type, (self.task_id, run_id), attempt, headers)
    }

    /// Observes that a try of a step calls its closure.
    pub(crate) fn step_started(&self, key: &Key, tries: u32) -> ObservedTry {
        // A compensation is a step for the engine only.
        if key.kind == Kind::Step {
            let task_id = self.task_id;
            self.tell(|| Some(Lifecycle::StepStarted { task_id, step: key.label(), tries }));
        }
        let begun = self.measures.as_ref().map(|_| self.observer.store.now());
        ObservedTry { span: trace::step(key, tries), begun }
    }

    /// Observes that a try of a step has ended.
    pub(crate) fn step_ended(&self, tried: &ObservedTry, outcome: &Outcome) {
        if let Outcome::Failed(failure) | Outcome::Retrying { failure, .. } = outcome {
            trace::failed(&tried.span, failure);
        }
        if let (Some(begun), Some(measures)) = (tried.begun, &self.measures) {
            measures.step_seconds.record(until(begun, self.observer.store.now()));
            if let Outcome::Retrying { .. } = outcome {
                measures.step_retries.increment(1);
            }
        }
    }

    /// Observes that the store begins the work of a step, and returns the span of the step.
    pub(crate) fn work_started(&self, key: &Key) -> Span {
        trace::step(key, 1)
    }

    /// Observes that the store has done the work of a step, or has undone it.
    pub(crate) fn work_ended(&self, work: &Span, outcome: &Outcome) {
        if let Outcome::Failed(failure) = outcome {
            trace::failed(work, failure);
        }
    }

    /// Observes a new delivery, which may spawn a child of this type.
    pub(crate) fn delivered(&self, key: &Key, outcome: &Outcome, child: Option<&Name>) {
        // A compensation that is no longer needed is a mark in the journal, and did not end.
        if key.kind != Kind::Compensated || self.compensates {
            self.tell(|| Lifecycle::of_delivery(self.task_id, key, outcome));
        }
        if let Some(task_type) = child {
            self.observer.measures.count_spawn(task_type);
        }
    }

    /// Observes that the run has left its task in this state, which is durable.
    ///
    /// A task that fails or is cancelled is compensated when it has recorded something to undo.
    pub(crate) fn attempt_ended(&self, run: &Span, next: Next, has_compensations: bool) {
        let compensates = has_compensations && !self.compensates;
        let task_id = self.task_id;
        let (ended, event) = match next {
            Next::Continue { .. } => return,
            Next::Suspend { wake_at } => {
                (Ended::Suspended, Some(Lifecycle::TaskSuspended { task_id, until: wake_at }))
            }
            Next::Complete(output) => {
                (Ended::Completed, Some(Lifecycle::TaskCompleted { task_id, output }))
            }
            Next::Retry { failure, at } => {
                let retry_at = Some(at);
                (Ended::Retried, Some(Lifecycle::TaskFailed { task_id, failure, retry_at }))
            }
            Next::Fail(failure) if compensates => {
                (Ended::Compensating, Some(Lifecycle::TaskCompensating { task_id, failure }))
            }
            Next::Fail(failure) => {
                let retry_at = None;
                (Ended::Failed, Some(Lifecycle::TaskFailed { task_id, failure, retry_at }))
            }
            Next::Cancel if compensates => {
                let failure = cancelled();
                (Ended::Compensating, Some(Lifecycle::TaskCompensating { task_id, failure }))
            }
            Next::Cancel => (Ended::Cancelled, Some(Lifecycle::TaskCancelled { task_id })),
            Next::Release | Next::Leave { .. } => (Ended::Released, None),
        };
        let failure = match &event {
            Some(
                Lifecycle::TaskFailed { failure, .. } | Lifecycle::TaskCompensating { failure, .. },
            ) => Some(failure),
            _ => None,
        };
        trace::ended(run, ended, failure);
        if let Some(measures) = &self.measures {
            measures.ended(ended);
            if let (Ended::Completed, Some(spawned)) = (ended, task_id.made_at()) {
                measures.task_seconds.record(until(spawned, self.observer.store.now()));
            }
        }
        self.tell(|| event);
    }
}
