//! The client's functions for the workers of all processes.

use crate::base::ids::WorkerId;
use crate::client::Client;
use crate::client::error::Error;
use crate::store::WorkerSignal;
use crate::store::worker_info::{WorkerInfo, WorkerState};

/// The workers of all processes on a client's store.
#[derive(Clone, Copy)]
pub struct Workers<'c> {
    client: &'c Client,
}

impl Client {
    /// Returns the functions for workers.
    pub fn workers(&self) -> Workers<'_> {
        Workers { client: self }
    }
}

impl Workers<'_> {
    /// Returns the registered workers of all processes, with the tasks that they run.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn list(self) -> Result<Vec<WorkerInfo>, Error> {
        let engine = &self.client.engine;
        Ok(engine.answered(engine.store.workers()).await?)
    }

    /// Tells a worker of any process to shut down, as [`Worker::shutdown`](crate::Worker::shutdown)
    /// does.
    ///
    /// The worker ends what it runs, claims nothing more, and stops. It learns of the request with
    /// its next heartbeat, within a third of its [`lease`](crate::WorkerOptions::lease).
    ///
    /// # Errors
    /// [`Error::UnknownWorker`] when the worker is not registered, or no longer.
    pub async fn drain(self, worker_id: WorkerId) -> Result<(), Error> {
        let engine = &self.client.engine;
        let drained = engine.commit.signal(WorkerSignal::Drain { worker_id });
        match engine.answered(drained).await?.state {
            WorkerState::Active | WorkerState::Draining => Ok(()),
            WorkerState::Gone => Err(Error::UnknownWorker(worker_id)),
        }
    }
}
