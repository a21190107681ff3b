//! The removal of ended tasks.

use rusqlite::{Connection, Result, Transaction, TransactionBehavior, params};
use stepwell_core::TaskId;
use stepwell_core::store::{Purge, TaskState};

use crate::base::rows::{Sql, Statements as _, get, opt};

/// Expands to the condition that `other` may still have to learn how the task ended. `other` was
/// answered with that task, and has not completed. An `other` that failed or was cancelled does not
/// count when it is itself kept for the task, because then neither would ever be removed.
macro_rules! other_needs {
    ($task:literal) => {
        concat!(
            "(other.state IN ('pending', 'running', 'suspended')
                OR other.state <> 'completed' AND ",
            $task,
            " NOT IN (
                WITH RECURSIVE above (task_id) AS (
                    SELECT other.task_id
                    UNION SELECT up.task_id FROM above
                        CROSS JOIN stepwell_tasks kept ON kept.task_id = above.task_id
                        CROSS JOIN stepwell_tasks up
                            ON up.task_id = kept.parent AND up.state <> 'completed'
                    UNION SELECT up.task_id FROM above
                        CROSS JOIN stepwell_needs need ON need.task_id = above.task_id
                        CROSS JOIN stepwell_tasks up
                            ON up.task_id = need.needed_by AND up.state <> 'completed'
                ) SELECT task_id FROM above))"
        )
    };
}

/// Selects a task that may still have to learn how the given task ended: its parent, a task that
/// waits for it, or a task that was answered with it.
pub(crate) const NEEDED_BY: &str = concat!(
    "SELECT coalesce(
    (SELECT parent.task_id FROM stepwell_tasks task
        JOIN stepwell_tasks parent ON parent.task_id = task.parent
        WHERE task.task_id = ?1 AND parent.state <> 'completed'),
    (SELECT min(task_id) FROM (
        SELECT task_id FROM stepwell_waits WHERE target = ?1 AND kind = 'child'
        UNION ALL
        SELECT other.task_id FROM stepwell_needs need
        JOIN stepwell_tasks other ON other.task_id = need.needed_by
        WHERE need.task_id = ?1 AND ",
    other_needs!("?1"),
    ")))"
);

/// Defines a statement for ended tasks that no other task needs.
macro_rules! finished {
    ($which:literal) => {
        concat!(
            "SELECT task_id FROM stepwell_tasks task
            WHERE finished_at < ?1 AND state IN ('completed', 'failed', 'cancelled')
                AND (?2 IS NULL OR state = ?2)
                AND NOT EXISTS (SELECT 1 FROM stepwell_tasks parent
                    WHERE parent.task_id = task.parent AND parent.state <> 'completed')
                AND NOT EXISTS (SELECT 1 FROM stepwell_waits wait
                    WHERE wait.target = task.task_id AND wait.kind = 'child')
                AND NOT EXISTS (SELECT 1 FROM stepwell_needs need
                    CROSS JOIN stepwell_tasks other ON other.task_id = need.needed_by
                    WHERE need.task_id = task.task_id AND ",
            other_needs!("task.task_id"),
            ") AND ",
            $which
        )
    };
}

/// Selects the ended tasks that no other task needs, with ids below the given one, the oldest
/// first.
pub(crate) const FINISHED: &str = finished!("task_id < ?3 ORDER BY task_id LIMIT -1");

/// Selects the given task, if it has ended and no other task needs it.
const STILL_FINISHED: &str = finished!("task_id = ?3");

/// Selects the tasks that may be kept for a task that has not completed, among those that ended
/// before the given time.
pub(crate) const KEPT_FOR: &str = "SELECT child.task_id FROM stepwell_tasks task
        CROSS JOIN stepwell_tasks child ON child.parent = task.task_id
        WHERE task.task_id = ?1 AND task.state <> 'completed' AND child.finished_at < ?2
    UNION SELECT task_id FROM stepwell_needs WHERE needed_by = ?1";

/// Keeps a task for another one, which was answered with it, until that one has completed.
pub(crate) fn need(conn: &Connection, task_id: TaskId, needed_by: TaskId) -> Result<()> {
    let sql =
        "INSERT INTO stepwell_needs (task_id, needed_by) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
    conn.run(sql, params![Sql(&task_id), Sql(&needed_by)]).map(drop)
}

pub(crate) fn needed_by(conn: &Connection, task_id: TaskId) -> Result<Option<TaskId>> {
    Ok(conn.one(NEEDED_BY, params![Sql(&task_id)], |row| opt(row, 0))?.flatten())
}

/// Removes a task with all its rows.
pub(crate) fn delete(conn: &Connection, task_id: TaskId) -> Result<()> {
    conn.run("DELETE FROM stepwell_tasks WHERE task_id = ?1", params![Sql(&task_id)])?;
    conn.run("DELETE FROM stepwell_labels WHERE task_id = ?1", params![Sql(&task_id)])?;
    conn.run("DELETE FROM stepwell_journal WHERE task_id = ?1", params![Sql(&task_id)])?;
    conn.run("DELETE FROM stepwell_history WHERE task_id = ?1", params![Sql(&task_id)])?;
    conn.run("DELETE FROM stepwell_messages WHERE task_id = ?1", params![Sql(&task_id)])?;
    conn.run(
        "DELETE FROM stepwell_needs WHERE task_id = ?1 OR needed_by = ?1",
        params![Sql(&task_id)],
    )?;
    Ok(())
}

/// Returns ended tasks to remove, the oldest first. The search may read many tasks, and therefore
/// runs on the reader, where no commit waits for it.
pub(crate) fn find(conn: &Connection, purge: &Purge) -> Result<Vec<TaskId>> {
    // A task ends after the time in its id, so no task that ended before the limit has a higher id.
    // An id holds no time before 1970, and no task ended then.
    let millis = u64::try_from(purge.before.as_millisecond() + 1).unwrap_or(0);
    let end = TaskId::from(uuid::Builder::from_unix_timestamp_millis(millis, &[0; 10]).into_uuid());
    let asked = params![Sql(&purge.before), state(purge), Sql(&end)];
    conn.first(purge.limit, "a task", FINISHED, asked, |row| get(row, 0))
}

/// Removes the given tasks in a transaction, except tasks that have changed since the search. Tasks
/// that were kept for a removed one are removed as well, unless another task needs them. The result
/// is the number of removed tasks.
pub(crate) fn remove(conn: &Connection, purge: &Purge, found: &[TaskId]) -> Result<usize> {
    if found.is_empty() {
        return Ok(0);
    }
    let tx = Transaction::new_unchecked(conn, TransactionBehavior::Immediate)?;
    let mut removed = 0;
    for task_id in found {
        let mut left = vec![*task_id];
        while removed < purge.limit
            && let Some(task_id) = left.pop()
        {
            let asked = params![Sql(&purge.before), state(purge), Sql(&task_id)];
            if tx.one(STILL_FINISHED, asked, |_| Ok(()))?.is_some() {
                let asked = params![Sql(&task_id), Sql(&purge.before)];
                left.extend(tx.readable("a task", KEPT_FOR, asked, |row| get::<TaskId>(row, 0))?);
                delete(&tx, task_id)?;
                removed += 1;
            }
        }
    }
    tx.commit()?;
    Ok(removed)
}

fn state(purge: &Purge) -> Option<&'static str> {
    purge.state.map(TaskState::as_str)
}
