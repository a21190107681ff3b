//! Workflows as task types.

use std::any::Any;
use std::sync::Arc;

use super::{Workflow, WorkflowError};
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::runtime::BoxFuture;
use crate::context::TaskContext;
use crate::context::task::{read_params, unfit};
use crate::engine::registry::{Executable, TaskType};
use crate::engine::run::Run;
use crate::engine::task_error::TaskResult;
use crate::store::Headers;

/// A workflow that is registered as a task type.
struct Flow {
    name: Name,
    workflow: Arc<Workflow>,
}

impl Workflow {
    /// Returns what a registry holds of the workflow, and its name.
    ///
    /// `knows` returns whether a type is registered.
    pub(crate) fn registered(
        self,
        knows: impl Fn(&Name) -> bool,
    ) -> Result<(Name, TaskType), WorkflowError> {
        self.check()?;
        let name = Name::new(&self.name)
            .map_err(|source| WorkflowError::Name { workflow: self.name.clone(), source })?;
        for child in self.children() {
            if child != name.as_str() && !Name::new(child).is_ok_and(|child| knows(&child)) {
                return Err(WorkflowError::NotRegistered { name: child.to_owned() });
            }
        }
        let executable = Arc::new(Flow { name: name.clone(), workflow: Arc::new(self) });
        Ok((name, TaskType { type_id: None, executable, check: None }))
    }
}

/// Returns the workflow that a task type is, if it is one.
pub(crate) fn of(executable: &dyn Executable) -> Option<Arc<Workflow>> {
    let executable: &dyn Any = executable;
    executable.downcast_ref::<Flow>().map(|flow| flow.workflow.clone())
}

impl Executable for Flow {
    fn start(
        &self,
        params: Payload,
        run: Arc<Run>,
        headers: Arc<Headers>,
    ) -> BoxFuture<'static, TaskResult<Payload>> {
        let (ctx, name, workflow) =
            (TaskContext::new(run, headers), self.name.clone(), self.workflow.clone());
        Box::pin(async move {
            let (limit, input) = (ctx.max_payload_bytes(), read_params(name.as_str(), &params)?);
            let output = workflow.run(input, ctx).await?;
            Payload::encode(&output, limit).map_err(|source| unfit(name.as_str(), source))
        })
    }
}
