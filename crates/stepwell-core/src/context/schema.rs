//! Schemas of task types, and the checks that come with them.
//!
//! The schemas describe parameters and outputs to people, and to programs that know a type by its
//! name only.

use std::any::TypeId;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jsonschema::Validator;
use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::Value;

use crate::base::name::{InvalidName, Name};
use crate::base::payload::{Payload, PayloadError};
use crate::base::runtime::BoxFuture;
use crate::base::time::after;
use crate::context::task::{Task, Typed};
use crate::engine::Engine;
use crate::engine::registry::{Check, Executable, Stored, TaskType};
use crate::engine::run::Run;
use crate::engine::task_error::{TaskError, TaskResult};
use crate::store::{Headers, StoreError, TaskTypeInfo};

/// The time after which the task types are read from the store again.
const REMEMBERED: Duration = Duration::from_secs(60);
/// The number of violations that an error lists.
const MAX_ERRORS: usize = 5;

/// Returns the schemas of a task type.
pub(crate) fn schemas<T: Task>() -> Result<TaskTypeInfo, InvalidName>
where
    T::Params: JsonSchema,
    T::Output: JsonSchema,
{
    let settings = SchemaSettings::draft2020_12();
    Ok(TaskTypeInfo {
        task_type: Name::new(T::NAME)?,
        params: settings.clone().into_generator().into_root_schema_for::<T::Params>().to_value(),
        output: settings
            .for_serialize()
            .into_generator()
            .into_root_schema_for::<T::Output>()
            .to_value(),
    })
}

/// Returns a check by a schema.
pub(crate) fn check(schema: &Value) -> Result<Check, PayloadError> {
    let failed = |error: String| PayloadError::Schema {
        reason: format!("the schema itself is not valid: {error}"),
    };
    let validator =
        Arc::new(jsonschema::validator_for(schema).map_err(|error| failed(error.to_string()))?);
    Ok(Arc::new(move |payload| fits(&validator, payload)))
}

fn fits(validator: &Validator, payload: &Payload) -> Result<(), PayloadError> {
    let value: Value = payload.decode()?;
    let mut errors = validator.iter_errors(&value).map(|error| {
        let place = error.instance_path().to_string();
        if place.is_empty() { error.to_string() } else { format!("{error} at {place}") }
    });
    let told: Vec<_> = errors.by_ref().take(MAX_ERRORS).collect();
    if told.is_empty() {
        return Ok(());
    }
    let more = match errors.count() {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    Err(PayloadError::Schema { reason: told.join("; ") + &more })
}

/// Returns what a registry holds of a task type whose parameters and outputs are checked.
pub(crate) fn described<T: Task>(params: Check, output: Check) -> TaskType {
    let executable = Described { typed: Typed::<T>::new(), params: params.clone(), output };
    TaskType {
        type_id: Some(TypeId::of::<T>()),
        executable: Arc::new(executable),
        check: Some(params),
    }
}

/// A task type whose parameters and outputs are checked.
struct Described<T> {
    typed: Typed<T>,
    params: Check,
    output: Check,
}

impl<T: Task> Executable for Described<T> {
    fn start(
        &self,
        params: Payload,
        run: Arc<Run>,
        headers: Arc<Headers>,
    ) -> BoxFuture<'static, TaskResult<Payload>> {
        let name = |what: &str| format!("the {what} of {}", T::NAME);
        if let Err(source) = (self.params)(&params) {
            let failed = TaskError::Payload { name: name("parameters"), source };
            return Box::pin(std::future::ready(Err(failed)));
        }
        let (running, check) = (self.typed.start(params, run, headers), self.output.clone());
        Box::pin(async move {
            let output = running.await?;
            check(&output).map_err(|source| TaskError::Payload { name: name("output"), source })?;
            Ok(output)
        })
    }
}

/// Returns the checks of the parameters of these types.
///
/// A type whose schema this version cannot read is not checked here; its worker checks it.
pub(crate) fn checks(types: Vec<TaskTypeInfo>) -> HashMap<Name, Check> {
    types.into_iter().filter_map(|info| Some((info.task_type, check(&info.params).ok()?))).collect()
}

impl Engine {
    /// Returns the check of the parameters of a task type that some process has described.
    pub(crate) async fn stored_check(&self, task_type: &Name) -> Result<Option<Check>, StoreError> {
        let now = self.store.now();
        if let Some(read) = &*self.stored.lock().unwrap_or_else(PoisonError::into_inner)
            && now < read.until
        {
            return Ok(read.checks.get(task_type).cloned());
        }
        let checks = checks(self.store.task_types().await?);
        let found = checks.get(task_type).cloned();
        let read = Stored { until: after(now, REMEMBERED), checks };
        *self.stored.lock().unwrap_or_else(PoisonError::into_inner) = Some(read);
        Ok(found)
    }
}
