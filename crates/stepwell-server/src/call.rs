//! A request of somebody who may make it.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use bytes::Bytes;
use stepwell::{
    ApprovalInfo, CancellationToken, Durable, Error, Name, Page, Payload, SpawnOptions,
    SpawnResult, TaskFilter, TaskId, TaskInfo, TaskTypeInfo, Timestamp,
};
use tokio::sync::mpsc;

use crate::access::{Identity, Operation, Until};
use crate::app::{App, Known};
use crate::feed::{self, Follow, Which};
use crate::guard::Base;
use crate::problem::Problem;

/// Who asks, for what, and what they need for it. Every handler takes one, and it is the handlers'
/// only way to the store: to the tasks of the caller's scope, or, for callers whose scope is
/// everything, to all. The store filters by the scope; what it answers is checked here once more.
pub(crate) struct Call {
    app: Arc<App>,
    pub(crate) who: Identity,
    pub(crate) base: Base,
    operation: Operation,
    /// Is cancelled when the caller is nobody any more.
    until: CancellationToken,
}

/// One task of the caller's, to which the operation may be done, and the client to do it with.
pub(crate) struct Own<'a> {
    pub(crate) client: &'a Durable,
    pub(crate) task: TaskInfo,
}

/// Of which tasks somebody follows the events, beside that they are the caller's.
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
    /// Whether the caller may do something, to that task.
    pub(crate) async fn may(&self, operation: Operation, task: Option<&TaskInfo>) -> bool {
        (self.who.scope.is_all() || !operation.is_about_all())
            && self.app.access.authorize(&self.who, operation, task).await
    }

    fn refusal(&self) -> Problem {
        Problem::forbidden(format!("you may not do this: {:?}", self.operation))
    }

    /// All that there is, for a caller whose scope is everything.
    pub(crate) fn everything(&self) -> Result<&Arc<App>, Problem> {
        match self.who.scope.is_all() {
            true => Ok(&self.app),
            false => Err(self.refusal()),
        }
    }

    /// Whether browsers log in here.
    pub(crate) fn logs_in(&self) -> bool {
        self.app.token.is_some()
    }

    /// The time by the store's clock.
    pub(crate) fn now(&self) -> Timestamp {
        self.app.client.store().now()
    }

    /// The task of that id, if it is the caller's and the operation may be done to it. Others are
    /// not there.
    pub(crate) async fn own(&self, task_id: TaskId) -> Result<Own<'_>, Problem> {
        let task = self.app.client.task(task_id).await?.filter(|task| self.is_own(task));
        let task = task.ok_or_else(|| Problem::no_task(task_id))?;
        match self.may(self.operation, Some(&task)).await {
            true => Ok(Own { client: &self.app.client, task: self.shown(task).await? }),
            false => Err(self.refusal()),
        }
    }

    /// Forgets what never changes of a task, which is another one from now on, or none.
    pub(crate) async fn forget(&self, task_id: TaskId) {
        self.app.known.forget(task_id).await;
    }

    fn is_own(&self, task: &TaskInfo) -> bool {
        self.who.scope.has(&task.queue, &task.headers, &task.scope)
    }

    /// Whether that task is the caller's, by what is remembered of it.
    pub(crate) async fn is_known(&self, task_id: TaskId) -> Result<bool, Problem> {
        if self.who.scope.is_all() {
            return Ok(true);
        }
        let known = self.app.known(task_id).await?;
        Ok(known.is_some_and(|task| self.who.scope.has(&task.queue, &task.headers, &task.scope)))
    }

    /// A task of the caller's as it is shown: a parent that is not the caller's is left out.
    async fn shown(&self, mut task: TaskInfo) -> Result<TaskInfo, Problem> {
        if let Some(parent) = task.parent
            && !self.is_known(parent).await?
        {
            task.parent = None;
        }
        Ok(task)
    }

    /// What came of an operation on one of the caller's tasks. Where another task stood against it
    /// that is not the caller's, the error does not name that one.
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

    /// The caller's tasks that pass a filter, the newest first.
    pub(crate) async fn tasks(&self, filter: TaskFilter) -> Result<Vec<TaskInfo>, Problem> {
        Ok(self.page_of_tasks(filter).await?.items)
    }

    /// As [`tasks`](Self::tasks), and `before` of the next page when there may be one.
    pub(crate) async fn page_of_tasks(
        &self,
        filter: TaskFilter,
    ) -> Result<Page<TaskInfo>, Problem> {
        if let Some(parent) = filter.parent
            && !self.is_known(parent).await?
        {
            return Ok(Page::default());
        }
        let filter = TaskFilter { scope: self.who.scope.clone(), ..filter };
        let Page { items: listed, next } = self.app.client.page_of_tasks(filter).await?;
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

    /// What the caller's tasks wait for somebody to decide, of the first `limit` such tasks behind
    /// that one; and `behind` of the next page when there may be one.
    pub(crate) async fn approvals(
        &self,
        behind: Option<TaskId>,
        limit: usize,
    ) -> Result<Page<ApprovalInfo>, Problem> {
        let scope = self.who.scope.clone();
        let Page { items: listed, next } =
            self.app.client.approvals_in(scope, behind, limit).await?;
        let mut items = Vec::with_capacity(listed.len());
        for approval in listed {
            if self.is_known(approval.task_id).await? {
                items.push(approval);
            }
        }
        Ok(Page { items, next })
    }

    /// Spawns a task in the caller's scope. Whoever has one may name no other, not even one within
    /// it: what is there for one scope could be there for a third as well.
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
        Ok(self.app.client.spawn_named(task_type.as_str(), params, options.scope(scope)).await?)
    }

    /// The task types that were described: they belong to the program, not to a scope.
    pub(crate) async fn task_types(&self) -> Result<Vec<TaskTypeInfo>, Problem> {
        Ok(self.app.client.task_types().await?)
    }

    /// What happens to the caller's tasks behind the event of that number, or from now on, as it is
    /// sent: of one task, or of those that are wanted.
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
