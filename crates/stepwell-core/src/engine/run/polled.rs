//! Which task's future this thread polls, so that a context that is used elsewhere can say so.

use std::cell::Cell;
use std::sync::Arc;

use crate::engine::run::Run;

thread_local! {
    /// The address of the run whose future this thread polls; 0 within a step's closure, and outside.
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

/// Runs a step's closure, in which the context's calls are out of place.
pub(crate) fn poll_closure<R>(poll: impl FnOnce() -> R) -> R {
    let _restore = Restore(POLLED.replace(0));
    poll()
}

/// Whether it is this run's future, and not a closure of it, that the thread polls.
pub(crate) fn is_polled(run: &Arc<Run>) -> bool {
    POLLED.get() == Arc::as_ptr(run) as usize
}
