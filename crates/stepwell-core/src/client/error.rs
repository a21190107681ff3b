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

/// An error of a call of the client.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store could not do its work.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A name is not valid.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The options are not valid.
    #[error(transparent)]
    Options(#[from] InvalidOptions),
    /// A value could not be written or read.
    #[error("{what}: {source}")]
    Payload {
        /// The name of the value: the parameters of a task, the payload of an event.
        what: String,
        /// The reason.
        source: PayloadError,
    },
    /// Another task type has this name.
    #[error(
        "two task types are named \"{0}\": a task finds its code by that name, so give one of them \
         another `NAME`"
    )]
    DuplicateTaskType(String),
    /// A document is not a task that can be imported.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A workflow is not valid or not registered.
    #[error(transparent)]
    Workflow(#[from] WorkflowError),
    /// The database's URL is of an unknown kind.
    #[error(
        "\"{url}\" is no database URL that this program knows ({reason}): use \
         `sqlite://path/to/file.db`, `sqlite::memory:`, `postgres://user:password@host/database`, \
         or leave it out for `sqlite://stepwell.db`"
    )]
    Url {
        /// The URL, without the part that may be its password.
        url: String,
        /// The reason why the URL is not valid.
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
    /// The task does not wait for an approval of this name.
    #[error(
        "task {task_id} does not wait for an approval named \"{name}\": it has not come to it yet, \
         has it behind it, or names it otherwise (list the open ones with `client.approvals()`)"
    )]
    UnknownApproval {
        /// The task.
        task_id: TaskId,
        /// The name of the approval.
        name: String,
    },
    /// An earlier decision stands.
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
        /// The name of the schedule.
        name: String,
        /// The reason why the schedule is not valid.
        source: InvalidSchedule,
    },
    /// There is no such schedule.
    #[error("there is no schedule \"{0}\": it may have been deleted, or the name is misspelt")]
    UnknownSchedule(String),
    /// A task of the same type and concurrency key waits to start, and the spawn asked to be
    /// rejected in this case.
    #[error("not spawned: task {0}, of the same type and concurrency key, waits to start")]
    Waiting(TaskId),
    /// The task's state does not allow the request.
    #[error("cannot {action} task {task_id}: it is {state}")]
    NotAllowed {
        /// The request: `cancel`, `retry`, `delete`, `send to`, `pause`, `resume`, `export`.
        action: &'static str,
        /// The task.
        task_id: TaskId,
        /// The state of the task.
        state: TaskState,
    },
    /// The task cannot be deleted because another task may still join it.
    #[error(
        "task {task_id} is kept: task {by} has not completed, and may have yet to learn how it \
         ended. Delete it when that has completed; one that has failed or was cancelled is deleted \
         first, or retried"
    )]
    Needed {
        /// The task that was to be deleted.
        task_id: TaskId,
        /// The task that needs it: its parent, a task that waits for it, or a task whose spawn was
        /// answered with it.
        by: TaskId,
    },
    /// The awaited task failed.
    #[error("task {task_id} failed: {failure}")]
    TaskFailed {
        /// The task.
        task_id: TaskId,
        /// The reason.
        failure: Box<Failure>,
    },
    /// The awaited task was cancelled.
    #[error("task {0} was cancelled")]
    TaskCancelled(TaskId),
}
