//! Futures of a context's calls, except steps: sleeps, events, messages, children, values.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use crate::base::journal::{Key, Outcome};
use crate::engine::run::Run;
use crate::engine::run::state::Request;
use crate::engine::task_error::{TaskError, TaskResult};

/// The future of a context's call.
///
/// Its result is delivered in its turn, so that it works with any combinator: `select!`, `join!`,
/// `FuturesUnordered`. A dropped future is no longer delivered to.
#[must_use = "nothing is waited for until this is awaited"]
pub struct Delivery<T> {
    run: Arc<Run>,
    key: Result<Key, Option<TaskError>>,
    request: Option<Request>,
    delivered: bool,
    read: Read<T>,
}

/// Turns a delivered outcome into the result of the call.
type Read<T> = fn(&Key, Outcome) -> TaskResult<T>;

impl<T> Delivery<T> {
    pub(crate) fn new(
        run: &Arc<Run>,
        key: TaskResult<Key>,
        request: impl FnOnce(&Key) -> TaskResult<Request>,
        read: Read<T>,
    ) -> Self {
        Self::asked(run, key.and_then(|key| request(&key).map(|request| (key, request))), read)
    }

    pub(crate) fn asked(run: &Arc<Run>, asked: TaskResult<(Key, Request)>, read: Read<T>) -> Self {
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
            Err(error) => {
                return error.take().map_or(Poll::Pending, |error| Poll::Ready(Err(error)));
            }
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
