//! The errors of a client's calls.

use crate::base::failure::Failure;
use crate::base::ids::{TaskId, WorkerId};
use crate::base::invalid_options::InvalidOptions;
use crate::base::name::InvalidName;
use crate::base::payload::PayloadError;
use crate::client::export::ImportError;
use crate::store::timing::InvalidSchedule;
use crate::store::{StoreError, TaskState};
use crate::workflow::WorkflowError;

/// Why a call of the client failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store could not do its work.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A name is not valid.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The options cannot be used.
    #[error(transparent)]
    Options(#[from] InvalidOptions),
    /// A value could not be written or read.
    #[error("{what}: {source}")]
    Payload {
        /// What it was: the parameters of a task, the payload of an event.
        what: String,
        /// Why.
        source: PayloadError,
    },
    /// Another task type has this name.
    #[error(
        "two task types are named \"{0}\": a task finds its code by that name, so give one of them \
         another `NAME`"
    )]
    DuplicateTaskType(String),
    /// A document is no task that can be imported.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A workflow is not put together as it has to be, or not registered.
    #[error(transparent)]
    Workflow(#[from] WorkflowError),
    /// The database's URL is of no known kind.
    #[error(
        "\"{url}\" is no database URL that this program knows ({reason}): use \
         `sqlite://path/to/file.db`, `sqlite::memory:`, `postgres://user:password@host/database`, \
         or leave it out for `sqlite://stepwell.db`"
    )]
    Url {
        /// The URL, without what may be its password.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no such task.
    #[error("there is no task {0}: it may have been deleted, or the id is of another database")]
    NotFound(TaskId),
    /// There is no such worker.
    #[error(
        "there is no worker {0}: it has stopped, or its lease has run out (it then goes on under \
         another id)"
    )]
    UnknownWorker(WorkerId),
    /// There is no such approval to be given.
    #[error(
        "task {task_id} does not wait for an approval named \"{name}\": it has not come to it yet, \
         has it behind it, or names it otherwise (list the open ones with `client.approvals()`)"
    )]
    UnknownApproval {
        /// The task.
        task_id: TaskId,
        /// The name that was given.
        name: String,
    },
    /// Somebody else has decided first.
    #[error("the approval \"{name}\" of task {task_id} has been decided already")]
    AlreadyDecided {
        /// The task.
        task_id: TaskId,
        /// The approval.
        name: String,
    },
    /// A schedule is not valid.
    #[error("the schedule \"{name}\": {source}")]
    Schedule {
        /// Its name.
        name: String,
        /// What is wrong with it.
        source: InvalidSchedule,
    },
    /// There is no such schedule.
    #[error("there is no schedule \"{0}\": it may have been deleted, or the name is misspelt")]
    UnknownSchedule(String),
    /// A task of the same type and concurrency key waits to start, and the spawn was to be rejected
    /// then.
    #[error("not spawned: task {0}, of the same type and concurrency key, waits to start")]
    Waiting(TaskId),
    /// The task's state does not allow what was asked.
    #[error("cannot {action} task {task_id}: it is {state}")]
    NotAllowed {
        /// What was asked: `cancel`, `retry`, `delete`, `send to`.
        action: &'static str,
        /// The task.
        task_id: TaskId,
        /// Its state.
        state: TaskState,
    },
    /// A task is to be deleted that another one may have yet to join.
    #[error(
        "task {task_id} is kept: task {by} has not completed, and may have yet to learn how it \
         ended. Delete it when that has completed; one that has failed or was cancelled is deleted \
         first, or retried"
    )]
    Needed {
        /// The task that was to be deleted.
        task_id: TaskId,
        /// The task that needs it: its parent, one that waits for it, or one that was answered
        /// with it.
        by: TaskId,
    },
    /// The awaited task failed.
    #[error("task {task_id} failed: {failure}")]
    TaskFailed {
        /// The task.
        task_id: TaskId,
        /// Why.
        failure: Box<Failure>,
    },
    /// The awaited task was cancelled.
    #[error("task {0} was cancelled")]
    TaskCancelled(TaskId),
}
