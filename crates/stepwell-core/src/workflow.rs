//! Workflows: tasks that consist of named parts instead of code.
//!
//! A workflow is a task type like any other. The context of a task runs its parts: a step as a
//! step, a signal as a message, a child as a child task. A workflow therefore has a journal, and
//! goes on after a crash as any task does.

mod context;
mod executable;
mod graph;
mod node;
mod snapshot;

use std::collections::BTreeSet;
use std::future::Future;
use std::marker::PhantomData;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::base::name::{InvalidName, Name};
use crate::base::payload::Payload;
use crate::base::runtime::{MaybeSend, MaybeSync};
use crate::context::TaskContext;
use crate::engine::task_error::TaskResult;

pub use context::WorkflowContext;
pub(crate) use executable::of;
pub use graph::{Edge, Graph, GraphNode, NodeKind};
pub use snapshot::Snapshot;

use node::{Body, Calls, Handler, Loop, Node, Running, Step};

/// A workflow: a named list of parts that run one after the other.
///
/// ```
/// # use std::time::Duration;
/// # use serde::{Deserialize, Serialize};
/// # use stepwell_core::{Client, Error, TaskId, Workflow, WorkflowContext};
/// # #[derive(Serialize, Deserialize)] struct Order { total: u64, country: String }
/// # async fn charge(_key: String, total: u64) -> anyhow::Result<u64> { Ok(total) }
/// # async fn refund(_receipt: u64) -> anyhow::Result<()> { Ok(()) }
/// # async fn start(client: Client) -> Result<(), Error> {
/// let order = Workflow::new("order")
///     .step("charge", |ctx| async move {
///         let order: Order = ctx.input()?;
///         charge(format!("{}:charge", ctx.task_id), order.total).await
///     })
///     .compensate(|ctx| async move { refund(ctx.result("charge")?).await })
///     .max_attempts(5)
///     .parallel("papers", |papers| {
///         papers
///             .step("invoice", |_| async { Ok("invoice.pdf") })
///             .step("label", |_| async { Ok("label.pdf") })
///     })
///     .route(
///         "carrier",
///         |ctx| async move {
///             let german = ctx.input::<Order>()?.country == "DE";
///             Ok(if german { "dhl" } else { "ups" })
///         },
///         |carriers| carriers.step("dhl", |_| async { Ok(1) }).step("ups", |_| async { Ok(2) }),
///     )
///     .sleep("until it is there", Duration::from_secs(3 * 24 * 3600))
///     .wait_for_signal("received", Duration::from_secs(30 * 24 * 3600));
/// client.register_workflow(order).await?;
/// let order = Order { total: 7, country: "DE".into() };
/// let task = client.spawn_workflow("order", &order).await?;
/// client.send(task.task_id, "received", &"by the neighbours").await?;
/// # Ok(())
/// # }
/// ```
///
/// The output of a workflow is an object of the results of its parts, by their names. A part that
/// fails for good fails the workflow, which is not tried again as a whole. The
/// [`compensate`](Workflow::compensate) handlers of its steps then run in reverse order.
///
/// A mistake in a workflow, such as an empty or a duplicate name, is reported when the workflow is
/// [checked](Workflow::check) or [registered](crate::Client::register_workflow).
///
/// `L` is the kind of the part that was added last, to which options apply.
pub struct Workflow<L = Whole> {
    name: String,
    nodes: Vec<Node>,
    names: BTreeSet<String>,
    /// The first mistake.
    mistake: Option<WorkflowError>,
    last: PhantomData<L>,
}

/// Marks a workflow whose last part has no options.
pub enum Whole {}
/// Marks a workflow whose last part is a step.
pub enum AfterStep {}
/// Marks a workflow whose last part is a loop.
pub enum AfterLoop {}

/// A kind of part that calls a handler.
pub trait HasHandler: sealed::Sealed {}
impl HasHandler for AfterStep {}
impl HasHandler for AfterLoop {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::AfterStep {}
    impl Sealed for super::AfterLoop {}
}

/// A mistake in a workflow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkflowError {
    /// A name is not valid.
    #[error("in the workflow \"{workflow}\", a part has no valid name: {source}")]
    Name {
        /// The workflow.
        workflow: String,
        /// The reason why the name is not valid.
        source: InvalidName,
    },
    /// Two parts have the same name.
    #[error(
        "the workflow \"{workflow}\" has two parts named \"{name}\": results are kept by name, so \
         give one of them another"
    )]
    DuplicateName {
        /// The workflow.
        workflow: String,
        /// The name.
        name: String,
    },
    /// A route or a parallel has no parts.
    #[error("\"{name}\" in the workflow \"{workflow}\" has no parts: add some, or leave it out")]
    Empty {
        /// The workflow.
        workflow: String,
        /// The part.
        name: String,
    },
    /// A workflow, or the task type of a child, is not registered with this client.
    #[error(
        "no task type \"{name}\" is registered with this client: register it before it is started, \
         or used as a child"
    )]
    NotRegistered {
        /// The name.
        name: String,
    },
}

impl Workflow {
    /// Returns a workflow without parts.
    pub fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        let mistake = Name::new(&name)
            .err()
            .map(|source| WorkflowError::Name { workflow: name.clone(), source });
        Self { name, nodes: Vec::new(), names: BTreeSet::new(), mistake, last: PhantomData }
    }
}

impl<L> Workflow<L> {
    /// Returns the workflow's name, which is the name of its task type.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Checks the workflow.
    ///
    /// # Errors
    /// The first mistake in it.
    pub fn check(&self) -> Result<(), WorkflowError> {
        self.mistake.clone().map_or(Ok(()), Err)
    }

    /// Returns the task types of the workflow's children.
    pub(crate) fn children(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().flat_map(Node::children)
    }

    /// Runs the workflow as the code of a task.
    pub(crate) async fn run(&self, input: Payload, ctx: TaskContext) -> TaskResult<Payload> {
        Running::new(ctx, input).run(&self.nodes).await
    }

    pub(crate) fn becomes<M>(self) -> Workflow<M> {
        let Self { name, nodes, names, mistake, .. } = self;
        Workflow { name, nodes, names, mistake, last: PhantomData }
    }

    fn add<M>(mut self, name: impl Into<String>, body: Body) -> Workflow<M> {
        let (name, workflow) = (name.into(), || self.name.clone());
        let mistake = match Name::awaitable(&name) {
            Err(source) => Some(WorkflowError::Name { workflow: workflow(), source }),
            Ok(_) if !self.names.insert(name.clone()) => {
                Some(WorkflowError::DuplicateName { workflow: workflow(), name: name.clone() })
            }
            Ok(_) if body.is_empty() => {
                Some(WorkflowError::Empty { workflow: workflow(), name: name.clone() })
            }
            Ok(_) => None,
        };
        self.nodes.push(Node { name, body });
        self.mistake = self.mistake.or(mistake);
        self.becomes()
    }

    /// Returns the parts within a part, and takes over their names and the first mistake.
    fn inner<M>(&mut self, parts: impl FnOnce(Workflow) -> Workflow<M>) -> Vec<Node> {
        let inner = Workflow {
            name: self.name.clone(),
            nodes: Vec::new(),
            names: std::mem::take(&mut self.names),
            mistake: self.mistake.take(),
            last: PhantomData,
        };
        let inner = parts(inner);
        (self.names, self.mistake) = (inner.names, inner.mistake);
        inner.nodes
    }

    /// Adds a step.
    ///
    /// The handler's value is journaled, and is the step's result for the parts that follow. A
    /// handler that fails is called again, up to 3 times in all, `min(2^n, 60)` seconds after the
    /// n-th failure; see [`max_attempts`](Workflow::max_attempts), [`backoff`](Workflow::backoff)
    /// and [`TaskError::permanent`](crate::TaskError::permanent).
    pub fn step<F, Fut, T>(self, name: impl Into<String>, handler: F) -> Workflow<AfterStep>
    where
        F: Fn(WorkflowContext) -> Fut + MaybeSend + MaybeSync + 'static,
        Fut: Future<Output = anyhow::Result<T>> + MaybeSend + 'static,
        T: Serialize + MaybeSend + 'static,
    {
        self.add(name, Body::Step(Step::new(handler)))
    }

    /// Adds parts that run at the same time.
    ///
    /// The result is an object of their results. When one part fails, the others still run to their
    /// ends, so that their results are known and can be undone.
    pub fn parallel<M>(
        mut self,
        name: impl Into<String>,
        parts: impl FnOnce(Workflow) -> Workflow<M>,
    ) -> Workflow {
        let parts = self.inner(parts);
        self.add(name, Body::Parallel(parts))
    }

    /// Adds parts of which one runs: the part whose name the resolver returns.
    ///
    /// The name is journaled. The result is that part's result. The workflow fails when no part has
    /// the name.
    pub fn route<F, Fut, T, M>(
        mut self,
        name: impl Into<String>,
        resolver: F,
        routes: impl FnOnce(Workflow) -> Workflow<M>,
    ) -> Workflow
    where
        F: Fn(WorkflowContext) -> Fut + MaybeSend + MaybeSync + 'static,
        Fut: Future<Output = anyhow::Result<T>> + MaybeSend + 'static,
        T: Into<String> + MaybeSend + 'static,
    {
        let routes = self.inner(routes);
        let resolver = move |ctx| {
            let resolving = resolver(ctx);
            async { resolving.await.map(Into::<String>::into) }
        };
        self.add(name, Body::Route { resolver: Step::new(resolver), routes })
    }

    /// Adds a step that repeats.
    ///
    /// The loop ends when its result is good by [`until`](Workflow::until), and at the latest after
    /// 10 iterations, or [`max_iterations`](Workflow::max_iterations). The result of an iteration,
    /// or what [`feedback`](Workflow::feedback) makes of it, is the next iteration's
    /// [`WorkflowContext::last`]. The result of the loop is that of its last iteration.
    pub fn loop_<F, Fut, T>(self, name: impl Into<String>, handler: F) -> Workflow<AfterLoop>
    where
        F: Fn(WorkflowContext) -> Fut + MaybeSend + MaybeSync + 'static,
        Fut: Future<Output = anyhow::Result<T>> + MaybeSend + 'static,
        T: Serialize + MaybeSend + 'static,
    {
        self.add(name, Body::Loop(Loop::new(Step::new(handler))))
    }

    /// Adds a durable sleep.
    pub fn sleep(self, name: impl Into<String>, duration: Duration) -> Workflow {
        self.add(name, Body::Sleep(duration))
    }

    /// Adds a wait for a message of the topic `name`, sent by
    /// [`Client::send`](crate::Client::send).
    ///
    /// The result is the message. The workflow fails when a timeout is set and passes first.
    pub fn wait_for_signal(
        self,
        name: impl Into<String>,
        timeout: impl Into<Option<Duration>>,
    ) -> Workflow {
        self.add(name, Body::Signal { timeout: timeout.into() })
    }

    /// Adds a child task of the type, and waits for its output, which is the result.
    ///
    /// The child may be another workflow or any task. The closure returns its parameters. Its type
    /// must be registered with the client before this workflow is.
    pub fn child<F, P>(
        self,
        name: impl Into<String>,
        task_type: impl Into<String>,
        params: F,
    ) -> Workflow
    where
        F: Fn(WorkflowContext) -> anyhow::Result<P> + MaybeSend + MaybeSync + 'static,
        P: Serialize,
    {
        let params = move |ctx: WorkflowContext| {
            let limit = ctx.task.max_payload_bytes();
            let params = params(ctx).and_then(|params| Ok(Payload::encode(&params, limit)?));
            async { params }
        };
        self.add(name, Body::Child { task_type: task_type.into(), params: Handler::new(params) })
    }
}

impl<L: HasHandler> Workflow<L> {
    /// Sets the compensation of the step, which runs when the workflow fails later or is cancelled.
    ///
    /// See [`Step::compensate`](crate::Step::compensate). The context has the step's result, and
    /// all other results so far. Each iteration of a loop is undone with its own result.
    pub fn compensate<F, Fut>(self, undo: F) -> Self
    where
        F: Fn(WorkflowContext) -> Fut + MaybeSend + MaybeSync + 'static,
        Fut: Future<Output = anyhow::Result<()>> + MaybeSend + 'static,
    {
        self.with_step(|step| step.undo = Some(Handler::new(undo)))
    }

    /// Sets the largest number of calls of the handler, including the first one; at least 1.
    /// Default: 3.
    pub fn max_attempts(self, attempts: u32) -> Self {
        self.with_step(|step| step.max_attempts = attempts.max(1))
    }

    /// Sets the delay after the handler's n-th failure, from 1. Default: `min(2^n, 60)` seconds.
    pub fn backoff(
        self,
        backoff: impl Fn(u32) -> Duration + MaybeSend + MaybeSync + 'static,
    ) -> Self {
        self.with_step(|step| step.backoff = Box::new(backoff))
    }

    fn with_step(mut self, change: impl FnOnce(&mut Step)) -> Self {
        // The type `L` says that the last part is one of these.
        let last = self.nodes.last_mut().map(|node| &mut node.body);
        if let Some(Body::Step(step) | Body::Loop(Loop { step, .. })) = last {
            change(step);
        }
        self
    }
}

impl Workflow<AfterLoop> {
    /// Sets the largest number of iterations; at least 1. Default: 10.
    pub fn max_iterations(self, iterations: u32) -> Self {
        self.with_loop(|this| this.max_iterations = iterations.max(1))
    }

    /// Sets the condition that ends the loop, by an iteration's result and its number from 1.
    ///
    /// The condition must depend on these alone.
    pub fn until<T: DeserializeOwned + 'static>(
        self,
        good: impl Fn(T, u32) -> bool + MaybeSend + MaybeSync + 'static,
    ) -> Self {
        self.with_loop(|this| {
            let good = move |result: &Payload, iteration| Ok(good(result.decode()?, iteration));
            this.until = Some(Box::new(Calls(good)));
        })
    }

    /// Sets the function of an iteration's result that the next iteration receives. Default: the
    /// result itself.
    ///
    /// The value must depend on the result alone.
    pub fn feedback<T: DeserializeOwned + 'static, O: Serialize + 'static>(
        self,
        feedback: impl Fn(T) -> O + MaybeSend + MaybeSync + 'static,
    ) -> Self {
        self.with_loop(|this| {
            let feedback =
                move |result: &Payload, _| Payload::encode(&feedback(result.decode()?), usize::MAX);
            this.feedback = Some(Box::new(Calls(feedback)));
        })
    }

    fn with_loop(mut self, change: impl FnOnce(&mut Loop)) -> Self {
        if let Some(Body::Loop(this)) = self.nodes.last_mut().map(|node| &mut node.body) {
            change(this);
        }
        self
    }
}
