//! The extractor of a request whose caller is authenticated.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use bytes::Bytes;
use stepwell::{
    ApprovalFilter, ApprovalInfo, CancellationToken, Durable, Error, Name, Page, Payload,
    SpawnOptions, SpawnResult, TaskFilter, TaskId, TaskInfo, TaskTypeInfo, Timestamp,
};
use tokio::sync::mpsc;

use crate::access::{Identity, Operation, Until};
use crate::app::{App, Known};
use crate::feed::{self, Follow, Which};
use crate::guard::Base;
use crate::problem::Problem;

/// The caller of a request, its operation, and its access to the store. Every handler takes a
/// `Call`, and a handler has no other way to the store. A `Call` leads to the tasks of the caller's
/// scope, or to all tasks for a caller whose scope is everything. The store filters by the scope,
/// and the `Call` checks the store's answer once more.
pub(crate) struct Call {
    app: Arc<App>,
    pub(crate) who: Identity,
    pub(crate) base: Base,
    operation: Operation,
    /// The token that is cancelled when the caller's session ends.
    until: CancellationToken,
}

/// A task of the caller that the operation may be done to, and the client to do it with.
pub(crate) struct Own<'a> {
    pub(crate) client: &'a Durable,
    pub(crate) task: TaskInfo,
}

/// The filter of the tasks whose events a caller follows, among the caller's own tasks.
pub(crate) type Wanted = Box<dyn Fn(&Known) -> bool + Send + Sync>;

impl FromRequestParts<Arc<App>> for Call {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let operation = parts.extensions.get::<Operation>().copied();
        let who = parts.extensions.get::<Identity>().cloned();
        let (Some(operation), Some(who)) = (operation, who) else {
            return Err(Problem::unauthenticated());
        };
        let base = parts.extensions.get::<Base>().cloned().unwrap_or_default();
        let until = parts.extensions.get::<Until>().cloned().unwrap_or_default().0;
        let call = Self { app: app.clone(), who, base, operation, until };
        if !operation.is_about_one_task() && !call.may(operation, None).await {
            return Err(call.refusal());
        }
        Ok(call)
    }
}

impl Call {
    /// Returns whether the caller may do an operation to a task.
    pub(crate) async fn may(&self, operation: Operation, task: Option<&TaskInfo>) -> bool {
        (self.who.scope.is_all() || !operation.is_about_all())
            && self.app.access.authorize(&self.who, operation, task).await
    }

    fn refusal(&self) -> Problem {
        Problem::forbidden(format!("you may not do this: {:?}", self.operation))
    }

    /// Returns access to everything, for a caller whose scope is everything.
    pub(crate) fn everything(&self) -> Result<&Arc<App>, Problem> {
        match self.who.scope.is_all() {
            true => Ok(&self.app),
            false => Err(self.refusal()),
        }
    }

    /// Returns whether browsers log in to this server.
    pub(crate) fn logs_in(&self) -> bool {
        self.app.token.is_some()
    }

    /// Returns the time by the store's clock.
    pub(crate) fn now(&self) -> Timestamp {
        self.app.client.store().now()
    }

    /// Returns the task with an id, when the task is the caller's and the operation may be done to
    /// it. A task outside the caller's scope is answered as one that does not exist.
    pub(crate) async fn own(&self, task_id: TaskId) -> Result<Own<'_>, Problem> {
        let task = self.app.client.task(task_id).await?.filter(|task| self.is_own(task));
        let task = task.ok_or_else(|| Problem::no_task(task_id))?;
        match self.may(self.operation, Some(&task)).await {
            true => Ok(Own { client: &self.app.client, task: self.shown(task).await? }),
            false => Err(self.refusal()),
        }
    }

    /// Removes a task from the cache of constant properties, because the task was deleted or
    /// replaced.
    pub(crate) async fn forget(&self, task_id: TaskId) {
        self.app.known.forget(task_id).await;
    }

    fn is_own(&self, task: &TaskInfo) -> bool {
        self.who.scope.has(&task.queue, &task.headers, &task.scope)
    }

    /// Returns whether a task is the caller's, by the cached properties of the task.
    pub(crate) async fn is_known(&self, task_id: TaskId) -> Result<bool, Problem> {
        if self.who.scope.is_all() {
            return Ok(true);
        }
        let known = self.app.known(task_id).await?;
        Ok(known.is_some_and(|task| self.who.scope.has(&task.queue, &task.headers, &task.scope)))
    }

    /// Returns a task of the caller as it is shown, without a parent that is not the caller's.
    async fn shown(&self, mut task: TaskInfo) -> Result<TaskInfo, Problem> {
        if let Some(parent) = task.parent
            && !self.is_known(parent).await?
        {
            task.parent = None;
        }
        Ok(task)
    }

    /// Converts the result of an operation on one of the caller's tasks. When another task prevents
    /// the operation and is not the caller's, the error does not name that task.
    pub(crate) async fn told<T>(&self, result: Result<T, Error>) -> Result<T, Problem> {
        match result {
            Err(Error::Needed { task_id, by }) if !self.is_known(by).await? => {
                Err(Problem::conflict(format!(
                    "task {task_id} is kept: another task may have yet to learn how it ended. \
                     Delete it later"
                )))
            }
            Err(Error::NotAllowed { action, task_id, state })
                if !self.is_known(task_id).await? =>
            {
                Err(Problem::conflict(format!("cannot {action} it: a child of it is {state}")))
            }
            result => result.map_err(Problem::from),
        }
    }

    /// Returns the caller's tasks that pass a filter, the newest first.
    pub(crate) async fn tasks(&self, filter: TaskFilter) -> Result<Page<TaskInfo>, Problem> {
        if let Some(parent) = filter.parent
            && !self.is_known(parent).await?
        {
            return Ok(Page::default());
        }
        let filter = TaskFilter { scope: self.who.scope.clone(), ..filter };
        let Page { items: listed, next } = self.app.client.tasks(filter).await?;
        let mut items = Vec::with_capacity(listed.len());
        for task in listed {
            if self.is_own(&task) {
                items.push(self.shown(task).await?);
            } else {
                tracing::error!(task_id = %task.task_id, "the store listed a task that is not of \
                                                          the scope");
            }
        }
        Ok(Page { items, next })
    }

    /// Returns the approvals that the first `limit` of the caller's tasks after `after` wait for.
    pub(crate) async fn approvals(
        &self,
        after: Option<TaskId>,
        limit: usize,
    ) -> Result<Page<ApprovalInfo>, Problem> {
        let scope = self.who.scope.clone();
        let filter = ApprovalFilter { scope, after, limit };
        let Page { items: listed, next } = self.app.client.approvals().list(filter).await?;
        let mut items = Vec::with_capacity(listed.len());
        for approval in listed {
            if self.is_known(approval.task_id).await? {
                items.push(approval);
            }
        }
        Ok(Page { items, next })
    }

    /// Spawns a task in the caller's scope. A caller that has a scope may name no other, not even
    /// one within its own. A task that exists for one scope could exist for a third one as well.
    pub(crate) async fn spawn(
        &self,
        task_type: &Name,
        params: &Payload,
        options: SpawnOptions,
    ) -> Result<SpawnResult, Problem> {
        let (own, named) = (&self.who.scope, options.in_scope());
        if !own.is_all() && !named.is_all() && named != own {
            return Err(Problem::forbidden(
                "you may not spawn into that scope: leave it out for your own",
            ));
        }
        let scope = if own.is_all() { named } else { own }.clone();
        Ok(self
            .app
            .client
            .spawn_named(task_type.as_str(), params)
            .options(options.scope(scope))
            .await?)
    }

    /// Returns the task types that were described. A task type belongs to the program, not to a
    /// scope.
    pub(crate) async fn task_types(&self) -> Result<Vec<TaskTypeInfo>, Problem> {
        Ok(self.app.client.task_types().await?)
    }

    /// Follows the events of the caller's tasks, after the event with the number `after`, or from
    /// now on. The stream holds the events of one task, or of the tasks that `wanted` accepts. The
    /// receiver returns the events in the form in which they are sent.
    pub(crate) async fn follow(
        &self,
        task_id: Option<TaskId>,
        after: Option<u64>,
        wanted: Option<Wanted>,
    ) -> Result<mpsc::Receiver<Bytes>, Problem> {
        let (scope, until) = (self.who.scope.clone(), self.until.clone());
        let which = match (scope.is_all(), wanted) {
            (true, None) => Which::All,
            (_, wanted) => Which::Those(Box::new(move |task| {
                scope.has(&task.queue, &task.headers, &task.scope)
                    && wanted.as_ref().is_none_or(|wanted| wanted(task))
            })),
        };
        feed::follow(&self.app, &self.who.scope, Follow { task_id, after, which, until }).await
    }
}
