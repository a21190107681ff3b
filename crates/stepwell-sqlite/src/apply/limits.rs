//! The limits of queues, and the turns of concurrency keys.

use rusqlite::{Connection, Result, params};
use stepwell_core::{Name, QueueAction, QueueChange, TaskId, Timestamp, WorkerId};

use crate::apply::Applying;
use crate::base::rows::{Sql, Statements as _, known};
use crate::read::queues::Queue;

/// Counts the running tasks of a queue, on the given worker or (NULL) on all.
pub(crate) const RUNNING: &str = "SELECT count(*) FROM stepwell_tasks
    WHERE state = 'running' AND queue = ?1 AND (?2 IS NULL OR worker_id = ?2)";

/// Gives a task with a concurrency key the last place among the tasks of its key and scope.
pub(crate) const LINE_UP: &str = "UPDATE stepwell_tasks SET (place, blocked) = (
        SELECT coalesce(max(o.place), 0) + 1, count(*) > 0 FROM stepwell_tasks o
        WHERE o.concurrency_key = stepwell_tasks.concurrency_key AND o.scope = stepwell_tasks.scope
            AND o.place IS NOT NULL)
    WHERE task_id = ?1 AND concurrency_key IS NOT NULL";

/// Selects the task whose turn it is, among those with the given task's concurrency key and scope.
pub(crate) const FIRST_OF_KEY: &str = "SELECT o.rowid, o.queue, o.task_id
    FROM stepwell_tasks t CROSS JOIN stepwell_tasks o
    WHERE t.task_id = ?1 AND o.concurrency_key = t.concurrency_key AND o.scope = t.scope
        AND o.place IS NOT NULL
    ORDER BY o.place LIMIT 1";

/// Adds a task as the last one of its concurrency key.
pub(crate) fn line_up(conn: &Connection, task_id: TaskId) -> Result<()> {
    conn.run(LINE_UP, params![Sql(&task_id)]).map(drop)
}

impl Applying<'_, '_> {
    pub(crate) fn change_queue(&mut self, change: &QueueChange) -> Result<()> {
        let queue = Sql(&change.queue);
        self.conn.run(
            "INSERT INTO stepwell_queues (queue) VALUES (?1) ON CONFLICT DO NOTHING",
            params![queue],
        )?;
        self.any_queue.set(Some(true));
        match change.action {
            QueueAction::Pause => {
                self.conn.run(
                    "UPDATE stepwell_queues SET paused = 1 WHERE queue = ?1",
                    params![queue],
                )?;
                return Ok(());
            }
            QueueAction::Resume => {
                self.conn.run(
                    "UPDATE stepwell_queues SET paused = 0 WHERE queue = ?1",
                    params![queue],
                )?;
            }
            QueueAction::Limit(limits) => {
                self.conn.run(
                    "UPDATE stepwell_queues SET max_running = ?2, max_running_per_worker = ?3,
                        rate_starts = ?4, rate_per = ?5, used_until = CASE
                            WHEN rate_starts IS ?4 AND rate_per IS ?5 THEN used_until END
                    WHERE queue = ?1",
                    params![
                        queue,
                        limits.max_running,
                        limits.max_running_per_worker,
                        limits.rate.map(|rate| rate.starts),
                        limits.rate.as_ref().map(|rate| Sql(&rate.per))
                    ],
                )?;
            }
        }
        if !self.queue(&change.queue)?.is_some_and(|queue| queue.paused) {
            self.news.ready.push((change.queue.clone(), 1));
        }
        Ok(())
    }

    pub(crate) fn queue(&self, queue: &Name) -> Result<Option<Queue>> {
        // The table is read once a batch, because every task needs the answer and most applications
        // change no queue.
        let any = match self.any_queue.get() {
            Some(any) => any,
            None => {
                self.conn.one("SELECT 1 FROM stepwell_queues LIMIT 1", [], |_| Ok(()))?.is_some()
            }
        };
        self.any_queue.set(Some(any));
        if !any {
            return Ok(None);
        }
        self.conn.one(
            "SELECT paused, max_running, max_running_per_worker, rate_starts, rate_per, used_until
            FROM stepwell_queues WHERE queue = ?1",
            params![Sql(queue)],
            |row| Queue::read(row, 0),
        )
    }

    /// Returns whether the queue's settings may delay the start of a task.
    pub(crate) fn restricts(&self, queue: &Name) -> Result<bool> {
        Ok(self.queue(queue)?.is_some_and(|queue| queue.paused || !queue.limits.are_none()))
    }

    /// Returns how many of `room` tasks of the queue the worker may claim.
    pub(crate) fn room(
        &self,
        config: &Queue,
        queue: &Name,
        worker_id: WorkerId,
        room: usize,
    ) -> Result<usize> {
        if config.paused {
            return Ok(0);
        }
        let mut left = room;
        let limits = [
            (config.limits.max_running, None),
            (config.limits.max_running_per_worker, Some(worker_id)),
        ];
        for (limit, worker_id) in limits {
            if let Some(limit) = limit {
                let asked = params![Sql(queue), worker_id.as_ref().map(Sql)];
                let running: u32 = self.conn.one(RUNNING, asked, |row| row.get(0))?.unwrap_or(0);
                left = left.min(limit.saturating_sub(running) as usize);
            }
        }
        Ok(left)
    }

    pub(crate) fn use_rate(&self, queue: &Name, used_until: Timestamp) -> Result<()> {
        let sql = "UPDATE stepwell_queues SET used_until = ?2 WHERE queue = ?1";
        self.conn.run(sql, params![Sql(queue), Sql(&used_until)]).map(drop)
    }

    /// Notifies workers that a task of the queue has stopped running, if the queue limits running
    /// tasks.
    pub(crate) fn make_room(&mut self, queue: Option<&Name>) -> Result<()> {
        if let Some(queue) = queue
            && self.queue(queue)?.is_some_and(|queue| queue.limits.count_running())
        {
            self.news.ready.push((queue.clone(), 1));
        }
        Ok(())
    }

    /// Adds a task as the last one of its concurrency key.
    pub(crate) fn line_up(&self, task_id: TaskId) -> Result<()> {
        line_up(self.conn, task_id)
    }

    /// Ends the turn of a task by its concurrency key, and starts that of the next task.
    pub(crate) fn end_turn(&mut self, task_id: TaskId) -> Result<()> {
        let next = self.conn.one(FIRST_OF_KEY, params![Sql(&task_id)], |row| {
            Ok((row.get::<_, i64>(0)?, known(row, 1)))
        })?;
        if let Some((rowid, queue)) = next {
            self.conn.run(
                "UPDATE stepwell_tasks SET blocked = 0, ready_at = ?2 WHERE rowid = ?1",
                params![rowid, Sql(&self.now)],
            )?;
            self.tell_ready(queue);
        }
        Ok(())
    }
}
