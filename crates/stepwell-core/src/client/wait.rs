//! The client's wait for a task's output.

use std::time::Duration;

use futures_util::future::{Either, select};
use serde::de::DeserializeOwned;

use crate::base::ids::TaskId;
use crate::client::Client;
use crate::client::error::Error;
use crate::engine::Engine;
use crate::store::{Finish, StoreError};

/// The first and the longest interval between two reads of a task that a caller waits for. They
/// hold while the store reports no end of the task.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

impl Client {
    /// Waits for a task's output, without polling when a worker of this process ends the task.
    ///
    /// # Errors
    /// [`Error::TaskFailed`], [`Error::TaskCancelled`]; [`Error::NotFound`] when there is no such
    /// task; [`Error::Payload`] when the output is of another type.
    pub async fn wait<T: DeserializeOwned>(&self, task_id: TaskId) -> Result<T, Error> {
        match self.finish(task_id).await? {
            Finish::Completed(output) => output.decode().map_err(|source| Error::Payload {
                what: format!("the output of task {task_id}"),
                source,
            }),
            Finish::Failed(failure) => {
                Err(Error::TaskFailed { task_id, failure: Box::new(failure) })
            }
            Finish::Cancelled => Err(Error::TaskCancelled(task_id)),
        }
    }

    async fn finish(&self, task_id: TaskId) -> Result<Finish, Error> {
        let Engine { hub, runtime, .. } = &*self.engine;
        if let Some(output) = hub.output(task_id) {
            return Ok(Finish::Completed(output));
        }
        self.engine.listen();
        let mut finished = hub.when_finished(task_id);
        let _forget = Forget { engine: &self.engine, task_id };
        let mut pause = LOOK_AGAIN.0;
        // The hub is notified of the end of a task that this process runs.
        let mut look = !hub.runs(task_id);
        loop {
            if look {
                hub.look_at(task_id);
            }
            match select(&mut finished, runtime.sleep(pause)).await {
                Either::Left((Ok(end), _)) => return end?.ok_or(Error::NotFound(task_id)),
                Either::Left((Err(_), _)) => return Err(StoreError::Closed.into()),
                Either::Right(_) => (look, pause) = (true, (pause * 2).min(LOOK_AGAIN.1)),
            }
        }
    }
}

/// Removes a waiter from the hub when the caller no longer waits for a task.
struct Forget<'a> {
    engine: &'a Engine,
    task_id: TaskId,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.engine.hub.forget_waiters(self.task_id);
    }
}
