//! The end of a task's code, and the last commit of its run.

use std::task::Wake as _;
use std::time::Duration;

use crate::base::failure::{Failure, FailureKind};
use crate::base::guard::{Panic, discard};
use crate::base::payload::Payload;
use crate::base::runtime::BoxFuture;
use crate::base::time::after;
use crate::base::unreadable::Unreadable;
use crate::engine::run::compensation::compensate;
use crate::engine::run::executor::Execution;
use crate::engine::run::polled::poll_closure;
use crate::engine::task_error::{ControlFlow, TaskError, TaskResult};
use crate::store::Next;
use crate::store::rules::ending::{compensated, end_of};

/// The time for which a task that this program cannot read is left to others before it is claimed
/// again.
const LEFT_TO_OTHERS: Duration = Duration::from_secs(10);

/// The work that is left after the code has ended.
pub(super) enum Closing {
    Commit(Next),
    /// The run is lost: the store would refuse all its writes.
    Nothing,
}

/// The end of the task's code without an output.
pub(super) enum Ending {
    Error(TaskError),
    Panic(Panic),
}

impl Execution {
    pub(super) fn drop_future(&mut self) {
        let future = self.future.take();
        // The values of the future are dropped as the user's code.
        poll_closure(|| discard(future));
    }

    /// Begins the compensations, after the code has been replayed.
    pub(super) fn begin_compensation(&mut self) {
        self.drop_future();
        self.stalled = None;
        let compensation = self.run.state().begin_compensation();
        self.future = compensation.map(|compensation| -> BoxFuture<'static, TaskResult<Payload>> {
            Box::pin(compensate(self.run.clone(), compensation))
        });
        self.run.waker.wake_by_ref();
    }

    /// Ends the task's code, which has ended or has to: drops its future, and decides the run's
    /// last commit.
    pub(super) fn end(&mut self, result: Result<Payload, Ending>) {
        let replayed = self.run.control().is_none() && self.run.state().is_only_replayed();
        // Compensations do not begin when the code could not be replayed as far as it had come:
        // another worker may be able to read the journal.
        let unreadable = matches!(&result, Err(Ending::Error(error)) if error.is_unreadable());
        if replayed && !unreadable {
            return self.begin_compensation();
        }
        self.drop_future();
        self.slot = None;
        self.closing = Some(self.decide(&result));
        discard(result);
    }

    /// Returns what is left to do after the code has ended so.
    fn decide(&self, result: &Result<Payload, Ending>) -> Closing {
        let control = self.run.control();
        if control == Some(ControlFlow::LeaseLost) {
            return Closing::Nothing;
        }
        let mut state = self.run.state();
        let mut unreadable = false;
        let mut failure = match (result, control) {
            (Ok(_), None) if state.is_replaying() => state.divergence(true).to_failure(),
            (Ok(output), _) => return Closing::Commit(self.completed(output.clone())),
            (Err(_), Some(ControlFlow::Cancelled))
            | (Err(Ending::Error(TaskError::Control(ControlFlow::Cancelled))), None) => {
                return Closing::Commit(Next::Cancel);
            }
            (Err(_), Some(_)) | (Err(Ending::Error(TaskError::Control(_))), None) => {
                return Closing::Commit(Next::Release);
            }
            (
                Err(Ending::Error(TaskError::Unreadable(unreadable @ Unreadable::Newer { .. }))),
                None,
            ) => {
                let task_id = self.run.task_id;
                tracing::warn!(%task_id, %unreadable, "a task is left to a newer program");
                let until = after(self.run.engine.store.now(), LEFT_TO_OTHERS);
                return Closing::Commit(Next::Leave { until });
            }
            // Nothing is journaled, because the end of the journal is not known.
            (Err(Ending::Error(error @ TaskError::Unreadable(_))), None) => {
                return Closing::Commit(Next::Fail(error.to_failure()));
            }
            (Err(Ending::Error(error)), None) => {
                unreadable = error.is_unreadable();
                error.to_failure()
            }
            (Err(Ending::Panic(panic)), None) => {
                Failure::new(FailureKind::Panic, format!("the task panicked: {panic}"))
            }
        };
        if let Some(original) = self.run.compensating.as_ref().filter(|_| !unreadable) {
            return Closing::Commit(end_of(original.clone().without_the_rest(failure)).into());
        }
        // Rewinding would hide a divergence from the next attempt. An attempt that can read the
        // journal goes on from where this one stopped.
        if failure.kind != FailureKind::Diverged && !unreadable && state.find_sources(&mut failure)
        {
            let at = self.run.engine.store.now();
            state.mark_failed_attempt(self.run.attempt, failure.clone(), at);
        }
        drop(state);
        Closing::Commit(self.run.after_failure(failure))
    }

    /// Returns the next state of a task whose code, or whose compensation, has come to its end.
    fn completed(&self, output: Payload) -> Next {
        match &self.run.compensating {
            None => Next::Complete(output),
            Some(original) => compensated(original.clone(), &output).into(),
        }
    }
}
