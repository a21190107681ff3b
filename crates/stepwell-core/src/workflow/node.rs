//! The parts of a workflow, and their execution.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;

use super::context::{Results, WorkflowContext};
use crate::base::name::StepName;
use crate::base::payload::{Payload, PayloadError};
use crate::base::retry::RetryStrategy;
use crate::base::runtime::{BoxFuture, MaybeSend, MaybeSync};
use crate::context::TaskContext;
use crate::engine::run::child::Child;
use crate::engine::task_error::{TaskError, TaskResult};

/// The limit, exclusive, of the failures for which a backoff is asked; the last delay stands for
/// all that follow.
const DELAYS: u32 = 64;

pub(super) struct Node {
    pub(super) name: String,
    pub(super) body: Body,
}

pub(super) enum Body {
    Step(Step),
    Parallel(Vec<Node>),
    Route { resolver: Step, routes: Vec<Node> },
    Loop(Loop),
    Sleep(Duration),
    Signal { timeout: Option<Duration> },
    Child { task_type: String, params: Handler },
}

pub(super) struct Step {
    handler: Handler,
    pub(super) undo: Option<Handler>,
    pub(super) max_attempts: u32,
    pub(super) backoff: Box<dyn Backoff>,
}

pub(super) struct Loop {
    pub(super) step: Step,
    pub(super) max_iterations: u32,
    pub(super) until: Option<Box<dyn Judge<bool>>>,
    pub(super) feedback: Option<Box<dyn Judge<Payload>>>,
}

/// A handler whose types are erased.
#[derive(Clone)]
pub(super) struct Handler(Arc<dyn Handle>);

trait Handle: MaybeSend + MaybeSync {
    fn call(&self, ctx: WorkflowContext) -> BoxFuture<'static, anyhow::Result<Payload>>;
}

/// A closure that implements one of these traits.
pub(super) struct Calls<F>(pub(super) F);

impl<F, Fut, T> Handle for Calls<F>
where
    F: Fn(WorkflowContext) -> Fut + MaybeSend + MaybeSync,
    Fut: Future<Output = anyhow::Result<T>> + MaybeSend + 'static,
    T: Serialize + MaybeSend,
{
    fn call(&self, ctx: WorkflowContext) -> BoxFuture<'static, anyhow::Result<Payload>> {
        let limit = ctx.task.max_payload_bytes();
        let handling = self.0(ctx);
        Box::pin(async move {
            let value = handling.await?;
            // A value that cannot be journaled now cannot be journaled the next time.
            Ok(Payload::encode(&value, limit).map_err(TaskError::permanent)?)
        })
    }
}

/// A function of a loop's result: its condition, or its feedback.
pub(super) trait Judge<O>: MaybeSend + MaybeSync {
    fn judge(&self, result: &Payload, iteration: u32) -> Result<O, PayloadError>;
}

impl<F, O> Judge<O> for Calls<F>
where
    F: Fn(&Payload, u32) -> Result<O, PayloadError> + MaybeSend + MaybeSync,
{
    fn judge(&self, result: &Payload, iteration: u32) -> Result<O, PayloadError> {
        self.0(result, iteration)
    }
}

/// The delays after failures.
pub(super) trait Backoff: MaybeSend + MaybeSync {
    fn delay(&self, failed: u32) -> Duration;
}

impl<F: Fn(u32) -> Duration + MaybeSend + MaybeSync> Backoff for F {
    fn delay(&self, failed: u32) -> Duration {
        self(failed)
    }
}

/// Returns `min(2^n, 60)` seconds.
fn default_backoff(failed: u32) -> Duration {
    Duration::from_secs(2_u64.saturating_pow(failed).min(60))
}

impl Handler {
    pub(super) fn new<F, Fut, T>(handler: F) -> Self
    where
        F: Fn(WorkflowContext) -> Fut + MaybeSend + MaybeSync + 'static,
        Fut: Future<Output = anyhow::Result<T>> + MaybeSend + 'static,
        T: Serialize + MaybeSend + 'static,
    {
        Self(Arc::new(Calls(handler)))
    }
}

impl Step {
    pub(super) fn new<F, Fut, T>(handler: F) -> Self
    where
        F: Fn(WorkflowContext) -> Fut + MaybeSend + MaybeSync + 'static,
        Fut: Future<Output = anyhow::Result<T>> + MaybeSend + 'static,
        T: Serialize + MaybeSend + 'static,
    {
        Self {
            handler: Handler::new(handler),
            undo: None,
            max_attempts: 3,
            backoff: Box::new(default_backoff),
        }
    }

    /// Runs as the step of the label, for the part of the name.
    async fn run(
        &self,
        name: &str,
        label: &str,
        running: &Running,
        context: WorkflowContext,
    ) -> TaskResult<Payload> {
        let tries = Arc::new(AtomicU32::new(1));
        let (handler, attempt) = (self.handler.clone(), tries.clone());
        let (iteration, last) = (context.iteration, context.last.clone());
        let call = move || {
            let attempt = attempt.load(Ordering::Relaxed);
            handler.0.call(WorkflowContext { attempt, ..context.clone() })
        };
        let delays =
            (1..self.max_attempts.min(DELAYS)).map(|failed| self.backoff.delay(failed)).collect();
        let mut step = running
            .task
            .step(StepName::derived(label.to_owned()), call)
            .retry(RetryStrategy::Listed { delays })
            .max_attempts(self.max_attempts)
            .count_tries(tries);
        if let Some(undo) = self.undo.clone() {
            let (running, name) = (running.clone(), name.to_owned());
            step = step.compensate(move |result: Payload| {
                let mut ctx =
                    WorkflowContext { iteration, last: last.clone(), ..running.context() };
                ctx.results.insert(name.clone(), result);
                undo.0.call(ctx)
            });
        }
        step.await
    }
}

impl Loop {
    pub(super) fn new(step: Step) -> Self {
        Self { step, max_iterations: 10, until: None, feedback: None }
    }

    /// Returns whether an iteration with this result is the last.
    pub(super) fn ends(&self, result: &Payload, iteration: u32) -> Result<bool, PayloadError> {
        let good = self.until.as_ref().map_or(Ok(false), |until| until.judge(result, iteration));
        good.map(|good| good || iteration >= self.max_iterations)
    }

    /// Returns the name of an iteration's step.
    pub(super) fn label(name: &str, iteration: u32) -> String {
        format!("{name}:{iteration}")
    }

    async fn run(&self, name: &str, running: &Running) -> TaskResult<Payload> {
        let mut last = None;
        for iteration in 1.. {
            let context = WorkflowContext { iteration, last, ..running.context() };
            let result =
                self.step.run(name, &Self::label(name, iteration), running, context).await?;
            let unfit = |error| {
                TaskError::permanent(
                    anyhow::Error::from(error).context(format!("the loop \"{name}\"")),
                )
            };
            if self.ends(&result, iteration).map_err(unfit)? {
                return Ok(result);
            }
            last = Some(match &self.feedback {
                Some(feedback) => feedback.judge(&result, iteration).map_err(unfit)?,
                None => result,
            });
        }
        Ok(Payload::null())
    }
}

impl Body {
    /// Returns the parts within this part.
    pub(super) fn inner(&self) -> &[Node] {
        match self {
            Self::Parallel(nodes) | Self::Route { routes: nodes, .. } => nodes,
            _ => &[],
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Parallel(_) | Self::Route { .. }) && self.inner().is_empty()
    }
}

impl Node {
    /// Returns the name of the step that journals which route was taken.
    pub(super) fn route_label(&self) -> String {
        format!("{}:route", self.name)
    }

    /// Returns the types of the children, also of parts within this part.
    pub(super) fn children(&self) -> Vec<&str> {
        match &self.body {
            Body::Child { task_type, .. } => vec![task_type],
            body => body.inner().iter().flat_map(Self::children).collect(),
        }
    }

    pub(super) fn run<'a>(&'a self, running: &'a Running) -> BoxFuture<'a, TaskResult<Payload>> {
        Box::pin(async move {
            let result = self.result(running).await?;
            running.keep(&self.name, result.clone());
            Ok(result)
        })
    }

    async fn result(&self, running: &Running) -> TaskResult<Payload> {
        let (name, task) = (self.name.as_str(), &running.task);
        match &self.body {
            Body::Step(step) => step.run(name, name, running, running.context()).await,
            Body::Parallel(nodes) => {
                let results = join_all(nodes.iter().map(|node| node.run(running))).await;
                object(
                    name,
                    nodes
                        .iter()
                        .zip(results)
                        .map(|(node, result)| Ok((node.name.as_str(), result?))),
                )
            }
            Body::Route { resolver, routes } => {
                let route =
                    resolver.run(name, &self.route_label(), running, running.context()).await?;
                match route_of(routes, &route) {
                    Some(node) => node.run(running).await,
                    None => {
                        let known: Vec<_> = routes.iter().map(|node| node.name.as_str()).collect();
                        Err(TaskError::permanent(anyhow::anyhow!(
                            "\"{name}\" chose the route {route}, which is none of its routes: {}",
                            known.join(", ")
                        )))
                    }
                }
            }
            Body::Loop(this) => this.run(name, running).await,
            Body::Sleep(duration) => {
                task.sleep_for(name, *duration).await.map(|()| Payload::null())
            }
            Body::Signal { timeout } => task.recv(name, *timeout).await,
            Body::Child { task_type, params } => {
                let context = running.context();
                let params = params.0.call(context).await.map_err(TaskError::permanent)?;
                let child: Child<Payload> = task.spawn_named(name, task_type, &params).await?;
                task.join(&child).await
            }
        }
    }
}

/// A workflow in execution.
#[derive(Clone)]
pub(super) struct Running {
    task: TaskContext,
    input: Payload,
    /// Shared, so that a compensation sees all results.
    results: Arc<Mutex<Results>>,
}

impl Running {
    pub(super) fn new(task: TaskContext, input: Payload) -> Self {
        Self { task, input, results: Arc::default() }
    }

    fn context(&self) -> WorkflowContext {
        WorkflowContext {
            task_id: self.task.task_id,
            run_id: self.task.run_id,
            attempt: 1,
            iteration: 1,
            task: self.task.clone(),
            input: self.input.clone(),
            results: self.results.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            last: None,
        }
    }

    fn keep(&self, name: &str, result: Payload) {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.insert(name.to_owned(), result);
    }

    /// Runs the parts one after the other, and returns an object of their results.
    pub(super) async fn run(self, nodes: &[Node]) -> TaskResult<Payload> {
        let mut results = Vec::with_capacity(nodes.len());
        for node in nodes {
            results.push((node.name.as_str(), node.run(&self).await.map_err(for_good)?));
        }
        object("the output", results.into_iter().map(Ok)).map_err(for_good)
    }
}

/// Returns an object of results.
fn object<'a>(
    name: &str,
    results: impl Iterator<Item = TaskResult<(&'a str, Payload)>>,
) -> TaskResult<Payload> {
    let results: BTreeMap<_, _> = results.collect::<TaskResult<_>>()?;
    Payload::encode(&results, usize::MAX)
        .map_err(|source| TaskError::Payload { name: name.to_owned(), source })
}

/// Returns the route that was chosen, if it is one of these.
pub(super) fn route_of<'a>(routes: &'a [Node], chosen: &Payload) -> Option<&'a Node> {
    let chosen: String = chosen.decode().ok()?;
    routes.iter().find(|node| node.name == chosen)
}

/// Makes an error permanent: the part has had its attempts, and the workflow adds none.
fn for_good(error: TaskError) -> TaskError {
    match error {
        error @ (TaskError::Control(_) | TaskError::Diverged { .. }) => error,
        TaskError::Failed { error, .. } => TaskError::permanent(error),
        error => TaskError::permanent(error),
    }
}
