//! Signs of life, and what becomes of tasks whose worker has stopped or died.

use rusqlite::{Result, params};
use stepwell_core::store::{Finish, WorkerSignal};
use stepwell_core::{WorkerId, after, crashed};

use crate::commit::Applying;
use crate::rows::{Sql, Statements as _, get};
use crate::states::{GivenBack, Held};

pub(crate) const RUNNING_UNDER: &str = "SELECT task_id, queue, attempt, max_attempts, cancel_requested
    FROM tasks WHERE worker_id = ?1 AND state = 'running' ORDER BY task_id";

impl Applying<'_> {
    pub(crate) fn signal(&mut self, signal: WorkerSignal) -> Result<bool> {
        match signal {
            WorkerSignal::Register { worker_id, name, lease } => {
                let handle = self.liveness.hold();
                self.conn.run(
                    "INSERT OR REPLACE INTO workers (worker_id, name, lease_until, handle)
                    VALUES (?1, ?2, ?3, ?4)",
                    params![Sql(&worker_id), name, Sql(&after(self.now, lease)), handle],
                )?;
                Ok(true)
            }
            WorkerSignal::Heartbeat { worker_id, lease } => {
                let known = self.conn.run(
                    "UPDATE workers SET lease_until = ?2 WHERE worker_id = ?1",
                    params![Sql(&worker_id), Sql(&after(self.now, lease))],
                )?;
                Ok(known == 1)
            }
            WorkerSignal::Deregister { worker_id } => {
                let known = self.forget(worker_id)?;
                for task in self.running_under(worker_id)? {
                    self.give_back(&task, &GivenBack { uncounted: true, ..GivenBack::default() })?;
                }
                Ok(known)
            }
        }
    }

    /// Takes their tasks from workers whose lease has ended, or whose process has.
    pub(crate) fn bury_workers(&mut self) -> Result<()> {
        let mut dead = self.conn.all(
            "SELECT worker_id FROM workers WHERE lease_until <= ?1",
            params![Sql(&self.now)],
            |row| get(row, 0),
        )?;
        for handle in self.liveness.dead_handles(self.conn)? {
            let sql = "SELECT worker_id FROM workers WHERE handle = ?1 AND lease_until > ?2";
            let workers =
                self.conn.all(sql, params![handle, Sql(&self.now)], |row| get::<WorkerId>(row, 0))?;
            dead.extend(workers);
        }
        for worker_id in dead {
            self.forget(worker_id)?;
            for task in self.running_under(worker_id)? {
                if task.attempt >= task.max_attempts && !task.cancel_requested {
                    self.finish(task.task_id, None, Finish::Failed(crashed(task.attempt)))?;
                } else {
                    self.give_back(&task, &GivenBack::default())?;
                }
            }
        }
        Ok(())
    }

    fn forget(&self, worker_id: WorkerId) -> Result<bool> {
        Ok(self.conn.run("DELETE FROM workers WHERE worker_id = ?1", params![Sql(&worker_id)])? == 1)
    }

    fn running_under(&self, worker_id: WorkerId) -> Result<Vec<Held>> {
        self.conn.all(RUNNING_UNDER, params![Sql(&worker_id)], Held::read)
    }
}
