//! Workers, and what waits for them.

use std::collections::BTreeSet;

use rusqlite::types::Type;
use rusqlite::{Connection, Error, Result, params};
use stepwell_core::{Name, Timestamp, WorkerInfo, after};

use crate::base::rows::{Sql, Statements as _, duration, get};

/// Returns all workers, with their state at the given time.
pub(crate) fn workers(conn: &Connection, now: Timestamp) -> Result<Vec<WorkerInfo>> {
    conn.readable(
        "a worker",
        "SELECT w.worker_id, w.name, w.queues, w.concurrency, w.code_version, w.state,
            w.registered_at, w.heartbeat_at, w.lease,
            (SELECT count(*) FROM stepwell_tasks t
                WHERE t.worker_id = w.worker_id AND t.state = 'running')
        FROM stepwell_workers w ORDER BY w.worker_id",
        [],
        |row| {
            let queues: String = row.get(2)?;
            let heartbeat_at = get(row, 7)?;
            let lease = duration(row.get(8)?);
            Ok(WorkerInfo {
                worker_id: get(row, 0)?,
                name: row.get(1)?,
                queues: serde_json::from_str(&queues).map_err(|error| {
                    Error::FromSqlConversionFailure(2, Type::Text, error.into())
                })?,
                concurrency: row.get(3)?,
                code_version: row.get::<_, Option<Sql<Name>>>(4)?.map(|version| version.0),
                state: get(row, 5)?,
                alive: after(heartbeat_at, lease) > now,
                running: row.get::<_, i64>(9)?.unsigned_abs(),
                registered_at: get(row, 6)?,
                heartbeat_at,
                lease,
            })
        },
    )
}

/// Returns the types of the tasks that are claimed next in each queue.
pub(crate) fn waiting_types(conn: &Connection, queues: &[Name]) -> Result<Vec<Name>> {
    let mut types = BTreeSet::new();
    for queue in queues {
        types.extend(conn.readable(
            "a task",
            "SELECT DISTINCT task_type FROM (
                SELECT task_type FROM stepwell_tasks
                WHERE queue = ?1 AND state = 'pending' AND due_at IS NULL AND blocked = 0
                    AND paused = 0 AND crashes < 2
                ORDER BY priority DESC, ready_at, task_id LIMIT 1000
            )",
            params![Sql(queue)],
            |row| get::<Name>(row, 0),
        )?);
    }
    Ok(types.into_iter().collect())
}
