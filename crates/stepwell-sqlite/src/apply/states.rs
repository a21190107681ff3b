//! The changes of tasks' states.

use rusqlite::{Result, Row, params};
use stepwell_core::store::rules::{
    Arrival, Cancellation, Claims, Counts, Course, Effect, End, Ending, GivenBack, Position, Undo,
    attempt_to_undo, given_back, on_arrival, on_cancel, on_end,
};
use stepwell_core::store::{Finish, TaskState};
use stepwell_core::{Failure, Kind, Name, RunId, TaskId, Timestamp, compensating, retry_entry};

use crate::apply::{Applying, purge};
use crate::base::rows::{Sql, Statements as _, get, known, nearest, opt};

/// Selects a task that is about to end. With a run, the statement is also the fence: the run must
/// own the task.
pub(crate) const TO_END: &str =
    "SELECT rowid, parent IS NOT NULL OR idempotency_key IS NOT NULL OR concurrency_key IS NOT NULL,
        cancel_requested, state = 'running', queue, place IS NOT NULL AND blocked = 0,
        EXISTS (SELECT 1 FROM stepwell_waits WHERE task_id = ?1),
        EXISTS (SELECT 1 FROM stepwell_messages WHERE task_id = ?1)
    FROM stepwell_tasks
    WHERE task_id = ?1 AND (?2 IS NULL OR (run_id = ?2 AND state = 'running'))";

/// Selects the columns of [`Standing`].
pub(crate) const STANDING: &str = "SELECT state, compensating, cancel_requested, paused, queue
    FROM stepwell_tasks WHERE task_id = ?1";

/// Selects the columns of [`Standing`], the counts of attempts, and the last entries of the journal
/// that say what is left to be undone.
pub(crate) const TO_COMPENSATE: &str =
    "SELECT state, compensating, cancel_requested, paused, queue, attempt, lost, crashes,
        last, recorded, begun
    FROM stepwell_tasks CROSS JOIN (
        SELECT max(seq) AS last, max(seq) FILTER (WHERE kind = 'compensate') AS recorded,
            max(seq) FILTER (WHERE kind = 'compensating') AS begun
        FROM stepwell_journal WHERE task_id = ?1)
    WHERE task_id = ?1";

/// Selects the end of the journal of a task that was compensated.
const COMPENSATED: &str = "SELECT max(seq) FROM stepwell_journal WHERE task_id = ?1
    HAVING max(kind = 'compensating') = 1";

pub(crate) const CHILDREN: &str = "SELECT task_id FROM stepwell_tasks
    WHERE parent = ?1 AND state IN ('pending', 'running', 'suspended') ORDER BY task_id";

/// A task as the rules see it.
pub(crate) struct Standing {
    pub(crate) position: Position,
    /// The queue; `None` when it cannot be read: then no worker can claim the task, and none is
    /// notified.
    pub(crate) queue: Option<Name>,
}

impl Standing {
    /// Reads the columns `state, compensating, cancel_requested, paused, queue`.
    pub(crate) fn read(row: &Row<'_>) -> Result<Self> {
        let position = Position::of(
            get(row, 0)?,
            Course::of(row.get(1)?),
            Cancellation::of(row.get(2)?),
            Claims::of(row.get(3)?),
        );
        Ok(Self { position, queue: known(row, 4) })
    }
}

/// Reads the counts of a task's attempts, from the columns `attempt, lost, crashes`.
pub(crate) fn counts(row: &Row<'_>, first: usize) -> Result<Counts> {
    Ok(Counts {
        attempt: nearest(row, first)?,
        lost: nearest(row, first + 1)?,
        crashes: nearest(row, first + 2)?,
    })
}

/// A running task that is about to lose its owner.
pub(crate) struct Held {
    pub(crate) task_id: TaskId,
    /// The queue; `None` when it cannot be read: then no worker can claim the task, and none is
    /// notified.
    pub(crate) queue: Option<Name>,
    pub(crate) cancellation: Cancellation,
    pub(crate) course: Course,
    pub(crate) counts: Counts,
}

impl Held {
    /// Reads the columns `task_id, queue, cancel_requested, compensating, attempt, lost, crashes`.
    pub(crate) fn read(row: &Row<'_>) -> Result<Self> {
        Ok(Self {
            task_id: get(row, 0)?,
            queue: known(row, 1),
            cancellation: Cancellation::of(row.get(2)?),
            course: Course::of(row.get(3)?),
            counts: counts(row, 4)?,
        })
    }

    /// Returns whether the task has been asked to cancel.
    pub(crate) fn cancel_requested(&self) -> bool {
        self.cancellation == Cancellation::Requested
    }
}

/// A row of [`TO_END`].
struct ToEnd {
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

/// The rest of a task whose run has left it.
pub(crate) struct Left<'a> {
    /// The counts of attempts, now that the run has left.
    pub(crate) counts: Counts,
    /// The time at which the task is due again; `None` for now.
    pub(crate) due_at: Option<Timestamp>,
    /// The reason of the attempt's failure.
    pub(crate) failure: Option<&'a Failure>,
}

impl From<Counts> for Left<'_> {
    fn from(counts: Counts) -> Self {
        Self { counts, due_at: None, failure: None }
    }
}

impl Applying<'_, '_> {
    /// Makes a running task pending, without an owner. A task whose cancellation was requested is
    /// cancelled instead.
    pub(crate) fn give_back(&mut self, task: &Held, left: &Left<'_>) -> Result<()> {
        let due_at = left.due_at.filter(|due_at| *due_at > self.now);
        self.conn.run(
            "UPDATE stepwell_tasks SET state = 'pending', worker_id = NULL, poked = 0, attempt = ?2,
                lost = ?3, crashes = ?4, failure = coalesce(?5, failure), due_at = ?6, ready_at = ?7
            WHERE task_id = ?1",
            params![
                Sql(&task.task_id),
                left.counts.attempt,
                left.counts.lost,
                left.counts.crashes,
                left.failure.map(Sql),
                due_at.as_ref().map(Sql),
                Sql(&self.now)
            ],
        )?;
        match given_back(task.cancellation) {
            GivenBack::EndsAsCancelled => {
                self.make_room(task.queue.as_ref())?;
                self.finish(task.task_id, None, Finish::Cancelled)?;
            }
            GivenBack::Pending => self.tell_ready(task.queue.clone()),
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
        // No run waits for what a task with an unreadable state waits for.
        let Some(Ok(Standing { position, queue })) = self.standing(task_id)? else { return Ok(()) };
        match on_arrival(position) {
            Arrival::Wakes => self.make_ready(task_id, queue),
            Arrival::Notifies => self.poke(task_id, false),
            Arrival::Nothing => Ok(()),
        }
    }

    /// Returns the task as the rules see it, as far as it can be read.
    pub(crate) fn standing(&self, task_id: TaskId) -> Result<Option<Result<Standing>>> {
        self.conn.one(STANDING, params![Sql(&task_id)], |row| Ok(Standing::read(row)))
    }

    /// Marks a running task as one for which something has arrived.
    fn poke(&mut self, task_id: TaskId, cancel: bool) -> Result<()> {
        self.conn.run(
            "UPDATE stepwell_tasks SET poked = 1, cancel_requested = max(cancel_requested, ?2)
            WHERE task_id = ?1 AND state = 'running'",
            params![Sql(&task_id), cancel],
        )?;
        self.news.poked.push(task_id);
        Ok(())
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
        // The journal of a task that has succeeded is not read.
        let end = End::from(&finish);
        if end != End::Completed && self.compensate(task_id, end, &finish)? {
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
    fn compensate(&mut self, task_id: TaskId, end: End, finish: &Finish) -> Result<bool> {
        let found = self.conn.one(TO_COMPENSATE, params![Sql(&task_id)], |row| {
            let seq = |column| {
                Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(column)?.map(i64::unsigned_abs))
            };
            Ok((Standing::read(row)?, counts(row, 5)?, seq(8)?, Undo::of(seq(9)?, seq(10)?)))
        })?;
        let Some((standing, counts, last, undo)) = found else { return Ok(false) };
        let (Standing { position: Position::Live(live), queue }, Some(last)) = (standing, last)
        else {
            return Ok(false);
        };
        match on_end(end, live.course, undo) {
            Ending::Ends(_) => return Ok(false),
            Ending::CompensatesFirst => {}
        }
        let attempt = attempt_to_undo(counts.attempt, live.activity);
        let (entry, failure) = compensating(last + 1, attempt, finish.clone(), self.now);
        let counts = counts.compensating();
        self.drop_waits(task_id)?;
        self.add_entries(task_id, &[entry])?;
        self.conn.run(
            "UPDATE stepwell_tasks SET state = 'pending', compensating = 1, cancel_requested = 0,
                attempt = ?4, lost = ?5, crashes = ?6, worker_id = NULL, poked = 0, due_at = NULL,
                cancel_at = NULL, failure = ?2, ready_at = ?3
            WHERE task_id = ?1",
            params![
                Sql(&task_id),
                Sql(&failure),
                Sql(&self.now),
                counts.attempt,
                counts.lost,
                counts.crashes
            ],
        )?;
        self.tell_ready(queue);
        Ok(true)
    }

    /// Returns the failure of the task's last attempt.
    pub(crate) fn failure(&self, task_id: TaskId) -> Result<Option<Failure>> {
        let sql = "SELECT failure FROM stepwell_tasks WHERE task_id = ?1";
        Ok(self.conn.one(sql, params![Sql(&task_id)], |row| opt(row, 0))?.flatten())
    }

    /// Cancels a task, unless it ends by itself or has ended.
    pub(crate) fn cancel(&mut self, task_id: TaskId) -> Result<()> {
        let Some(standing) = self.standing(task_id)? else { return Ok(()) };
        let Standing { position, queue } = standing?;
        match on_cancel(position) {
            Some(effect) => self.carry_out(task_id, effect, queue),
            None => Ok(()),
        }
    }

    /// Carries out the effect of a command or a cancellation. The children of a cancelled task are
    /// cancelled later.
    pub(crate) fn carry_out(
        &mut self,
        task_id: TaskId,
        effect: Effect,
        queue: Option<Name>,
    ) -> Result<()> {
        match effect {
            Effect::AskToEnd => self.poke(task_id, true),
            Effect::EndAsCancelled => self.finish(task_id, None, Finish::Cancelled).map(drop),
            Effect::RunAgain => self.run_again(task_id, queue),
            Effect::Remove => purge::delete(self.conn, task_id),
            Effect::Wake => self.make_ready(task_id, queue),
            Effect::Pause => self.pause(task_id, true),
            Effect::Resume => {
                self.pause(task_id, false)?;
                self.tell_ready(queue);
                Ok(())
            }
            Effect::Nothing => Ok(()),
        }
    }

    fn pause(&self, task_id: TaskId, paused: bool) -> Result<()> {
        let sql = "UPDATE stepwell_tasks SET paused = ?2 WHERE task_id = ?1";
        self.conn.run(sql, params![Sql(&task_id), paused]).map(drop)
    }

    fn run_again(&mut self, task_id: TaskId, queue: Option<Name>) -> Result<()> {
        self.conn.run(
            "UPDATE stepwell_tasks SET attempt = 0, lost = 0, crashes = 0, cancel_requested = 0,
                compensating = 0, finished_at = NULL
            WHERE task_id = ?1",
            params![Sql(&task_id)],
        )?;
        if let Some(seq) =
            self.conn.one(COMPENSATED, params![Sql(&task_id)], |row| row.get::<_, i64>(0))?
        {
            self.add_entries(task_id, &[retry_entry(seq.unsigned_abs() + 1, self.now)])?;
        }
        self.line_up(task_id)?;
        self.make_ready(task_id, queue)
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
                Ok(ToEnd {
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
        let ToEnd { rowid, known, cancel_requested, waits, mail, .. } = ending;
        self.conn.run(
            "UPDATE stepwell_tasks SET state = ?2, output = ?3,
                failure = CASE ?2 WHEN 'cancelled' THEN failure ELSE ?4 END, finished_at = ?5,
                paused = 0, worker_id = NULL, poked = 0, due_at = NULL, cancel_at = NULL,
                place = NULL
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
