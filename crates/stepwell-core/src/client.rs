//! The client: spawns tasks, talks to them, waits for them, and starts workers.

pub(crate) mod error;
pub(crate) mod export;

mod schedules;

use std::any::{Any, TypeId};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, join_all, select, try_join_all};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::Instrument as _;

use crate::base::ids::{RunId, TaskId, WorkerId};
use crate::base::journal::{Entry, Replay};
use crate::base::name::Name;
use crate::base::payload::{Payload, PayloadError};
use crate::base::runtime::{MaybeSend, MaybeSync, Runtime};
use crate::client::error::Error;
use crate::client::export::{Export, ImportError};
use crate::codec::Place;
use crate::codec::envelope::encoded_with;
use crate::codec::payloads;
use crate::context::TaskContext;
use crate::context::approval::{self, ApprovalInfo, Decision};
use crate::context::task::{self, Task};
use crate::engine::registry::{Check, TaskType};
use crate::engine::run::child::{Disposition, answered_with};
use crate::engine::run::compensation::Undoing;
use crate::engine::settings::Settings;
use crate::engine::task_error::TaskResult;
use crate::engine::worker::Worker;
use crate::engine::worker::retention::purge;
use crate::engine::worker::slots::Slots;
use crate::engine::worker_options::WorkerOptions;
use crate::engine::{Engine, States};
use crate::observe::history::HistoryEntry;
use crate::observe::lifecycle::Subscription;
use crate::observe::notes::LogLine;
use crate::observe::trace;
use crate::store::page::{ANSWER_ITEMS, Listed as _, Page, Room};
use crate::store::queue::{QueueAction, QueueChange, QueueInfo, QueueLimits};
use crate::store::record::TaskRecord;
use crate::store::scope::Scope;
use crate::store::spawn_options::SpawnOptions;
use crate::store::*;
use crate::workflow::{self, Snapshot, Workflow, WorkflowError};

/// The least number of waiting tasks that one query of `approvals_in` asks for.
const LOOK_ON: usize = 100;
/// The number of times that an export reads a task that keeps changing.
const EXPORT_TRIES: usize = 20;
/// The first and the longest interval between two reads of a task that a caller waits for. They
/// hold while the store reports no end of the task.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// A client of a store.
///
/// A client is cheap to clone, and all its clones are one client. Applications make a client with
/// `stepwell::Durable::builder()`.
#[derive(Clone)]
pub struct Client {
    engine: Arc<Engine>,
}

/// The result of a spawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpawnResult {
    /// The id of the new task, or of the existing task that answered the spawn.
    pub task_id: TaskId,
    /// The run of the task.
    ///
    /// For a new task, it is the run that starts at once. A task that starts later has another run
    /// from its claim on. For an existing task, it is the latest run.
    pub run_id: RunId,
    /// The attempt of that run.
    pub attempt: u32,
    /// The way in which the spawn was answered.
    pub disposition: Disposition,
}

impl SpawnResult {
    /// Returns whether the spawn made a new task.
    pub fn created(&self) -> bool {
        self.disposition == Disposition::Created
    }
}

/// Application state for [`Client::new`], by its type.
#[derive(Default)]
pub struct State(States);

impl State {
    /// Adds a value that tasks read with [`TaskContext::state`], in place of a value of the same
    /// type.
    pub fn insert<S: Any + Send + Sync>(&mut self, state: S) {
        self.0.insert(TypeId::of::<S>(), Arc::new(state));
    }
}

impl Client {
    /// Returns a client of the store that executes tasks in the runtime.
    pub fn new(
        store: Arc<dyn Store>,
        runtime: Arc<dyn Runtime>,
        settings: Settings,
        state: State,
    ) -> Self {
        Self { engine: Engine::new(store, runtime, settings, state.0) }
    }

    /// Registers a task type, so that workers of this client claim its tasks.
    ///
    /// A second registration of the type changes nothing.
    ///
    /// # Errors
    /// [`Error::DuplicateTaskType`] when another type has its name, [`Error::Name`] when the name
    /// is not valid.
    pub async fn register<T: Task>(&self) -> Result<(), Error> {
        self.add(Name::new(T::NAME)?, task::of_type::<T>())
    }

    /// Registers a task type as [`Client::register`] does, and describes it in the store.
    ///
    /// The store keeps the schemas of the type's parameters and outputs for [`Client::task_types`].
    /// This client checks the parameters of each spawn and each execution, and the output of each
    /// task. Another client with the feature `schemas` checks the parameters of a spawn, too, when
    /// the type is not registered with it. Such a client reads the described types at most once a
    /// minute.
    ///
    /// Schemas can say more than types, for instance by `#[schemars(range(min = 1))]`.
    ///
    /// # Errors
    /// As [`Client::register`]; [`Error::Store`]; [`Error::Payload`] when a schema is not valid.
    #[cfg(feature = "schemas")]
    pub async fn register_described<T: Task>(&self) -> Result<(), Error>
    where
        T::Params: schemars::JsonSchema,
        T::Output: schemars::JsonSchema,
    {
        let info = crate::context::schema::schemas::<T>()?;
        let check = |what: &str, schema| {
            let failed =
                |source| Error::Payload { what: format!("the {what} of {}", T::NAME), source };
            crate::context::schema::check(schema).map_err(failed)
        };
        let (params, output) = (check("parameters", &info.params)?, check("output", &info.output)?);
        self.add(info.task_type.clone(), crate::context::schema::described::<T>(params, output))?;
        Ok(self.engine.answered(self.engine.store.describe(info)).await?)
    }

    fn add(&self, name: Name, task_type: TaskType) -> Result<(), Error> {
        let in_use = |name: Name| Error::DuplicateTaskType(name.to_string());
        self.engine.registry.add(name, task_type).map_err(in_use)
    }

    /// Returns the task types that any process has described, ordered by name.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn task_types(&self) -> Result<Vec<TaskTypeInfo>, Error> {
        Ok(self.engine.answered(self.engine.store.task_types()).await?)
    }

    /// Registers a function as a task type.
    ///
    /// ```
    /// # use stepwell_core::{Client, Error, TaskContext};
    /// # async fn register(client: Client) -> Result<(), Error> {
    /// client
    ///     .register_fn("greet", |name: String, ctx: TaskContext| async move {
    ///         ctx.step("greeting", || async { Ok(format!("Hello, {name}!")) }).await
    ///     })
    ///     .await
    /// # }
    /// ```
    ///
    /// # Errors
    /// The errors of [`Client::register`].
    pub async fn register_fn<F, P, Fut, O>(&self, name: &str, function: F) -> Result<(), Error>
    where
        F: Fn(P, TaskContext) -> Fut + MaybeSend + MaybeSync + 'static,
        Fut: Future<Output = TaskResult<O>> + MaybeSend,
        P: DeserializeOwned + MaybeSend + 'static,
        O: Serialize + MaybeSend,
    {
        let name = Name::new(name)?;
        self.add(name.clone(), task::of_function(name, function))
    }

    /// Registers a cleanup that tasks of this client [record](TaskContext::cleanup) by its name.
    ///
    /// Every program that runs these tasks has to register the cleanup. A second registration
    /// replaces the first one. The code of a cleanup must tolerate an operation that never happened
    /// or is already undone.
    ///
    /// ```
    /// # use stepwell_core::{Client, Error};
    /// # async fn register(client: Client) -> Result<(), Error> {
    /// client
    ///     .register_cleanup("delete_temp", |file: String| async move {
    ///         match std::fs::remove_file(file) {
    ///             Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
    ///             _ => Ok(()),
    ///         }
    ///     })
    ///     .await
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Name`] when the name is not valid.
    pub async fn register_cleanup<F, P, Fut>(&self, name: &str, cleanup: F) -> Result<(), Error>
    where
        F: Fn(P) -> Fut + MaybeSend + MaybeSync + 'static,
        Fut: Future<Output = anyhow::Result<()>> + MaybeSend + 'static,
        P: DeserializeOwned + MaybeSend + 'static,
    {
        let cleanup = move |payload: Option<P>| {
            let cleaning = payload.map(&cleanup);
            async {
                match cleaning {
                    Some(cleaning) => cleaning.await,
                    None => Ok(()),
                }
            }
        };
        self.engine.registry.register_cleanup(Name::new(name)?, Arc::new(Undoing::new(cleanup)));
        Ok(())
    }

    /// Registers a workflow as a task type of the workflow's name.
    ///
    /// # Errors
    /// [`Error::Workflow`] when the workflow is not valid, or the type of a child is not
    /// registered; [`Error::DuplicateTaskType`] when another type has its name.
    pub async fn register_workflow<L>(&self, workflow: Workflow<L>) -> Result<(), Error> {
        let (name, task_type) =
            workflow.becomes().registered(|child| self.engine.registry.knows(child))?;
        self.add(name, task_type)
    }

    fn workflow(&self, name: &Name) -> Option<Arc<Workflow>> {
        workflow::of(&*self.engine.registry.get(name)?)
    }

    /// Spawns a task of a workflow that is registered with this client.
    ///
    /// # Errors
    /// [`Error::Workflow`] when the workflow is not registered; the errors of
    /// [`Client::spawn_with`].
    pub async fn start_workflow<P: Serialize + ?Sized>(
        &self,
        name: &str,
        input: &P,
        options: SpawnOptions,
    ) -> Result<SpawnResult, Error> {
        if self.workflow(&Name::new(name)?).is_none() {
            return Err(WorkflowError::NotRegistered { name: name.to_owned() }.into());
        }
        self.spawn_named(name, input, options).await
    }

    /// Returns the present state of a task, with the results of its steps.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Store`].
    pub async fn find(&self, task_id: TaskId) -> Result<Snapshot, Error> {
        let info = self.task(task_id).await?.ok_or(Error::NotFound(task_id))?;
        let journal = self.journal(task_id).await?;
        let workflow = self.workflow(&info.task_type);
        Ok(Snapshot::new(info, &journal, workflow.as_deref()))
    }

    /// Spawns a task.
    ///
    /// The task is durable when this function returns.
    ///
    /// # Errors
    /// [`Error::Payload`] when the parameters do not serialise or are too large, [`Error::Store`]
    /// when nothing could be written.
    pub async fn spawn<T: Task>(&self, params: T::Params) -> Result<SpawnResult, Error> {
        self.spawn_with::<T>(params, SpawnOptions::default()).await
    }

    /// Spawns a task with options.
    ///
    /// # Errors
    /// The errors of [`Client::spawn`]; [`Error::Name`] when the options hold an invalid name;
    /// [`Error::Waiting`] when the options ask for a rejection while a task of the same type and
    /// concurrency key waits to start.
    pub async fn spawn_with<T: Task>(
        &self,
        params: T::Params,
        options: SpawnOptions,
    ) -> Result<SpawnResult, Error> {
        let name = Name::new(T::NAME)?;
        let params = self.proven(&name, &params)?;
        self.spawn_encoded(name, params, options).await
    }

    /// Spawns a task of a type that is known by its name only.
    ///
    /// # Errors
    /// The errors of [`Client::spawn_with`].
    pub async fn spawn_named<P: Serialize + ?Sized>(
        &self,
        task_type: &str,
        params: &P,
        options: SpawnOptions,
    ) -> Result<SpawnResult, Error> {
        let name = Name::new(task_type)?;
        let params = self.encode_params(&name, params)?;
        self.spawn_encoded(name, params, options).await
    }

    async fn spawn_encoded(
        &self,
        name: Name,
        params: Payload,
        options: SpawnOptions,
    ) -> Result<SpawnResult, Error> {
        self.check(&name, std::slice::from_ref(&params)).await?;
        let span = trace::spawn(name.as_str());
        let task =
            trace::carried(&span, || self.engine.new_task::<Error>(name, params, options, None))?;
        let asked = Asked::of(&task);
        let spawning = self.engine.commit.spawn(task).instrument(span);
        asked.answer(self.engine.answered(spawning).await?)
    }

    /// Spawns many tasks of one type in one commit: all of them, or none.
    ///
    /// # Errors
    /// The errors of [`Client::spawn_with`]. An error about one task keeps all of them from being
    /// spawned. [`Error::Waiting`] is the exception: the other tasks are spawned.
    pub async fn spawn_many<T: Task>(
        &self,
        tasks: impl IntoIterator<Item = (T::Params, SpawnOptions)>,
    ) -> Result<Vec<SpawnResult>, Error> {
        let name = Name::new(T::NAME)?;
        let encode = |(params, options)| Ok((self.proven(&name, &params)?, options));
        let tasks = tasks.into_iter().map(encode).collect::<Result<Vec<_>, Error>>()?;
        let (params, options): (Vec<_>, Vec<_>) = tasks.into_iter().unzip();
        self.check(&name, &params).await?;
        let new = |(params, options)| {
            let new = || self.engine.new_task::<Error>(name.clone(), params, options, None);
            trace::carried(&trace::spawn(T::NAME), new)
        };
        let tasks = params.into_iter().zip(options).map(new).collect::<Result<Vec<_>, _>>()?;
        let asked: Vec<_> = tasks.iter().map(Asked::of).collect();
        let all = try_join_all(self.engine.commit.spawn_many(tasks));
        let spawned = self.engine.answered(all).await?;
        asked.into_iter().zip(spawned).map(|(asked, spawned)| asked.answer(spawned)).collect()
    }

    /// Returns the check of a task type's parameters.
    ///
    /// A type that is registered with this client has its own check. Any other type is checked as
    /// some process has described it.
    async fn check_of(&self, task_type: &Name) -> Result<Option<Check>, StoreError> {
        match self.engine.registry.check_of(task_type) {
            Some(check) => Ok(check),
            #[cfg(feature = "schemas")]
            None => self.engine.stored_check(task_type).await,
            #[cfg(not(feature = "schemas"))]
            None => Ok(None),
        }
    }

    /// Returns a task to be spawned, with its payloads encoded as the store keeps them.
    ///
    /// Backends call this to spawn a task in a transaction of the user's.
    ///
    /// # Errors
    /// The errors of [`Client::spawn_with`].
    #[doc(hidden)]
    pub async fn new_task<P: Serialize + ?Sized>(
        &self,
        task_type: &str,
        params: &P,
        options: SpawnOptions,
    ) -> Result<NewTask, Error> {
        let name = Name::new(task_type)?;
        let params = self.params(&name, params).await?;
        self.kept(name, params, options)
    }

    /// Returns a task to be spawned as [`Client::new_task`] does, for a backend that cannot await.
    ///
    /// The backend reads the described types itself, by `described`, when the type is not
    /// registered.
    ///
    /// # Errors
    /// The errors of [`Client::new_task`].
    #[doc(hidden)]
    pub fn new_task_now<P: Serialize + ?Sized>(
        &self,
        task_type: &str,
        params: &P,
        options: SpawnOptions,
        described: impl FnOnce() -> Result<Vec<TaskTypeInfo>, Error>,
    ) -> Result<NewTask, Error> {
        let name = Name::new(task_type)?;
        let params = self.encode_params(&name, params)?;
        let check = match self.engine.registry.check_of(&name) {
            Some(check) => check,
            #[cfg(feature = "schemas")]
            None => crate::context::schema::checks(described()?).remove(&name),
            #[cfg(not(feature = "schemas"))]
            None => {
                let _ = described;
                None
            }
        };
        check.map_or(Ok(()), |check| check(&params)).map_err(|source| misfit(&name, source))?;
        self.kept(name, params, options)
    }

    fn kept(&self, name: Name, params: Payload, options: SpawnOptions) -> Result<NewTask, Error> {
        let span = trace::spawn(name.as_str());
        let mut task =
            trace::carried(&span, || self.engine.new_task::<Error>(name, params, options, None))?;
        if let Some(codecs) = &self.engine.codecs {
            codecs.encode(|each| payloads::task(&mut task, each))?;
        }
        Ok(task)
    }

    /// Returns the parameters of a task type, encoded and checked.
    ///
    /// Invariant: all parameters that clients spawn or put into schedules pass
    /// [`check`](Self::check).
    async fn params<P: Serialize + ?Sized>(
        &self,
        task_type: &Name,
        params: &P,
    ) -> Result<Payload, Error> {
        let params = self.encode_params(task_type, params)?;
        self.check(task_type, std::slice::from_ref(&params)).await?;
        Ok(params)
    }

    async fn check(&self, task_type: &Name, params: &[Payload]) -> Result<(), Error> {
        let Some(check) = self.check_of(task_type).await? else { return Ok(()) };
        params
            .iter()
            .try_for_each(|params| check(params))
            .map_err(|source| misfit(task_type, source))
    }

    fn encode_params<P: Serialize + ?Sized>(
        &self,
        task_type: &Name,
        params: &P,
    ) -> Result<Payload, Error> {
        self.encode(params, || params_of(task_type.as_str()))
    }

    /// Returns the encoded parameters of a known type, after they were decoded as a test.
    fn proven<P: Serialize + DeserializeOwned>(
        &self,
        task_type: &Name,
        params: &P,
    ) -> Result<Payload, Error> {
        Payload::encode_proven(params, self.engine.settings.max_payload_bytes)
            .map_err(|source| Error::Payload { what: params_of(task_type.as_str()), source })
    }

    fn encode<T: Serialize + ?Sized>(
        &self,
        value: &T,
        what: impl Fn() -> String,
    ) -> Result<Payload, Error> {
        Payload::encode(value, self.engine.settings.max_payload_bytes)
            .map_err(|source| Error::Payload { what: what(), source })
    }

    /// Emits an event to the tasks of all queues, or of one, and returns whether it is the first of
    /// its name.
    ///
    /// The event reaches the tasks that await it now and those that await it later. The first event
    /// of a name stands: a later one changes nothing, and the function returns `false`.
    ///
    /// # Errors
    /// The errors of [`Client::spawn_with`].
    pub async fn emit_event<T: Serialize + ?Sized>(
        &self,
        name: impl AsRef<str>,
        payload: &T,
        queue: Option<&str>,
    ) -> Result<bool, Error> {
        let event = self.event_of(name, payload, queue)?;
        Ok(self.engine.answered(self.engine.commit.emit(event)).await?)
    }

    /// Returns an event to be emitted, with its payload encoded as the store keeps it.
    ///
    /// Backends call this to emit an event in a transaction of the user's.
    ///
    /// # Errors
    /// The errors of [`Client::emit_event`].
    #[doc(hidden)]
    pub fn new_event<T: Serialize + ?Sized>(
        &self,
        name: impl AsRef<str>,
        payload: &T,
        queue: Option<&str>,
    ) -> Result<NewEvent, Error> {
        let mut event = self.event_of(name, payload, queue)?;
        if let Some(codecs) = &self.engine.codecs {
            codecs.encode(|each| payloads::event(&mut event, each))?;
        }
        Ok(event)
    }

    fn event_of<T: Serialize + ?Sized>(
        &self,
        name: impl AsRef<str>,
        payload: &T,
        queue: Option<&str>,
    ) -> Result<NewEvent, Error> {
        let name = Name::awaitable(name)?;
        let payload = self.encode(payload, || format!("the event {name}"))?;
        let queue = queue.map(Name::new).transpose()?;
        Ok(NewEvent { name, queue, payload })
    }

    /// Returns the longest time that this client waits for an answer of the store.
    pub fn answer_timeout(&self) -> Duration {
        self.engine.settings.answer_timeout
    }

    /// Returns the store of this client.
    ///
    /// The store returns payloads as it keeps them: encoded when the client has a codec.
    pub fn store(&self) -> &dyn Store {
        &*self.engine.backend
    }

    /// Sends a message to the mailbox of a task.
    ///
    /// # Errors
    /// The errors of [`Client::spawn_with`]; [`Error::NotFound`] when there is no such task;
    /// [`Error::NotAllowed`] when the task has ended.
    pub async fn send<T: Serialize + ?Sized>(
        &self,
        task_id: TaskId,
        topic: impl AsRef<str>,
        payload: &T,
    ) -> Result<(), Error> {
        let topic = Name::awaitable(topic)?;
        let payload = self.encode(payload, || format!("the message {topic}"))?;
        if self
            .engine
            .answered(self.engine.commit.send(NewMessage { task_id, topic, payload }))
            .await?
        {
            return Ok(());
        }
        let task = self.task(task_id).await?.ok_or(Error::NotFound(task_id))?;
        Err(Error::NotAllowed { action: "send to", task_id, state: task.state })
    }

    /// Cancels a task and its children.
    ///
    /// A task that runs is notified, and it ends as soon as its code does. Any other task ends at
    /// once.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NotAllowed`] when the task has ended.
    pub async fn cancel(&self, task_id: TaskId) -> Result<(), Error> {
        self.command("cancel", task_id, Command::Cancel(task_id)).await
    }

    /// Runs a failed or cancelled task again, from its journal.
    ///
    /// No step that has a result runs again. The failed and cancelled children of the task run
    /// again, too, with their own children, unless the task has handled their failures. Children
    /// that have completed are joined as they are. Messages that the task has not received are
    /// still in its mailbox.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NotAllowed`] when the task has neither failed nor been
    /// cancelled, or when one of its children is still being cancelled or compensated. In the
    /// second case, retry the task after that child has ended.
    pub async fn retry(&self, task_id: TaskId) -> Result<(), Error> {
        let action = "retry";
        let info = self.task(task_id).await?.ok_or(Error::NotFound(task_id))?;
        if !matches!(info.state, TaskState::Failed | TaskState::Cancelled) {
            return Err(Error::NotAllowed { action, task_id, state: info.state });
        }
        let mut family = vec![task_id];
        let mut looked_at = 0;
        while let Some(&parent) = family.get(looked_at) {
            looked_at += 1;
            for child in Replay::new(self.journal(parent).await?).unjoined_children() {
                let Some(info) = self.task(child).await?.filter(|info| info.parent == Some(parent))
                else {
                    continue;
                };
                let state = info.state;
                if matches!(state, TaskState::Failed | TaskState::Cancelled) {
                    family.push(child);
                } else if state == TaskState::Compensating
                    || info.cancel_requested && !state.is_finished()
                {
                    return Err(Error::NotAllowed { action, task_id: child, state });
                }
            }
        }
        // The task itself comes last, so that it can be retried again after an interruption.
        for task_id in family.into_iter().rev() {
            self.command(action, task_id, Command::Retry(task_id)).await?;
        }
        Ok(())
    }

    /// Pauses a task that has not ended: no worker claims it until it is [resumed](Client::resume).
    ///
    /// A task that runs goes on until it waits or its attempt ends. What a paused task waits for
    /// still arrives, and its deadlines still hold. A paused task can be cancelled; its
    /// compensations run after it is resumed. A pause of a paused task changes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NotAllowed`] when the task has ended.
    pub async fn pause(&self, task_id: TaskId) -> Result<(), Error> {
        self.command("pause", task_id, Command::Pause(task_id)).await
    }

    /// Resumes a paused task: it goes on from where it was.
    ///
    /// # Errors
    /// The errors of [`Client::pause`].
    pub async fn resume(&self, task_id: TaskId) -> Result<(), Error> {
        self.command("resume", task_id, Command::Resume(task_id)).await
    }

    /// Spawns a new task with the type, parameters and options of an existing one, without its
    /// idempotency key.
    ///
    /// The new task begins from the start.
    ///
    /// # Errors
    /// [`Error::NotFound`]; the errors of [`Client::spawn_with`].
    pub async fn retrigger(&self, task_id: TaskId) -> Result<SpawnResult, Error> {
        let info = self.task(task_id).await?.ok_or(Error::NotFound(task_id))?;
        let place = Place::Params(task_id);
        let encoded = self
            .engine
            .codecs
            .is_none()
            .then(|| encoded_with(info.params.as_str(), &place))
            .flatten();
        let encoded =
            encoded.map(|reason| PayloadError::Unreadable { what: place.to_string(), reason });
        if let Some(source) = info.params.unreadable().cloned().or(encoded) {
            return Err(Error::Payload { what: place.to_string(), source });
        }
        let cancellation = CancellationPolicy { max_delay: None, max_duration: info.max_duration };
        let mut options = SpawnOptions::new()
            .queue(info.queue.to_string())
            .priority(info.priority)
            .max_attempts(info.max_attempts)
            .retry(info.retry)
            .cancellation(cancellation);
        (options.headers, options.scope) = (trace::untraced(info.headers), info.scope);
        if let Some(key) = info.concurrency_key {
            options = options.concurrency_key(key.to_string());
        }
        if let Some(version) = info.code_version {
            options = options.code_version(version.to_string());
        }
        self.spawn_named(info.task_type.as_str(), &info.params, options).await
    }

    /// Returns the lines that a task has written to its log, the oldest first.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn logs(&self, task_id: TaskId) -> Result<Vec<LogLine>, Error> {
        Ok(LogLine::all(&self.journal(task_id).await?))
    }

    /// Removes a finished task with all that belongs to it.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NotAllowed`] when the task has not ended; [`Error::Needed`]
    /// when another task still needs it. The parent of the task needs it until the parent has
    /// completed. So does a task whose spawn was answered with it, and a task that waits for it.
    pub async fn delete(&self, task_id: TaskId) -> Result<(), Error> {
        self.command("delete", task_id, Command::Delete(task_id)).await?;
        self.engine.hub.forget_output(task_id);
        Ok(())
    }

    async fn command(
        &self,
        action: &'static str,
        task_id: TaskId,
        command: Command,
    ) -> Result<(), Error> {
        match self.engine.answered(self.engine.commit.command(command)).await? {
            CommandOutcome::Done => Ok(()),
            CommandOutcome::NotAllowed(state) => Err(Error::NotAllowed { action, task_id, state }),
            CommandOutcome::Needed { by } => Err(Error::Needed { task_id, by }),
            CommandOutcome::NotFound => Err(Error::NotFound(task_id)),
        }
    }

    /// Returns what the store keeps of a task, without its journal; `None` when there is no such
    /// task.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn task(&self, task_id: TaskId) -> Result<Option<TaskInfo>, Error> {
        Ok(self.engine.answered(self.engine.store.task(task_id)).await?)
    }

    /// Returns the tasks that pass the filter, newest first.
    ///
    /// For the next page, set `before` to the id of the last task. The page after the last one is
    /// empty. A page also ends when its tasks have 32 MiB of payloads
    /// ([`ANSWER_BYTES`](crate::ANSWER_BYTES)). A page of fewer than `limit` tasks is therefore not
    /// always the last one. [`Client::page_of_tasks`] returns whether another page may follow.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn tasks(&self, filter: TaskFilter) -> Result<Vec<TaskInfo>, Error> {
        Ok(self.page_of_tasks(filter).await?.items)
    }

    /// Returns the tasks that pass the filter, newest first, and `before` of the next page when
    /// there may be one.
    ///
    /// # Errors
    /// The errors of [`Client::tasks`].
    pub async fn page_of_tasks(&self, mut filter: TaskFilter) -> Result<Page<TaskInfo>, Error> {
        loop {
            let page = self.engine.answered(self.engine.store.tasks(filter.clone())).await?;
            match page.next {
                // None of the page's tasks could be read.
                Some(next) if page.items.is_empty() => filter.before = Some(next),
                _ => return Ok(page),
            }
        }
    }

    /// Returns a task's journal: what was delivered to it, in order.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn journal(&self, task_id: TaskId) -> Result<Vec<Entry>, Error> {
        Ok(self.engine.answered(self.engine.store.journal(task_id)).await?)
    }

    /// Returns the waits of a task.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn waits(&self, task_id: TaskId) -> Result<Vec<Wait>, Error> {
        Ok(self.engine.answered(self.engine.store.waits_of(task_id)).await?)
    }

    /// Calls `give` with each message that a task has not received, one after the other.
    async fn each_message(
        &self,
        task_id: TaskId,
        mut give: impl FnMut(ArrivedMessage),
    ) -> Result<(), Error> {
        let mut behind = None;
        loop {
            let part = self.engine.answered(self.engine.store.messages(task_id, behind)).await?;
            part.items.into_iter().for_each(&mut give);
            behind = part.next;
            if behind.is_none() {
                return Ok(());
            }
        }
    }

    /// Returns everything that the store keeps of a task, as a document.
    ///
    /// The task stays in this store, and goes on here. Before the task goes on elsewhere, make sure
    /// that no worker here runs it: pause its queue, or register its type with no worker.
    ///
    /// The document holds payloads decoded by the client's codecs. It does not hold the task's
    /// children.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NotAllowed`] when the task changed during each of 20 tries, in
    /// which case it, or its queue, has to be paused; [`Error::Store`].
    pub async fn export(&self, task_id: TaskId) -> Result<Export, Error> {
        let mut info = self.task(task_id).await?.ok_or(Error::NotFound(task_id))?;
        for _ in 0..EXPORT_TRIES {
            let (waits, mut messages) = (self.waits(task_id).await?, Vec::new());
            self.each_message(task_id, |message| messages.push(message)).await?;
            let journal = self.journal(task_id).await?;
            let later = self.task(task_id).await?.ok_or(Error::NotFound(task_id))?;
            // A message never changes, and is therefore represented by its id.
            let mut later_messages = Vec::new();
            self.each_message(task_id, |message| later_messages.push(message.id)).await?;
            // The parts belong together if nothing has happened to the task between the first read
            // and the last.
            let same = (later.state, later.run_id, later.attempt)
                == (info.state, info.run_id, info.attempt)
                && messages.iter().map(|message| message.id).eq(later_messages)
                && self.waits(task_id).await? == waits
                && self.journal(task_id).await?.len() == journal.len();
            info = later;
            if same {
                let messages =
                    messages.into_iter().map(|message| (message.topic, message.payload)).collect();
                let record = TaskRecord { info, journal, waits, messages, needs: Vec::new() };
                let exported_at = self.engine.store.now();
                return Ok(Export { exported_at, metadata: BTreeMap::default(), record });
            }
        }
        Err(Error::NotAllowed { action: "export", task_id, state: info.state })
    }

    /// Imports a task that was exported from this store or another one.
    ///
    /// A task that has not ended goes on from its journal. No step that has a result runs again,
    /// and timers keep their due times.
    ///
    /// Events are not exported: an event that the task waits for has to be emitted to this store. A
    /// child that was not imported counts as deleted.
    ///
    /// # Errors
    /// [`ImportError::Exists`]; [`Error::Store`].
    pub async fn import(&self, export: Export) -> Result<TaskId, Error> {
        let mut record = export.record;
        record.check(self.engine.settings.max_payload_bytes)?;
        record.needs = answered_with(&record.journal);
        let info = &record.info;
        let task_id = info.task_id;
        if !info.state.is_finished() {
            self.check(&info.task_type, std::slice::from_ref(&info.params)).await?;
        }
        if !self.engine.answered(self.engine.store.import(record)).await? {
            return Err(ImportError::Exists.into());
        }
        self.engine.hub.workers().iter().for_each(|worker| worker.nudge());
        Ok(task_id)
    }

    /// Returns the approvals that the oldest `limit` tasks wait for, among the tasks that wait for
    /// one.
    ///
    /// The page has fewer tasks when the approvals have 32 MiB of payloads. For the next page, set
    /// `behind` to the task of the last approval. The page after the last one is empty.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn approvals(
        &self,
        behind: Option<TaskId>,
        limit: usize,
    ) -> Result<Vec<ApprovalInfo>, Error> {
        Ok(self.approvals_in(Scope::default(), behind, limit).await?.items)
    }

    /// Returns the approvals of the tasks of a scope, as [`Client::approvals`] does, and `behind`
    /// of the next page when there may be one.
    ///
    /// # Errors
    /// The errors of [`Client::approvals`].
    pub async fn approvals_in(
        &self,
        scope: Scope,
        mut behind: Option<TaskId>,
        limit: usize,
    ) -> Result<Page<ApprovalInfo>, Error> {
        let (mut items, mut tasks, mut room) = (Vec::new(), 0, Room::default());
        loop {
            let at_once = (limit - tasks).clamp(LOOK_ON, ANSWER_ITEMS);
            let waits =
                self.engine.store.waits(scope.clone(), approval::PREFIX.into(), behind, at_once);
            let waits = self.engine.answered(waits).await?;
            // Events of such a name that are not approvals are not part of the page, and neither
            // are tasks that cannot be read. Both do not end the page.
            for (task_id, waits) in &waits.items {
                if tasks == limit || room.is_full() {
                    return Ok(Page { items, next: behind });
                }
                let found = self.approvals_among(*task_id, waits).await?;
                tasks += usize::from(!found.is_empty());
                found.iter().for_each(|approval| _ = room.take(approval.bytes()));
                items.extend(found);
                behind = Some(*task_id);
            }
            behind = waits.next;
            if behind.is_none() {
                return Ok(Page { items, next: None });
            }
        }
    }

    /// Returns the approvals that a task waits for.
    ///
    /// # Errors
    /// The errors of [`Client::approvals`].
    pub async fn approvals_of(&self, task_id: TaskId) -> Result<Vec<ApprovalInfo>, Error> {
        self.approvals_among(task_id, &self.waits(task_id).await?).await
    }

    /// Returns the approvals among a task's waits.
    async fn approvals_among(
        &self,
        task_id: TaskId,
        waits: &[Wait],
    ) -> Result<Vec<ApprovalInfo>, Error> {
        let waits = waits
            .iter()
            .filter_map(|wait| Some((approval::awaited_by(task_id, wait)?, wait.due_at)));
        let waits: Vec<_> = waits.collect();
        if waits.is_empty() {
            return Ok(Vec::new());
        }
        let read = async {
            let info = self.task(task_id).await?;
            Ok((info, self.journal(task_id).await?))
        };
        match read.await {
            Ok((Some(info), journal)) => {
                let read = |(event, due_at)| ApprovalInfo::read(&info, &journal, event, due_at);
                Ok(waits.into_iter().filter_map(read).collect())
            }
            Ok((None, _)) => Ok(Vec::new()),
            Err(Error::Store(StoreError::Unreadable(error))) => {
                tracing::error!(%task_id, %error, "an approval of a task that cannot be read is \
                                                   left out");
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    /// Decides an approval that a task waits for, by the name that [`Client::approvals`] lists.
    ///
    /// The first decision stands.
    ///
    /// ```
    /// # use stepwell_core::{Client, Decision, Error};
    /// # async fn decide(client: Client) -> Result<(), Error> {
    /// for approval in client.approvals(None, 100).await? {
    ///     let amount: u64 = approval.request.decode().unwrap_or(0);
    ///     let decision = match amount {
    ///         0..=1_000 => Decision::approved("ada", amount),
    ///         _ => Decision::rejected("ada", "too much"),
    ///     };
    ///     client.decide(approval.task_id, &approval.name, &decision).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::UnknownApproval`] when the task does not wait for the approval;
    /// [`Error::AlreadyDecided`] when there is an earlier decision; the errors of
    /// [`Client::emit_event`].
    pub async fn decide<T: Serialize>(
        &self,
        task_id: TaskId,
        name: &str,
        decision: &Decision<T>,
    ) -> Result<(), Error> {
        let waits = self.waits(task_id).await?;
        let mut events = waits.iter().filter_map(|wait| approval::awaited_by(task_id, wait));
        let event = events.find(|event| approval::label_of(event) == Some(name)).cloned();
        let event = event.ok_or_else(|| Error::UnknownApproval { task_id, name: name.into() })?;
        let payload = self.encode(decision, || format!("the event {event}"))?;
        let decided = NewEvent { name: event, queue: None, payload };
        if self.engine.answered(self.engine.commit.emit(decided)).await? {
            Ok(())
        } else {
            Err(Error::AlreadyDecided { task_id, name: name.into() })
        }
    }

    /// Waits for a task's output, without polling when a worker of this process ends the task.
    ///
    /// # Errors
    /// [`Error::TaskFailed`], [`Error::TaskCancelled`]; [`Error::NotFound`] when there is no such
    /// task; [`Error::Payload`] when the output is of another type.
    pub async fn wait<T: DeserializeOwned>(&self, task_id: TaskId) -> Result<T, Error> {
        match self.finish(task_id).await? {
            Finish::Completed(output) => output.decode().map_err(|source| Error::Payload {
                what: format!("the output of task {task_id}"),
                source,
            }),
            Finish::Failed(failure) => {
                Err(Error::TaskFailed { task_id, failure: Box::new(failure) })
            }
            Finish::Cancelled => Err(Error::TaskCancelled(task_id)),
        }
    }

    async fn finish(&self, task_id: TaskId) -> Result<Finish, Error> {
        let Engine { hub, runtime, .. } = &*self.engine;
        if let Some(output) = hub.output(task_id) {
            return Ok(Finish::Completed(output));
        }
        self.engine.listen();
        let mut finished = hub.when_finished(task_id);
        let _forget = Forget { engine: &self.engine, task_id };
        let mut pause = LOOK_AGAIN.0;
        // The hub is notified of the end of a task that this process runs.
        let mut look = !hub.runs(task_id);
        loop {
            if look {
                hub.look_at(task_id);
            }
            match select(&mut finished, runtime.sleep(pause)).await {
                Either::Left((Ok(end), _)) => return end?.ok_or(Error::NotFound(task_id)),
                Either::Left((Err(_), _)) => return Err(StoreError::Closed.into()),
                Either::Right(_) => (look, pause) = (true, (pause * 2).min(LOOK_AGAIN.1)),
            }
        }
    }

    /// Starts a worker that claims and executes tasks of the registered types until it is shut
    /// down.
    ///
    /// The worker keeps trying when it cannot reach the store.
    pub async fn start_worker(&self, options: WorkerOptions) -> Worker {
        let queues = match options.queues.is_empty() {
            true => vec![self.engine.settings.queue.clone()],
            false => options.queues.clone(),
        };
        let (slots, woken) = Slots::new(self.engine.clone(), options, queues);
        Worker::start(slots, woken).await
    }

    /// Returns the registered workers of all processes, with the tasks that they run.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn workers(&self) -> Result<Vec<WorkerInfo>, Error> {
        Ok(self.engine.answered(self.engine.store.workers()).await?)
    }

    /// Tells a worker of any process to shut down, as [`Worker::shutdown`](crate::Worker::shutdown)
    /// does.
    ///
    /// The worker ends what it runs, claims nothing more, and stops. It learns of the request with
    /// its next heartbeat, within a third of its [`lease`](crate::WorkerOptions::lease).
    ///
    /// # Errors
    /// [`Error::UnknownWorker`] when the worker is not registered, or no longer.
    pub async fn drain_worker(&self, worker_id: WorkerId) -> Result<(), Error> {
        match self
            .engine
            .answered(self.engine.commit.signal(WorkerSignal::Drain { worker_id }))
            .await?
            .state
        {
            WorkerState::Active | WorkerState::Draining => Ok(()),
            WorkerState::Gone => Err(Error::UnknownWorker(worker_id)),
        }
    }

    /// Returns the queues that have limits, are paused, or have tasks that have not ended.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn queues(&self) -> Result<Vec<QueueInfo>, Error> {
        Ok(self.engine.answered(self.engine.store.queues()).await?)
    }

    /// Pauses a queue on all workers: none of its tasks is claimed any more.
    ///
    /// Tasks that run go on.
    ///
    /// # Errors
    /// [`Error::Name`]; [`Error::Store`] when nothing could be written.
    pub async fn pause_queue(&self, queue: impl AsRef<str>) -> Result<(), Error> {
        self.change_queue(queue, QueueAction::Pause).await
    }

    /// Resumes a paused queue: its tasks can be claimed again.
    ///
    /// # Errors
    /// The errors of [`Client::pause_queue`].
    pub async fn resume_queue(&self, queue: impl AsRef<str>) -> Result<(), Error> {
        self.change_queue(queue, QueueAction::Resume).await
    }

    /// Sets the limits of a queue for all workers together, in place of its earlier limits.
    ///
    /// The limits hold for claims from now on.
    ///
    /// # Errors
    /// The errors of [`Client::pause_queue`].
    pub async fn limit_queue(
        &self,
        queue: impl AsRef<str>,
        limits: QueueLimits,
    ) -> Result<(), Error> {
        self.change_queue(queue, QueueAction::Limit(limits)).await
    }

    async fn change_queue(&self, queue: impl AsRef<str>, action: QueueAction) -> Result<(), Error> {
        let change = QueueChange { queue: Name::new(queue)?, action };
        Ok(self.engine.answered(self.engine.commit.change_queue(change)).await?)
    }

    /// Removes tasks that ended longer ago than `older_than`, with all that belongs to them, and
    /// returns their number.
    ///
    /// The purge removes the tasks of one state, or of all states. It goes in small batches,
    /// between which other commits get their turn. A task is kept while another task needs it. Its
    /// parent needs it until the parent has completed, and so does a task whose spawn was answered
    /// with it. A task that waits for it needs it, too. A task that has failed or was cancelled is
    /// therefore removed before its children, in the same purge.
    ///
    /// # Errors
    /// [`Error::Store`]; tasks that were removed before the error stay removed.
    pub async fn purge(
        &self,
        older_than: Duration,
        state: Option<TaskState>,
    ) -> Result<usize, Error> {
        self.purge_with(older_than, state, |_| ()).await
    }

    /// Removes tasks as [`Client::purge`] does, and reports the number removed so far after each
    /// batch.
    ///
    /// # Errors
    /// The errors of [`Client::purge`].
    pub async fn purge_with(
        &self,
        older_than: Duration,
        state: Option<TaskState>,
        progress: impl FnMut(usize),
    ) -> Result<usize, Error> {
        Ok(purge(&self.engine, older_than, state, progress).await?)
    }

    /// Subscribes to the lifecycle events of this process, from now on.
    pub fn subscribe(&self) -> Subscription {
        self.engine.lifecycle.subscribe()
    }

    /// Returns the kept lifecycle events of all processes whose clients were built to keep them.
    ///
    /// For the next page, and for later events, ask for those after the `id` of the last event.
    /// Only an empty page is known to be the last. A lifecycle event is written after the moment
    /// that it reports. The last events before a crash may therefore be missing, and some events
    /// may be there twice after the database was unreachable. Lifecycle events are removed with
    /// their tasks.
    ///
    /// ```
    /// # use stepwell_core::{Client, Error, HistoryFilter, TaskId};
    /// # async fn show(client: Client, task_id: TaskId) -> Result<(), Error> {
    /// for entry in client.history(HistoryFilter { task_id: Some(task_id), ..HistoryFilter::default() }).await? {
    ///     println!("{} {}", entry.at, entry.event.map_or("unreadable", |event| event.name()));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn history(&self, which: HistoryFilter) -> Result<Vec<HistoryEntry>, Error> {
        let page = self.engine.answered(self.engine.store.history(which)).await?;
        Ok(page.items.into_iter().map(HistoryEntry::read).collect())
    }

    /// Shuts down all workers of this client: waits for running tasks up to the deadline, and
    /// releases the rest.
    pub async fn shutdown(&self, deadline: Duration) {
        let workers = self.engine.hub.workers();
        join_all(workers.into_iter().map(|worker| worker.shut_down(deadline))).await;
        self.engine.lifecycle.flush().await;
    }
}

/// The request of a spawn whose answer is still to come.
#[doc(hidden)]
#[derive(Clone, Copy)]
pub struct Asked {
    task_id: TaskId,
    run_id: RunId,
    coalesce: Option<Coalesce>,
}

impl Asked {
    /// Returns the request of a task to be spawned.
    pub fn of(task: &NewTask) -> Self {
        Self { task_id: task.task_id, run_id: task.run_id, coalesce: task.coalesce }
    }

    /// Returns the client's answer to the request, from the store's answer.
    pub fn answer(self, spawned: Spawned) -> Result<SpawnResult, Error> {
        let Self { task_id, run_id, coalesce } = self;
        let (task_id, run_id, attempt, disposition) = match spawned {
            Spawned::Created { .. } => (task_id, run_id, 1, Disposition::Created),
            Spawned::Existing { task_id, run_id, attempt } => {
                (task_id, run_id, attempt, Disposition::Existing)
            }
            Spawned::Waiting { task_id, .. } if coalesce == Some(Coalesce::Reject) => {
                return Err(Error::Waiting(task_id));
            }
            Spawned::Waiting { task_id, run_id } => (task_id, run_id, 0, Disposition::Coalesced),
        };
        Ok(SpawnResult { task_id, run_id, attempt, disposition })
    }
}

/// Removes a waiter from the hub when the caller no longer waits for a task.
struct Forget<'a> {
    engine: &'a Engine,
    task_id: TaskId,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.engine.hub.forget_waiters(self.task_id);
    }
}

fn misfit(task_type: &Name, source: PayloadError) -> Error {
    Error::Payload { what: params_of(task_type.as_str()), source }
}

fn params_of(task_type: &str) -> String {
    format!("the parameters of {task_type}")
}
