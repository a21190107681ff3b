//! Steps: the builder that is also the future.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::base::failure::{Failure, FailureKind, Retry};
use crate::base::input_hash::InputHash;
use crate::base::journal::{Key, Kind, Outcome, to_payload};
use crate::base::payload::Payload;
use crate::base::retry::RetryStrategy;
use crate::base::runtime::{BoxFuture, MaybeSend, MaybeSync};
use crate::base::time::after;
use crate::engine::run::Run;
use crate::engine::run::compensation::{Record, Undo, Undoing};
use crate::engine::run::outcome::read_step;
use crate::engine::run::polled::poll_closure;
use crate::engine::run::state::{Effect, Progress, Request};
use crate::engine::run::step_cache::StepCache;
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

/// The cache of a step, and the key under which it keeps the step's result.
#[derive(Clone)]
struct Cached {
    cache: Arc<dyn StepCache>,
    key: String,
    looked_up: bool,
}

impl Cached {
    /// Returns the cached result, if the cache has one that can be decoded.
    fn look_up<T: DeserializeOwned>(self) -> BoxFuture<'static, Option<Payload>> {
        Box::pin(async move {
            match self.cache.get(&self.key).await {
                Ok(found) => found.filter(|found| {
                    let fits = found.decode::<T>().map(drop);
                    fits.inspect_err(|error| self.warn(error)).is_ok()
                }),
                Err(error) => {
                    self.warn(&error);
                    None
                }
            }
        })
    }

    fn put(self, result: Payload) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if let Err(error) = self.cache.set(&self.key, result).await {
                self.warn(&error);
            }
        })
    }

    fn warn(&self, error: &dyn std::fmt::Display) {
        tracing::warn!(key = self.key, %error, "a step does without its cache");
    }
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

    /// Tries the step again when its closure fails, up to 5 times in all (see
    /// [`Step::max_attempts`]).
    ///
    /// Each failed try is journaled, and the task may suspend until the next one. Without a
    /// strategy, the step fails with the first failure. The step fails with [`TaskError::Options`]
    /// when the strategy is not valid.
    pub fn retry(mut self, strategy: RetryStrategy) -> Self
    where
        F: Clone,
    {
        self.again = Some(F::clone);
        if let Err(invalid) = strategy.check() {
            self.key = Err(Some(invalid.into()));
        }
        self.retry = strategy;
        self
    }

    /// Sets the number of tries of a step with [`Step::retry`], including the first one; at least
    /// 1. Default: 5.
    pub fn max_attempts(mut self, tries: u32) -> Self {
        self.max_tries = tries.max(1);
        self
    }

    /// Stores the number of each try in `count` before the closure is called.
    pub(crate) fn count_tries(mut self, count: Arc<AtomicU32>) -> Self {
        self.count = Some(count);
        self
    }

    /// Sets the longest time of one try. Default: no limit.
    ///
    /// A try that takes longer is dropped, and has failed.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// Keys the step by its input as well, by a [stable hash](crate::InputHash) of the value.
    ///
    /// The step runs again when the task reaches it with a new input, in a retry or after a crash.
    /// It does not run again with an input that it had before. Without this option, a step that has
    /// a result never runs again, with any input.
    ///
    /// Later steps that have a result keep it, unless their own inputs have changed.
    ///
    /// ```
    /// # use stepwell_core::{TaskContext, TaskResult};
    /// # async fn summarise(_: &str, _model: &str) -> anyhow::Result<String> { Ok(String::new()) }
    /// async fn digest(ctx: &TaskContext, text: &str, model: &str) -> TaskResult<String> {
    ///     ctx.step("summarise", || summarise(text, model)).input(&(text, model)).await
    /// }
    /// ```
    pub fn input<T: Serialize + ?Sized>(mut self, input: &T) -> Self {
        if let Ok(key) = &mut self.key {
            let hash = InputHash::of(input);
            let hash = hash.map_err(|source| TaskError::Payload { name: key.label(), source });
            match hash.and_then(|hash| Ok(key.clone().with_input(hash)?)) {
                Ok(with_input) => {
                    if let Some(recording) = &mut self.record {
                        let name = with_input.name.clone();
                        let ordinal = self.run.state().next_ordinal(Kind::Compensate, &name);
                        recording.key = Key { kind: Kind::Compensate, name, ordinal };
                    }
                    *key = with_input;
                }
                Err(error) => self.key = Err(Some(error)),
            }
        }
        self
    }

    /// Looks for the step's result in a cache before its closure starts, and puts the closure's
    /// result there.
    ///
    /// The cache keeps the result under the key. It is for results that are useful to more than one
    /// task. An error of the cache is logged, and the step goes on without it.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use stepwell_core::{InputHash, StepCache, TaskContext, TaskResult};
    /// # async fn embed(_text: &str) -> anyhow::Result<Vec<f32>> { Ok(Vec::new()) }
    /// async fn embedding(
    ///     ctx: &TaskContext,
    ///     cache: &Arc<dyn StepCache>,
    ///     text: &str,
    /// ) -> TaskResult<Vec<f32>> {
    ///     let key = format!("embedding:{}", InputHash::of(text).map_err(anyhow::Error::from)?);
    ///     ctx.step("embed", || embed(text)).cached(cache, key).await
    /// }
    /// ```
    pub fn cached(mut self, cache: &Arc<dyn StepCache>, key: impl Into<String>) -> Self {
        self.cache = Some(Cached { cache: cache.clone(), key: key.into(), looked_up: false });
        self
    }

    /// Sets the compensation of the step, which runs when the task fails for good or is cancelled.
    ///
    /// The closure receives the step's result, and runs only if there is one. The compensations of
    /// a task run in reverse order of the beginnings of their steps. Each is journaled, is tried up
    /// to 5 times, and is done once over all crashes. A compensation that fails in the end is noted
    /// in the task's failure, and does not stop the others. The task's state is
    /// [`Compensating`](crate::TaskState::Compensating) until all of them have run.
    ///
    /// The compensation is recorded in the journal before the step's closure starts. To obtain its
    /// closure, the engine replays the task's code from the journal up to where it failed. The
    /// closure may therefore capture the task's values, and it has to own them.
    ///
    /// ```
    /// # use stepwell_core::{TaskContext, TaskResult};
    /// # async fn charge(_key: String) -> anyhow::Result<u64> { Ok(1) }
    /// # async fn refund(_receipt: u64) -> anyhow::Result<()> { Ok(()) }
    /// async fn order(_: (), ctx: TaskContext) -> TaskResult<u64> {
    ///     ctx.step("charge", || charge(format!("{}:charge", ctx.task_id)))
    ///         .compensate(|receipt| async move { refund(receipt).await })
    ///         .await
    /// }
    /// ```
    pub fn compensate<C, Fut, O>(self, undo: C) -> Self
    where
        C: Fn(F::Value) -> Fut + MaybeSend + MaybeSync + 'static,
        Fut: Future<Output = anyhow::Result<O>> + MaybeSend + 'static,
        F::Value: DeserializeOwned + MaybeSend + 'static,
        O: 'static,
    {
        let undo = move |result: Option<F::Value>| {
            let undoing = result.map(&undo);
            async {
                match undoing {
                    Some(undoing) => undoing.await.map(drop),
                    None => Ok(()),
                }
            }
        };
        self.record(false, Arc::new(Undoing::new(undo)))
    }

    /// Sets a compensation as [`Step::compensate`] does, for a step that may have taken effect
    /// without a result.
    ///
    /// Such a step failed, took too long, or was cut off by a crash or by another branch of the
    /// code. The closure receives the result if there is one.
    ///
    /// ```
    /// # use stepwell_core::{TaskContext, TaskResult};
    /// # async fn charge(_key: String) -> anyhow::Result<u64> { Ok(1) }
    /// # async fn refund_by_key(_key: String) -> anyhow::Result<()> { Ok(()) }
    /// async fn order(_: (), ctx: TaskContext) -> TaskResult<u64> {
    ///     let key = format!("{}:charge", ctx.task_id);
    ///     let undo_key = key.clone();
    ///     ctx.step("charge", || charge(key))
    ///         .compensate_begun(move |_receipt| refund_by_key(undo_key.clone()))
    ///         .await
    /// }
    /// ```
    pub fn compensate_begun<C, Fut, O>(self, undo: C) -> Self
    where
        C: Fn(Option<F::Value>) -> Fut + MaybeSend + MaybeSync + 'static,
        Fut: Future<Output = anyhow::Result<O>> + MaybeSend + 'static,
        F::Value: DeserializeOwned + 'static,
        O: 'static,
    {
        self.record(true, Arc::new(Undoing::new(undo)))
    }

    fn record(mut self, begun: bool, undo: Arc<dyn Undo>) -> Self {
        let Ok(key) = &self.key else { return self };
        let ordinal = self.run.state().next_ordinal(Kind::Compensate, &key.name);
        let record = to_payload(&Record::Step { ordinal: key.ordinal, begun });
        let request = Some(Request::Finished(Outcome::Done(record), Effect::None));
        let key = Key { kind: Kind::Compensate, ordinal, ..key.clone() };
        self.record = Some(Box::new(Recording { key, request, undo }));
        self
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
                    match self.cache.as_mut().filter(|cached| !cached.looked_up) {
                        Some(cached) => {
                            cached.looked_up = true;
                            Stage::LookingUp(cached.clone().look_up::<F::Value>())
                        }
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
