//! The client's functions for approvals.

use serde::Serialize;

use crate::base::ids::TaskId;
use crate::client::Client;
use crate::client::error::Error;
use crate::context::approval::{self, ApprovalInfo, Decision};
use crate::store::page::{ANSWER_ITEMS, Listed as _, Page, Room};
use crate::store::scope::Scope;
use crate::store::{NewEvent, StoreError, Wait};

/// The least number of waiting tasks that one query of [`Approvals::list`] asks for.
const LOOK_ON: usize = 100;

/// A filter of approvals.
///
/// The default filter has the approvals of the first hundred tasks of all scopes.
#[derive(Clone, Debug)]
pub struct ApprovalFilter {
    /// The scope of the tasks.
    pub scope: Scope,
    /// The task after which the page begins; `None` for the first page.
    pub after: Option<TaskId>,
    /// The maximum number of tasks.
    pub limit: usize,
}

impl Default for ApprovalFilter {
    fn default() -> Self {
        Self { scope: Scope::default(), after: None, limit: 100 }
    }
}

/// The approvals that tasks of a client's store wait for.
#[derive(Clone, Copy)]
pub struct Approvals<'c> {
    client: &'c Client,
}

impl Client {
    /// Returns the functions for approvals.
    pub fn approvals(&self) -> Approvals<'_> {
        Approvals { client: self }
    }
}

impl Approvals<'_> {
    /// Returns the approvals that the oldest tasks wait for, among the tasks that wait for one.
    ///
    /// The page has fewer tasks when the approvals have 32 MiB of payloads. For the next page, set
    /// `after` of the filter to `next` of this one.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn list(self, filter: ApprovalFilter) -> Result<Page<ApprovalInfo>, Error> {
        let ApprovalFilter { scope, mut after, limit } = filter;
        let engine = &self.client.engine;
        let (mut items, mut tasks, mut room) = (Vec::new(), 0, Room::default());
        loop {
            let at_once = (limit - tasks).clamp(LOOK_ON, ANSWER_ITEMS);
            let waits = engine.store.waits(scope.clone(), approval::PREFIX.into(), after, at_once);
            let waits = engine.answered(waits).await?;
            // Events of such a name that are not approvals are not part of the page, and neither
            // are tasks that cannot be read. Both do not end the page.
            for (task_id, waits) in &waits.items {
                if tasks == limit || room.is_full() {
                    return Ok(Page { items, next: after });
                }
                let found = self.among(*task_id, waits).await?;
                tasks += usize::from(!found.is_empty());
                found.iter().for_each(|approval| _ = room.take(approval.bytes()));
                items.extend(found);
                after = Some(*task_id);
            }
            after = waits.next;
            if after.is_none() {
                return Ok(Page { items, next: None });
            }
        }
    }

    /// Returns the approvals that a task waits for.
    ///
    /// # Errors
    /// The errors of [`Approvals::list`].
    pub async fn of_task(self, task_id: TaskId) -> Result<Vec<ApprovalInfo>, Error> {
        self.among(task_id, &self.client.waits(task_id).await?).await
    }

    /// Returns the approvals among a task's waits.
    async fn among(self, task_id: TaskId, waits: &[Wait]) -> Result<Vec<ApprovalInfo>, Error> {
        let waits = waits
            .iter()
            .filter_map(|wait| Some((approval::awaited_by(task_id, wait)?, wait.due_at)));
        let waits: Vec<_> = waits.collect();
        if waits.is_empty() {
            return Ok(Vec::new());
        }
        let read = async {
            let info = self.client.task(task_id).await?;
            Ok((info, self.client.journal(task_id).await?))
        };
        match read.await {
            Ok((Some(info), journal)) => {
                let read = |(event, due_at)| ApprovalInfo::read(&info, &journal, event, due_at);
                Ok(waits.into_iter().filter_map(read).collect())
            }
            Ok((None, _)) => Ok(Vec::new()),
            Err(Error::Store(StoreError::Unreadable(error))) => {
                tracing::error!(%task_id, %error, "an approval of a task that cannot be read is \
                                                   left out");
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    /// Decides an approval that a task waits for, by the name that [`Approvals::list`] returns.
    ///
    /// The first decision stands.
    ///
    /// ```
    /// # use stepwell_core::{ApprovalFilter, Client, Decision, Error};
    /// # async fn decide(client: Client) -> Result<(), Error> {
    /// for approval in client.approvals().list(ApprovalFilter::default()).await?.items {
    ///     let amount: u64 = approval.request.decode().unwrap_or(0);
    ///     let decision = match amount {
    ///         0..=1_000 => Decision::approved("ada", amount),
    ///         _ => Decision::rejected("ada", "too much"),
    ///     };
    ///     client.approvals().decide(approval.task_id, &approval.name, &decision).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::UnknownApproval`] when the task does not wait for the approval;
    /// [`Error::AlreadyDecided`] when there is an earlier decision; the errors of
    /// [`Client::emit_event`].
    pub async fn decide<T: Serialize>(
        self,
        task_id: TaskId,
        name: &str,
        decision: &Decision<T>,
    ) -> Result<(), Error> {
        let waits = self.client.waits(task_id).await?;
        let mut events = waits.iter().filter_map(|wait| approval::awaited_by(task_id, wait));
        let event = events.find(|event| approval::label_of(event) == Some(name)).cloned();
        let event = event.ok_or_else(|| Error::UnknownApproval { task_id, name: name.into() })?;
        let payload = self.client.encode(decision, || format!("the event {event}"))?;
        let decided = NewEvent { name: event, queue: None, payload };
        if self.client.emit(decided).await? {
            Ok(())
        } else {
            Err(Error::AlreadyDecided { task_id, name: name.into() })
        }
    }
}
