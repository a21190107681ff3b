//! Signs of life, and what becomes of tasks whose worker has stopped or died.

use rusqlite::{Result, params};
use stepwell_core::store::{Finish, WorkerSignal};
use stepwell_core::{TaskId, WorkerId, after, crashed};

use crate::commit::Applying;
use crate::rows::{Sql, Statements as _, get};
use crate::states::{GivenBack, Held};

pub(crate) const RUNNING_UNDER: &str = "SELECT task_id FROM stepwell_tasks
    WHERE worker_id = ?1 AND state = 'running' ORDER BY task_id";

pub(crate) const HELD: &str = "SELECT task_id, queue, attempt, max_attempts, cancel_requested
    FROM stepwell_tasks WHERE task_id = ?1 AND state = 'running'";

impl Applying<'_> {
    pub(crate) fn signal(&mut self, signal: WorkerSignal) -> Result<bool> {
        match signal {
            WorkerSignal::Register { worker_id, name, lease } => {
                let handle = self.liveness.hold();
                self.conn.run(
                    "INSERT OR REPLACE INTO stepwell_workers (worker_id, name, lease_until, handle)
                    VALUES (?1, ?2, ?3, ?4)",
                    params![Sql(&worker_id), name, Sql(&after(self.now, lease)), handle],
                )?;
                Ok(true)
            }
            WorkerSignal::Heartbeat { worker_id, lease } => {
                let known = self.conn.run(
                    "UPDATE stepwell_workers SET lease_until = ?2 WHERE worker_id = ?1",
                    params![Sql(&worker_id), Sql(&after(self.now, lease))],
                )?;
                Ok(known == 1)
            }
            WorkerSignal::Deregister { worker_id } => {
                let known = self.forget(worker_id)?;
                for task_id in self.running_under(worker_id)? {
                    let Some(task) = self.held(task_id)? else { continue };
                    self.give_back(&task, &GivenBack { uncounted: true, ..GivenBack::default() })?;
                }
                self.cancel_doomed()?;
                Ok(known)
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
                if task.attempt >= task.max_attempts && !task.cancel_requested {
                    self.finish(task.task_id, None, Finish::Failed(crashed(task.attempt)))?;
                } else {
                    self.give_back(&task, &GivenBack::default())?;
                }
            }
            self.cancel_doomed()?;
        }
        Ok(())
    }

    fn forget(&self, worker_id: WorkerId) -> Result<bool> {
        Ok(self.conn.run("DELETE FROM stepwell_workers WHERE worker_id = ?1", params![Sql(&worker_id)])? == 1)
    }

    fn running_under(&self, worker_id: WorkerId) -> Result<Vec<TaskId>> {
        self.conn.all(RUNNING_UNDER, params![Sql(&worker_id)], |row| get(row, 0))
    }

    /// A running task as it is now: the end of one may have asked another one to cancel.
    fn held(&self, task_id: TaskId) -> Result<Option<Held>> {
        self.conn.one(HELD, params![Sql(&task_id)], Held::read)
    }
}
