//! The changes of tasks' states.

use rusqlite::{Result, Row, params};
use stepwell_core::store::{Finish, TaskState};
use stepwell_core::{Failure, Kind, Name, RunId, TaskId, Timestamp, compensating};

use crate::commit::Applying;
use crate::rows::{Sql, Statements as _, count, get, known, opt};

/// Selects a task that is about to end. With a run, the statement is also the fence: the run must
/// own the task.
pub(crate) const TO_END: &str =
    "SELECT rowid, parent IS NOT NULL OR idempotency_key IS NOT NULL OR concurrency_key IS NOT NULL,
        cancel_requested, state = 'running', queue, place IS NOT NULL AND blocked = 0,
        EXISTS (SELECT 1 FROM stepwell_waits WHERE task_id = ?1),
        EXISTS (SELECT 1 FROM stepwell_messages WHERE task_id = ?1)
    FROM stepwell_tasks
    WHERE task_id = ?1 AND (?2 IS NULL OR (run_id = ?2 AND state = 'running'))";

/// Selects the end of a task's journal, its attempt and its queue, if the task has something to
/// compensate. The attempt of a suspended task does not count, but its number is used here.
const TO_COMPENSATE: &str =
    "SELECT (SELECT max(seq) FROM stepwell_journal WHERE task_id = ?1), attempt + (state = 'suspended'), queue
    FROM stepwell_tasks
    WHERE task_id = ?1 AND compensating = 0 AND EXISTS (
        SELECT 1 FROM stepwell_journal WHERE task_id = ?1 AND kind = 'compensate' AND seq > coalesce(
            (SELECT max(seq) FROM stepwell_journal WHERE task_id = ?1 AND kind = 'compensating'), 0))";

pub(crate) const CHILDREN: &str = "SELECT task_id FROM stepwell_tasks
    WHERE parent = ?1 AND state IN ('pending', 'running', 'suspended') ORDER BY task_id";

/// A running task that is about to lose its owner.
pub(crate) struct Held {
    pub(crate) task_id: TaskId,
    /// The queue; `None` when it cannot be read: then no worker can claim the task, and none is
    /// notified.
    pub(crate) queue: Option<Name>,
    pub(crate) cancel_requested: bool,
    pub(crate) compensating: bool,
}

impl Held {
    /// Reads the columns `task_id, queue, cancel_requested, compensating`.
    pub(crate) fn read(row: &Row<'_>) -> Result<Self> {
        Ok(Self {
            task_id: get(row, 0)?,
            queue: known(row, 1),
            cancel_requested: row.get(2)?,
            compensating: row.get(3)?,
        })
    }
}

/// A row of [`TO_END`].
struct Ending {
    rowid: i64,
    /// `true` if another task may wait for this one, because it spawned it or was answered with it.
    known: bool,
    cancel_requested: bool,
    ran: bool,
    queue: Option<Name>,
    /// `true` if it is the task's turn by its concurrency key.
    has_turn: bool,
    waits: bool,
    mail: bool,
}

/// The result of an attempt whose task becomes pending.
#[derive(Default)]
pub(crate) struct GivenBack<'a> {
    /// The time at which the task is due again; `None` for now.
    pub(crate) due_at: Option<Timestamp>,
    /// `true` if the attempt does not count.
    pub(crate) uncounted: bool,
    /// The reason of the attempt's failure.
    pub(crate) failure: Option<&'a Failure>,
    /// `true` if the attempt's process died; otherwise the count of successive crashes starts again
    /// at 0.
    pub(crate) crashed: bool,
}

impl Applying<'_, '_> {
    /// Makes a running task pending, without an owner. A task whose cancellation was requested is
    /// cancelled instead.
    pub(crate) fn give_back(&mut self, task: &Held, given: &GivenBack<'_>) -> Result<()> {
        let due_at = given.due_at.filter(|due_at| *due_at > self.now);
        self.conn.run(
            "UPDATE stepwell_tasks SET state = 'pending', worker_id = NULL, poked = 0, attempt = max(attempt, ?2) - ?2,
                failure = coalesce(?3, failure), due_at = ?4, ready_at = ?5,
                crashes = CASE WHEN ?6 THEN crashes ELSE 0 END
            WHERE task_id = ?1",
            params![
                Sql(&task.task_id),
                given.uncounted,
                given.failure.map(Sql),
                due_at.as_ref().map(Sql),
                Sql(&self.now),
                given.crashed
            ],
        )?;
        if task.cancel_requested {
            self.make_room(task.queue.as_ref())?;
            self.finish(task.task_id, None, Finish::Cancelled)?;
        } else {
            self.tell_ready(task.queue.clone());
        }
        Ok(())
    }

    /// Makes a task of the queue claimable.
    pub(crate) fn make_ready(&mut self, task_id: TaskId, queue: Option<Name>) -> Result<()> {
        self.conn.run(
            "UPDATE stepwell_tasks SET state = 'pending', due_at = NULL, ready_at = ?2 WHERE \
             task_id = ?1",
            params![Sql(&task_id), Sql(&self.now)],
        )?;
        self.tell_ready(queue);
        Ok(())
    }

    /// Adds the queue to the news: it has work for workers.
    pub(crate) fn tell_ready(&mut self, queue: Option<Name>) {
        self.news.ready.extend(queue.map(|queue| (queue, 1)));
    }

    /// Wakes a suspended task, or notifies a running one, because something has arrived for it.
    pub(crate) fn notify(&mut self, task_id: TaskId) -> Result<()> {
        match self.state(task_id)? {
            Some((Ok(TaskState::Suspended), queue)) => self.make_ready(task_id, queue),
            Some((Ok(TaskState::Running), _)) => self.poke(task_id, false).map(|_| ()),
            _ => Ok(()),
        }
    }

    /// Returns the task's state and queue, as far as they can be read.
    pub(crate) fn state(
        &self,
        task_id: TaskId,
    ) -> Result<Option<(Result<TaskState>, Option<Name>)>> {
        self.conn.one(
            "SELECT state, queue FROM stepwell_tasks WHERE task_id = ?1",
            params![Sql(&task_id)],
            |row| Ok((get(row, 0), known(row, 1))),
        )
    }

    /// Marks a running task as one for which something has arrived. The result is `false` when the
    /// task does not run.
    fn poke(&mut self, task_id: TaskId, cancel: bool) -> Result<bool> {
        let runs = 1
            == self.conn.run(
                "UPDATE stepwell_tasks SET poked = 1, cancel_requested = max(cancel_requested, ?2)
                WHERE task_id = ?1 AND state = 'running'",
                params![Sql(&task_id), cancel],
            )?;
        if runs {
            self.news.poked.push(task_id);
        }
        Ok(runs)
    }

    /// Ends a task, or makes it compensate first. The children of a cancelled task are cancelled
    /// later. The result says whether the task's cancellation had been requested. The result is
    /// `None`, and nothing has changed, when `fence` does not own the task.
    pub(crate) fn finish(
        &mut self,
        task_id: TaskId,
        fence: Option<RunId>,
        finish: Finish,
    ) -> Result<Option<bool>> {
        if !matches!(finish, Finish::Completed(_)) && self.compensate(task_id, &finish)? {
            return Ok(Some(false));
        }
        let cancelled = finish == Finish::Cancelled;
        let ended = self.end(task_id, fence, finish)?;
        if cancelled && ended.is_some() {
            self.doomed.push(task_id);
        }
        Ok(ended)
    }

    /// Makes a task claimable as compensating, if it has something to compensate since its last
    /// compensation. The result is `false` when the task has nothing to compensate.
    fn compensate(&mut self, task_id: TaskId, finish: &Finish) -> Result<bool> {
        let found = self.conn.one(TO_COMPENSATE, params![Sql(&task_id)], |row| {
            Ok((row.get::<_, i64>(0)?.unsigned_abs() + 1, count(row, 1)?, known(row, 2)))
        })?;
        let Some((seq, attempt, queue)) = found else { return Ok(false) };
        let (entry, failure) = compensating(seq, attempt, finish.clone(), self.now);
        self.drop_waits(task_id)?;
        self.add_entries(task_id, &[entry])?;
        self.conn.run(
            "UPDATE stepwell_tasks SET state = 'pending', compensating = 1, cancel_requested = 0, attempt = 0, lost = 0,
                worker_id = NULL, poked = 0, due_at = NULL, cancel_at = NULL, failure = ?2, ready_at = ?3
            WHERE task_id = ?1",
            params![Sql(&task_id), Sql(&failure), Sql(&self.now)],
        )?;
        self.tell_ready(queue);
        Ok(true)
    }

    pub(crate) fn is_compensating(&self, task_id: TaskId) -> Result<bool> {
        let sql = "SELECT 1 FROM stepwell_tasks WHERE task_id = ?1 AND compensating = 1";
        Ok(self.conn.one(sql, params![Sql(&task_id)], |_| Ok(()))?.is_some())
    }

    /// Returns the failure of the task's last attempt.
    pub(crate) fn failure(&self, task_id: TaskId) -> Result<Option<Failure>> {
        let sql = "SELECT failure FROM stepwell_tasks WHERE task_id = ?1";
        Ok(self.conn.one(sql, params![Sql(&task_id)], |row| opt(row, 0))?.flatten())
    }

    /// Cancels a task that has not ended. The cancellation of a running task is only requested. A
    /// task that is compensating ends by itself, and is not changed.
    pub(crate) fn cancel(&mut self, task_id: TaskId) -> Result<()> {
        if self.is_compensating(task_id)? {
            return Ok(());
        }
        if !self.poke(task_id, true)? {
            self.finish(task_id, None, Finish::Cancelled)?;
        }
        Ok(())
    }

    /// Cancels the descendants of cancelled tasks. The function is a loop and not a recursion,
    /// because the generations may be more than fit in a thread's stack.
    pub(crate) fn cancel_doomed(&mut self) -> Result<()> {
        while let Some(parent) = self.doomed.pop() {
            for child in self.children(parent)? {
                self.cancel(child)?;
            }
        }
        Ok(())
    }

    /// Returns the children that have not ended, the oldest first.
    fn children(&self, task_id: TaskId) -> Result<Vec<TaskId>> {
        self.conn.readable("a child", CHILDREN, params![Sql(&task_id)], |row| get(row, 0))
    }

    fn end(
        &mut self,
        task_id: TaskId,
        fence: Option<RunId>,
        finish: Finish,
    ) -> Result<Option<bool>> {
        let (state, output, failure) = match &finish {
            Finish::Completed(output) => (TaskState::Completed, Some(output), None),
            Finish::Failed(failure) => (TaskState::Failed, None, Some(failure)),
            Finish::Cancelled => (TaskState::Cancelled, None, None),
        };
        // There are two statements, because SQLite makes a table in memory for each RETURNING,
        // which is slower than the SELECT.
        let found =
            self.conn.one(TO_END, params![Sql(&task_id), fence.as_ref().map(Sql)], |row| {
                Ok(Ending {
                    rowid: row.get(0)?,
                    known: row.get(1)?,
                    cancel_requested: row.get(2)?,
                    ran: row.get(3)?,
                    queue: known(row, 4),
                    has_turn: row.get(5)?,
                    waits: row.get(6)?,
                    mail: row.get(7)?,
                })
            })?;
        let Some(ending) = found else { return Ok(None) };
        let Ending { rowid, known, cancel_requested, waits, mail, .. } = ending;
        self.conn.run(
            "UPDATE stepwell_tasks SET state = ?2, output = ?3,
                failure = CASE ?2 WHEN 'cancelled' THEN failure ELSE ?4 END, finished_at = ?5, paused = 0,
                worker_id = NULL, poked = 0, due_at = NULL, cancel_at = NULL, place = NULL
            WHERE rowid = ?1",
            params![rowid, Sql(&state), output.map(Sql), failure.map(Sql), Sql(&self.now)],
        )?;
        // Most tasks have neither waits nor messages: a check within the first statement costs less
        // than two more statements.
        if waits {
            self.drop_waits(task_id)?;
        }
        // After any other end, a retry may follow, which receives the accepted messages.
        if mail && state == TaskState::Completed {
            self.conn
                .run("DELETE FROM stepwell_messages WHERE task_id = ?1", params![Sql(&task_id)])?;
        }
        self.news.finished.push((task_id, finish));
        if ending.ran {
            self.make_room(ending.queue.as_ref())?;
        }
        if ending.has_turn {
            self.end_turn(task_id)?;
        }
        if known {
            let child = task_id.to_string();
            for waiting in self.awaiting(task_id)? {
                self.arrive(waiting, Kind::Child, &child)?;
            }
        }
        Ok(Some(cancel_requested))
    }
}
