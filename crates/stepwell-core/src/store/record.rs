//! The record of a task, for exports and imports.

use serde::{Deserialize, Serialize};

use crate::base::ids::TaskId;
use crate::base::journal::Entry;
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::store::{TaskInfo, Wait};

/// The record of a task: all data that a store keeps of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskRecord {
    /// The options with which the task was spawned, and its state.
    pub info: TaskInfo,
    /// The entries of the journal.
    pub journal: Vec<Entry>,
    /// The waits of the task.
    pub waits: Vec<Wait>,
    /// The messages in the mailbox, in order, with their topics.
    pub messages: Vec<(Name, Payload)>,
    /// The tasks that the spawns of this task were answered with; an import reads them from the
    /// journal.
    #[serde(skip)]
    pub needs: Vec<TaskId>,
}
