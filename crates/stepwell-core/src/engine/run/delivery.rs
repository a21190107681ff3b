//! Futures of a context's calls, other than steps: sleeps, events, messages, children, values.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::base::failure::FailureKind;
use crate::base::ids::TaskId;
use crate::base::journal::{Key, Outcome};
use crate::engine::run::Run;
use crate::engine::run::operations::Request;
use crate::engine::task_error::{TaskError, TaskResult};

/// The answer to a call of the context, once it is awaited.
///
/// It waits to be delivered in its turn, and so may be used with any combinator: `select!`, `join!`,
/// `FuturesUnordered`. Dropped, it is no longer waited for.
#[must_use = "nothing is waited for until this is awaited"]
pub struct Delivery<T> {
    run: Arc<Run>,
    key: Result<Key, Option<TaskError>>,
    request: Option<Request>,
    delivered: bool,
    read: Read<T>,
}

/// Turns what was delivered into what the caller gets.
type Read<T> = fn(&Key, Outcome) -> TaskResult<T>;

impl<T> Delivery<T> {
    pub(crate) fn new(
        run: &Arc<Run>,
        key: TaskResult<Key>,
        request: impl FnOnce(&Key) -> TaskResult<Request>,
        read: Read<T>,
    ) -> Self {
        let asked = key.and_then(|key| request(&key).map(|request| (key, request)));
        let (key, request) = match asked {
            Ok((key, request)) => (Ok(key), Some(request)),
            Err(error) => (Err(Some(error)), None),
        };
        Self { run: run.clone(), key, request, delivered: false, read }
    }
}

impl<T> Future for Delivery<T> {
    type Output = TaskResult<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let key = match &mut this.key {
            Ok(key) => key,
            Err(error) => return error.take().map_or(Poll::Pending, |error| Poll::Ready(Err(error))),
        };
        let outcome = ready!(this.run.poll(key, &mut this.request, cx.waker()).delivered());
        this.delivered = true;
        Poll::Ready(outcome.and_then(|outcome| (this.read)(key, outcome)))
    }
}

impl<T> Drop for Delivery<T> {
    fn drop(&mut self) {
        if let (Ok(key), false) = (&self.key, self.delivered || self.request.is_some()) {
            self.run.forget(key);
        }
    }
}

/// What a step's caller gets of what was delivered.
pub(crate) fn read_step<T: DeserializeOwned>(key: &Key, outcome: Outcome) -> TaskResult<T> {
    match outcome {
        Outcome::Done(payload) => {
            payload.decode().map_err(|source| TaskError::Payload { name: key.label(), source })
        }
        Outcome::Failed(failure) | Outcome::Retrying { failure, .. } => {
            Err(TaskError::Step { name: key.label(), failure })
        }
    }
}

/// What the caller of a wait gets of what was delivered.
pub(crate) fn read_arrival<T: DeserializeOwned>(key: &Key, outcome: Outcome) -> TaskResult<T> {
    match outcome {
        Outcome::Failed(failure) if failure.kind == FailureKind::Timeout => Err(TaskError::Timeout {
            name: key.label(),
            seq: failure.sources.as_slice().first().copied().unwrap_or(0),
        }),
        outcome => read_step(key, outcome),
    }
}

/// What the caller of a join gets of what was delivered.
pub(crate) fn read_child<T: DeserializeOwned>(key: &Key, outcome: Outcome) -> TaskResult<T> {
    match outcome {
        Outcome::Failed(failure) => {
            let task_id = key.child().unwrap_or_else(|| TaskId::from(Uuid::nil()));
            if failure.kind == FailureKind::Blocked {
                let name =
                    key.name.as_str().rsplit_once(':').map_or_else(|| key.label(), |(name, _)| name.into());
                return Err(TaskError::JoinsBlocked { name, task_id, concurrency_key: None });
            }
            Err(TaskError::Child { task_id, failure })
        }
        outcome => read_step(key, outcome),
    }
}
