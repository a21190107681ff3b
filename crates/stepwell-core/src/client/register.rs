//! The registration of task types, cleanups and workflows.

use std::future::{Future, Ready, ready};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::base::name::Name;
use crate::base::runtime::{MaybeSend, MaybeSync};
use crate::client::Client;
use crate::client::error::Error;
use crate::context::TaskContext;
use crate::context::task::{self, Task};
use crate::engine::registry::TaskType;
use crate::engine::run::compensation::Undoing;
use crate::engine::task_error::TaskResult;
use crate::store::TaskTypeInfo;
use crate::workflow::{self, Workflow};

impl Client {
    /// Registers a task type, so that workers of this client claim its tasks.
    ///
    /// The type is registered when the call returns, whether or not the result is awaited. A second
    /// registration of the type changes nothing.
    ///
    /// # Errors
    /// [`Error::DuplicateTaskType`] when another type has its name, [`Error::Name`] when the name
    /// is not valid.
    pub fn register<T: Task>(&self) -> Ready<Result<(), Error>> {
        let name = Name::new(T::NAME).map_err(Error::from);
        ready(name.and_then(|name| self.add(name, task::of_type::<T>())))
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
    pub fn register_fn<F, P, Fut, O>(&self, name: &str, function: F) -> Ready<Result<(), Error>>
    where
        F: Fn(P, TaskContext) -> Fut + MaybeSend + MaybeSync + 'static,
        Fut: Future<Output = TaskResult<O>> + MaybeSend,
        P: DeserializeOwned + MaybeSend + 'static,
        O: Serialize + MaybeSend,
    {
        let name = Name::new(name).map_err(Error::from);
        ready(name.and_then(|name| self.add(name.clone(), task::of_function(name, function))))
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
    pub fn register_cleanup<F, P, Fut>(&self, name: &str, cleanup: F) -> Ready<Result<(), Error>>
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
        ready(Name::new(name).map_err(Error::from).map(|name| {
            self.engine.registry.register_cleanup(name, Arc::new(Undoing::new(cleanup)));
        }))
    }

    /// Registers a workflow as a task type of the workflow's name.
    ///
    /// # Errors
    /// [`Error::Workflow`] when the workflow is not valid, or the type of a child is not
    /// registered; [`Error::DuplicateTaskType`] when another type has its name.
    pub fn register_workflow<L>(&self, workflow: Workflow<L>) -> Ready<Result<(), Error>> {
        let registered = workflow.becomes().registered(|child| self.engine.registry.knows(child));
        let add = |(name, task_type)| self.add(name, task_type);
        ready(registered.map_err(Error::from).and_then(add))
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

    pub(super) fn workflow(&self, name: &Name) -> Option<Arc<Workflow>> {
        workflow::of(&*self.engine.registry.get(name)?)
    }
}
