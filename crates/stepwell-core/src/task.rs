//! Task types, and the registry in which workers find them.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::compensation::Undo;
use crate::context::TaskContext;
use crate::error::Error;
use crate::guard::discard;
use crate::name::Name;
use crate::payload::{Payload, PayloadError};
use crate::runtime::{BoxFuture, MaybeSend, MaybeSync};
use crate::task_error::{TaskError, TaskResult};
use crate::workflow::{Workflow, WorkflowError};

/// A task type: code that is executed durably, under a name.
///
/// ```
/// use stepwell_core::{Task, TaskContext, TaskResult, async_trait};
///
/// struct Greet;
///
/// #[async_trait]
/// impl Task for Greet {
///     const NAME: &'static str = "greet";
///     type Params = String;
///     type Output = String;
///
///     async fn run(name: String, ctx: TaskContext) -> TaskResult<String> {
///         ctx.step("greeting", || async { Ok(format!("Hello, {name}!")) }).await
///     }
/// }
/// ```
#[cfg_attr(not(target_family = "wasm"), async_trait)]
#[cfg_attr(target_family = "wasm", async_trait(?Send))]
pub trait Task: MaybeSend + 'static {
    /// The name under which tasks of this type are stored. It must stay the same as long as there are tasks of it.
    const NAME: &'static str;
    /// What a task is given, as JSON.
    type Params: Serialize + DeserializeOwned + MaybeSend + 'static;
    /// What a task gives, as JSON.
    type Output: Serialize + DeserializeOwned + MaybeSend + 'static;

    /// The code. It is run from its beginning whenever the task goes on after a crash, with the journaled results in place
    /// of its steps; so outside of steps it should only decide, by its parameters and by what the context gives.
    ///
    /// # Errors
    /// An error fails the attempt; see [`TaskError`].
    async fn run(params: Self::Params, ctx: TaskContext) -> TaskResult<Self::Output>;
}

/// A task type without its Rust types.
pub(crate) trait Executable: MaybeSend + MaybeSync {
    fn start(&self, params: Payload, ctx: TaskContext) -> BoxFuture<'static, TaskResult<Payload>>;
}

/// Whether a payload is as it has to be.
pub(crate) type Check = Arc<dyn Fn(&Payload) -> Result<(), PayloadError> + Send + Sync>;

pub(crate) struct Typed<T>(PhantomData<fn() -> T>);

impl<T> Typed<T> {
    pub(crate) const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T: Task> Executable for Typed<T> {
    fn start(&self, params: Payload, ctx: TaskContext) -> BoxFuture<'static, TaskResult<Payload>> {
        Box::pin(async move {
            let (limit, params) = (ctx.max_payload_bytes(), read_params(T::NAME, &params)?);
            let output = T::run(params, ctx).await?;
            Payload::encode_proven(&output, limit).map_err(|source| unfit(T::NAME, source))
        })
    }
}

struct Function<F, P> {
    name: Name,
    function: Arc<F>,
    params: PhantomData<fn(P)>,
}

impl<F, P, Fut, O> Executable for Function<F, P>
where
    F: Fn(P, TaskContext) -> Fut + MaybeSend + MaybeSync + 'static,
    Fut: Future<Output = TaskResult<O>> + MaybeSend,
    P: DeserializeOwned + MaybeSend + 'static,
    O: Serialize + MaybeSend,
{
    fn start(&self, params: Payload, ctx: TaskContext) -> BoxFuture<'static, TaskResult<Payload>> {
        let (name, function) = (self.name.clone(), self.function.clone());
        Box::pin(async move {
            let (limit, params) = (ctx.max_payload_bytes(), read_params(name.as_str(), &params)?);
            // Called within the future, so that whatever it does through the context is the task's own.
            let running = function(params, ctx);
            let output = running.await?;
            Payload::encode(&output, limit).map_err(|source| unfit(name.as_str(), source))
        })
    }
}

fn read_params<P: DeserializeOwned>(task_type: &str, params: &Payload) -> TaskResult<P> {
    let name = || format!("the parameters of {task_type}");
    params.decode().map_err(|source| TaskError::Payload { name: name(), source })
}

fn unfit(task_type: &str, source: PayloadError) -> TaskError {
    TaskError::Payload { name: format!("the output of {task_type}"), source }
}

/// The task types that a client knows.
#[derive(Default)]
pub(crate) struct Registry {
    task_types: RwLock<BTreeMap<Name, Registered>>,
    cleanups: RwLock<BTreeMap<Name, Arc<dyn Undo>>>,
    workflows: RwLock<BTreeMap<Name, Arc<Workflow>>>,
}

struct Registered {
    /// The type; functions have none of their own.
    type_id: Option<TypeId>,
    executable: Arc<dyn Executable>,
    /// The check of its parameters, where it has one.
    check: Option<Check>,
}

impl Registry {
    pub(crate) fn register<T: Task>(&self) -> Result<(), Error> {
        self.add(Name::new(T::NAME)?, Some(TypeId::of::<T>()), Arc::new(Typed::<T>::new()), None)
    }

    pub(crate) fn register_fn<F, P, Fut, O>(&self, name: Name, function: F) -> Result<(), Error>
    where
        F: Fn(P, TaskContext) -> Fut + MaybeSend + MaybeSync + 'static,
        Fut: Future<Output = TaskResult<O>> + MaybeSend,
        P: DeserializeOwned + MaybeSend + 'static,
        O: Serialize + MaybeSend,
    {
        let executable = Function { name: name.clone(), function: Arc::new(function), params: PhantomData };
        self.add(name, None, Arc::new(executable), None)
    }

    /// Registers a task type whose parameters and outputs are checked.
    #[cfg(feature = "schemas")]
    pub(crate) fn register_described<T: Task>(&self, params: Check, output: Check) -> Result<(), Error> {
        let described = crate::schema::Described { typed: Typed::<T>::new(), params: params.clone(), output };
        self.add(Name::new(T::NAME)?, Some(TypeId::of::<T>()), Arc::new(described), Some(params))
    }

    /// The check of the parameters of a registered type, if it was described; `None` for a type that is not registered.
    pub(crate) fn check_of(&self, name: &Name) -> Option<Option<Check>> {
        let task_types = self.task_types.read().unwrap_or_else(PoisonError::into_inner);
        task_types.get(name).map(|registered| registered.check.clone())
    }

    /// Whether these are parameters that a task of the type can have, as far as is known here.
    pub(crate) fn check(&self, name: &Name, params: &Payload) -> Result<(), PayloadError> {
        self.check_of(name).flatten().map_or(Ok(()), |check| check(params))
    }

    fn add(
        &self,
        name: Name,
        type_id: Option<TypeId>,
        executable: Arc<dyn Executable>,
        check: Option<Check>,
    ) -> Result<(), Error> {
        let mut task_types = self.task_types.write().unwrap_or_else(PoisonError::into_inner);
        match task_types.get(&name) {
            Some(known) if known.type_id.is_none() || known.type_id != type_id => {
                Err(Error::DuplicateTaskType(name.to_string()))
            }
            _ => {
                task_types.insert(name, Registered { type_id, executable, check });
                Ok(())
            }
        }
    }

    pub(crate) fn get(&self, name: &Name) -> Option<Arc<dyn Executable>> {
        let task_types = self.task_types.read().unwrap_or_else(PoisonError::into_inner);
        task_types.get(name).map(|registered| registered.executable.clone())
    }

    /// Drops the application's closures.
    pub(crate) fn discard(&mut self) {
        let task_types = self.task_types.get_mut().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(task_types).into_values().for_each(discard);
        let cleanups = self.cleanups.get_mut().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(cleanups).into_values().for_each(discard);
        let workflows = self.workflows.get_mut().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(workflows).into_values().for_each(discard);
    }

    /// Registers what cleans up, in the place of what was registered under this name before.
    pub(crate) fn register_cleanup(&self, name: Name, cleanup: Arc<dyn Undo>) {
        self.cleanups.write().unwrap_or_else(PoisonError::into_inner).insert(name, cleanup);
    }

    pub(crate) fn cleanup(&self, name: &Name) -> Option<Arc<dyn Undo>> {
        self.cleanups.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Registers a workflow as a task type.
    pub(crate) fn register_workflow(&self, workflow: Workflow) -> Result<(), Error> {
        workflow.check()?;
        let name = Name::new(workflow.name())?;
        for child in workflow.children() {
            if child != name.as_str() && !Name::new(child).is_ok_and(|child| self.knows(&child)) {
                return Err(WorkflowError::NotRegistered { name: child.to_owned() }.into());
            }
        }
        let workflow = Arc::new(workflow);
        let running = workflow.clone();
        self.register_fn(name.clone(), move |input: Payload, ctx| {
            let workflow = running.clone();
            async move { workflow.run(input, ctx).await }
        })?;
        self.workflows.write().unwrap_or_else(PoisonError::into_inner).insert(name, workflow);
        Ok(())
    }

    pub(crate) fn workflow(&self, name: &Name) -> Option<Arc<Workflow>> {
        self.workflows.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    pub(crate) fn knows(&self, name: &Name) -> bool {
        self.task_types.read().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }

    pub(crate) fn names(&self) -> Vec<Name> {
        self.task_types.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}
