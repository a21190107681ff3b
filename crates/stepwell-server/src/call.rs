//! A request of somebody who may make it.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use stepwell::{Durable, TaskFilter, TaskId, TaskInfo};

use crate::access::{Identity, Operation};
use crate::app::App;
use crate::guard::Base;
use crate::problem::Problem;

/// Who asks, for what, and what they need for it. Handlers reach tasks through it only, and so nobody's but theirs.
pub(crate) struct Call {
    pub(crate) app: Arc<App>,
    pub(crate) who: Identity,
    pub(crate) base: Base,
    operation: Operation,
}

impl FromRequestParts<Arc<App>> for Call {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let operation = parts.extensions.get::<Operation>().copied();
        let who = parts.extensions.get::<Identity>().cloned();
        let (Some(operation), Some(who)) = (operation, who) else { return Err(Problem::unauthenticated()) };
        let base = parts.extensions.get::<Base>().cloned().unwrap_or_default();
        let call = Self { app: app.clone(), who, base, operation };
        if !operation.is_about_one_task() && !call.may(operation, None).await {
            return Err(call.refusal());
        }
        Ok(call)
    }
}

impl Call {
    pub(crate) fn client(&self) -> &Durable {
        &self.app.client
    }

    /// Whether they may do something, to that task.
    pub(crate) async fn may(&self, operation: Operation, task: Option<&TaskInfo>) -> bool {
        self.app.access.authorize(&self.who, operation, task).await
    }

    fn refusal(&self) -> Problem {
        Problem::forbidden(format!("you may not do this: {:?}", self.operation))
    }

    /// A task that the operation may be done to. One that is out of their scope is not there.
    pub(crate) async fn task(&self, task_id: TaskId) -> Result<TaskInfo, Problem> {
        let task =
            self.client().task(task_id).await?.filter(|task| self.who.scope.has(&task.queue, &task.headers));
        let task = task.ok_or_else(|| Problem::no_task(task_id))?;
        match self.may(self.operation, Some(&task)).await {
            true => Ok(task),
            false => Err(self.refusal()),
        }
    }

    /// Tasks of theirs that pass a filter, the newest first.
    pub(crate) async fn tasks(&self, filter: TaskFilter) -> Result<Vec<TaskInfo>, Problem> {
        match self.who.scope.narrow(filter) {
            Some(filter) => Ok(self.client().tasks(filter).await?),
            None => Ok(Vec::new()),
        }
    }
}
