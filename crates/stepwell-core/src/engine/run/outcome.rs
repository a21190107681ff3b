//! The conversion of delivered outcomes into the results of calls.

use serde::de::DeserializeOwned;

use crate::base::failure::FailureKind;
use crate::base::journal::{Key, Outcome};
use crate::base::unreadable::Unreadable;
use crate::engine::task_error::{TaskError, TaskResult};

/// Returns the result of a step from its outcome.
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

/// Returns the result of a wait from its outcome.
pub(crate) fn read_arrival<T: DeserializeOwned>(key: &Key, outcome: Outcome) -> TaskResult<T> {
    match outcome {
        Outcome::Failed(failure) if failure.kind == FailureKind::Timeout => {
            Err(TaskError::Timeout {
                name: key.label(),
                seq: failure.sources.as_slice().first().copied().unwrap_or(0),
            })
        }
        outcome => read_step(key, outcome),
    }
}

/// Returns the result of a join from its outcome.
pub(crate) fn read_child<T: DeserializeOwned>(key: &Key, outcome: Outcome) -> TaskResult<T> {
    match outcome {
        Outcome::Failed(failure) => {
            let Some(task_id) = key.child() else {
                let reason = "its name does not end in the id of a task".into();
                return Err(Unreadable::Damaged { what: key.label(), reason }.into());
            };
            if failure.kind == FailureKind::Blocked {
                let name = key
                    .name
                    .as_str()
                    .rsplit_once(':')
                    .map_or_else(|| key.label(), |(name, _)| name.into());
                return Err(TaskError::JoinsBlocked { name, task_id, concurrency_key: None });
            }
            Err(TaskError::Child { task_id, failure })
        }
        outcome => read_step(key, outcome),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::failure::Failure;
    use crate::base::journal::Kind;
    use crate::base::name::Name;

    #[test]
    fn a_child_without_an_id_is_damaged_and_gets_none_invented() {
        let key = |name| Key { kind: Kind::Child, name: Name::new(name).unwrap(), ordinal: 1 };
        let failed = || Outcome::failed(Failure::new(FailureKind::Error, "it failed"));
        let read = |name| read_child::<()>(&key(name), failed());
        assert!(matches!(read("order:nobody"), Err(TaskError::Unreadable(_))));
        let known = read("order:019b76da-a800-7000-a791-65e7cfbaa09f");
        assert!(matches!(known, Err(TaskError::Child { .. })));
    }
}
