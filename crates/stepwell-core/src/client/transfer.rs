//! The client's functions that export and import tasks.

use std::collections::BTreeMap;

use crate::base::ids::TaskId;
use crate::client::Client;
use crate::client::error::Error;
use crate::client::export::{Export, ImportError};
use crate::engine::run::child::answered_with;
use crate::store::ArrivedMessage;
use crate::store::record::TaskRecord;

/// The number of times that an export reads a task that keeps changing.
const EXPORT_TRIES: usize = 20;

impl Client {
    /// Returns everything that the store keeps of a task, as a document.
    ///
    /// The task stays in this store, and goes on here. Before the task goes on elsewhere, make sure
    /// that no worker here runs it: pause its queue, or register its type with no worker.
    ///
    /// The document holds payloads decoded by the client's codecs. It does not hold the task's
    /// children.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NotAllowed`] when the task changed during each of 20 tries, in
    /// which case it, or its queue, has to be paused; [`Error::Store`].
    pub async fn export(&self, task_id: TaskId) -> Result<Export, Error> {
        let mut info = self.task(task_id).await?.ok_or(Error::NotFound(task_id))?;
        for _ in 0..EXPORT_TRIES {
            let (waits, mut messages) = (self.waits(task_id).await?, Vec::new());
            self.each_message(task_id, |message| messages.push(message)).await?;
            let journal = self.journal(task_id).await?;
            let later = self.task(task_id).await?.ok_or(Error::NotFound(task_id))?;
            // A message never changes, and is therefore represented by its id.
            let mut later_messages = Vec::new();
            self.each_message(task_id, |message| later_messages.push(message.id)).await?;
            // The parts belong together if nothing has happened to the task between the first read
            // and the last.
            let same = (later.state, later.run_id, later.attempt)
                == (info.state, info.run_id, info.attempt)
                && messages.iter().map(|message| message.id).eq(later_messages)
                && self.waits(task_id).await? == waits
                && self.journal(task_id).await?.len() == journal.len();
            info = later;
            if same {
                let messages =
                    messages.into_iter().map(|message| (message.topic, message.payload)).collect();
                let record = TaskRecord { info, journal, waits, messages, needs: Vec::new() };
                let exported_at = self.engine.store.now();
                return Ok(Export { exported_at, metadata: BTreeMap::default(), record });
            }
        }
        Err(Error::NotAllowed { action: "export", task_id, state: info.state })
    }

    /// Imports a task that was exported from this store or another one.
    ///
    /// A task that has not ended goes on from its journal. No step that has a result runs again,
    /// and timers keep their due times.
    ///
    /// Events are not exported: an event that the task waits for has to be emitted to this store. A
    /// child that was not imported counts as deleted.
    ///
    /// # Errors
    /// [`ImportError::Exists`]; [`Error::Store`].
    pub async fn import(&self, export: Export) -> Result<TaskId, Error> {
        let mut record = export.record;
        record.check(self.engine.settings.max_payload_bytes)?;
        record.needs = answered_with(&record.journal);
        let info = &record.info;
        let task_id = info.task_id;
        if !info.state.is_finished() {
            self.check(&info.task_type, std::slice::from_ref(&info.params)).await?;
        }
        if !self.engine.answered(self.engine.store.import(record)).await? {
            return Err(ImportError::Exists.into());
        }
        self.engine.hub.workers().iter().for_each(|worker| worker.nudge());
        Ok(task_id)
    }

    /// Calls `give` with each message that a task has not received, one after the other.
    async fn each_message(
        &self,
        task_id: TaskId,
        mut give: impl FnMut(ArrivedMessage),
    ) -> Result<(), Error> {
        let mut after = None;
        loop {
            let part = self.engine.answered(self.engine.store.messages(task_id, after)).await?;
            part.items.into_iter().for_each(&mut give);
            after = part.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }
}
