//! The task whose future this thread polls, for errors about contexts that are used elsewhere.

use std::cell::Cell;
use std::sync::Arc;

use crate::engine::run::Run;

thread_local! {
    /// The address of the run whose future this thread polls; 0 in a step's closure, and outside.
    static POLLED: Cell<usize> = const { Cell::new(0) };
}

struct Restore(usize);

impl Drop for Restore {
    fn drop(&mut self) {
        POLLED.set(self.0);
    }
}

/// Polls a task's own future.
pub(crate) fn poll_task<R>(run: &Arc<Run>, poll: impl FnOnce() -> R) -> R {
    let _restore = Restore(POLLED.replace(Arc::as_ptr(run) as usize));
    poll()
}

/// Polls a step's closure, in which the calls of the context return errors.
pub(crate) fn poll_closure<R>(poll: impl FnOnce() -> R) -> R {
    let _restore = Restore(POLLED.replace(0));
    poll()
}

/// Returns whether the thread polls this run's own future, and not one of its closures.
pub(crate) fn is_polled(run: &Arc<Run>) -> bool {
    POLLED.get() == Arc::as_ptr(run) as usize
}
