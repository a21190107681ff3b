//! The task types that a client knows, in which its workers find their code.

use std::any::{Any, TypeId};
use std::collections::BTreeMap;
#[cfg(feature = "schemas")]
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::base::guard::discard;
use crate::base::name::Name;
use crate::base::payload::{Payload, PayloadError};
use crate::base::runtime::{BoxFuture, MaybeSend, MaybeSync};
#[cfg(feature = "schemas")]
use crate::base::time::Timestamp;
use crate::engine::run::Run;
use crate::engine::run::compensation::Undo;
use crate::engine::task_error::TaskResult;
use crate::store::Headers;

/// A task type whose Rust types are erased.
pub(crate) trait Executable: Any + MaybeSend + MaybeSync {
    /// Starts the code of a run.
    fn start(
        &self,
        params: Payload,
        run: Arc<Run>,
        headers: Arc<Headers>,
    ) -> BoxFuture<'static, TaskResult<Payload>>;
}

/// A check of a payload.
pub(crate) type Check = Arc<dyn Fn(&Payload) -> Result<(), PayloadError> + Send + Sync>;

/// The checks of task types that are not registered here, as last read from the store.
#[cfg(feature = "schemas")]
pub(crate) struct Stored {
    pub(crate) until: Timestamp,
    pub(crate) checks: HashMap<Name, Check>,
}

/// The task types that a client knows.
#[derive(Default)]
pub(crate) struct Registry {
    task_types: RwLock<BTreeMap<Name, TaskType>>,
    cleanups: RwLock<BTreeMap<Name, Arc<dyn Undo>>>,
}

/// A task type that is registered.
pub(crate) struct TaskType {
    /// The type; `None` for a function, which has no type of its own.
    pub(crate) type_id: Option<TypeId>,
    pub(crate) executable: Arc<dyn Executable>,
    /// The check of the type's parameters, if it has one.
    pub(crate) check: Option<Check>,
}

impl Registry {
    /// Returns the check of a registered type's parameters, if the type was described; `None` for a
    /// type that is not registered.
    pub(crate) fn check_of(&self, name: &Name) -> Option<Option<Check>> {
        let task_types = self.task_types.read().unwrap_or_else(PoisonError::into_inner);
        task_types.get(name).map(|registered| registered.check.clone())
    }

    /// Checks that a task of the type can have these parameters, as far as is known here.
    pub(crate) fn check(&self, name: &Name, params: &Payload) -> Result<(), PayloadError> {
        self.check_of(name).flatten().map_or(Ok(()), |check| check(params))
    }

    /// Adds a task type.
    ///
    /// # Errors
    /// Returns the name when another type has it.
    pub(crate) fn add(&self, name: Name, task_type: TaskType) -> Result<(), Name> {
        let mut task_types = self.task_types.write().unwrap_or_else(PoisonError::into_inner);
        match task_types.get(&name) {
            Some(known) if known.type_id.is_none() || known.type_id != task_type.type_id => {
                Err(name)
            }
            _ => {
                task_types.insert(name, task_type);
                Ok(())
            }
        }
    }

    pub(crate) fn get(&self, name: &Name) -> Option<Arc<dyn Executable>> {
        let task_types = self.task_types.read().unwrap_or_else(PoisonError::into_inner);
        task_types.get(name).map(|registered| registered.executable.clone())
    }

    /// Drops the application's closures.
    pub(crate) fn discard(&mut self) {
        let task_types = self.task_types.get_mut().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(task_types).into_values().for_each(discard);
        let cleanups = self.cleanups.get_mut().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(cleanups).into_values().for_each(discard);
    }

    /// Registers a cleanup in place of the one of the same name.
    pub(crate) fn register_cleanup(&self, name: Name, cleanup: Arc<dyn Undo>) {
        self.cleanups.write().unwrap_or_else(PoisonError::into_inner).insert(name, cleanup);
    }

    pub(crate) fn cleanup(&self, name: &Name) -> Option<Arc<dyn Undo>> {
        self.cleanups.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    pub(crate) fn knows(&self, name: &Name) -> bool {
        self.task_types.read().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }

    pub(crate) fn names(&self) -> Vec<Name> {
        self.task_types.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}
