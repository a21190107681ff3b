//! Steps: the builder that is also the future.

mod options;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::base::failure::{Failure, FailureKind, Retry};
use crate::base::journal::{Key, Kind, Outcome};
use crate::base::payload::Payload;
use crate::base::retry::RetryStrategy;
use crate::base::runtime::BoxFuture;
use crate::base::time::after;
use crate::engine::run::Run;
use crate::engine::run::compensation::Undo;
use crate::engine::run::outcome::read_step;
use crate::engine::run::polled::poll_closure;
use crate::engine::run::state::{Progress, Request};
use crate::engine::run::step_cache::Cached;
use crate::engine::task_error::{TaskError, TaskResult, closure_failure};
use crate::observe::observer::ObservedTry;

/// The number of tries of a step with a [`retry`](Step::retry) strategy and no number of its own.
const DEFAULT_TRIES: u32 = 5;

/// A step, made by [`TaskContext::step`](crate::TaskContext::step): set its options, then await it.
///
/// ```
/// # use std::time::Duration;
/// # use stepwell_core::{RetryStrategy, TaskContext, TaskResult};
/// # async fn fetch(url: String) -> anyhow::Result<String> { Ok(url) }
/// async fn page(ctx: &TaskContext, url: String) -> TaskResult<String> {
///     ctx.step("fetch", || fetch(url.clone()))
///         .retry(RetryStrategy::exponential())
///         .max_attempts(3)
///         .timeout(Duration::from_secs(30))
///         .await
/// }
/// ```
#[must_use = "a step does nothing until it is awaited"]
pub struct Step<F: Closure> {
    run: Arc<Run>,
    key: Result<Key, Option<TaskError>>,
    closure: Option<F>,
    /// Returns a clone of the closure, for the next try.
    again: Option<fn(&F) -> F>,
    retry: RetryStrategy,
    tries: u32,
    max_tries: u32,
    /// Receives the number of each try, from 1, before it begins.
    count: Option<Arc<AtomicU32>>,
    timeout: Option<Duration>,
    cache: Option<Cached>,
    /// The record that is journaled before the closure starts.
    record: Option<Box<Recording>>,
    stage: Stage<F::Future>,
    /// The result of a try of this run, as a replay will read it from the journal.
    value: Option<F::Value>,
}

/// The record of a step's compensation.
struct Recording {
    key: Key,
    request: Option<Request>,
    undo: Arc<dyn Undo>,
}

/// The closure of a step, which returns a future of an [`anyhow::Result`].
///
/// The trait is implemented for all such closures. A step's type depends on the closure's type
/// alone. If the future were a parameter of its own, a closure that borrows could not be proven
/// `Send` within `join!`.
pub trait Closure {
    /// The step's value.
    type Value;
    /// The future of one try.
    type Future: Future<Output = anyhow::Result<Self::Value>>;

    /// Begins a try.
    fn call(self) -> Self::Future;
}

impl<F, Fut, T> Closure for F
where
    F: FnOnce() -> Fut,
    Fut: Future<Output = anyhow::Result<T>>,
{
    type Value = T;
    type Future = Fut;

    fn call(self) -> Fut {
        self()
    }
}

enum Stage<Fut> {
    /// The step has not been polled.
    New,
    /// The step's compensation is being recorded.
    Recording,
    /// The gate is shut, or the result is on its way; the closure starts when the gate is open.
    Waiting,
    LookingUp(BoxFuture<'static, Option<Payload>>),
    Running {
        closure: Pin<Box<Fut>>,
        observed: ObservedTry,
        limit: Option<BoxFuture<'static, ()>>,
    },
    /// The result goes to the cache first, so that a task that it wakes finds it there.
    Putting(BoxFuture<'static, ()>, Outcome),
    /// The step waits between two tries.
    Backoff(Box<(Key, Option<Request>)>),
    Done,
}

impl<F: Closure> Unpin for Step<F> {}

impl<F: Closure> Step<F> {
    pub(crate) fn new(run: &Arc<Run>, key: TaskResult<Key>, closure: F) -> Self {
        Self {
            run: run.clone(),
            key: key.map_err(Some),
            closure: Some(closure),
            again: None,
            retry: RetryStrategy::None,
            tries: 0,
            max_tries: DEFAULT_TRIES,
            count: None,
            timeout: None,
            cache: None,
            record: None,
            stage: Stage::New,
            value: None,
        }
    }

    /// Returns the outcome of a try that failed: another try, or the step's failure.
    fn failed(&self, failure: Failure) -> Outcome {
        let tries = self.tries + 1;
        let delay = match failure.retry {
            _ if self.again.is_none() || tries >= self.max_tries => None,
            Retry::Never => None,
            Retry::After(delay) => Some(delay),
            Retry::ByStrategy => self.retry.delay(tries, self.run.engine.runtime.random()),
        };
        match delay {
            Some(delay) => Outcome::Retrying {
                failure: failure.into(),
                at: after(self.run.engine.store.now(), delay),
            },
            None => Outcome::failed(failure),
        }
    }

    /// Polls one try, after its gate is open.
    fn poll_try(&mut self, key: &Key, may_start: bool, cx: &mut Context<'_>) -> Poll<Outcome>
    where
        F::Value: Serialize + DeserializeOwned,
    {
        loop {
            self.stage = match &mut self.stage {
                Stage::Waiting if self.closure.is_some() && may_start => {
                    match self.cache.as_mut().and_then(Cached::first_look::<F::Value>) {
                        Some(looking) => Stage::LookingUp(looking),
                        None => self.start(key),
                    }
                }
                Stage::LookingUp(looking) => {
                    match ready!(poll_closure(|| looking.as_mut().poll(cx))) {
                        Some(found) => return Poll::Ready(Outcome::Done(found)),
                        None => self.start(key),
                    }
                }
                Stage::Running { closure, observed, limit } => {
                    let poll = || poll_closure(|| closure.as_mut().poll(cx));
                    let outcome = match observed.span.in_scope(poll) {
                        Poll::Ready(Ok(value)) => {
                            let (outcome, value) = self.encode(key, &value);
                            self.value = value;
                            outcome
                        }
                        Poll::Ready(Err(error)) => self.failed(closure_failure(&error)),
                        Poll::Pending => {
                            match limit {
                                Some(limit) => ready!(limit.as_mut().poll(cx)),
                                None => return Poll::Pending,
                            }
                            let message =
                                format!("no result within {:?}", self.timeout.unwrap_or_default());
                            self.failed(Failure::new(FailureKind::Timeout, message))
                        }
                    };
                    if let Stage::Running { observed, .. } = &self.stage {
                        self.run.observer.step_ended(observed, &outcome);
                    }
                    match (&self.cache, &outcome) {
                        (Some(cached), Outcome::Done(result)) => {
                            Stage::Putting(cached.clone().put(result.clone()), outcome)
                        }
                        _ => return Poll::Ready(outcome),
                    }
                }
                Stage::Putting(putting, outcome) => {
                    ready!(poll_closure(|| putting.as_mut().poll(cx)));
                    return Poll::Ready(outcome.clone());
                }
                _ => return Poll::Pending,
            };
        }
    }

    /// Calls the closure for its next try.
    fn start(&mut self, key: &Key) -> Stage<F::Future> {
        let next = self.again.and_then(|again| self.closure.as_ref().map(again));
        let Some(closure) = std::mem::replace(&mut self.closure, next) else {
            return Stage::Waiting;
        };
        if let Some(count) = &self.count {
            count.store(self.tries + 1, Ordering::Relaxed);
        }
        let observed = self.run.observer.step_started(key, self.tries + 1);
        let closure = observed.span.in_scope(|| poll_closure(|| Box::pin(closure.call())));
        let limit = self.timeout.map(|limit| self.run.engine.runtime.sleep(limit));
        Stage::Running { closure, observed, limit }
    }

    /// Returns the journaled form of a result, and the result as it is read from there.
    fn encode(&self, key: &Key, value: &F::Value) -> (Outcome, Option<F::Value>)
    where
        F::Value: Serialize + DeserializeOwned,
    {
        match Payload::encode_and_read(value, self.run.engine.settings.max_payload_bytes) {
            Ok((payload, read)) => (Outcome::Done(payload), Some(read)),
            Err(source) => {
                let error = TaskError::Payload { name: key.label(), source };
                (Outcome::failed(error.to_failure()), None)
            }
        }
    }
}

impl<F: Closure> Future for Step<F>
where
    F::Value: Serialize + DeserializeOwned,
{
    type Output = TaskResult<F::Value>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let key = match &mut this.key {
            Ok(key) => key.clone(),
            Err(error) => {
                return error.take().map_or(Poll::Pending, |error| Poll::Ready(Err(error)));
            }
        };
        loop {
            if let Stage::Backoff(backoff) = &mut this.stage {
                let (key, request) = &mut **backoff;
                match this.run.poll(key, request, cx.waker()).delivered() {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(_)) => this.stage = Stage::New,
                    Poll::Ready(Err(error)) => {
                        this.stage = Stage::Done;
                        return Poll::Ready(Err(error));
                    }
                }
            }
            if let Some(recording) = &mut this.record {
                let Recording { key, request, undo } = &mut **recording;
                this.stage = Stage::Recording;
                match this.run.poll(key, request, cx.waker()).delivered() {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(_)) => this.run.add_undo(key, undo.clone()),
                    Poll::Ready(Err(error)) => {
                        this.stage = Stage::Done;
                        return Poll::Ready(Err(error));
                    }
                }
                (this.record, this.stage) = (None, Stage::New);
            }
            let mut request = match this.stage {
                Stage::New => {
                    this.stage = Stage::Waiting;
                    Some(if this.tries == 0 { Request::Gate(None) } else { Request::Again })
                }
                _ => None,
            };
            let progress = this.run.poll(&key, &mut request, cx.waker());
            let may_start = matches!(progress, Progress::MayStart);
            match progress.delivered() {
                Poll::Pending => {}
                Poll::Ready(Ok(Outcome::Retrying { at, .. })) => {
                    this.tries += 1;
                    let backoff = Key { kind: Kind::Backoff, ..key.clone() };
                    let request = Some(Request::Wait { target: None, due_at: Some(at) });
                    this.stage = Stage::Backoff(Box::new((backoff, request)));
                    continue;
                }
                Poll::Ready(outcome) => {
                    this.stage = Stage::Done;
                    let read = |outcome| match (outcome, this.value.take()) {
                        (Outcome::Done(_), Some(value)) => Ok(value),
                        (outcome, _) => read_step(&key, outcome),
                    };
                    return Poll::Ready(outcome.and_then(read));
                }
            }
            let outcome = ready!(this.poll_try(&key, may_start, cx));
            this.stage = Stage::Waiting;
            this.run.finish(&key, outcome);
            return Poll::Pending;
        }
    }
}

impl<F: Closure> Drop for Step<F> {
    fn drop(&mut self) {
        let Ok(key) = &self.key else { return };
        match &self.stage {
            Stage::New | Stage::Done => {}
            Stage::Recording => {
                if let Some(recording) = &self.record {
                    self.run.forget(&recording.key);
                }
            }
            Stage::Backoff(backoff) => self.run.forget(&backoff.0),
            Stage::Waiting | Stage::LookingUp(_) | Stage::Running { .. } | Stage::Putting(..) => {
                self.run.forget(key);
            }
        }
    }
}
