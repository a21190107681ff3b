//! Removing finished tasks.

use rusqlite::{Connection, Result, params};
use stepwell_core::TaskId;
use stepwell_core::store::Purge;

use crate::rows::{Sql, Statements as _, get, opt};

/// The task that may have yet to learn how a task ended: its parent, or one that waits for it.
pub(crate) const NEEDED_BY: &str = "SELECT coalesce(
    (SELECT parent.task_id FROM stepwell_tasks task JOIN stepwell_tasks parent ON parent.task_id = task.parent
        WHERE task.task_id = ?1 AND parent.state IN ('pending', 'running', 'suspended')),
    (SELECT min(task_id) FROM stepwell_waits WHERE target = ?1 AND kind = 'child'))";

/// Finished tasks that nobody needs, the oldest first.
pub(crate) const FINISHED: &str = "SELECT task_id FROM stepwell_tasks task
    WHERE finished_at < ?1 AND state IN ('completed', 'failed', 'cancelled') AND (?2 IS NULL OR state = ?2)
        AND NOT EXISTS (SELECT 1 FROM stepwell_tasks parent
            WHERE parent.task_id = task.parent AND parent.state IN ('pending', 'running', 'suspended'))
        AND NOT EXISTS (SELECT 1 FROM stepwell_waits wait WHERE wait.target = task.task_id AND wait.kind = 'child')
    ORDER BY rowid LIMIT ?3";

pub(crate) fn needed_by(conn: &Connection, task_id: TaskId) -> Result<Option<TaskId>> {
    Ok(conn.one(NEEDED_BY, params![Sql(&task_id)], |row| opt(row, 0))?.flatten())
}

/// Removes a task and all that belongs to it.
pub(crate) fn delete(conn: &Connection, task_id: TaskId) -> Result<()> {
    conn.run("DELETE FROM stepwell_tasks WHERE task_id = ?1", params![Sql(&task_id)])?;
    conn.run("DELETE FROM stepwell_labels WHERE task_id = ?1", params![Sql(&task_id)])?;
    conn.run("DELETE FROM stepwell_journal WHERE task_id = ?1", params![Sql(&task_id)])?;
    conn.run("DELETE FROM stepwell_history WHERE task_id = ?1", params![Sql(&task_id)])?;
    Ok(())
}

/// Removes finished tasks, the oldest first, in a transaction of their own.
pub(crate) fn purge(conn: &Connection, purge: &Purge) -> Result<usize> {
    conn.run("BEGIN IMMEDIATE", [])?;
    let purged = remove(conn, purge).and_then(|purged| {
        conn.run("COMMIT", [])?;
        Ok(purged)
    });
    if purged.is_err() && !conn.is_autocommit() {
        conn.run("ROLLBACK", [])?;
    }
    purged
}

fn remove(conn: &Connection, purge: &Purge) -> Result<usize> {
    let state = purge.state.map(stepwell_core::TaskState::as_str);
    let limit = i64::try_from(purge.limit).unwrap_or(i64::MAX);
    let doomed: Vec<TaskId> =
        conn.all(FINISHED, params![Sql(&purge.before), state, limit], |row| get(row, 0))?;
    doomed.iter().try_for_each(|task_id| delete(conn, *task_id))?;
    Ok(doomed.len())
}
