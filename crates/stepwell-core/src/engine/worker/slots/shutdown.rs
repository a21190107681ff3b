//! The end of a worker.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};

use crate::engine::commit::hub::LocalWorker as _;
use crate::engine::commit::receipt::until_answered;
use crate::engine::task_error::ControlFlow;
use crate::engine::worker::slots::Slots;
use crate::store::WorkerSignal;

/// The time for which a shutdown waits for code that it has told to stop.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Stops claiming, waits for running tasks up to the deadline, and releases the rest.
pub(crate) async fn shutdown(slots: &Arc<Slots>, deadline: Duration) {
    let engine = &slots.engine;
    slots.close();
    wait_until_empty(slots, deadline).await;
    slots.seal();
    slots.stop_all(ControlFlow::Shutdown);
    wait_until_empty(slots, LAST_WORDS).await;
    slots.end.cancel();
    slots.forget_suspended();
    // This releases all that still runs, and its late writes will be refused.
    let gone = WorkerSignal::Deregister { worker_id: slots.worker_id() };
    let commit = engine.commit.clone();
    let signed_off = until_answered(engine.runtime.clone(), move || commit.signal(gone.clone()));
    let stopped = slots.stopped.clone();
    engine.runtime.spawn(Box::pin(async move {
        if let Err(error) = signed_off.await {
            tracing::warn!(%error, "cannot sign off; the worker's lease will run out by itself");
        }
        stopped.cancel();
    }));
    let waited =
        select(Box::pin(slots.stopped.cancelled()), engine.runtime.sleep(LAST_WORDS)).await;
    if let Either::Right(_) = waited {
        tracing::warn!(
            "the store is away, and the worker has not signed off: it goes on trying while the \
             process lives"
        );
        slots.stopped.cancel();
    }
}

async fn wait_until_empty(slots: &Slots, limit: Duration) {
    let empty = async {
        loop {
            let told = slots.empty.notified();
            if slots.is_empty() {
                return;
            }
            told.await;
        }
    };
    select(Box::pin(empty), slots.engine.runtime.sleep(limit)).await;
}
