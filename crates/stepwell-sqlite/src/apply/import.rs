//! The import of exported tasks.

use rusqlite::{Connection, Result, Transaction, TransactionBehavior, params};
use stepwell_core::store::rules::{Counts, Leaving};
use stepwell_core::store::{TaskInfo, TaskState};
use stepwell_core::{TaskRecord, Timestamp};

use crate::apply::limits::line_up;
use crate::apply::purge::need;
use crate::apply::transition::add_entries;
use crate::apply::{labels, waits};
use crate::base::rows::{Sql, Statements as _};

/// Imports a task in its own transaction. The result is `false` when the task, or a task with its
/// idempotency key, exists.
pub(crate) fn import(conn: &Connection, now: Timestamp, record: &TaskRecord) -> Result<bool> {
    let tx = Transaction::new_unchecked(conn, TransactionBehavior::Immediate)?;
    let imported = insert(&tx, now, record)?;
    tx.commit()?;
    Ok(imported)
}

fn insert(conn: &Connection, now: Timestamp, record: &TaskRecord) -> Result<bool> {
    let TaskRecord { info, journal, waits, messages, needs } = record;
    let task_id = Sql(&info.task_id);
    let counts = Counts { attempt: info.attempt, ..Counts::default() };
    let counts = match info.state {
        TaskState::Running => counts.left(Leaving::Released),
        _ => counts,
    };
    let ended = info.state.is_finished();
    if exists(conn, info)? {
        return Ok(false);
    }
    let state = if ended { info.state } else { TaskState::Pending };
    let due_at = info.due_at.filter(|due_at| info.state == TaskState::Pending && *due_at > now);
    conn.run(
        "INSERT INTO stepwell_tasks (task_id, run_id, task_type, queue, state, priority, attempt,
            max_attempts, parent, idempotency_key, spawned_at, ready_at, started_at, finished_at,
            due_at, cancel_at, max_duration, retry, headers, params, failure, output,
            concurrency_key, code_version, compensating, scope)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18,
            ?19, ?20, ?21, ?22, ?23, ?24, ?25, ?26)",
        params![
            task_id,
            Sql(&info.run_id),
            Sql(&info.task_type),
            Sql(&info.queue),
            Sql(&state),
            info.priority,
            counts.attempt,
            info.max_attempts,
            info.parent.as_ref().map(Sql),
            info.idempotency_key.as_ref().map(Sql),
            Sql(&info.spawned_at),
            Sql(&now),
            info.started_at.as_ref().map(Sql),
            info.finished_at.as_ref().map(Sql),
            due_at.as_ref().map(Sql),
            info.cancel_at.as_ref().map(Sql),
            info.max_duration.as_ref().map(Sql),
            Sql(&info.retry),
            Sql(&info.headers),
            Sql(&info.params),
            info.failure.as_ref().map(Sql),
            info.output.as_ref().map(Sql),
            info.concurrency_key.as_ref().map(Sql),
            info.code_version.as_ref().map(Sql),
            info.state == TaskState::Compensating,
            Sql(&info.scope),
        ],
    )?;
    labels::add(conn, info.task_id, &info.queue, &info.headers, &info.scope)?;
    add_entries(conn, info.task_id, journal)?;
    for (topic, payload) in messages.iter().filter(|_| info.state != TaskState::Completed) {
        let sql = "INSERT INTO stepwell_messages (task_id, topic, payload) VALUES (?1, ?2, ?3)";
        conn.run(sql, params![task_id, Sql(topic), Sql(payload)])?;
    }
    needs.iter().try_for_each(|needed| need(conn, *needed, info.task_id))?;
    if ended {
        return Ok(true);
    }
    // Waits come after the messages, because some of them may be for a message.
    waits.iter().try_for_each(|wait| waits::add(conn, info.task_id, wait))?;
    line_up(conn, info.task_id)?;
    Ok(true)
}

/// Returns whether the task, or a task with its idempotency key, exists.
fn exists(conn: &Connection, info: &TaskInfo) -> Result<bool> {
    let found = conn.one(
        "SELECT 1 FROM stepwell_tasks
        WHERE task_id = ?1 OR (task_type = ?2 AND idempotency_key = ?3 AND scope = ?4)",
        params![
            Sql(&info.task_id),
            Sql(&info.task_type),
            info.idempotency_key.as_ref().map(Sql),
            Sql(&info.scope)
        ],
        |_| Ok(()),
    )?;
    Ok(found.is_some())
}
