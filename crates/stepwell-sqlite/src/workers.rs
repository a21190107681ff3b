//! Signs of life, and what becomes of tasks whose worker has stopped or died.

use std::collections::BTreeSet;

use rusqlite::{Connection, Result, params};
use stepwell_core::store::{Finish, WorkerSignal};
use stepwell_core::{
    Name, TaskId, Timestamp, WorkerId, WorkerInfo, WorkerState, after, attempts, crashed, end_of,
};

use crate::commit::Applying;
use crate::rows::{Sql, Statements as _, get};
use crate::states::{GivenBack, Held};

pub(crate) const RUNNING_UNDER: &str = "SELECT task_id FROM stepwell_tasks
    WHERE worker_id = ?1 AND state = 'running' ORDER BY task_id";

pub(crate) const HELD: &str = "SELECT task_id, queue, attempt, max_attempts, cancel_requested, compensating
    FROM stepwell_tasks WHERE task_id = ?1 AND state = 'running'";

impl Applying<'_> {
    pub(crate) fn signal(&mut self, signal: WorkerSignal) -> Result<WorkerState> {
        match signal {
            WorkerSignal::Register(new) => {
                let handle = self.liveness.hold();
                let queues = serde_json::to_string(&new.queues).unwrap_or_default();
                self.conn.run(
                    "INSERT OR REPLACE INTO stepwell_workers (worker_id, name, queues, concurrency, code_version, state,
                        registered_at, lease_until, handle)
                    VALUES (?1, ?2, ?3, ?4, ?5, 'active', ?6, ?7, ?8)",
                    params![
                        Sql(&new.worker_id),
                        new.name,
                        queues,
                        new.concurrency,
                        new.code_version.as_ref().map(Sql),
                        Sql(&self.now),
                        Sql(&after(self.now, new.lease)),
                        handle
                    ],
                )?;
                Ok(WorkerState::Active)
            }
            WorkerSignal::Heartbeat { worker_id, lease } => {
                let until = after(self.now, lease);
                let sql = "UPDATE stepwell_workers SET lease_until = ?2 WHERE worker_id = ?1 RETURNING state";
                self.state_by(sql, params![Sql(&worker_id), Sql(&until)])
            }
            WorkerSignal::Drain { worker_id } => {
                let sql =
                    "UPDATE stepwell_workers SET state = 'draining' WHERE worker_id = ?1 RETURNING state";
                self.state_by(sql, params![Sql(&worker_id)])
            }
            WorkerSignal::Deregister { worker_id } => {
                let state = self.forget(worker_id)?;
                for task_id in self.running_under(worker_id)? {
                    let Some(task) = self.held(task_id)? else { continue };
                    self.give_back(&task, &GivenBack { uncounted: true, ..GivenBack::default() })?;
                }
                self.cancel_doomed()?;
                Ok(state)
            }
        }
    }

    /// Takes their tasks from workers whose lease has ended, or whose process has.
    pub(crate) fn bury_workers(&mut self) -> Result<()> {
        let mut dead = self.conn.all(
            "SELECT worker_id FROM stepwell_workers WHERE lease_until <= ?1 ORDER BY worker_id",
            params![Sql(&self.now)],
            |row| get(row, 0),
        )?;
        for handle in self.liveness.dead_handles(self.conn)? {
            let sql = "SELECT worker_id FROM stepwell_workers WHERE handle = ?1 AND lease_until > ?2";
            let workers =
                self.conn.all(sql, params![handle, Sql(&self.now)], |row| get::<WorkerId>(row, 0))?;
            dead.extend(workers);
        }
        for worker_id in dead {
            self.forget(worker_id)?;
            for task_id in self.running_under(worker_id)? {
                let Some(task) = self.held(task_id)? else { continue };
                let last = attempts(task.max_attempts, task.compensating);
                if task.attempt >= last && !task.cancel_requested {
                    let failure = crashed(task.attempt);
                    let finish = match self.failure(task.task_id)? {
                        Some(original) if task.compensating => end_of(original.without_the_rest(failure)),
                        _ => Finish::Failed(failure),
                    };
                    self.finish(task.task_id, None, finish)?;
                } else {
                    self.give_back(&task, &GivenBack::default())?;
                }
            }
            self.cancel_doomed()?;
        }
        Ok(())
    }

    /// Says what was known of it.
    fn forget(&self, worker_id: WorkerId) -> Result<WorkerState> {
        let sql = "DELETE FROM stepwell_workers WHERE worker_id = ?1 RETURNING state";
        self.state_by(sql, params![Sql(&worker_id)])
    }

    /// What a statement about one worker says of its state.
    fn state_by(&self, sql: &str, params: impl rusqlite::Params) -> Result<WorkerState> {
        Ok(self.conn.one(sql, params, |row| get(row, 0))?.unwrap_or(WorkerState::Gone))
    }

    fn running_under(&self, worker_id: WorkerId) -> Result<Vec<TaskId>> {
        self.conn.all(RUNNING_UNDER, params![Sql(&worker_id)], |row| get(row, 0))
    }

    /// A running task as it is now: the end of one may have asked another one to cancel.
    fn held(&self, task_id: TaskId) -> Result<Option<Held>> {
        self.conn.one(HELD, params![Sql(&task_id)], Held::read)
    }
}

/// All workers, as they are at that time.
pub(crate) fn workers(conn: &Connection, now: Timestamp) -> Result<Vec<WorkerInfo>> {
    conn.all(
        "SELECT w.worker_id, w.name, w.queues, w.concurrency, w.code_version, w.state, w.registered_at, w.lease_until,
            (SELECT count(*) FROM stepwell_tasks t WHERE t.worker_id = w.worker_id AND t.state = 'running')
        FROM stepwell_workers w ORDER BY w.worker_id",
        [],
        |row| {
            let queues: String = row.get(2)?;
            let lease_until = get(row, 7)?;
            Ok(WorkerInfo {
                worker_id: get(row, 0)?,
                name: row.get(1)?,
                // Of a worker that was registered by an earlier version, nothing is known.
                queues: serde_json::from_str(&queues).unwrap_or_default(),
                concurrency: row.get(3)?,
                code_version: row.get::<_, Option<Sql<Name>>>(4)?.map(|version| version.0),
                state: get(row, 5)?,
                alive: lease_until > now,
                running: row.get::<_, i64>(8)?.unsigned_abs(),
                registered_at: get(row, 6)?,
                lease_until,
            })
        },
    )
}

/// The types of the first tasks that are to be claimed in each queue.
pub(crate) fn waiting_types(conn: &Connection, queues: &[Name]) -> Result<Vec<Name>> {
    let mut types = BTreeSet::new();
    for queue in queues {
        types.extend(conn.all(
            "SELECT DISTINCT task_type FROM (
                SELECT task_type FROM stepwell_tasks
                WHERE queue = ?1 AND state = 'pending' AND due_at IS NULL AND blocked = 0 AND paused = 0
                ORDER BY priority DESC, ready_at, task_id LIMIT 1000
            )",
            params![Sql(queue)],
            |row| get::<Name>(row, 0),
        )?);
    }
    Ok(types.into_iter().collect())
}
