//! What a workflow's handlers get.

use std::any::Any;
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use serde::de::DeserializeOwned;

use crate::base::ids::{RunId, TaskId};
use crate::base::payload::Payload;
use crate::context::TaskContext;
use crate::engine::task_error::TaskResult;

/// Results of parts, by their names. As text, of which no number is rounded.
pub(super) type Results = BTreeMap<String, Payload>;

/// What a handler of a [`Workflow`](crate::Workflow) gets: the input, and the results so far.
#[derive(Clone)]
pub struct WorkflowContext {
    /// The task. Part of a good idempotency key for what the handler does elsewhere.
    pub task_id: TaskId,
    /// The run.
    pub run_id: RunId,
    /// Which call of the handler it is, from 1: after a failure, the next one.
    pub attempt: u32,
    /// In a loop, which iteration it is, from 1; elsewhere 1.
    pub iteration: u32,
    pub(super) task: TaskContext,
    pub(super) input: Payload,
    pub(super) results: Results,
    pub(super) last: Option<Payload>,
}

impl WorkflowContext {
    /// What the workflow was started with.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn input<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        self.input.decode().context("the workflow's input")
    }

    /// The result of the part with this name.
    ///
    /// # Errors
    /// When there is none, or it is of another type.
    pub fn result<T: DeserializeOwned>(&self, name: &str) -> anyhow::Result<T> {
        let result = self.results.get(name).with_context(|| {
            format!(
                "there is no result of \"{name}\" yet: only parts that come before have one, \
                     and of routes the one that ran"
            )
        })?;
        result.decode().with_context(|| format!("the result of \"{name}\""))
    }

    /// The results so far, by the names of their parts.
    pub fn results(&self) -> impl Iterator<Item = (&str, &Payload)> {
        self.results.iter().map(|(name, result)| (name.as_str(), result))
    }

    /// In a loop, what the iteration before gave, or what `feedback` made of it; `None` in the
    /// first one, and elsewhere.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn last<T: DeserializeOwned>(&self) -> anyhow::Result<Option<T>> {
        self.last.as_ref().map(Payload::decode).transpose().context("the last iteration")
    }

    /// As [`TaskContext::state`].
    ///
    /// # Errors
    /// When nothing of this type was given to the client.
    pub fn state<S: Any + Send + Sync>(&self) -> TaskResult<&S> {
        self.task.state()
    }

    /// As [`TaskContext::heartbeat`].
    ///
    /// # Errors
    /// When the run has to stop.
    pub async fn heartbeat(&self, extend: impl Into<Option<Duration>>) -> TaskResult<()> {
        self.task.heartbeat(extend).await
    }
}
