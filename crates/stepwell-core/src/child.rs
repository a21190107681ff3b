//! Child tasks, as their parent sees them.

use std::fmt;
use std::marker::PhantomData;

use crate::failure::{Failure, FailureKind, Sources};
use crate::ids::TaskId;
use crate::journal::Outcome;
use crate::name::Name;
use crate::store::Finish;

/// A child task that was spawned by [`TaskContext::spawn`](crate::TaskContext::spawn), with an output of type `T`.
/// [`TaskContext::join`](crate::TaskContext::join) waits for it.
pub struct Child<T> {
    task_id: TaskId,
    name: Name,
    output: PhantomData<fn() -> T>,
}

impl<T> Child<T> {
    pub(crate) fn new(task_id: TaskId, name: Name) -> Self {
        Self { task_id, name, output: PhantomData }
    }

    /// The child's id.
    pub fn task_id(&self) -> TaskId {
        self.task_id
    }

    pub(crate) fn name(&self) -> &Name {
        &self.name
    }
}

impl<T> Clone for Child<T> {
    fn clone(&self) -> Self {
        Self::new(self.task_id, self.name.clone())
    }
}

impl<T> fmt::Debug for Child<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Child({} {})", self.name, self.task_id)
    }
}

/// What a parent is delivered when a child ends.
pub(crate) fn outcome(finish: Finish) -> Outcome {
    match finish {
        Finish::Completed(output) => Outcome::Done(output),
        // The numbers in it are of the child's journal.
        Finish::Failed(failure) => Outcome::Failed(Failure { sources: Sources::default(), ..failure }),
        Finish::Cancelled => {
            Outcome::Failed(Failure::new(FailureKind::Cancelled, "the child task was cancelled"))
        }
    }
}
