//! The context of a workflow's handlers.

use std::any::Any;
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use serde::de::DeserializeOwned;

use crate::base::ids::{RunId, TaskId};
use crate::base::payload::Payload;
use crate::context::TaskContext;
use crate::engine::task_error::TaskResult;

/// Results of parts by their names, as text, in which no number is rounded.
pub(super) type Results = BTreeMap<String, Payload>;

/// The context of a handler of a [`Workflow`](crate::Workflow), with the input and the results so
/// far.
#[derive(Clone)]
pub struct WorkflowContext {
    /// The task's id, which is part of a good idempotency key for what the handler does elsewhere.
    pub task_id: TaskId,
    /// The run's id.
    pub run_id: RunId,
    /// The number of the handler's call, from 1: each failure is followed by the next call.
    pub attempt: u32,
    /// The number of the loop's iteration, from 1; outside of loops 1.
    pub iteration: u32,
    pub(super) task: TaskContext,
    pub(super) input: Payload,
    pub(super) results: Results,
    pub(super) last: Option<Payload>,
}

impl WorkflowContext {
    /// Returns the input of the workflow.
    ///
    /// # Errors
    /// An error when the input is of another type.
    pub fn input<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        self.input.decode().context("the workflow's input")
    }

    /// Returns the result of the part with this name.
    ///
    /// # Errors
    /// An error when there is no result, or it is of another type.
    pub fn result<T: DeserializeOwned>(&self, name: &str) -> anyhow::Result<T> {
        let result = self.results.get(name).with_context(|| {
            format!(
                "there is no result of \"{name}\" yet: only parts that come before have one, \
                     and of routes the one that ran"
            )
        })?;
        result.decode().with_context(|| format!("the result of \"{name}\""))
    }

    /// Returns the results so far, by the names of their parts.
    pub fn results(&self) -> impl Iterator<Item = (&str, &Payload)> {
        self.results.iter().map(|(name, result)| (name.as_str(), result))
    }

    /// Returns the result of the loop's previous iteration, or what `feedback` made of it.
    ///
    /// The result is `None` in the first iteration, and outside of loops.
    ///
    /// # Errors
    /// An error when the value is of another type.
    pub fn last<T: DeserializeOwned>(&self) -> anyhow::Result<Option<T>> {
        self.last.as_ref().map(Payload::decode).transpose().context("the last iteration")
    }

    /// Returns the application's state, as [`TaskContext::state`] does.
    ///
    /// # Errors
    /// An error when the client has no value of this type.
    pub fn state<S: Any + Send + Sync>(&self) -> TaskResult<&S> {
        self.task.state()
    }

    /// Reports a sign of life, as [`TaskContext::heartbeat`] does.
    ///
    /// # Errors
    /// An error when the run has to stop.
    pub async fn heartbeat(&self, extend: impl Into<Option<Duration>>) -> TaskResult<()> {
        self.task.heartbeat(extend).await
    }
}
