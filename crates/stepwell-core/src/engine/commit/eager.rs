//! Tasks that are claimed in the commit that spawns them.

use std::sync::{Arc, Weak};

use crate::engine::commit::hub::{Hub, LocalWorker};
use crate::store::NewTask;

/// A task that is claimed in the commit that spawns it, by a worker of this process.
///
/// The worker keeps a slot for the task. The commit starts it, whether or not its caller still
/// waits.
pub(crate) struct Eager {
    /// The worker, held weakly, because an item that gathers for a commit may never be sent.
    worker: Weak<dyn LocalWorker>,
    /// The task, until it is started.
    task: Option<NewTask>,
}

impl Eager {
    /// Takes a slot for the task, if a worker has one.
    pub(crate) fn reserve(hub: &Hub, task: &mut NewTask) -> Option<Self> {
        let (worker_id, worker) = hub.reserve(task)?;
        task.claim_by = Some(worker_id);
        Some(Self { worker: Arc::downgrade(&worker), task: Some(task.clone()) })
    }

    /// Runs the task, which is durable and claimed by the worker.
    pub(crate) fn start(mut self) {
        if let (Some(worker), Some(task)) = (self.worker.upgrade(), self.task.take()) {
            worker.start(task);
        }
    }
}

impl Drop for Eager {
    fn drop(&mut self) {
        if let (Some(worker), Some(_)) = (self.worker.upgrade(), self.task.take()) {
            worker.release();
        }
    }
}
