//! The store's threads.

use std::thread::JoinHandle;

use stepwell_core::{StoreError, guard};

/// Runs work whose panic must not end a thread of the store: the receiver of an answer may panic.
pub(crate) fn survive(work: impl FnOnce()) {
    if let Err(panic) = guard(work) {
        tracing::error!(%panic, "a thread of the store has survived a panic");
    }
}

/// Starts a thread.
pub(crate) fn thread(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, StoreError> {
    let spawned = std::thread::Builder::new().name(name.into()).spawn(body);
    spawned.map_err(|error| StoreError::Backend(format!("cannot start the thread {name}: {error}")))
}
