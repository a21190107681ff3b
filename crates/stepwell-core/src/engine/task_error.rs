//! The errors of task code.

use std::backtrace::BacktraceStatus;
use std::collections::BTreeSet;
use std::ptr;
use std::time::Duration;

use crate::base::failure::{Failure, FailureKind, Retry};
use crate::base::guard::guard;
use crate::base::ids::TaskId;
use crate::base::invalid_options::InvalidOptions;
use crate::base::name::InvalidName;
use crate::base::payload::PayloadError;
use crate::base::text::cut_off;
use crate::base::unreadable::Unreadable;

/// The size limit of a kept backtrace, in bytes.
const MAX_BACKTRACE: usize = 16 << 10;

/// The result of a task, and of most calls of its context.
pub type TaskResult<T> = Result<T, TaskError>;

/// An error in task code: the error of a context's call, or of a task.
///
/// Any [`anyhow::Error`] becomes a `TaskError` through `?`. It fails the attempt, which is then
/// retried by the task's [`RetryStrategy`](crate::RetryStrategy). [`TaskError::permanent`] and
/// [`TaskError::retry_after`] override the strategy, both in a task's body and in a step's closure:
///
/// ```
/// # use stepwell_core::TaskError;
/// fn charge(card: &str) -> anyhow::Result<()> {
///     if card.is_empty() {
///         return Err(TaskError::permanent(anyhow::anyhow!("no card")).into());
///     }
///     Ok(())
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// The run must stop.
    ///
    /// Return this error with `?`. It is not a failure of the task, and the run ends even if the
    /// code catches it.
    #[error(transparent)]
    Control(#[from] ControlFlow),
    /// A step failed, after its own retries.
    #[error("step \"{name}\" failed: {failure}")]
    Step {
        /// The step's name.
        name: String,
        /// The reason.
        failure: Box<Failure>,
    },
    /// A wait or a [`timeout`](crate::TaskContext::timeout) took too long.
    #[error("\"{name}\" timed out")]
    Timeout {
        /// The name of the wait.
        name: String,
        /// The number of the timeout's entry in the journal.
        seq: u64,
    },
    /// A child task failed or was cancelled.
    #[error("child task {task_id} failed: {failure}")]
    Child {
        /// The child.
        task_id: TaskId,
        /// The reason.
        failure: Box<Failure>,
    },
    /// The task's code asked for something else than its journal holds.
    ///
    /// The code has changed since the task began, or it decides by a value that is not journaled,
    /// such as a clock, a random number or a map's order.
    #[error(
        "the task diverged from its journal: expected {expected} at {seq}, the code {asked}. Run \
         the code that the task began with, or make its decisions depend on journaled values only, \
         then retry it"
    )]
    Diverged {
        /// The number of the entry that nothing waited for.
        seq: u64,
        /// The entry, as text.
        expected: String,
        /// The code's operation, as text.
        asked: String,
    },
    /// A context was used in a future that the task's executor does not poll.
    ///
    /// A context cannot work there.
    #[error(
        "{call} was used outside of its task's own future, inside `tokio::spawn`, another task or \
         a step's closure, where its place in the journal would be a matter of chance: call it in \
         the task's body, and run things at the same time with `tokio::join!`, `join_all` or child \
         tasks"
    )]
    OutsideTask {
        /// The call.
        call: String,
    },
    /// A name is not valid.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The options of a child, or a step's retry strategy, are not valid.
    #[error(transparent)]
    Options(#[from] InvalidOptions),
    /// A part of the task could not be read from the store.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// A value could not be written to the journal or read from it.
    #[error("\"{name}\": {source}")]
    Payload {
        /// The name of the step, event, message or task.
        name: String,
        /// The reason.
        source: PayloadError,
    },
    /// No cleanup is registered under this name.
    #[error(
        "no cleanup is registered as \"{name}\": add it with `client.register_cleanup(\"{name}\", \
         ..)` in every program that runs this task"
    )]
    NoCleanup {
        /// The name.
        name: String,
    },
    /// A task tried to wait for its own end.
    #[error(
        "the task would wait for itself: the spawn of \"{name}\" was answered with this task, \
         whose idempotency key it has. Give the child another key"
    )]
    JoinsItself {
        /// The name of the join.
        name: String,
    },
    /// A task tried to join a child that waits for this task to end, directly or through other
    /// tasks.
    #[error(
        "the task would wait for ever: the child \"{name}\" (task {task_id}) {}",
        why_blocked(concurrency_key.as_deref())
    )]
    JoinsBlocked {
        /// The name of the child's spawn.
        name: String,
        /// The child.
        task_id: TaskId,
        /// The key that both tasks have.
        ///
        /// It is `None` when the child has begun, or waits for its turn after another task. Tasks
        /// then wait for each other in a circle, of which this one is a part.
        concurrency_key: Option<String>,
    },
    /// The client was built without this state.
    #[error(
        "no state of type `{type_name}` was given to the client: add it with \
         `Durable::builder().state(..)`"
    )]
    NoState {
        /// The type of the state.
        type_name: &'static str,
    },
    /// The task's own error.
    #[error("{error:#}")]
    Failed {
        /// The error.
        error: anyhow::Error,
        /// The rule by which the attempt is retried.
        retry: Retry,
    },
}

fn why_blocked(concurrency_key: Option<&str>) -> String {
    match concurrency_key {
        Some(key) => format!(
            "has its concurrency key \"{key}\", and so begins when this task has ended. Give the \
             child another key or none, or do not join it"
        ),
        None => "waits for this task to end, by way of others that it joins or whose concurrency \
                 key it has. Let no concurrency key come twice in a chain of joins, nor a task \
                 join one that joins it"
            .into(),
    }
}

/// The reason why a run must stop, which reaches task code as [`TaskError::Control`].
///
/// A greater reason replaces a lesser one. A cancelled task has its worker's
/// [`grace`](crate::WorkerOptions::grace) to stop. It has none after the worker begins to shut down
/// or the lease is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum ControlFlow {
    /// The task was cancelled.
    #[error("the task was cancelled")]
    Cancelled,
    /// The worker is shutting down, and the task goes on elsewhere, or when the program starts
    /// again.
    #[error("the worker is shutting down")]
    Shutdown,
    /// The run no longer owns the task, which another run may have.
    ///
    /// Its worker lost its lease, or the run was stopped as stuck.
    #[error("the run lost its lease on the task")]
    LeaseLost,
}

impl TaskError {
    /// Returns an error that is not retried: the task fails.
    pub fn permanent(error: impl Into<anyhow::Error>) -> Self {
        Self::Failed { error: error.into(), retry: Retry::Never }
    }

    /// Returns an error that is retried after `delay`, while attempts are left.
    pub fn retry_after(delay: Duration, error: impl Into<anyhow::Error>) -> Self {
        Self::Failed { error: error.into(), retry: Retry::After(delay) }
    }

    /// Returns whether the error is about the content of the store, and not about the task's work.
    pub(crate) fn is_unreadable(&self) -> bool {
        matches!(self, Self::Payload { source: PayloadError::Unreadable { .. }, .. })
    }

    /// Returns the error in the form in which it is stored.
    pub fn to_failure(&self) -> Failure {
        let (kind, retry) = match self {
            Self::Control(ControlFlow::Cancelled) => (FailureKind::Cancelled, Retry::Never),
            Self::Control(_) => (FailureKind::Error, Retry::ByStrategy),
            Self::Step { failure, .. } => (failure.kind, failure.retry),
            Self::Timeout { .. } => (FailureKind::Timeout, Retry::ByStrategy),
            // The child has had its own attempts: another join would find the same end.
            Self::Child { .. } => (FailureKind::Child, Retry::Never),
            Self::Diverged { .. } => (FailureKind::Diverged, Retry::Never),
            Self::OutsideTask { .. }
            | Self::Name(_)
            | Self::Options(_)
            | Self::NoState { .. }
            | Self::NoCleanup { .. }
            | Self::JoinsItself { .. }
            | Self::JoinsBlocked { .. } => (FailureKind::Misuse, Retry::Never),
            // Another worker may have the key.
            Self::Payload { .. } if self.is_unreadable() => {
                (FailureKind::Payload, Retry::ByStrategy)
            }
            Self::Payload { .. } | Self::Unreadable(_) => (FailureKind::Payload, Retry::Never),
            Self::Failed { error, retry } => return shown(|| failure_of(error, *retry)),
        };
        Failure { retry, sources: self.sources().into(), ..Failure::new(kind, self.to_string()) }
    }

    /// Returns the journal's entries that the error comes from, as far as the error carries them.
    fn sources(&self) -> Vec<u64> {
        match self {
            Self::Step { failure, .. } | Self::Child { failure, .. } => {
                failure.sources.as_slice().to_vec()
            }
            Self::Timeout { seq, .. } => vec![*seq],
            Self::Failed { error, .. } => sources_of(error),
            _ => Vec::new(),
        }
    }
}

/// The number of nested errors that are searched for the failures that they come from.
const MAX_SOURCES: usize = 1_000;

fn sources_of(error: &anyhow::Error) -> Vec<u64> {
    let (mut sources, mut errors, mut seen) = (BTreeSet::new(), vec![error], 0);
    while let Some(error) = errors.pop().filter(|_| seen < MAX_SOURCES) {
        seen += 1;
        // A context of `anyhow` is found only by its own downcast, and an error found so may be in
        // the chain as well.
        let outermost = error.downcast_ref::<TaskError>();
        let inner = error.chain().filter_map(|cause| cause.downcast_ref::<TaskError>());
        let inner =
            inner.filter(|inner| !outermost.is_some_and(|outermost| ptr::eq(*inner, outermost)));
        for error in outermost.into_iter().chain(inner) {
            match error {
                TaskError::Failed { error, .. } => errors.push(error),
                error => sources.extend(error.sources()),
            }
        }
        let failures = error.chain().filter_map(|cause| cause.downcast_ref::<Failure>());
        sources.extend(failures.flat_map(|failure| failure.sources.as_slice().iter().copied()));
    }
    sources.into_iter().collect()
}

/// Returns a failure, or a substitute when the application's code for the error's text panics.
fn shown(failure: impl FnOnce() -> Failure) -> Failure {
    guard(failure).unwrap_or_else(|panic| {
        Failure::new(FailureKind::Error, format!("an error that panics when it is shown: {panic}"))
    })
}

fn failure_of(error: &anyhow::Error, retry: Retry) -> Failure {
    let mut chain = error.chain().map(ToString::to_string);
    let message = chain.next().unwrap_or_default();
    let failure = Failure::new(FailureKind::Error, message).caused_by(chain);
    Failure { backtrace: backtrace(error), retry, sources: sources_of(error).into(), ..failure }
}

fn backtrace(error: &anyhow::Error) -> Option<Box<str>> {
    if error.backtrace().status() != BacktraceStatus::Captured {
        return None;
    }
    let mut text = error.backtrace().to_string();
    cut_off(&mut text, MAX_BACKTRACE);
    Some(text.into())
}

/// Returns an error of a step's closure in the form in which it is stored.
///
/// A [`TaskError`] anywhere in the error's chain decides whether it is retried, such as one of
/// [`TaskError::permanent`] or [`TaskError::retry_after`].
pub fn closure_failure(error: &anyhow::Error) -> Failure {
    shown(|| {
        let retry = error.chain().find_map(|cause| cause.downcast_ref::<TaskError>());
        match retry {
            Some(TaskError::Failed { error: inner, retry }) if error.is::<TaskError>() => {
                failure_of(inner, *retry)
            }
            Some(inner) => failure_of(error, inner.to_failure().retry),
            None => failure_of(error, Retry::ByStrategy),
        }
    })
}

impl From<anyhow::Error> for TaskError {
    /// Returns the `TaskError` that was wrapped in the `anyhow::Error`, unchanged, if there is one.
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(task_error) => task_error,
            Err(error) => Self::Failed { error, retry: Retry::ByStrategy },
        }
    }
}

impl From<serde_json::Error> for TaskError {
    fn from(error: serde_json::Error) -> Self {
        anyhow::Error::from(error).into()
    }
}

impl From<std::io::Error> for TaskError {
    fn from(error: std::io::Error) -> Self {
        anyhow::Error::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_task_error_survives_the_way_through_anyhow() {
        let through: anyhow::Error = TaskError::Control(ControlFlow::LeaseLost).into();
        assert!(matches!(TaskError::from(through), TaskError::Control(ControlFlow::LeaseLost)));
        let through =
            Err::<(), _>(TaskError::Control(ControlFlow::Cancelled)).context("while baking");
        assert!(matches!(
            TaskError::from(through.unwrap_err()),
            TaskError::Control(ControlFlow::Cancelled)
        ));
    }

    #[test]
    fn where_an_error_comes_from_is_found_in_time_however_deep_it_is() {
        let failure = Failure { sources: vec![7].into(), ..Failure::new(FailureKind::Error, "no") };
        let mut error = TaskError::Step { name: "a".into(), failure: Box::new(failure) };
        for level in 0..64 {
            error = TaskError::permanent(anyhow::Error::from(error).context(format!("in {level}")));
        }
        assert_eq!(error.to_failure().sources.as_slice(), [7]);
        let wrapped = anyhow::Error::from(error).context("outside");
        assert_eq!(closure_failure(&wrapped).sources.as_slice(), [7]);
        let timeout = anyhow::Error::from(TaskError::Timeout { name: "t".into(), seq: 3 });
        assert_eq!(TaskError::from(timeout.context("late")).to_failure().sources.as_slice(), [3]);
    }

    #[test]
    fn a_closures_error_keeps_its_chain_and_its_wish_for_a_retry() {
        let error = anyhow::anyhow!("connection refused").context("charging");
        assert_eq!(closure_failure(&error).to_string(), "charging: connection refused");
        let permanent = anyhow::Error::from(TaskError::permanent(anyhow::anyhow!("no card")));
        assert_eq!(closure_failure(&permanent).retry, Retry::Never);
        assert_eq!(closure_failure(&permanent).to_string(), "no card");
        assert_eq!(closure_failure(&permanent.context("charging")).retry, Retry::Never);
    }
}
