//! The context: a task's access to its own durable execution.

pub(crate) mod approval;
pub(crate) mod children;
pub(crate) mod item_progress;
pub(crate) mod item_work;
pub(crate) mod items;
#[cfg(feature = "schemas")]
pub(crate) mod schema;
pub(crate) mod task;
pub(crate) mod task_log;

use std::any::{Any, TypeId};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::base::ids::{RunId, TaskId, new_uuid};
use crate::base::journal::{Key, Kind, Outcome, to_payload};
use crate::base::name::{Name, StepName};
use crate::base::payload::Payload;
use crate::base::time::{Timestamp, after};
use crate::engine::run::Run;
use crate::engine::run::compensation::{Cleanup, Record};
use crate::engine::run::delivery::Delivery;
use crate::engine::run::outcome::read_arrival;
use crate::engine::run::outcome::read_step;
use crate::engine::run::state::{Effect, Request, Work};
use crate::engine::run::step::Step;
use crate::engine::task_error::{TaskError, TaskResult};
use crate::store::{Headers, NewEvent, NewMessage};

/// A task's handle on its own durable execution.
///
/// A context is cheap to clone, and every method takes `&self`.
///
/// The futures that its methods return may be awaited in any combination (`tokio::join!`,
/// `select!`, `join_all`, `FuturesUnordered`…). Each result is delivered in its turn and journaled,
/// so that a task takes the same way again after a crash. The futures must be awaited in the task's
/// own future. In `tokio::spawn` or in a step's closure they return an error.
///
/// ```
/// # use std::time::Duration;
/// # use stepwell_core::{TaskContext, TaskResult};
/// # async fn charge(_key: String) -> anyhow::Result<u64> { Ok(1) }
/// async fn order(ctx: TaskContext) -> TaskResult<u64> {
///     let receipt = ctx.step("charge", || charge(format!("{}:charge", ctx.task_id))).await?;
///     ctx.sleep_for("cool down", Duration::from_secs(60)).await?;
///     let packed: String = ctx.await_event("packed", Some(Duration::from_secs(3600))).await?;
///     ctx.step("ship", || async { Ok(packed.len()) }).await?;
///     Ok(receipt)
/// }
/// ```
#[derive(Clone)]
pub struct TaskContext {
    /// The task's id, which is part of a good idempotency key for what a step does elsewhere.
    pub task_id: TaskId,
    /// The run's id.
    pub run_id: RunId,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The headers that [`SpawnOptions::header`](crate::SpawnOptions::header) has set.
    pub headers: Arc<Headers>,
    run: Arc<Run>,
}

impl TaskContext {
    pub(crate) fn new(run: Arc<Run>, headers: Arc<Headers>) -> Self {
        Self { task_id: run.task_id, run_id: run.run_id, attempt: run.seen_attempt, headers, run }
    }

    /// Returns the size limit of a payload, in bytes of JSON.
    pub fn max_payload_bytes(&self) -> usize {
        self.run.engine.settings.max_payload_bytes
    }

    /// Begins a step: an operation that does not run again once its result is journaled.
    ///
    /// Set options on the returned [`Step`], then await it.
    ///
    /// The closure starts after everything that was delivered to the task earlier is durable. It
    /// runs again when the process dies before the result is durable.
    ///
    /// # Errors
    /// [`TaskError::Step`] when the closure fails, [`TaskError::Payload`] when its result cannot be
    /// journaled or the journal holds a value of another type.
    pub fn step<T, F, Fut>(&self, name: impl Into<StepName>, closure: F) -> Step<F>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = anyhow::Result<T>>,
        T: Serialize + DeserializeOwned,
    {
        Step::new(&self.run, self.run.begin(Kind::Step, &name.into()), closure)
    }

    /// Begins a step whose error is a result: it is journaled like a value, and the step is not
    /// tried again for it.
    ///
    /// # Errors
    /// The errors of [`TaskContext::step`], except the closure's own error, which is within the
    /// result.
    pub fn try_step<T, E, N, F, Fut>(
        &self,
        name: N,
        closure: F,
    ) -> Step<impl FnOnce() -> Answered<Fut> + use<T, E, N, F, Fut>>
    where
        N: Into<StepName>,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
        T: Serialize + DeserializeOwned,
        E: Serialize + DeserializeOwned,
    {
        let key = self.run.begin(Kind::Step, &name.into());
        Step::new(&self.run, key, move || Answered(Box::pin(closure())))
    }

    /// Begins a step that the store executes within the transaction of its own commit.
    ///
    /// Backends offer it with their own types.
    #[doc(hidden)]
    pub fn store_step<T: DeserializeOwned>(
        &self,
        name: impl Into<StepName>,
        work: Box<dyn Any + Send>,
    ) -> Delivery<T> {
        let key = self.run.begin(Kind::Step, &name.into());
        Delivery::new(
            &self.run,
            key,
            |_| Ok(Request::Gate(Some(Work::Transaction(work)))),
            read_step,
        )
    }

    /// Sleeps for a duration.
    ///
    /// The task is suspended meanwhile. The sleep goes on while no process is alive.
    pub fn sleep_for(&self, name: impl Into<StepName>, duration: Duration) -> Delivery<()> {
        self.timer(Kind::Timer, &name.into(), |now| after(now, duration), read_step)
    }

    /// Sleeps until a moment of the store's clock.
    pub fn sleep_until(&self, name: impl Into<StepName>, until: Timestamp) -> Delivery<()> {
        self.timer(Kind::Timer, &name.into(), |_| until, read_step)
    }

    fn timer<T>(
        &self,
        kind: Kind,
        name: &StepName,
        due_at: impl FnOnce(Timestamp) -> Timestamp,
        read: fn(&Key, Outcome) -> TaskResult<T>,
    ) -> Delivery<T> {
        let request = |key: &Key| {
            let due_at = Some(self.run.due_at(key, due_at));
            Ok(Request::Wait { target: None, due_at })
        };
        Delivery::new(&self.run, self.run.begin(kind, name), request, read)
    }

    /// Limits a future by a durable timer, which a crash does not restart.
    ///
    /// # Errors
    /// [`TaskError::Timeout`] when the time passes first, in which case the future is dropped.
    pub fn timeout<Fut: Future>(
        &self,
        name: impl Into<StepName>,
        limit: Duration,
        future: Fut,
    ) -> Timeout<Fut> {
        let limit = self.timer(Kind::Timeout, &name.into(), |now| after(now, limit), read_limit);
        Timeout { limit, future: Box::pin(future) }
    }

    fn wait<T: DeserializeOwned>(
        &self,
        kind: Kind,
        name: &StepName,
        timeout: Option<Duration>,
    ) -> Delivery<T> {
        let request = |key: &Key| {
            let due_at = timeout.map(|timeout| self.run.due_at(key, |now| after(now, timeout)));
            Ok(Request::Wait { target: Some(key.name.clone()), due_at })
        };
        Delivery::new(&self.run, self.run.begin(kind, name), request, read_arrival)
    }

    /// Waits for an event, which may have been emitted earlier.
    ///
    /// Each call is delivered the event once.
    ///
    /// # Errors
    /// [`TaskError::Timeout`] when a timeout is set and passes first; [`TaskError::Payload`] when
    /// the event carries a value of another type.
    pub fn await_event<T: DeserializeOwned>(
        &self,
        name: impl Into<StepName>,
        timeout: impl Into<Option<Duration>>,
    ) -> Delivery<T> {
        self.wait(Kind::Event, &name.into(), timeout.into())
    }

    /// Receives the next message of a topic from the task's mailbox.
    ///
    /// Each message is received once, in the order in which the messages were sent.
    ///
    /// # Errors
    /// The errors of [`TaskContext::await_event`].
    pub fn recv<T: DeserializeOwned>(
        &self,
        topic: impl Into<StepName>,
        timeout: impl Into<Option<Duration>>,
    ) -> Delivery<T> {
        self.wait(Kind::Message, &topic.into(), timeout.into())
    }

    fn finished<T>(
        &self,
        kind: Kind,
        name: &StepName,
        finish: impl FnOnce(&Key) -> TaskResult<(Payload, Effect)>,
        read: fn(&Key, Outcome) -> TaskResult<T>,
    ) -> Delivery<T> {
        let request = |key: &Key| {
            finish(key).map(|(payload, effect)| Request::Finished(Outcome::Done(payload), effect))
        };
        Delivery::new(&self.run, self.run.begin(kind, name), request, read)
    }

    pub(crate) fn run(&self) -> &Arc<Run> {
        &self.run
    }

    /// Returns the key of a call, which numbers it among the calls of its name.
    pub(crate) fn begin(&self, kind: Kind, name: &StepName) -> TaskResult<Key> {
        self.run.begin(kind, name)
    }

    /// Journals that the task asks for an approval.
    pub(crate) fn ask<T: Serialize>(&self, key: &Key, asked: &T) -> Delivery<()> {
        let request =
            |_: &Key| Ok(Request::Finished(Outcome::Done(to_payload(asked)), Effect::None));
        Delivery::new(&self.run, Ok(key.clone()), request, |_, _| Ok(()))
    }

    pub(crate) fn encode<T: Serialize + ?Sized>(
        &self,
        name: &Name,
        value: &T,
    ) -> TaskResult<Payload> {
        Payload::encode(value, self.max_payload_bytes())
            .map_err(|source| TaskError::Payload { name: name.to_string(), source })
    }

    /// Emits an event to the tasks of every queue, exactly once, with the next commit of this task.
    ///
    /// The first event of a name stands: a later one changes nothing.
    ///
    /// # Errors
    /// [`TaskError::Payload`] when the payload cannot be written.
    pub fn emit_event<T: Serialize + ?Sized>(
        &self,
        name: impl Into<StepName>,
        payload: &T,
    ) -> Delivery<()> {
        let emit = |key: &Key| {
            let payload = self.encode(&key.name, payload)?;
            let emit = NewEvent { name: key.name.clone(), queue: None, payload };
            Ok((Payload::null(), Effect::Emit(emit)))
        };
        self.finished(Kind::Emit, &name.into(), emit, |_, _| Ok(()))
    }

    /// Sends a message to another task's mailbox, exactly once, with the next commit of this task.
    ///
    /// A message to a task that has ended is dropped.
    ///
    /// # Errors
    /// [`TaskError::Payload`] when the payload cannot be written.
    pub fn send<T: Serialize + ?Sized>(
        &self,
        task_id: TaskId,
        topic: impl Into<StepName>,
        payload: &T,
    ) -> Delivery<()> {
        let send = |key: &Key| {
            let payload = self.encode(&key.name, payload)?;
            let send = NewMessage { task_id, topic: key.name.clone(), payload };
            Ok((Payload::null(), Effect::Send(send)))
        };
        self.finished(Kind::Send, &topic.into(), send, |_, _| Ok(()))
    }

    /// Records a cleanup before an operation that needs it.
    ///
    /// When the task fails for good or is cancelled later, the cleanup that was
    /// [registered](crate::Client::register_cleanup) under this name runs with this payload. It
    /// runs among the task's [compensations](Step::compensate). The record is durable before the
    /// next step's closure starts.
    ///
    /// ```
    /// # use stepwell_core::{TaskContext, TaskResult};
    /// # async fn convert(_to: &str) -> anyhow::Result<u64> { Ok(1) }
    /// async fn thumbnail(_: (), ctx: TaskContext) -> TaskResult<u64> {
    ///     let file = format!("/tmp/{}.png", ctx.task_id);
    ///     let temp = ctx.cleanup("delete_temp", &file).await?;
    ///     let pixels = ctx.step("convert", || convert(&file)).await?;
    ///     ctx.step("delete", || async { Ok(std::fs::remove_file(&file)?) }).await?;
    ///     ctx.discard(&temp).await?;
    ///     Ok(pixels)
    /// }
    /// ```
    ///
    /// # Errors
    /// [`TaskError::NoCleanup`] when no cleanup is registered under this name;
    /// [`TaskError::Payload`] when the payload cannot be written.
    pub fn cleanup<T: Serialize + ?Sized>(
        &self,
        name: impl Into<StepName>,
        payload: &T,
    ) -> Delivery<Cleanup> {
        let record = |key: &Key| {
            let registered = self.run.engine.registry.cleanup(&key.name);
            registered.ok_or_else(|| TaskError::NoCleanup { name: key.name.to_string() })?;
            let record = Record::Cleanup(self.encode(&key.name, payload)?);
            Ok((to_payload(&record), Effect::None))
        };
        self.finished(Kind::Compensate, &name.into(), record, |key, _| {
            Ok(Cleanup { key: key.clone() })
        })
    }

    /// Discards a recorded cleanup that is no longer needed.
    pub fn discard(&self, cleanup: &Cleanup) -> Delivery<()> {
        let key = Ok(Key { kind: Kind::Compensated, ..cleanup.key.clone() });
        let request = |_: &Key| Ok(Request::Finished(Outcome::Done(Payload::null()), Effect::None));
        Delivery::new(&self.run, key, request, |_, _| Ok(()))
    }

    /// Returns the time by the store's clock, journaled: a replay returns the same time.
    pub fn now(&self) -> Delivery<Timestamp> {
        let now = |_: &Key| Ok((to_payload(&self.run.engine.store.now()), Effect::None));
        self.finished(Kind::Value, &"now".into(), now, read_step)
    }

    /// Returns a UUID v7, journaled: a replay returns the same one.
    pub fn uuid(&self) -> Delivery<Uuid> {
        let uuid = |_: &Key| Ok((to_payload(&new_uuid(&*self.run.engine.runtime)), Effect::None));
        self.finished(Kind::Value, &"uuid".into(), uuid, read_step)
    }

    /// Returns a random number, journaled: a replay returns the same one.
    pub fn random(&self) -> Delivery<u64> {
        let random = |_: &Key| Ok((to_payload(&self.run.engine.runtime.random()), Effect::None));
        self.finished(Kind::Value, &"random".into(), random, read_step)
    }

    /// Returns whether the task runs the changed code of this name.
    ///
    /// The answer is `true` for a task that reaches this call for the first time. It is `false` for
    /// a task that passed this point before the change was deployed: such a task has to take the
    /// old way again. The answer stays the same for the task's whole life, at every call.
    ///
    /// ```
    /// # use stepwell_core::{TaskContext, TaskResult};
    /// # async fn check() -> anyhow::Result<()> { Ok(()) }
    /// # async fn screen() -> anyhow::Result<()> { Ok(()) }
    /// async fn order(_: (), ctx: TaskContext) -> TaskResult<()> {
    ///     if ctx.patched("screen customers")? {
    ///         ctx.step("screen", || screen()).await?;
    ///     } else {
    ///         ctx.step("check", || check()).await?;
    ///     }
    ///     Ok(())
    /// }
    /// ```
    ///
    /// The old way and this call can be deleted when no task from before the change is left. A
    /// journal that holds the mark of the call does not need the call.
    ///
    /// # Errors
    /// [`TaskError::Control`] when the run has to stop; an error for an invalid name; an error for
    /// a call outside the task's own future.
    pub fn patched(&self, name: impl Into<StepName>) -> TaskResult<bool> {
        self.run.patched(&name.into())
    }

    /// Reports a sign of life, from the task's body or from within a step's closure.
    ///
    /// The run does not count as stuck for the worker's
    /// [`claim_timeout`](crate::WorkerOptions::claim_timeout), or for `extend` when that is longer.
    ///
    /// # Errors
    /// [`TaskError::Control`] when the run has to stop: the task was cancelled, or the lease is
    /// lost.
    pub async fn heartbeat(&self, extend: impl Into<Option<Duration>>) -> TaskResult<()> {
        self.run.sign_of_life(extend.into());
        self.run.control().map_or(Ok(()), |control| Err(control.into()))
    }

    /// Returns a token that is cancelled when the run has to stop.
    ///
    /// A long closure can watch the token to end early. The token works anywhere, also in
    /// `tokio::spawn`.
    pub fn cancelled(&self) -> CancellationToken {
        self.run.cancelled.clone()
    }

    /// Returns the value of this type that the client was built with: a connection pool, a client
    /// of some service.
    ///
    /// # Errors
    /// [`TaskError::NoState`] when the client has no value of this type.
    pub fn state<S: Any + Send + Sync>(&self) -> TaskResult<&S> {
        let state = self.run.engine.states.get(&TypeId::of::<S>());
        state
            .and_then(|state| state.downcast_ref())
            .ok_or(TaskError::NoState { type_name: std::any::type_name::<S>() })
    }
}

fn read_limit(key: &Key, outcome: Outcome) -> TaskResult<Infallible> {
    read_arrival::<()>(key, outcome).and(Err(TaskError::Timeout { name: key.label(), seq: 0 }))
}

/// A future whose error is a result, made by [`TaskContext::try_step`].
pub struct Answered<Fut>(Pin<Box<Fut>>);

impl<Fut: Future> Future for Answered<Fut> {
    type Output = anyhow::Result<Fut::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx).map(Ok)
    }
}

/// A future with a durable limit, made by [`TaskContext::timeout`].
#[must_use = "nothing happens until this is awaited"]
pub struct Timeout<Fut> {
    /// The timer, whose end is a failure.
    limit: Delivery<Infallible>,
    future: Pin<Box<Fut>>,
}

impl<Fut: Future> Future for Timeout<Fut> {
    type Output = TaskResult<Fut::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(output) = self.future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        Pin::new(&mut self.limit).poll(cx).map(|passed| passed.map(|never| match never {}))
    }
}
