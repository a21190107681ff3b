//! Spawns: one task, many tasks, and tasks in the application's own transactions.

use futures_util::future::try_join_all;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::Instrument as _;

use crate::base::ids::{RunId, TaskId};
use crate::base::name::Name;
use crate::base::payload::{Payload, PayloadError};
use crate::base::runtime::BoxFuture;
use crate::client::Client;
use crate::client::error::Error;
use crate::client::transaction::UserTransaction;
use crate::codec::payloads;
use crate::context::task::Task;
use crate::engine::registry::Check;
use crate::engine::run::child::Disposition;
use crate::observe::trace;
use crate::store::spawn_options::{SpawnOptions, spawn_setters};
use crate::store::{Coalesce, NewTask, Spawned, StoreError, TaskTypeInfo};
use crate::workflow::WorkflowError;

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

/// A task that is about to be spawned, with its options; await it to spawn the task.
///
/// The task is durable when the result is there. An option that is not set has the value that the
/// client was built with.
///
/// ```
/// # use std::time::Duration;
/// # use stepwell_core::{Client, Error, Task};
/// # async fn spawn<Report: Task<Params = String>>(client: Client) -> Result<(), Error> {
/// let report = client
///     .spawn::<Report>("all customers".into())
///     .queue("reports")
///     .delay(Duration::from_secs(3600))
///     .idempotency_key("report-2026-11")
///     .await?;
/// println!("{} is {}", report.task_id, report.disposition.as_str());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// The future fails with [`Error::Payload`] when the parameters do not serialise or are too large,
/// with [`Error::Name`] or [`Error::Options`] when an option is not valid, with [`Error::Waiting`]
/// when the spawn asks for a rejection while a task of the same type and concurrency key waits to
/// start, and with [`Error::Store`] when nothing could be written.
#[must_use = "no task is spawned before this is awaited"]
pub struct Spawn {
    client: Client,
    options: SpawnOptions,
    /// The type and the parameters of the task.
    task: Result<(Name, Payload), Error>,
}

impl Spawn {
    fn new(client: &Client, task: Result<(Name, Payload), Error>) -> Self {
        Self { client: client.clone(), options: SpawnOptions::default(), task }
    }

    spawn_setters!(.options);

    /// Sets all options, in place of those that were set before.
    pub fn options(mut self, options: SpawnOptions) -> Self {
        self.options = options;
        self
    }

    /// Spawns the task in a transaction of the application's own: the task exists if and when the
    /// transaction commits.
    ///
    /// `tx` is a transaction or connection of the database driver that the client's store uses:
    /// `&rusqlite::Transaction` for SQLite, which answers at once, and `&mut sqlx::Transaction` for
    /// PostgreSQL, whose answer is awaited.
    ///
    /// # Errors
    /// The errors of the [spawn](Spawn); also [`Error::Store`] when the client's store uses another
    /// driver, or the connection is to another database.
    pub fn in_tx<S, T: UserTransaction<S, Self>>(self, tx: T) -> T::Answer {
        tx.carry_out(self)
    }

    /// Returns the client of the spawn.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Returns the task to be spawned, with its payloads encoded as the store keeps them.
    ///
    /// Store authors call this to spawn a task in a transaction of the user's.
    ///
    /// # Errors
    /// The errors of the [spawn](Spawn).
    pub async fn into_task(self) -> Result<NewTask, Error> {
        let Self { client, options, task } = self;
        let (name, params) = task?;
        client.check(&name, std::slice::from_ref(&params)).await?;
        client.kept(name, params, options)
    }

    /// Returns the task to be spawned as [`Spawn::into_task`] does, for a store that cannot await.
    ///
    /// The store reads the described types itself, by `described`, when the type is not registered.
    ///
    /// # Errors
    /// The errors of [`Spawn::into_task`].
    pub fn into_task_now(
        self,
        described: impl FnOnce() -> Result<Vec<TaskTypeInfo>, Error>,
    ) -> Result<NewTask, Error> {
        let Self { client, options, task } = self;
        let (name, params) = task?;
        let check = match client.engine.registry.check_of(&name) {
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
        client.kept(name, params, options)
    }

    async fn run(self) -> Result<SpawnResult, Error> {
        let Self { client, options, task } = self;
        let (name, params) = task?;
        client.check(&name, std::slice::from_ref(&params)).await?;
        let span = trace::spawn(name.as_str());
        let task =
            trace::carried(&span, || client.engine.new_task::<Error>(name, params, options, None))?;
        let request = SpawnRequest::of(&task);
        let spawning = client.engine.commit.spawn(task).instrument(span);
        request.answer(client.engine.answered(spawning).await?)
    }
}

impl IntoFuture for Spawn {
    type Output = Result<SpawnResult, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl Client {
    /// Spawns a task of a type, when the builder is awaited.
    ///
    /// The [`Spawn`] sets the options of the task, and lists the errors.
    pub fn spawn<T: Task>(&self, params: T::Params) -> Spawn {
        let name = Name::new(T::NAME).map_err(Error::from);
        Spawn::new(self, name.and_then(|name| Ok((name.clone(), self.proven(&name, &params)?))))
    }

    /// Spawns a task of a type that is known by its name only, when the builder is awaited.
    ///
    /// A worker that has registered the type executes the task.
    pub fn spawn_named<P: Serialize + ?Sized>(&self, task_type: &str, params: &P) -> Spawn {
        let name = Name::new(task_type).map_err(Error::from);
        let encode = |name: Name| {
            let params = self.encode_params(&name, params)?;
            Ok((name, params))
        };
        Spawn::new(self, name.and_then(encode))
    }

    /// Spawns a task of a workflow that is registered with this client, when the builder is
    /// awaited.
    ///
    /// # Errors
    /// The spawn fails with [`Error::Workflow`] when the workflow is not registered.
    /// [`Client::spawn_named`] spawns the task of a workflow that only other processes know.
    pub fn spawn_workflow<P: Serialize + ?Sized>(&self, name: &str, input: &P) -> Spawn {
        let known = Name::new(name).map(|name| self.workflow(&name).is_some());
        match known {
            Ok(false) => {
                let name = name.to_owned();
                Spawn::new(self, Err(WorkflowError::NotRegistered { name }.into()))
            }
            Ok(true) | Err(_) => self.spawn_named(name, input),
        }
    }

    /// Spawns many tasks in one commit: all of them, or none.
    ///
    /// ```
    /// # use stepwell_core::{Client, Error, Task};
    /// # async fn spawn<Ship: Task<Params = u64>>(client: Client) -> Result<(), Error> {
    /// let tasks = (1..=100).map(|order| client.spawn::<Ship>(order).priority(1));
    /// client.spawn_many(tasks).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The errors of [`Spawn`]. An error about one task keeps all of them from being spawned.
    /// [`Error::Waiting`] is the exception: the other tasks are spawned.
    pub async fn spawn_many(
        &self,
        spawns: impl IntoIterator<Item = Spawn>,
    ) -> Result<Vec<SpawnResult>, Error> {
        let mut tasks = Vec::new();
        for Spawn { options, task, .. } in spawns {
            let (name, params) = task?;
            self.check(&name, std::slice::from_ref(&params)).await?;
            let span = trace::spawn(name.as_str());
            let new = || self.engine.new_task::<Error>(name, params, options, None);
            tasks.push(trace::carried(&span, new)?);
        }
        let requests: Vec<_> = tasks.iter().map(SpawnRequest::of).collect();
        let all = try_join_all(self.engine.commit.spawn_many(tasks));
        let spawned = self.engine.answered(all).await?;
        requests
            .into_iter()
            .zip(spawned)
            .map(|(request, spawned)| request.answer(spawned))
            .collect()
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
    pub(super) async fn params<P: Serialize + ?Sized>(
        &self,
        task_type: &Name,
        params: &P,
    ) -> Result<Payload, Error> {
        let params = self.encode_params(task_type, params)?;
        self.check(task_type, std::slice::from_ref(&params)).await?;
        Ok(params)
    }

    pub(super) async fn check(&self, task_type: &Name, params: &[Payload]) -> Result<(), Error> {
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
    pub(super) fn proven<P: Serialize + DeserializeOwned>(
        &self,
        task_type: &Name,
        params: &P,
    ) -> Result<Payload, Error> {
        Payload::encode_proven(params, self.engine.settings.max_payload_bytes)
            .map_err(|source| Error::Payload { what: params_of(task_type.as_str()), source })
    }

    pub(super) fn encode<T: Serialize + ?Sized>(
        &self,
        value: &T,
        what: impl Fn() -> String,
    ) -> Result<Payload, Error> {
        Payload::encode(value, self.engine.settings.max_payload_bytes)
            .map_err(|source| Error::Payload { what: what(), source })
    }
}

/// The request of a spawn whose answer is still to come.
///
/// Store authors make it from a task before the store takes the task.
#[derive(Clone, Copy, Debug)]
pub struct SpawnRequest {
    task_id: TaskId,
    run_id: RunId,
    coalesce: Option<Coalesce>,
}

impl SpawnRequest {
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

fn misfit(task_type: &Name, source: PayloadError) -> Error {
    Error::Payload { what: params_of(task_type.as_str()), source }
}

fn params_of(task_type: &str) -> String {
    format!("the parameters of {task_type}")
}
