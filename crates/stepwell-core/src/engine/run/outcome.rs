//! What task code gets of the outcomes that are delivered to it.

use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::base::failure::FailureKind;
use crate::base::ids::TaskId;
use crate::base::journal::{Key, Outcome};
use crate::engine::task_error::{TaskError, TaskResult};

/// What a step's caller gets of what was delivered.
pub(crate) fn read_step<T: DeserializeOwned>(key: &Key, outcome: Outcome) -> TaskResult<T> {
    match outcome {
        Outcome::Done(payload) => {
            payload.decode().map_err(|source| TaskError::Payload { name: key.label(), source })
        }
        Outcome::Failed(failure) | Outcome::Retrying { failure, .. } => {
            Err(TaskError::Step { name: key.label(), failure })
        }
    }
}

/// What the caller of a wait gets of what was delivered.
pub(crate) fn read_arrival<T: DeserializeOwned>(key: &Key, outcome: Outcome) -> TaskResult<T> {
    match outcome {
        Outcome::Failed(failure) if failure.kind == FailureKind::Timeout => Err(TaskError::Timeout {
            name: key.label(),
            seq: failure.sources.as_slice().first().copied().unwrap_or(0),
        }),
        outcome => read_step(key, outcome),
    }
}

/// What the caller of a join gets of what was delivered.
pub(crate) fn read_child<T: DeserializeOwned>(key: &Key, outcome: Outcome) -> TaskResult<T> {
    match outcome {
        Outcome::Failed(failure) => {
            let task_id = key.child().unwrap_or_else(|| TaskId::from(Uuid::nil()));
            if failure.kind == FailureKind::Blocked {
                let name =
                    key.name.as_str().rsplit_once(':').map_or_else(|| key.label(), |(name, _)| name.into());
                return Err(TaskError::JoinsBlocked { name, task_id, concurrency_key: None });
            }
            Err(TaskError::Child { task_id, failure })
        }
        outcome => read_step(key, outcome),
    }
}
