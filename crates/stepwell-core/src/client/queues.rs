//! The client's functions for queues.

use crate::base::name::Name;
use crate::client::Client;
use crate::client::error::Error;
use crate::store::queue::{QueueAction, QueueChange, QueueInfo, QueueLimits};

/// The queues of a client's store.
#[derive(Clone, Copy)]
pub struct Queues<'c> {
    client: &'c Client,
}

impl Client {
    /// Returns the functions for queues.
    pub fn queues(&self) -> Queues<'_> {
        Queues { client: self }
    }
}

impl Queues<'_> {
    /// Returns the queues that have limits, are paused, or have tasks that have not ended.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn list(self) -> Result<Vec<QueueInfo>, Error> {
        let engine = &self.client.engine;
        Ok(engine.answered(engine.store.queues()).await?)
    }

    /// Pauses a queue on all workers: none of its tasks is claimed any more.
    ///
    /// Tasks that run go on.
    ///
    /// # Errors
    /// [`Error::Name`]; [`Error::Store`] when nothing could be written.
    pub async fn pause(self, queue: impl AsRef<str>) -> Result<(), Error> {
        self.change(queue, QueueAction::Pause).await
    }

    /// Resumes a paused queue: its tasks can be claimed again.
    ///
    /// # Errors
    /// The errors of [`Queues::pause`].
    pub async fn resume(self, queue: impl AsRef<str>) -> Result<(), Error> {
        self.change(queue, QueueAction::Resume).await
    }

    /// Sets the limits of a queue for all workers together, in place of its earlier limits.
    ///
    /// The limits hold for claims from now on.
    ///
    /// # Errors
    /// The errors of [`Queues::pause`].
    pub async fn limit(self, queue: impl AsRef<str>, limits: QueueLimits) -> Result<(), Error> {
        self.change(queue, QueueAction::Limit(limits)).await
    }

    async fn change(self, queue: impl AsRef<str>, action: QueueAction) -> Result<(), Error> {
        let engine = &self.client.engine;
        let change = QueueChange { queue: Name::new(queue)?, action };
        Ok(engine.answered(engine.commit.change_queue(change)).await?)
    }
}
