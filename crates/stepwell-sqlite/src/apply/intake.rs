//! The input of clients and of other tasks: tasks, events, messages, commands.

use rusqlite::{Result, params};
use stepwell_core::store::rules::{
    Effect, Position, Queueing, Registration, Start, Turn, Verdict, on_command, starts_with_spawn,
};
use stepwell_core::store::{
    Command, CommandOutcome, NewEvent, NewMessage, NewTask, Spawned, TaskState,
};
use stepwell_core::{Coalesce, Kind, Name, Timestamp, WorkerId, after};

use crate::apply::states::Standing;
use crate::apply::{Applying, labels, purge};
use crate::base::rows::{Sql, Statements as _, count, get};

pub(crate) const EXISTING: &str = "SELECT task_id, run_id, attempt FROM stepwell_tasks
    WHERE task_type = ?1 AND idempotency_key = ?2 AND scope = ?3";

/// Selects the tasks that wait for an event of the queue (`''`: an event for all queues).
pub(crate) const AWAITING: &str = "SELECT DISTINCT task_id FROM stepwell_waits
    WHERE target = ?1 AND kind = 'event' AND (?2 = '' OR ?2 = (
        SELECT queue FROM stepwell_tasks WHERE stepwell_tasks.task_id = stepwell_waits.task_id))
    ORDER BY task_id";

/// Selects the tasks of a concurrency key, scope and type that were never claimed, the last one
/// first.
pub(crate) const WAITING: &str = "SELECT task_id, run_id FROM stepwell_tasks
    WHERE concurrency_key = ?1 AND scope = ?3 AND place IS NOT NULL AND task_type = ?2
        AND state = 'pending' AND started_at IS NULL AND compensating = 0
    ORDER BY place DESC";

impl Applying<'_, '_> {
    pub(crate) fn spawn(&mut self, new: &NewTask) -> Result<Spawned> {
        if let Some(key) = &new.idempotency_key {
            let existing = self.conn.one(
                EXISTING,
                params![Sql(&new.task_type), Sql(key), Sql(&new.scope)],
                |row| {
                    Ok(Spawned::Existing {
                        task_id: get(row, 0)?,
                        run_id: get(row, 1)?,
                        attempt: count(row, 2)?,
                    })
                },
            )?;
            if let Some(existing) = existing {
                return Ok(existing);
            }
        }
        if let Some(waiting) = self.coalesce(new)? {
            return Ok(waiting);
        }
        let start_at = new.start_at.filter(|start_at| *start_at > self.now);
        let claim_by = self.starting_worker(new)?;
        self.insert(new, start_at, claim_by)?;
        labels::add(self.conn, new.task_id, &new.queue, &new.headers, &new.scope)?;
        if new.concurrency_key.is_some() {
            self.line_up(new.task_id)?;
        }
        let claimed = claim_by.is_some();
        if !claimed {
            self.news.ready.push((new.queue.clone(), 1));
        }
        Ok(Spawned::Created { claimed })
    }

    /// Inserts the row of a new task, which the given worker runs at once, or which is claimable
    /// from `start_at` on.
    fn insert(
        &self,
        new: &NewTask,
        start_at: Option<Timestamp>,
        claim_by: Option<WorkerId>,
    ) -> Result<()> {
        let claimed = claim_by.is_some();
        let policy = &new.cancellation;
        let limit = if claimed { policy.max_duration } else { policy.max_delay };
        let cancel_at = limit.map(|limit| after(self.now, limit));
        self.conn.run(
            "INSERT INTO stepwell_tasks (task_id, run_id, task_type, queue, state, priority,
                attempt, max_attempts, worker_id, parent, idempotency_key, spawned_at, ready_at,
                started_at, due_at, cancel_at, max_duration, retry, headers, params,
                concurrency_key, code_version, scope)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?12, ?13, ?14, ?15, ?16,
                ?17, ?18, ?19, ?20, ?21, ?22)",
            params![
                Sql(&new.task_id),
                Sql(&new.run_id),
                Sql(&new.task_type),
                Sql(&new.queue),
                Sql(if claimed { &TaskState::Running } else { &TaskState::Pending }),
                new.priority,
                claimed,
                new.max_attempts,
                claim_by.as_ref().map(Sql),
                new.parent.as_ref().map(Sql),
                new.idempotency_key.as_ref().map(Sql),
                Sql(&self.now),
                claimed.then_some(Sql(&self.now)),
                start_at.as_ref().map(Sql),
                cancel_at.as_ref().map(Sql),
                policy.max_duration.as_ref().map(Sql),
                Sql(&new.retry),
                Sql(&new.headers),
                Sql(&new.params),
                new.concurrency_key.as_ref().map(Sql),
                new.code_version.as_ref().map(Sql),
                Sql(&new.scope)
            ],
        )?;
        Ok(())
    }

    /// Returns the worker that gets a new task at once.
    fn starting_worker(&self, new: &NewTask) -> Result<Option<WorkerId>> {
        let Some(worker_id) = new.claim_by else { return Ok(None) };
        let starts = starts_with_spawn(
            Start::of(new.start_at, self.now),
            if new.concurrency_key.is_none() { Turn::Free } else { Turn::Taken },
            || {
                Ok::<_, rusqlite::Error>(match self.is_registered(worker_id)? {
                    true => Registration::Registered,
                    false => Registration::Unknown,
                })
            },
            || {
                Ok(match self.restricts(&new.queue)? {
                    true => Queueing::Restricted,
                    false => Queueing::Free,
                })
            },
        )?;
        Ok(starts.then_some(worker_id))
    }

    /// Returns the waiting task that a new task reuses. With [`Coalesce::Replace`], the call
    /// cancels the waiting tasks instead, and the result is `None`.
    fn coalesce(&mut self, new: &NewTask) -> Result<Option<Spawned>> {
        let Some((coalesce, key)) = new.coalesce.zip(new.concurrency_key.as_ref()) else {
            return Ok(None);
        };
        let asked = params![Sql(key), Sql(&new.task_type), Sql(&new.scope)];
        let waiting =
            self.conn.readable("a task", WAITING, asked, |row| Ok((get(row, 0)?, get(row, 1)?)))?;
        match waiting.first() {
            Some(&(task_id, run_id)) if coalesce != Coalesce::Replace => {
                return Ok(Some(Spawned::Waiting { task_id, run_id }));
            }
            _ => {}
        }
        // Tasks that other transitions of the batch have cancelled keep their order, and are
        // handled later.
        let others = std::mem::take(&mut self.doomed);
        for (task_id, _) in waiting {
            self.cancel(task_id)?;
            self.cancel_doomed()?;
        }
        self.doomed = others;
        Ok(None)
    }

    pub(crate) fn is_registered(&self, worker_id: WorkerId) -> Result<bool> {
        let row = self.conn.one(
            "SELECT 1 FROM stepwell_workers WHERE worker_id = ?1",
            params![Sql(&worker_id)],
            |_| Ok(()),
        )?;
        Ok(row.is_some())
    }

    pub(crate) fn emit(&mut self, event: &NewEvent) -> Result<bool> {
        let queue = event.queue.as_ref().map_or("", Name::as_str);
        let inserted = self.conn.run(
            "INSERT INTO stepwell_events (name, queue, payload) VALUES (?1, ?2, ?3) ON CONFLICT DO \
             NOTHING",
            params![Sql(&event.name), queue, Sql(&event.payload)],
        )?;
        if inserted == 0 {
            return Ok(false);
        }
        let awaiting = params![Sql(&event.name), queue];
        for task_id in self.conn.readable("a wait", AWAITING, awaiting, |row| get(row, 0))? {
            self.arrive(task_id, Kind::Event, event.name.as_str())?;
        }
        Ok(true)
    }

    pub(crate) fn send(&mut self, message: &NewMessage) -> Result<bool> {
        let task_id = Sql(&message.task_id);
        // A task with an unreadable state keeps its messages until its row is mended.
        let ended = |standing: Result<Standing>| {
            standing.is_ok_and(|standing| matches!(standing.position, Position::Ended(_)))
        };
        if self.standing(message.task_id)?.is_none_or(ended) {
            return Ok(false);
        }
        self.conn.run(
            "INSERT INTO stepwell_messages (task_id, topic, payload) VALUES (?1, ?2, ?3)",
            params![task_id, Sql(&message.topic), Sql(&message.payload)],
        )?;
        self.arrive_message(message.task_id, &message.topic)?;
        Ok(true)
    }

    pub(crate) fn command(&mut self, command: Command) -> Result<CommandOutcome> {
        let task_id = command.task_id();
        let Some(standing) = self.standing(task_id)? else { return Ok(CommandOutcome::NotFound) };
        let Standing { position, queue } = standing?;
        let effect = match on_command(position, command.into()) {
            Verdict::Allowed(effect) => effect,
            Verdict::NotAllowed(state) => return Ok(CommandOutcome::NotAllowed(state)),
        };
        if effect == Effect::Remove
            && let Some(by) = purge::needed_by(self.conn, task_id)?
        {
            return Ok(CommandOutcome::Needed { by });
        }
        self.carry_out(task_id, effect, queue)?;
        self.cancel_doomed()?;
        Ok(CommandOutcome::Done)
    }
}
