//! Runs that the worker loses: to another worker, to a panic, or because they are stuck.

use std::sync::Arc;
use std::time::Duration;

use crate::base::failure::{Failure, FailureKind};
use crate::base::ids::{RunId, TaskId, WorkerId};
use crate::engine::commit::receipt::insist;
use crate::engine::run::Run;
use crate::engine::task_error::ControlFlow;
use crate::engine::worker::slots::Slots;
use crate::store::Transition;

impl Slots {
    /// Forgets a run that nobody executes any more.
    ///
    /// The store still holds the run for the worker. The next heartbeats find the difference, and
    /// the run is released.
    pub(super) fn abandon(&self, task_id: TaskId, run_id: RunId) {
        let mut inside = self.inside();
        inside.held.retain(|task, held| (*task, held.run_id) != (task_id, run_id));
        let run = inside.runs.get(&task_id).filter(|run| run.run_id == run_id).cloned();
        if run.is_some() {
            inside.runs.remove(&task_id);
        }
        let handed_over = inside.handed_over.remove(&task_id);
        self.look_if_empty(inside);
        drop(handed_over);
        run.iter().for_each(|run| self.engine.hub.remove_run(run));
    }

    /// Stops a run that the worker no longer owns.
    pub(crate) fn lose(&self, (task_id, run_id): (TaskId, RunId)) {
        let mut inside = self.inside();
        let run = inside.runs.get(&task_id).filter(|run| run.run_id == run_id).cloned();
        let mut handed_over = None;
        if inside.held.get(&task_id).is_some_and(|held| held.run_id == run_id) {
            inside.held.remove(&task_id);
            handed_over = inside.handed_over.remove(&task_id);
        }
        self.look_if_empty(inside);
        drop(handed_over);
        if let Some(run) = run {
            run.stop(ControlFlow::LeaseLost);
        }
    }

    /// Continues under another id, because the store no longer knows the worker.
    ///
    /// Other workers now have its tasks.
    pub(crate) fn lose_lease(&self) {
        let mut inside = self.inside();
        inside.open = false;
        inside.worker_id = WorkerId::new(&*self.engine.runtime);
        inside.held.clear();
        let handed_over = std::mem::take(&mut inside.handed_over);
        drop(inside);
        drop(handed_over);
        self.forget_suspended();
        self.stop_all(ControlFlow::LeaseLost);
    }

    /// Fails the attempts of runs that have shown no sign of life.
    ///
    /// A run that blocks its thread is among them. Its own executor could not end it.
    pub(crate) fn stop_stuck(&self, passed: Duration) {
        let is_lost = |run: &Run| run.control() == Some(ControlFlow::LeaseLost);
        for run in self.runs().into_iter().filter(|run| !is_lost(run) && run.count_quiet(passed)) {
            let timeout = self.options.claim_timeout;
            let message = format!(
                "nothing was journaled for {timeout:?} (the worker's `claim_timeout`): call \
                 `ctx.heartbeat(..)` in long steps, or set a longer one"
            );
            let (commit, task_id, run_id) = (self.engine.commit.clone(), run.task_id, run.run_id);
            tracing::warn!(%task_id, task_type = %run.task_type, "the run is stuck and is stopped");
            let next = run.after_failure(Failure::new(FailureKind::Stuck, message));
            // The transition is refused when the run has just ended by itself, which is an answer
            // as well.
            insist(&self.engine.runtime, move || {
                commit.transition_beside(Transition::new(task_id, run_id, next.clone()))
            });
            run.stop(ControlFlow::LeaseLost);
        }
    }
}

/// A run that is being loaded or executed, which the worker no longer holds after a panic.
pub(super) struct HeldRun {
    pub(super) slots: Arc<Slots>,
    pub(super) task_id: TaskId,
    pub(super) run_id: RunId,
}

impl Drop for HeldRun {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(task_id = %self.task_id, "a run ended by a panic, and is given back");
            self.slots.abandon(self.task_id, self.run_id);
        }
    }
}
