//! The application of transitions.

use rusqlite::params;
use stepwell_core::store::rules::{Found, Leaving, Suspension, WakeAt, on_suspension};
use stepwell_core::store::{Applied, Finish, Next, Refused, Spawned, Transition};
use stepwell_core::{Entry, RunId, TaskId, Timestamp, blocked};

use crate::apply::Applying;
use crate::apply::purge;
use crate::apply::states::{Held, Left};
use crate::apply::waits;
use crate::base::error::Fault;
use crate::base::rows::{Sql, Statements, seq};

/// Selects the task if the run owns it: the fence.
pub(crate) const FENCE: &str =
    "SELECT task_id, queue, cancel_requested, compensating, attempt, lost, crashes
    FROM stepwell_tasks
    WHERE task_id = ?1 AND run_id = ?2 AND state = 'running'";

/// The fence of a transition that only adds to the journal.
pub(crate) const LIGHT_FENCE: &str = "SELECT cancel_requested FROM stepwell_tasks WHERE task_id = \
                                      ?1 AND run_id = ?2 AND state = 'running'";

/// Selects the number of the last entry of a task's journal.
const LAST_ENTRY: &str = "SELECT coalesce(max(seq), 0) FROM stepwell_journal WHERE task_id = ?1";

/// A transition whose own data is written.
pub(crate) struct Written {
    applied: Applied,
    look: Option<Look>,
}

/// The rest of a transition, which is done when all transitions of the batch are written.
struct Look {
    task_id: TaskId,
    run_id: RunId,
    /// The time until which the task is suspended when nothing has arrived; the outer `None` for a
    /// task that is not suspended.
    suspend: Option<Option<Timestamp>>,
}

impl From<Applied> for Written {
    fn from(applied: Applied) -> Self {
        Self { applied, look: None }
    }
}

impl Applying<'_, '_> {
    pub(crate) fn transitions(
        &mut self,
        transitions: &[Transition],
    ) -> Result<Vec<Result<Applied, Refused>>, Fault> {
        let written = transitions.iter().map(|transition| self.write(transition));
        let written = written.collect::<Result<Vec<_>, _>>()?;
        self.cancel_doomed()?;
        let (mut answers, mut looks) = (Vec::with_capacity(written.len()), Vec::new());
        for (place, written) in written.into_iter().enumerate() {
            answers.push(written.map(|Written { applied, look }| {
                looks.extend(look.map(|look| (place, look)));
                applied
            }));
        }
        looks.sort_unstable_by_key(|(_, look)| look.task_id);
        for (place, look) in looks {
            if let Some(Ok(applied)) = answers.get_mut(place) {
                self.look(applied, look)?;
            }
        }
        Ok(answers)
    }

    fn write(&mut self, transition: &Transition) -> Result<Result<Written, Refused>, Fault> {
        if reaches_nobody_else(transition)
            && transition.after.is_none()
            && let Next::Complete(output) = &transition.next
        {
            return self.complete_at_once(transition, Finish::Completed(output.clone()));
        }
        if transition.only_journals()
            && matches!(transition.next, Next::Continue { collect: false })
            && self.ends_there(transition)?
        {
            return self.journal_at_once(transition);
        }
        let Transition { task_id, run_id, ref next, .. } = *transition;
        self.ends.forget(run_id);
        let Some(task) = self.conn.one(FENCE, params![Sql(&task_id), Sql(&run_id)], Held::read)?
        else {
            return Ok(Err(Refused));
        };
        if !self.ends_there(transition)? {
            self.give_back(&task, &task.counts.left(Leaving::Released).into())?;
            return Ok(Err(Refused));
        }
        self.write_own(transition)?;
        let keyed = self.spawn_keyed(transition)?;
        let transaction = match &transition.transaction {
            Some(transaction) => Some(self.work(task_id, transaction)?),
            None => None,
        };
        let applied = Applied {
            cancel_requested: task.cancel_requested(),
            transaction,
            keyed,
            ..Applied::default()
        };
        if let Some(finish) = next.finish() {
            self.finish(task_id, None, finish)?;
        }
        let look = self.go_on(&task, run_id, next)?;
        Ok(Ok(Written { applied, look }))
    }

    /// Writes the entries of a run that does nothing else.
    fn journal_at_once(
        &mut self,
        transition: &Transition,
    ) -> Result<Result<Written, Refused>, Fault> {
        let Transition { task_id, run_id, entries, .. } = transition;
        let fence =
            self.conn.one(LIGHT_FENCE, params![Sql(task_id), Sql(run_id)], |row| row.get(0))?;
        let Some(cancel_requested) = fence else { return Ok(Err(Refused)) };
        self.add_entries(*task_id, entries)?;
        if let Some(last) = entries.last() {
            self.ends.set(*run_id, last.seq);
        }
        Ok(Ok(Applied { cancel_requested, ..Applied::default() }.into()))
    }

    /// Writes the parts of a transition whose results the run does not wait for.
    fn write_own(&mut self, transition: &Transition) -> Result<(), Fault> {
        let task_id = transition.task_id;
        for &superseded in &transition.superseded {
            self.conn.run(
                "DELETE FROM stepwell_journal WHERE task_id = ?1 AND seq = ?2",
                params![Sql(&task_id), seq(superseded)?],
            )?;
        }
        self.add_entries(task_id, &transition.entries)?;
        for id in &transition.received {
            self.conn.run(
                "DELETE FROM stepwell_messages WHERE id = ?1 AND task_id = ?2",
                params![id, Sql(&task_id)],
            )?;
        }
        transition.waits_removed.iter().try_for_each(|key| self.remove_wait(task_id, key))?;
        for task in &transition.spawns {
            self.spawn(task)?;
        }
        // Waits come after the spawns: a child that does not exist then has been deleted.
        transition.waits_added.iter().try_for_each(|wait| waits::add(self.conn, task_id, wait))?;
        for event in &transition.events {
            self.emit(event)?;
        }
        for message in &transition.messages {
            self.send(message)?;
        }
        Ok(())
    }

    /// Spawns the child with a key. The entry is only for a child that did not exist.
    fn spawn_keyed(&mut self, transition: &Transition) -> Result<Option<Spawned>, Fault> {
        let Some(keyed) = &transition.keyed else { return Ok(None) };
        let spawned = self.spawn(&keyed.task)?;
        match &spawned {
            Spawned::Created { .. } => {
                self.add_entries(transition.task_id, std::slice::from_ref(&keyed.entry))?;
            }
            Spawned::Existing { task_id: other, .. } | Spawned::Waiting { task_id: other, .. } => {
                purge::need(self.conn, *other, transition.task_id)?;
            }
        }
        Ok(Some(spawned))
    }

    /// Applies what the run does next, if the task has not ended. The result is what is left to do
    /// when all transitions are written.
    fn go_on(&mut self, task: &Held, run_id: RunId, next: &Next) -> Result<Option<Look>, Fault> {
        let task_id = task.task_id;
        let look = |suspend| Ok(Some(Look { task_id, run_id, suspend }));
        let given = match *next {
            Next::Continue { collect: false }
            | Next::Complete(_)
            | Next::Fail(_)
            | Next::Cancel => return Ok(None),
            Next::Continue { collect: true } => return look(None),
            Next::Suspend { wake_at } => return look(Some(wake_at)),
            Next::Retry { ref failure, at } => {
                self.drop_waits(task_id)?;
                let counts = task.counts.left(Leaving::Failed);
                Left { counts, due_at: Some(at), failure: Some(failure) }
            }
            Next::Release => task.counts.left(Leaving::Released).into(),
            Next::Leave { until } => {
                let counts = task.counts.left(Leaving::Released);
                Left { counts, due_at: Some(until), failure: None }
            }
        };
        self.give_back(task, &given)?;
        Ok(None)
    }

    /// Returns whether the task's journal ends where the transition says.
    fn ends_there(&self, transition: &Transition) -> rusqlite::Result<bool> {
        let Some(after) = transition.after.filter(|after| !self.ends.is(transition.run_id, *after))
        else {
            return Ok(true);
        };
        let last: Option<i64> =
            self.conn.one(LAST_ENTRY, params![Sql(&transition.task_id)], |row| row.get(0))?;
        // No journal ends at a number that a column cannot hold.
        Ok(last == i64::try_from(after).ok())
    }

    fn look(&mut self, applied: &mut Applied, look: Look) -> Result<(), Fault> {
        let Look { task_id, run_id, suspend } = look;
        let Some(task) = self.conn.one(FENCE, params![Sql(&task_id), Sql(&run_id)], Held::read)?
        else {
            return Ok(());
        };
        applied.facts = self.facts(task_id, task.queue.as_ref())?;
        applied.cancel_requested = task.cancel_requested();
        if let Some(wake_at) = suspend {
            let found = if applied.facts.is_empty() { Found::Nothing } else { Found::Something };
            let at = WakeAt::of(wake_at, self.now);
            let suspends = match on_suspension(task.cancellation, found, at) {
                Suspension::StaysRunning => false,
                Suspension::Suspends => true,
                Suspension::SuspendsUnlessInCircle => {
                    let child = self.blocked(task_id)?;
                    let failed = child.map(|child| (child, Finish::Failed(blocked())));
                    applied.facts.children.extend(failed);
                    child.is_none()
                }
            };
            if suspends {
                applied.suspended = true;
                return self.suspend(task, wake_at);
            }
        }
        self.conn.run(
            "UPDATE stepwell_tasks SET poked = 0 WHERE task_id = ?1 AND poked = 1",
            params![Sql(&task_id)],
        )?;
        Ok(())
    }

    fn suspend(&mut self, task: Held, wake_at: Option<Timestamp>) -> Result<(), Fault> {
        let counts = task.counts.left(Leaving::Suspended);
        self.conn.run(
            "UPDATE stepwell_tasks SET state = 'suspended', attempt = ?3, crashes = ?4, poked = 0,
                due_at = ?2
            WHERE task_id = ?1",
            params![Sql(&task.task_id), wake_at.as_ref().map(Sql), counts.attempt, counts.crashes],
        )?;
        self.make_room(task.queue.as_ref())?;
        if wake_at.is_some() {
            self.tell_ready(task.queue);
        }
        Ok(())
    }

    /// Checks the fence and ends the task in one statement, for the last transition of almost every
    /// task.
    fn complete_at_once(
        &mut self,
        transition: &Transition,
        finish: Finish,
    ) -> Result<Result<Written, Refused>, Fault> {
        let Transition { task_id, run_id, entries, .. } = transition;
        self.ends.forget(*run_id);
        let Some(cancel_requested) = self.finish(*task_id, Some(*run_id), finish)? else {
            return Ok(Err(Refused));
        };
        self.add_entries(*task_id, entries)?;
        Ok(Ok(Applied { cancel_requested, ..Applied::default() }.into()))
    }

    pub(crate) fn add_entries(&self, task_id: TaskId, entries: &[Entry]) -> rusqlite::Result<()> {
        add_entries(self.conn, task_id, entries)
    }
}

pub(crate) fn add_entries(
    conn: &impl Statements,
    task_id: TaskId,
    entries: &[Entry],
) -> rusqlite::Result<()> {
    for entry in entries {
        let (outcome, payload) = entry.outcome.to_columns();
        conn.run(
            "INSERT INTO stepwell_journal (task_id, seq, kind, name, ordinal, outcome, payload, at)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                Sql(&task_id),
                seq(entry.seq)?,
                Sql(&entry.key.kind),
                Sql(&entry.key.name),
                entry.key.ordinal,
                outcome,
                Sql(&payload),
                Sql(&entry.at)
            ],
        )?;
    }
    Ok(())
}

/// Returns whether the order of the transition's parts has no effect, so that the end may come
/// first.
fn reaches_nobody_else(transition: &Transition) -> bool {
    transition.spawns.is_empty()
        && transition.events.is_empty()
        && transition.messages.is_empty()
        && transition.transaction.is_none()
        && transition.keyed.is_none()
        && transition.superseded.is_empty()
}
