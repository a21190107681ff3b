//! A task, with all that a store keeps of it.

use serde::{Deserialize, Serialize};

use crate::base::ids::TaskId;
use crate::base::journal::Entry;
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::store::{TaskInfo, Wait};

/// Everything that a store keeps of a task.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskRecord {
    /// What it was spawned as, and where it is in its life.
    pub info: TaskInfo,
    /// What was delivered to it.
    pub journal: Vec<Entry>,
    /// What it waits for.
    pub waits: Vec<Wait>,
    /// What is in its mailbox, in order, by topic.
    pub messages: Vec<(Name, Payload)>,
    /// The tasks that its spawns were answered with. An import reads them from the journal.
    #[serde(skip)]
    pub needs: Vec<TaskId>,
}
