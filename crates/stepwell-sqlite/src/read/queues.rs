//! Queues: their settings, and how many tasks they have.

use rusqlite::{Connection, Result, Row};
use stepwell_core::{QueueInfo, QueueLimits, RateLimit, Timestamp, from_micros};

use crate::base::rows::{Statements as _, duration, get, nearest, opt};

/// A queue with settings.
pub(crate) struct Queue {
    pub(crate) paused: bool,
    pub(crate) limits: QueueLimits,
    /// The time until which the queue's rate is used up.
    pub(crate) used_until: Option<Timestamp>,
}

impl Queue {
    /// Reads the columns `paused, max_running, max_running_per_worker, rate_starts, rate_per,
    /// used_until`.
    pub(crate) fn read(row: &Row<'_>, first: usize) -> Result<Self> {
        let limit = |column| -> Result<Option<u32>> {
            let is_some = row.get::<_, Option<i64>>(first + column)?.is_some();
            is_some.then(|| nearest(row, first + column)).transpose()
        };
        let per: Option<i64> = row.get(first + 4)?;
        let rate = limit(3)?.zip(per).map(|(starts, per)| RateLimit {
            starts,
            // A queue without a period would start nothing.
            per: duration(per.max(1)),
        });
        let limits =
            QueueLimits { max_running: limit(1)?, max_running_per_worker: limit(2)?, rate };
        Ok(Self { paused: row.get(first)?, limits, used_until: opt(row, first + 5)? })
    }
}

/// Returns all queues that have limits, are paused, or have a task that has not ended.
pub(crate) fn queues(conn: &Connection) -> Result<Vec<QueueInfo>> {
    conn.readable(
        "a queue",
        "WITH counts AS (
            SELECT queue, sum(state = 'pending') AS pending, sum(state = 'running') AS running,
                sum(state = 'suspended') AS suspended,
                min(coalesce(due_at, ready_at)) FILTER (
                    WHERE state = 'pending' AND blocked = 0 AND paused = 0) AS ready_at
            FROM stepwell_tasks WHERE state IN ('pending', 'running', 'suspended') GROUP BY queue
        )
        SELECT coalesce(q.queue, c.queue) AS name, coalesce(q.paused, 0), q.max_running,
            q.max_running_per_worker, q.rate_starts, q.rate_per, q.used_until,
            coalesce(c.pending, 0), coalesce(c.running, 0), coalesce(c.suspended, 0), c.ready_at
        FROM stepwell_queues q FULL JOIN counts c ON c.queue = q.queue
        WHERE c.queue IS NOT NULL OR q.paused OR q.max_running IS NOT NULL
            OR q.max_running_per_worker IS NOT NULL OR q.rate_starts IS NOT NULL
        ORDER BY name",
        [],
        |row| {
            let Queue { paused, limits, .. } = Queue::read(row, 1)?;
            let count =
                |column: usize| -> Result<u64> { Ok(row.get::<_, i64>(column)?.unsigned_abs()) };
            Ok(QueueInfo {
                queue: get(row, 0)?,
                paused,
                limits,
                pending: count(7)?,
                running: count(8)?,
                suspended: count(9)?,
                ready_at: row.get::<_, Option<i64>>(10)?.map(from_micros),
            })
        },
    )
}
