//! The client's functions for tasks: commands, messages, and what the store keeps of them.

use serde::Serialize;

use crate::base::ids::TaskId;
use crate::base::journal::{Entry, Replay};
use crate::base::name::Name;
use crate::base::payload::PayloadError;
use crate::client::Client;
use crate::client::error::Error;
use crate::client::spawn::SpawnResult;
use crate::codec::Place;
use crate::codec::envelope::encoded_with;
use crate::observe::notes::LogLine;
use crate::observe::trace;
use crate::store::page::Page;
use crate::store::spawn_options::SpawnOptions;
use crate::store::{
    CancellationPolicy, Command, CommandOutcome, NewMessage, TaskFilter, TaskInfo, TaskState, Wait,
};
use crate::workflow::Snapshot;

impl Client {
    /// Returns what the store keeps of a task, without its journal; `None` when there is no such
    /// task.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn task(&self, task_id: TaskId) -> Result<Option<TaskInfo>, Error> {
        Ok(self.engine.answered(self.engine.store.task(task_id)).await?)
    }

    /// Returns the tasks that pass the filter, newest first.
    ///
    /// For the next page, set `before` of the filter to `next` of this one. A page also ends when
    /// its tasks have 32 MiB of payloads ([`ANSWER_BYTES`](crate::ANSWER_BYTES)), so that a page of
    /// fewer than `limit` tasks is not always the last one.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn tasks(&self, mut filter: TaskFilter) -> Result<Page<TaskInfo>, Error> {
        loop {
            let page = self.engine.answered(self.engine.store.tasks(filter.clone())).await?;
            match page.next {
                // None of the page's tasks could be read.
                Some(next) if page.items.is_empty() => filter.before = Some(next),
                _ => return Ok(page),
            }
        }
    }

    /// Returns a task's journal: what was delivered to it, in order.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn journal(&self, task_id: TaskId) -> Result<Vec<Entry>, Error> {
        Ok(self.engine.answered(self.engine.store.journal(task_id)).await?)
    }

    /// Returns the waits of a task.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn waits(&self, task_id: TaskId) -> Result<Vec<Wait>, Error> {
        Ok(self.engine.answered(self.engine.store.waits_of(task_id)).await?)
    }

    /// Returns the lines that a task has written to its log, the oldest first.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn logs(&self, task_id: TaskId) -> Result<Vec<LogLine>, Error> {
        Ok(LogLine::all(&self.journal(task_id).await?))
    }

    /// Returns the present state of a task, with the results of its steps.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Store`].
    pub async fn snapshot(&self, task_id: TaskId) -> Result<Snapshot, Error> {
        let info = self.task(task_id).await?.ok_or(Error::NotFound(task_id))?;
        let journal = self.journal(task_id).await?;
        let workflow = self.workflow(&info.task_type);
        Ok(Snapshot::new(info, &journal, workflow.as_deref()))
    }

    /// Sends a message to the mailbox of a task.
    ///
    /// # Errors
    /// The errors of [`Spawn`](crate::Spawn); [`Error::NotFound`] when there is no such task;
    /// [`Error::NotAllowed`] when the task has ended.
    pub async fn send<T: Serialize + ?Sized>(
        &self,
        task_id: TaskId,
        topic: impl AsRef<str>,
        payload: &T,
    ) -> Result<(), Error> {
        let topic = Name::awaitable(topic)?;
        let payload = self.encode(payload, || format!("the message {topic}"))?;
        if self
            .engine
            .answered(self.engine.commit.send(NewMessage { task_id, topic, payload }))
            .await?
        {
            return Ok(());
        }
        let task = self.task(task_id).await?.ok_or(Error::NotFound(task_id))?;
        Err(Error::NotAllowed { action: "send to", task_id, state: task.state })
    }

    /// Cancels a task and its children.
    ///
    /// A task that runs is notified, and it ends as soon as its code does. Any other task ends at
    /// once.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NotAllowed`] when the task has ended.
    pub async fn cancel(&self, task_id: TaskId) -> Result<(), Error> {
        self.command("cancel", task_id, Command::Cancel(task_id)).await
    }

    /// Runs a failed or cancelled task again, from its journal.
    ///
    /// No step that has a result runs again. The failed and cancelled children of the task run
    /// again, too, with their own children, unless the task has handled their failures. Children
    /// that have completed are joined as they are. Messages that the task has not received are
    /// still in its mailbox.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NotAllowed`] when the task has neither failed nor been
    /// cancelled, or when one of its children is still being cancelled or compensated. In the
    /// second case, retry the task after that child has ended.
    pub async fn retry(&self, task_id: TaskId) -> Result<(), Error> {
        let action = "retry";
        let info = self.task(task_id).await?.ok_or(Error::NotFound(task_id))?;
        if !matches!(info.state, TaskState::Failed | TaskState::Cancelled) {
            return Err(Error::NotAllowed { action, task_id, state: info.state });
        }
        let mut family = vec![task_id];
        let mut looked_at = 0;
        while let Some(&parent) = family.get(looked_at) {
            looked_at += 1;
            for child in Replay::new(self.journal(parent).await?).unjoined_children() {
                let Some(info) = self.task(child).await?.filter(|info| info.parent == Some(parent))
                else {
                    continue;
                };
                let state = info.state;
                if matches!(state, TaskState::Failed | TaskState::Cancelled) {
                    family.push(child);
                } else if state == TaskState::Compensating
                    || info.cancel_requested && !state.is_finished()
                {
                    return Err(Error::NotAllowed { action, task_id: child, state });
                }
            }
        }
        // The task itself comes last, so that it can be retried again after an interruption.
        for task_id in family.into_iter().rev() {
            self.command(action, task_id, Command::Retry(task_id)).await?;
        }
        Ok(())
    }

    /// Pauses a task that has not ended: no worker claims it until it is [resumed](Client::resume).
    ///
    /// A task that runs goes on until it waits or its attempt ends. What a paused task waits for
    /// still arrives, and its deadlines still hold. A paused task can be cancelled; its
    /// compensations run after it is resumed. A pause of a paused task changes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NotAllowed`] when the task has ended.
    pub async fn pause(&self, task_id: TaskId) -> Result<(), Error> {
        self.command("pause", task_id, Command::Pause(task_id)).await
    }

    /// Resumes a paused task: it goes on from where it was.
    ///
    /// # Errors
    /// The errors of [`Client::pause`].
    pub async fn resume(&self, task_id: TaskId) -> Result<(), Error> {
        self.command("resume", task_id, Command::Resume(task_id)).await
    }

    /// Spawns a new task with the type, parameters and options of an existing one, without its
    /// idempotency key.
    ///
    /// The new task begins from the start.
    ///
    /// # Errors
    /// [`Error::NotFound`]; the errors of [`Spawn`](crate::Spawn).
    pub async fn retrigger(&self, task_id: TaskId) -> Result<SpawnResult, Error> {
        let info = self.task(task_id).await?.ok_or(Error::NotFound(task_id))?;
        let place = Place::Params(task_id);
        let encoded = self
            .engine
            .codecs
            .is_none()
            .then(|| encoded_with(info.params.as_str(), &place))
            .flatten();
        let encoded =
            encoded.map(|reason| PayloadError::Unreadable { what: place.to_string(), reason });
        if let Some(source) = info.params.unreadable().cloned().or(encoded) {
            return Err(Error::Payload { what: place.to_string(), source });
        }
        let cancellation = CancellationPolicy { max_delay: None, max_duration: info.max_duration };
        let mut options = SpawnOptions::new()
            .queue(info.queue.to_string())
            .priority(info.priority)
            .max_attempts(info.max_attempts)
            .retry(info.retry)
            .cancellation(cancellation);
        (options.headers, options.scope) = (trace::untraced(info.headers), info.scope);
        if let Some(key) = info.concurrency_key {
            options = options.concurrency_key(key.to_string());
        }
        if let Some(version) = info.code_version {
            options = options.code_version(version.to_string());
        }
        self.spawn_named(info.task_type.as_str(), &info.params).options(options).await
    }

    /// Removes a finished task with all that belongs to it.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NotAllowed`] when the task has not ended; [`Error::Needed`]
    /// when another task still needs it. The parent of the task needs it until the parent has
    /// completed. So does a task whose spawn was answered with it, and a task that waits for it.
    pub async fn delete(&self, task_id: TaskId) -> Result<(), Error> {
        self.command("delete", task_id, Command::Delete(task_id)).await?;
        self.engine.hub.forget_output(task_id);
        Ok(())
    }

    async fn command(
        &self,
        action: &'static str,
        task_id: TaskId,
        command: Command,
    ) -> Result<(), Error> {
        match self.engine.answered(self.engine.commit.command(command)).await? {
            CommandOutcome::Done => Ok(()),
            CommandOutcome::NotAllowed(state) => Err(Error::NotAllowed { action, task_id, state }),
            CommandOutcome::Needed { by } => Err(Error::Needed { task_id, by }),
            CommandOutcome::NotFound => Err(Error::NotFound(task_id)),
        }
    }
}
