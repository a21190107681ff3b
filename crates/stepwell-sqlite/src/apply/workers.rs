//! Signals of workers, and the tasks of workers that have stopped or died.

use rusqlite::{Result, params};
use stepwell_core::store::WorkerSignal;
use stepwell_core::store::rules::{Death, Leaving, Progress, end_after_death, on_death};
use stepwell_core::{OtherWorker, RunId, TaskId, WATCHED, WorkerId, WorkerState, WorkerStatus};

use crate::apply::Applying;
use crate::apply::states::Held;
use crate::base::rows::{Sql, Statements as _, duration, get, known, nearest};

pub(crate) const RUNNING_UNDER: &str = "SELECT task_id FROM stepwell_tasks
    WHERE worker_id = ?1 AND state = 'running' ORDER BY task_id";

pub(crate) const RUNS_UNDER: &str = "SELECT task_id, run_id FROM stepwell_tasks
    WHERE worker_id = ?1 AND state = 'running'";

/// Selects the workers that run tasks and have no row.
pub(crate) const UNKNOWN_WORKERS: &str =
    "SELECT DISTINCT worker_id FROM stepwell_tasks INDEXED BY stepwell_tasks_running
    WHERE state = 'running' AND worker_id NOT IN (SELECT worker_id FROM stepwell_workers)";

pub(crate) const HELD: &str = "SELECT task_id, queue, cancel_requested, compensating, attempt,
        lost, crashes
    FROM stepwell_tasks WHERE task_id = ?1 AND state = 'running'";

/// Selects a running task's maximum number of attempts, the length of its journal at the last
/// crash, and its length now.
pub(crate) const CRASHES: &str = "SELECT max_attempts, progress_at_crash, coalesce((
        SELECT seq FROM stepwell_journal WHERE task_id = ?1 AND kind NOT IN ('log', 'progress')
        ORDER BY seq DESC LIMIT 1), 0)
    FROM stepwell_tasks WHERE task_id = ?1";

/// Selects the other workers in the order of their ids, starting after the given one.
const OTHERS: &str =
    "SELECT worker_id, heartbeats, lease FROM stepwell_workers WHERE worker_id <> ?1
    ORDER BY worker_id < ?1, worker_id";

impl Applying<'_, '_> {
    pub(crate) fn signal(&mut self, signal: &WorkerSignal) -> Result<WorkerStatus> {
        match *signal {
            WorkerSignal::Register(ref new) => {
                let handle = self.liveness.hold();
                let queues = serde_json::to_string(&new.queues)
                    .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
                self.conn.run(
                    "INSERT OR REPLACE INTO stepwell_workers (worker_id, name, queues, concurrency,
                        code_version, state, registered_at, heartbeat_at, heartbeats, lease, handle)
                    VALUES (?1, ?2, ?3, ?4, ?5, 'active', ?6, ?6, 0, ?7, ?8)",
                    params![
                        Sql(&new.worker_id),
                        new.name,
                        queues,
                        new.concurrency,
                        new.code_version.as_ref().map(Sql),
                        Sql(&self.now),
                        Sql(&new.lease),
                        handle
                    ],
                )?;
                self.release_the_unowned()?;
                self.status(new.worker_id, WorkerState::Active)
            }
            WorkerSignal::Heartbeat { worker_id } => {
                if let Some((handle, lost)) = self.liveness.renewed() {
                    for lost in lost {
                        let sql = "UPDATE stepwell_workers SET handle = ?1 WHERE handle = ?2";
                        self.conn.run(sql, params![handle, lost])?;
                    }
                }
                let sql =
                    "UPDATE stepwell_workers SET heartbeats = heartbeats + 1, heartbeat_at = ?2
                    WHERE worker_id = ?1 RETURNING state";
                match self.state_by(sql, params![Sql(&worker_id), Sql(&self.now)])? {
                    WorkerState::Gone => Ok(WorkerState::Gone.into()),
                    state => self.status(worker_id, state),
                }
            }
            WorkerSignal::DeclareDead { worker_id, heartbeats } => {
                // No worker has shown a number that a column cannot hold, and none has shown -1.
                let heartbeats = i64::try_from(heartbeats).unwrap_or(-1);
                let sql =
                    "DELETE FROM stepwell_workers WHERE worker_id = ?1 AND max(heartbeats, 0) = ?2
                    RETURNING state";
                let removed = self.state_by(sql, params![Sql(&worker_id), heartbeats])?;
                if removed != WorkerState::Gone {
                    self.release_after_death(&worker_id.to_string())?;
                    return Ok(removed.into());
                }
                let sql = "SELECT state FROM stepwell_workers WHERE worker_id = ?1";
                Ok(self.state_by(sql, params![Sql(&worker_id)])?.into())
            }
            WorkerSignal::Drain { worker_id } => {
                let sql = "UPDATE stepwell_workers SET state = 'draining' WHERE worker_id = ?1 \
                           RETURNING state";
                Ok(self.state_by(sql, params![Sql(&worker_id)])?.into())
            }
            WorkerSignal::Deregister { worker_id } => {
                let worker_id = worker_id.to_string();
                let state = self.forget(&worker_id)?;
                self.release_all(&worker_id)?;
                Ok(state.into())
            }
        }
    }

    /// Returns the answer to a signal.
    fn status(&self, worker_id: WorkerId, state: WorkerState) -> Result<WorkerStatus> {
        let running =
            self.conn.readable("a task", RUNS_UNDER, params![Sql(&worker_id)], |row| {
                Ok((get(row, 0)?, known(row, 1)))
            })?;
        let run = |(task_id, run_id): (TaskId, Option<RunId>)| match run_id {
            Some(run_id) => Ok((task_id, run_id)),
            // No worker can own a run with an unreadable id. The worker sees that it does not
            // execute the new run, and releases the task.
            None => {
                let run_id = RunId::new(&*self.writer.runtime);
                let sql = "UPDATE stepwell_tasks SET run_id = ?2 WHERE task_id = ?1";
                self.conn.run(sql, params![Sql(&task_id), Sql(&run_id)])?;
                Ok((task_id, run_id))
            }
        };
        let runs = running.into_iter().map(run).collect::<Result<_>>()?;
        let asked = params![Sql(&worker_id)];
        let others = self.conn.first(WATCHED, "a worker", OTHERS, asked, |row| {
            Ok(OtherWorker {
                worker_id: get(row, 0)?,
                // A worker whose row is damaged must be watched, or its tasks would wait for ever.
                heartbeats: u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0),
                lease: duration(row.get(2)?),
            })
        })?;
        Ok(WorkerStatus { state, runs, others })
    }

    /// Removes the workers of processes that have died, and releases their tasks.
    pub(crate) fn remove_dead_workers(&mut self) -> Result<()> {
        for handle in self.liveness.dead_handles(self.conn)? {
            let sql = "SELECT worker_id FROM stepwell_workers WHERE handle = ?1";
            for worker_id in self
                .conn
                .readable("a worker", sql, params![handle], |row| row.get::<_, String>(0))?
            {
                self.forget(&worker_id)?;
                self.release_after_death(&worker_id)?;
            }
        }
        Ok(())
    }

    /// Releases the tasks of a worker that has died, each with another attempt. Tasks with too many
    /// successive crashes fail.
    fn release_after_death(&mut self, worker_id: &str) -> Result<()> {
        self.running_under(worker_id)?.into_iter().try_for_each(|task_id| {
            self.apart(task_id, |applying| applying.release_after_crash(task_id))
        })?;
        self.cancel_doomed_apart()
    }

    fn release_after_crash(&mut self, task_id: TaskId) -> Result<()> {
        let Some(task) = self.held(task_id)? else { return Ok(()) };
        let read = self.conn.one(CRASHES, params![Sql(&task_id)], |row| {
            let (at_last_crash, now) = (row.get::<_, i64>(1)?, row.get::<_, i64>(2)?);
            let at_last_crash = at_last_crash.unsigned_abs();
            Ok((nearest(row, 0)?, now, Progress { now: now.unsigned_abs(), at_last_crash }))
        })?;
        let Some((max_attempts, now, progress)) = read else { return Ok(()) };
        let counts = task.counts.left(Leaving::Died(progress));
        self.conn.run(
            "UPDATE stepwell_tasks SET crashes = ?2, progress_at_crash = ?3, lost = ?4
            WHERE task_id = ?1",
            params![Sql(&task_id), counts.crashes, now, counts.lost],
        )?;
        match on_death(counts.crashes, max_attempts, task.course, task.cancellation) {
            Death::GivenBack(_) => self.give_back(&task, &counts.into()),
            Death::Quarantined | Death::EndsAsItWouldHave => {
                let original = self.failure(task_id)?;
                let finish = end_after_death(counts.crashes, task.course, original);
                self.finish(task_id, None, finish).map(drop)
            }
        }
    }

    /// Releases the tasks of a worker, without counting the attempts.
    fn release_all(&mut self, worker_id: &str) -> Result<()> {
        self.running_under(worker_id)?.into_iter().try_for_each(|task_id| {
            self.apart(task_id, |applying| {
                let Some(task) = applying.held(task_id)? else { return Ok(()) };
                applying.give_back(&task, &task.counts.left(Leaving::Released).into())
            })
        })?;
        self.cancel_doomed_apart()
    }

    /// Cancels the descendants of cancelled tasks, when all tasks have been released.
    fn cancel_doomed_apart(&mut self) -> Result<()> {
        std::mem::take(&mut self.doomed).into_iter().rev().try_for_each(|parent| {
            self.apart(parent, |applying| {
                applying.doomed.push(parent);
                applying.cancel_doomed()
            })
        })
    }

    /// Releases tasks that run under workers without a row, which another program must have
    /// deleted.
    fn release_the_unowned(&mut self) -> Result<()> {
        for worker_id in
            self.conn.readable("a task", UNKNOWN_WORKERS, [], |row| row.get::<_, String>(0))?
        {
            self.release_all(&worker_id)?;
        }
        Ok(())
    }

    /// Removes a worker's row, and returns the state that it had.
    fn forget(&self, worker_id: &str) -> Result<WorkerState> {
        let sql = "DELETE FROM stepwell_workers WHERE worker_id = ?1 RETURNING state";
        self.state_by(sql, params![worker_id])
    }

    /// Returns a worker's state from a statement about it. A worker whose state is unknown exists,
    /// and therefore counts as active.
    fn state_by(&self, sql: &'static str, params: impl rusqlite::Params) -> Result<WorkerState> {
        let state =
            self.conn.one(sql, params, |row| Ok(known(row, 0).unwrap_or(WorkerState::Active)))?;
        Ok(state.unwrap_or(WorkerState::Gone))
    }

    fn running_under(&self, worker_id: &str) -> Result<Vec<TaskId>> {
        self.conn.readable("a task", RUNNING_UNDER, params![worker_id], |row| get(row, 0))
    }

    /// Returns a running task as it is now: the end of one task may have requested the cancellation
    /// of another one.
    fn held(&self, task_id: TaskId) -> Result<Option<Held>> {
        self.conn.one(HELD, params![Sql(&task_id)], Held::read)
    }
}
