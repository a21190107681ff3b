//! Claims, and the due changes that precede a claim.

use std::time::Duration;

use rusqlite::{Result, Row, params};
use stepwell_core::store::rules::Counts;
use stepwell_core::store::{Claim, Claimed, ClaimedTask, Facts};
use stepwell_core::{
    Name, RunId, Runtime, SUSPECT_CRASHES, Timestamp, Unreadable, WorkerId, after,
};

use crate::apply::Applying;
use crate::base::rows::{Sql, Statements as _, count, get, known, opt, unreadable};
use crate::read::{query, waits};

/// Defines a statement for the claimable tasks of a queue, with the given types, the given version
/// and at most `?5` crashes. Where `?4` is false, tasks that continue after a suspension are left
/// out. `INDEXED BY` fixes the index, whatever the statistics say. The statement has no limit: its
/// caller stops reading when there is room for no more tasks.
macro_rules! claimable {
    ($crashes:literal) => {
        concat!(
            "SELECT rowid, task_id, run_id, attempt, max_attempts, task_type, params, headers,
                retry, worker_id, started_at, max_duration, crashes, scope, lost, concurrency_key
            FROM stepwell_tasks INDEXED BY stepwell_tasks_ready
            WHERE queue = ?1 AND state = 'pending' AND due_at IS NULL AND blocked = 0
                AND paused = 0 AND ",
            $crashes,
            " AND crashes <= ?5 AND task_type IN (SELECT value FROM json_each(?2))
                AND (code_version IS NULL OR code_version = ?3)
                AND (worker_id IS NULL OR ?4)
            ORDER BY priority DESC, ready_at, task_id"
        )
    };
}

/// Selects the claimable tasks that are not suspects.
pub(crate) const READY: &str = claimable!("(crashes >= 2) = 0");

/// Selects the claimable tasks that are not suspects and continue after a suspension.
pub(crate) const GOING_ON: &str = claimable!("(crashes >= 2) = 0 AND worker_id IS NOT NULL");

/// The maximum number of crashes of a task that is not a suspect.
const FEW_CRASHES: u32 = SUSPECT_CRASHES - 1;

/// Selects the claimable suspects.
pub(crate) const SUSPECTS: &str = claimable!("(crashes >= 2) = 1");

// A state that this program does not know comes from a newer one: such tasks are not changed, and
// no worker wakes up for them.
pub(crate) const DEADLINE: &str = "SELECT rowid, task_id FROM stepwell_tasks
    WHERE cancel_at <= ?1 AND state IN ('pending', 'running', 'suspended')
    ORDER BY cancel_at, task_id LIMIT 1";

pub(crate) const DUE: &str = "SELECT rowid, queue FROM stepwell_tasks
    WHERE due_at <= ?1 AND state IN ('pending', 'suspended') ORDER BY due_at, task_id LIMIT ?2";

pub(crate) const NEXT_DUE: &str =
    "SELECT due_at FROM stepwell_tasks WHERE due_at >= ?1 ORDER BY due_at LIMIT 1";

pub(crate) const NEXT_DEADLINE: &str = "SELECT cancel_at FROM stepwell_tasks WHERE cancel_at >= ?1
    ORDER BY cancel_at LIMIT 1";

pub(crate) const POKED: &str = "SELECT task_id FROM stepwell_tasks
    WHERE worker_id = ?1 AND poked = 1 AND state = 'running' ORDER BY task_id";

/// The maximum number of tasks that become due with one claim, so that other commits do not wait
/// long.
const DUE_AT_ONCE: usize = 4_000;

/// A row of [`READY`].
struct Ready {
    rowid: i64,
    /// The task as the claim returns it, without the journal, the waits and the facts.
    task: ClaimedTask,
    had_by: Option<WorkerId>,
    started: bool,
    max_duration: Option<Duration>,
}

impl Ready {
    fn read(row: &Row<'_>, queue: &Name, runtime: &dyn Runtime) -> Result<Self> {
        let mut hurt = None;
        let params = of_task(&mut hurt, "`params`", get(row, 6))?;
        let headers = of_task(&mut hurt, "`headers`", get(row, 7))?;
        let retry = of_task(&mut hurt, "`retry`", get(row, 8))?;
        let scope = of_task(&mut hurt, "`scope`", get(row, 13))?;
        let mut number = |what, column| of_task(&mut hurt, what, count(row, column));
        let (attempt, crashes) = (number("`attempt`", 3)?, number("`crashes`", 12)?);
        let (max_attempts, lost) = (number("`max_attempts`", 4)?, number("`lost`", 14)?);
        let max_duration = of_task(&mut hurt, "`max_duration`", opt(row, 11))?;
        let (run_id, had_by) = match get(row, 2) {
            Ok(run_id) => (run_id, known(row, 9)),
            // No worker can own a run with an unreadable id, so the task gets another one.
            Err(_) => (RunId::new(runtime), None),
        };
        let task = ClaimedTask {
            task_id: get(row, 1)?,
            run_id,
            attempt,
            max_attempts: max_attempts.saturating_add(lost).max(1),
            crashes,
            task_type: get(row, 5)?,
            queue: queue.clone(),
            params,
            headers,
            scope,
            concurrency_key: opt(row, 15)?,
            retry,
            journal: None,
            waits: Vec::new(),
            facts: Facts::default(),
            unreadable: hurt,
        };
        Ok(Self {
            rowid: row.get(0)?,
            task,
            had_by,
            started: opt::<Timestamp>(row, 10)?.is_some(),
            max_duration,
        })
    }
}

/// Returns a column of a task, or a default when the column cannot be read. A task with an
/// unreadable column is failed with the error, and the claim continues.
fn of_task<T: Default>(hurt: &mut Option<Unreadable>, what: &str, read: Result<T>) -> Result<T> {
    read.or_else(|error| {
        *hurt = Some(unreadable(what, error)?);
        Ok(T::default())
    })
}

impl Applying<'_, '_> {
    pub(crate) fn claim(&mut self, claim: &Claim) -> Result<Claimed> {
        let more = self.do_what_is_due()?;
        let poked = self
            .conn
            .readable("a task", POKED, params![Sql(&claim.worker_id)], |row| get(row, 0))?;
        let (mut tasks, mut due) = (Vec::new(), Vec::from_iter(more));
        if claim.limit > 0 && self.is_registered(claim.worker_id)? {
            let types = serde_json::to_string(&claim.task_types)
                .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
            let mut suspect = claim.suspect;
            for queue in &claim.queues {
                let room = claim.limit - tasks.len();
                let (ready, next) = self.pick(claim, queue, &types, room, &mut suspect)?;
                due.extend(next);
                for ready in ready {
                    tasks.push(self.start(ready, claim.worker_id)?);
                }
            }
        }
        due.extend(self.next_due()?);
        Ok(Claimed { tasks, poked, next_due: due.into_iter().min() })
    }

    /// Selects tasks of a queue for the claim, at most as many as there is room for. A suspect
    /// comes first, if `suspect` allows one. The second value is the time at which the next task
    /// may start, if the queue's rate is used up.
    fn pick(
        &self,
        claim: &Claim,
        queue: &Name,
        types: &str,
        room: usize,
        suspect: &mut u32,
    ) -> Result<(Vec<Ready>, Option<Timestamp>)> {
        let ready = |sql: &'static str, going_on: bool, crashes: u32, room: usize| {
            if room == 0 {
                return Ok(Vec::new());
            }
            let version = claim.code_version.as_ref().map(Sql);
            let asked = params![Sql(queue), types, version, going_on, crashes];
            let runtime = &*self.writer.runtime;
            self.conn.first(room, "a task", sql, asked, |row| Ready::read(row, queue, runtime))
        };
        let config = self.queue(queue)?;
        let (room, rate) = match &config {
            Some(config) => (self.room(config, queue, claim.worker_id, room)?, config.limits.rate),
            None => (room, None),
        };
        let used = config.and_then(|config| config.used_until);
        let allowed = rate.map_or(room, |rate| room.min(rate.allowed(self.now, used)));
        let mut picked = match rate {
            Some(_) => ready(GOING_ON, true, FEW_CRASHES, room)?,
            None => Vec::new(),
        };
        let startable = (room - picked.len()).min(allowed);
        // A suspect starts again, because its worker died.
        let mut starts = match *suspect {
            SUSPECT_CRASHES.. => ready(SUSPECTS, true, *suspect, startable.min(1))?,
            _ => Vec::new(),
        };
        if !starts.is_empty() {
            *suspect = 0;
        }
        starts.extend(ready(READY, rate.is_none(), FEW_CRASHES, startable - starts.len())?);
        let started = starts.len();
        picked.extend(starts);
        let Some(rate) = rate.filter(|_| room > 0) else { return Ok((picked, None)) };
        let used = rate.used_until(self.now, used, started);
        if started > 0 {
            self.use_rate(queue, used)?;
        }
        Ok((picked, (rate.allowed(self.now, Some(used)) == 0).then(|| rate.next(used))))
    }

    fn start(&mut self, ready: Ready, worker_id: WorkerId) -> Result<ClaimedTask> {
        let Ready { rowid, mut task, had_by, started, max_duration } = ready;
        let had_it = had_by == Some(worker_id);
        if !had_it {
            task.run_id = RunId::new(&*self.writer.runtime);
        }
        // A task that has never run has no journal and no waits.
        if started {
            let hurt = &mut task.unreadable;
            let facts = self.facts(task.task_id, Some(&task.queue));
            task.facts = of_task(hurt, "what has arrived for it", facts)?;
            if !had_it {
                let waits = waits::of(self.conn, task.task_id);
                task.waits = of_task(hurt, "a row of `stepwell_waits`", waits)?;
                let journal = query::short_journal(self.conn, task.task_id, &mut self.room);
                let journal = of_task(hurt, "a row of `stepwell_journal`", journal.map(Some))?;
                task.journal = journal.unwrap_or_else(|| Some(Vec::new()));
            }
        } else {
            task.journal = Some(Vec::new());
        }
        task.attempt = Counts { attempt: task.attempt, ..Counts::default() }.claimed().attempt;
        let cancel_at = max_duration.map(|limit| after(self.now, limit));
        self.conn.run(
            "UPDATE stepwell_tasks SET state = 'running', run_id = ?2, attempt = ?3,
                worker_id = ?4, poked = 0, started_at = coalesce(started_at, ?5),
                cancel_at = CASE WHEN started_at IS NULL THEN ?6 ELSE cancel_at END
            WHERE rowid = ?1",
            params![
                rowid,
                Sql(&task.run_id),
                task.attempt,
                Sql(&worker_id),
                Sql(&self.now),
                cancel_at.as_ref().map(Sql)
            ],
        )?;
        Ok(task)
    }

    /// Applies what is due. The result is the next due time: the present time, if more is due than
    /// one claim applies.
    fn do_what_is_due(&mut self) -> Result<Option<Timestamp>> {
        let now = self.now;
        let mut cancelled = 0;
        // Tasks are cancelled one by one, because a cancelled task cancels its children, which may
        // be due as well.
        while cancelled < DUE_AT_ONCE
            && let Some((rowid, task_id)) = self.conn.one(DEADLINE, params![Sql(&now)], |row| {
                Ok((row.get::<_, i64>(0)?, known(row, 1)))
            })?
        {
            cancelled += 1;
            self.conn.run(
                "UPDATE stepwell_tasks SET cancel_at = NULL WHERE rowid = ?1",
                params![rowid],
            )?;
            if let Some(task_id) = task_id {
                self.apart(task_id, |applying| {
                    applying.cancel(task_id)?;
                    applying.cancel_doomed()
                })?;
            }
        }
        let limit = i64::try_from(DUE_AT_ONCE).unwrap_or(i64::MAX);
        let due = self.conn.all(DUE, params![Sql(&now), limit], |row| {
            Ok((row.get::<_, i64>(0)?, known::<Name>(row, 1)))
        })?;
        let more = cancelled == DUE_AT_ONCE || due.len() == DUE_AT_ONCE;
        for (rowid, queue) in due {
            self.conn.run(
                "UPDATE stepwell_tasks SET state = 'pending', due_at = NULL, ready_at = ?2 WHERE \
                 rowid = ?1",
                params![rowid, Sql(&now)],
            )?;
            self.tell_ready(queue);
        }
        self.remove_dead_workers()?;
        Ok(more.then_some(now))
    }

    fn next_due(&self) -> Result<Option<Timestamp>> {
        let now = Sql(&self.now);
        let due: Option<Timestamp> = self.conn.one(NEXT_DUE, params![now], |row| get(row, 0))?;
        let deadline = self.conn.one(NEXT_DEADLINE, params![now], |row| get(row, 0))?;
        Ok([due, deadline].into_iter().flatten().min())
    }
}
