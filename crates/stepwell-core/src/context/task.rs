//! Task types, as applications write them.

use std::any::TypeId;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::base::name::Name;
use crate::base::payload::{Payload, PayloadError};
use crate::base::runtime::{BoxFuture, MaybeSend, MaybeSync};
use crate::context::TaskContext;
use crate::engine::registry::{Executable, TaskType};
use crate::engine::run::Run;
use crate::engine::task_error::{TaskError, TaskResult};
use crate::store::Headers;

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
    /// The name under which tasks of this type are stored.
    ///
    /// The name must stay the same while there are tasks of the type.
    const NAME: &'static str;
    /// The parameters of a task, stored as JSON.
    type Params: Serialize + DeserializeOwned + MaybeSend + 'static;
    /// The output of a task, stored as JSON.
    type Output: Serialize + DeserializeOwned + MaybeSend + 'static;

    /// Executes the task's code.
    ///
    /// The code runs from its beginning whenever the task goes on after a crash, with the journaled
    /// results in place of its steps. Outside of steps it should therefore only decide, by its
    /// parameters and by the results that the context returns.
    ///
    /// # Errors
    /// An error fails the attempt; see [`TaskError`].
    async fn run(params: Self::Params, ctx: TaskContext) -> TaskResult<Self::Output>;
}

/// Returns what a registry holds of a task type.
pub(crate) fn of_type<T: Task>() -> TaskType {
    let executable = Arc::new(Typed::<T>::new());
    TaskType { type_id: Some(TypeId::of::<T>()), executable, check: None }
}

/// Returns what a registry holds of a function that is a task type.
pub(crate) fn of_function<F, P, Fut, O>(name: Name, function: F) -> TaskType
where
    F: Fn(P, TaskContext) -> Fut + MaybeSend + MaybeSync + 'static,
    Fut: Future<Output = TaskResult<O>> + MaybeSend,
    P: DeserializeOwned + MaybeSend + 'static,
    O: Serialize + MaybeSend,
{
    let executable = Arc::new(Function { name, function: Arc::new(function), params: PhantomData });
    TaskType { type_id: None, executable, check: None }
}

/// The executable of a type.
pub(crate) struct Typed<T>(PhantomData<fn() -> T>);

impl<T> Typed<T> {
    pub(crate) const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T: Task> Executable for Typed<T> {
    fn start(
        &self,
        params: Payload,
        run: Arc<Run>,
        headers: Arc<Headers>,
    ) -> BoxFuture<'static, TaskResult<Payload>> {
        let ctx = TaskContext::new(run, headers);
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
    fn start(
        &self,
        params: Payload,
        run: Arc<Run>,
        headers: Arc<Headers>,
    ) -> BoxFuture<'static, TaskResult<Payload>> {
        let ctx = TaskContext::new(run, headers);
        let (name, function) = (self.name.clone(), self.function.clone());
        Box::pin(async move {
            let (limit, params) = (ctx.max_payload_bytes(), read_params(name.as_str(), &params)?);
            // The function is called within the future, so that all its calls of the context are
            // the task's own.
            let running = function(params, ctx);
            let output = running.await?;
            Payload::encode(&output, limit).map_err(|source| unfit(name.as_str(), source))
        })
    }
}

pub(crate) fn read_params<P: DeserializeOwned>(task_type: &str, params: &Payload) -> TaskResult<P> {
    let name = || format!("the parameters of {task_type}");
    params.decode().map_err(|source| TaskError::Payload { name: name(), source })
}

pub(crate) fn unfit(task_type: &str, source: PayloadError) -> TaskError {
    TaskError::Payload { name: format!("the output of {task_type}"), source }
}
