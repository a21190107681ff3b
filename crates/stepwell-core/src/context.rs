//! The context: what a task's code has in hand.

pub(crate) mod approval;
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
use crate::context::task::Task;
use crate::engine::run::Run;
use crate::engine::run::child::{self, Child, Disposition};
use crate::engine::run::compensation::{Cleanup, Record};
use crate::engine::run::delivery::Delivery;
use crate::engine::run::operations::{Effect, Request, Work};
use crate::engine::run::outcome::read_arrival;
use crate::engine::run::outcome::read_child;
use crate::engine::run::outcome::read_step;
use crate::engine::run::step::Step;
use crate::engine::task_error::{TaskError, TaskResult};
use crate::observe::trace;
use crate::store::spawn_options::SpawnOptions;
use crate::store::{Headers, NewEvent, NewMessage};

/// A task's handle on its own durable execution. Cheap to clone; every method takes `&self`.
///
/// What its methods return may be awaited in any combination (`tokio::join!`, `select!`,
/// `join_all`, `FuturesUnordered`…): each answer is delivered in its turn and journaled, so that
/// after a crash the task takes the same way again. They are to be awaited in the task's own
/// future; in `tokio::spawn` or in a step's closure they answer with an error.
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
    /// The task. Part of a good idempotency key for what a step does elsewhere.
    pub task_id: TaskId,
    /// The run.
    pub run_id: RunId,
    /// The attempt, from 1.
    pub attempt: u32,
    /// What [`SpawnOptions::header`] gave.
    pub headers: Arc<Headers>,
    run: Arc<Run>,
}

impl TaskContext {
    pub(crate) fn new(run: Arc<Run>, headers: Arc<Headers>) -> Self {
        Self { task_id: run.task_id, run_id: run.run_id, attempt: run.seen_attempt, headers, run }
    }

    /// The longest payload that is journaled, in bytes of JSON.
    pub fn max_payload_bytes(&self) -> usize {
        self.run.engine.settings.max_payload_bytes
    }

    /// A step: an operation whose result is journaled, and that does not run again once it is. Set
    /// its options on what this returns, then await that.
    ///
    /// The closure starts when everything that was delivered to the task before is durable. When
    /// the process dies before its result is, it runs again.
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

    /// A step whose error is an answer: it is journaled like a value, and the step is not tried
    /// again for it.
    ///
    /// # Errors
    /// As [`TaskContext::step`], but for the closure's own error, which is within the result.
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

    /// A step that the store does within the transaction of its own commit. For backends, which
    /// offer it with their own types.
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

    /// Sleeps. The task is suspended meanwhile, and the sleep goes on while no process is alive.
    pub fn sleep_for(&self, name: impl Into<StepName>, duration: Duration) -> Delivery<()> {
        self.timer(Kind::Timer, &name.into(), |now| after(now, duration), read_step)
    }

    /// Sleeps until a moment, by the store's clock.
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

    /// Gives the future this much time, by a durable clock: a limit that a crash does not start
    /// anew.
    ///
    /// # Errors
    /// [`TaskError::Timeout`] when the time passes first. The future is dropped then.
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

    /// Waits for an event, which may have been emitted before. Each call is delivered the event
    /// once.
    ///
    /// # Errors
    /// [`TaskError::Timeout`] when there is a timeout and it passes first; [`TaskError::Payload`]
    /// when the event carries a value of another type.
    pub fn await_event<T: DeserializeOwned>(
        &self,
        name: impl Into<StepName>,
        timeout: impl Into<Option<Duration>>,
    ) -> Delivery<T> {
        self.wait(Kind::Event, &name.into(), timeout.into())
    }

    /// Receives the next message of a topic from the task's mailbox. Each message is received once,
    /// in the order in which they were sent.
    ///
    /// # Errors
    /// As [`TaskContext::await_event`].
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

    /// Gives a call its place among the calls of its name.
    pub(crate) fn begin(&self, kind: Kind, name: &StepName) -> TaskResult<Key> {
        self.run.begin(kind, name)
    }

    /// Journals that an approval is asked for.
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
    /// The first event of a name stands; a further one changes nothing.
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

    /// Spawns a child task, exactly once, with the next commit of this task. It is cancelled when
    /// this task is.
    ///
    /// A spawn with an [idempotency key](SpawnOptions::idempotency_key), or one that is
    /// [coalesced](SpawnOptions::coalesced), may be answered with a task that exists already, of
    /// whatever origin; [`Child::disposition`] tells. Such a spawn is answered once it is
    /// durable, which takes a commit of its own. The existing task can be joined as a child
    /// can, and is not cancelled with this task unless this task spawned it.
    ///
    /// # Errors
    /// [`TaskError::Payload`] when the parameters cannot be written. [`TaskError::Step`] when the
    /// spawn is to be [rejected](crate::Coalesce::Reject) while another task waits to start.
    pub fn spawn<T: Task>(
        &self,
        name: impl Into<StepName>,
        params: T::Params,
    ) -> Delivery<Child<T::Output>> {
        self.spawn_with::<T>(name, params, SpawnOptions::default())
    }

    /// As [`TaskContext::spawn`], with options.
    ///
    /// # Errors
    /// As [`TaskContext::spawn`], and [`TaskError::Name`] when the options hold an invalid name.
    pub fn spawn_with<T: Task>(
        &self,
        name: impl Into<StepName>,
        params: T::Params,
        options: SpawnOptions,
    ) -> Delivery<Child<T::Output>> {
        let params = |key: &Key| {
            Payload::encode_proven(&params, self.max_payload_bytes())
                .map_err(|source| TaskError::Payload { name: key.name.to_string(), source })
        };
        self.spawn_encoded(name, T::NAME, params, options)
    }

    /// Spawns a child task of a type that is known by its name only.
    ///
    /// # Errors
    /// As [`TaskContext::spawn_with`].
    pub fn spawn_named<P: Serialize + ?Sized, O>(
        &self,
        name: impl Into<StepName>,
        task_type: &str,
        params: &P,
        options: SpawnOptions,
    ) -> Delivery<Child<O>> {
        self.spawn_encoded(name, task_type, |key| self.encode(&key.name, params), options)
    }

    fn spawn_encoded<O>(
        &self,
        name: impl Into<StepName>,
        task_type: &str,
        params: impl FnOnce(&Key) -> TaskResult<Payload>,
        options: SpawnOptions,
    ) -> Delivery<Child<O>> {
        let spawn = |key: &Key| {
            let params = params(key)?;
            let task_type = Name::new(task_type)?;
            let misfit = |source| TaskError::Payload { name: key.label(), source };
            self.run.engine.registry.check(&task_type, &params).map_err(misfit)?;
            // Without a queue of its own, a child goes where its parent is.
            let options = match options.queue {
                Some(_) => options,
                None => options.queue(self.run.queue.to_string()),
            };
            let options = match options.scope.is_all() {
                true => options.within(self.run.scope.clone()),
                false => options,
            };
            let new = || -> TaskResult<_> {
                self.run.engine.new_task(task_type.clone(), params, options, Some(self.task_id))
            };
            // A replay spawns nothing.
            let replays = self.run.operations().is_replaying();
            let task = if replays {
                new()?
            } else {
                trace::carried(&trace::spawn(task_type.as_str()), new)?
            };
            let run = &self.run;
            if task.concurrency_key.is_some()
                && (&task.concurrency_key, &task.scope) == (&run.concurrency_key, &run.scope)
            {
                run.operations().lines_up(key);
            }
            // Where the store may have the task already, it decides.
            Ok(if task.idempotency_key.is_some() || task.coalesce.is_some() {
                Request::Gate(Some(Work::Spawn(Box::new(task))))
            } else {
                Request::Finished(child::created(task.task_id), Effect::Spawn(Box::new(task)))
            })
        };
        Delivery::new(&self.run, self.run.begin(Kind::Spawn, &name.into()), spawn, Child::read)
    }

    /// Waits for a child's output.
    ///
    /// # Errors
    /// [`TaskError::Child`] when the child failed, was cancelled or deleted.
    /// [`TaskError::JoinsItself`] when the spawn was answered with this very task.
    /// [`TaskError::JoinsBlocked`] when the child has this task's concurrency key, and so does
    /// not begin before this task has ended; or when this task waits for nothing but the ends of
    /// others, which wait in turn for it to end.
    pub fn join<T: DeserializeOwned>(&self, child: &Child<T>) -> Delivery<T> {
        let task_id = child.task_id();
        let target = |key: &Key| {
            if task_id == self.task_id {
                return Err(TaskError::JoinsItself { name: key.label() });
            }
            // One that exists already may have another key, or have ended.
            let is_new = child.disposition() != Disposition::Existing;
            if is_new && self.run.operations().is_behind(child.spawn()) {
                let concurrency_key = self.run.concurrency_key.as_ref().map(ToString::to_string);
                return Err(TaskError::JoinsBlocked {
                    name: child.spawn().label(),
                    task_id,
                    concurrency_key,
                });
            }
            let target = Some(Name::new(task_id.to_string())?);
            Ok(Request::Wait { target, due_at: None })
        };
        let name = StepName::derived(format!("{}:{task_id}", child.spawn().name));
        let key = self.run.begin(Kind::Child, &name);
        Delivery::new(&self.run, key, target, read_child)
    }

    /// Records a cleanup before something is done that needs it: should the task fail for good or
    /// be cancelled, from here on the cleanup of this name that was
    /// [registered](crate::Client::register_cleanup) runs with this payload, among the
    /// [compensations](Step::compensate) of the task. The record is durable before the next step's
    /// closure starts.
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
    /// [`TaskError::NoCleanup`] when none is registered under this name, [`TaskError::Payload`]
    /// when the payload cannot be written.
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

    /// A recorded cleanup is no longer needed.
    pub fn discard(&self, cleanup: &Cleanup) -> Delivery<()> {
        let key = Ok(Key { kind: Kind::Compensated, ..cleanup.key.clone() });
        let request = |_: &Key| Ok(Request::Finished(Outcome::Done(Payload::null()), Effect::None));
        Delivery::new(&self.run, key, request, |_, _| Ok(()))
    }

    /// The time, by the store's clock, journaled: a replay sees the same.
    pub fn now(&self) -> Delivery<Timestamp> {
        let now = |_: &Key| Ok((to_payload(&self.run.engine.store.now()), Effect::None));
        self.finished(Kind::Value, &"now".into(), now, read_step)
    }

    /// A UUID v7, journaled: a replay sees the same.
    pub fn uuid(&self) -> Delivery<Uuid> {
        let uuid = |_: &Key| Ok((to_payload(&new_uuid(&*self.run.engine.runtime)), Effect::None));
        self.finished(Kind::Value, &"uuid".into(), uuid, read_step)
    }

    /// A random number, journaled: a replay sees the same.
    pub fn random(&self) -> Delivery<u64> {
        let random = |_: &Key| Ok((to_payload(&self.run.engine.runtime.random()), Effect::None));
        self.finished(Kind::Value, &"random".into(), random, read_step)
    }

    /// Whether the task runs the changed code of this name: `true` for tasks that come here for the
    /// first time, `false` for those that came past this point before the change was deployed,
    /// which are to take the old way again. The answer stays what it was for the task's whole
    /// life, wherever it is asked for.
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
    /// When no task of before the change is left, the old way can be deleted, and with it this
    /// call: a journal that holds its mark does not ask for it.
    ///
    /// # Errors
    /// [`TaskError::Control`] when the run has to stop; an invalid name; a call that is not in the
    /// task's own future.
    pub fn patched(&self, name: impl Into<StepName>) -> TaskResult<bool> {
        self.run.patched(&name.into())
    }

    /// A sign of life, from the task's body or from within a step's closure: the run is not taken
    /// for stuck for the worker's [`claim_timeout`](crate::WorkerOptions::claim_timeout), or
    /// for `extend` where that is longer.
    ///
    /// # Errors
    /// [`TaskError::Control`] when the run has to stop: the task was cancelled, or the lease is
    /// lost.
    pub async fn heartbeat(&self, extend: impl Into<Option<Duration>>) -> TaskResult<()> {
        self.run.sign_of_life(extend.into());
        self.run.control().map_or(Ok(()), |control| Err(control.into()))
    }

    /// A token that is cancelled when the run has to stop. A closure that takes long can watch it,
    /// to end early; it may be used anywhere, also in `tokio::spawn`.
    pub fn cancelled(&self) -> CancellationToken {
        self.run.cancelled.clone()
    }

    /// What was given to the client under this type: a connection pool, a client of some service.
    ///
    /// # Errors
    /// [`TaskError::NoState`] when nothing of this type was.
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

/// A future whose error is an answer; made by [`TaskContext::try_step`].
pub struct Answered<Fut>(Pin<Box<Fut>>);

impl<Fut: Future> Future for Answered<Fut> {
    type Output = anyhow::Result<Fut::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx).map(Ok)
    }
}

/// A future with a durable limit; made by [`TaskContext::timeout`].
#[must_use = "nothing happens until this is awaited"]
pub struct Timeout<Fut> {
    /// Its end is a failure.
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
