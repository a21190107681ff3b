//! Circles of tasks that wait for each other.

use rusqlite::{Result, params};
use stepwell_core::store::TaskState;
use stepwell_core::{TaskId, waits_for_ever};

use crate::apply::Applying;
use crate::apply::limits::FIRST_OF_KEY;
use crate::base::rows::{Sql, Statements as _, get, known};

/// Selects whether a task waits for its turn, and whether it waits only for the ends of other
/// tasks. There are two queries, because SQLite would read all waits for a `min` and a `max` in
/// one.
pub(crate) const STANDING: &str = "SELECT state, blocked, due_at IS NULL,
        (SELECT min(kind) FROM stepwell_waits WHERE task_id = ?1) IS 'child'
            AND (SELECT max(kind) FROM stepwell_waits WHERE task_id = ?1) IS 'child'
    FROM stepwell_tasks WHERE task_id = ?1";

/// Selects the tasks for whose ends a task waits.
pub(crate) const JOINED: &str =
    "SELECT target FROM stepwell_waits WHERE task_id = ?1 AND kind = 'child'";

impl Applying<'_, '_> {
    /// Returns a child for which a task would wait for ever, if it were suspended now without a
    /// `wake_at`.
    pub(crate) fn blocked(&self, task_id: TaskId) -> Result<Option<TaskId>> {
        waits_for_ever(task_id, |at, most| self.held_up_by(at, at == task_id, most))
    }

    /// Returns at most `most` tasks that have to end before the task continues. With `suspends`,
    /// the task is about to be suspended.
    fn held_up_by(&self, task_id: TaskId, suspends: bool, most: usize) -> Result<Vec<TaskId>> {
        let standing = self.conn.one(STANDING, params![Sql(&task_id)], |row| {
            let only_joins = row.get::<_, bool>(2)? && row.get(3)?;
            Ok((known(row, 0), row.get(1)?, only_joins))
        })?;
        match standing {
            Some((Some(TaskState::Pending), true, _)) => {
                self.conn
                    .readable("a task", FIRST_OF_KEY, params![Sql(&task_id)], |row| get(row, 2))
            }
            Some((Some(state), _, true)) if suspends || state == TaskState::Suspended => {
                self.conn.first(most, "a wait", JOINED, params![Sql(&task_id)], |row| get(row, 0))
            }
            _ => Ok(Vec::new()),
        }
    }
}
