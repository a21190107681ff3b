//! Circles of tasks that wait for each other.

use std::collections::BTreeSet;
use std::convert::Infallible;

use super::{State, concurrency_key};
use crate::base::ids::TaskId;
use crate::base::journal::Kind;
use crate::store::TaskState;
use crate::store::rules::circle::waits_for_ever;

impl State {
    /// Returns a child that a task would wait for for ever, if it were suspended now without a
    /// `wake_at`.
    pub(super) fn blocked(&self, task_id: TaskId) -> Option<TaskId> {
        let Ok(blocked) = waits_for_ever::<Infallible>(task_id, |at, most| {
            Ok(self.held_up_by(at, at == task_id, most))
        });
        blocked
    }

    /// Returns at most `most` tasks that have to end before the given task goes on.
    ///
    /// `suspends` says that the task is about to be suspended.
    fn held_up_by(&self, task_id: TaskId, suspends: bool, most: usize) -> Vec<TaskId> {
        let Some(task) = self.tasks.get(&task_id) else { return Vec::new() };
        if task.state == TaskState::Pending && !self.has_turn(&task.new) {
            let line = concurrency_key(&task.new).and_then(|key| self.keys.get(&key));
            return line.and_then(BTreeSet::first).map(|(_, first)| *first).into_iter().collect();
        }
        let is_suspended = suspends || task.state == TaskState::Suspended && task.due_at.is_none();
        let only_joins = task.waits.are_all(Kind::Child);
        let waits = task.waits.all().filter(|_| is_suspended && only_joins);
        waits.filter_map(|wait| wait.target.as_ref()?.as_str().parse().ok()).take(most).collect()
    }
}
