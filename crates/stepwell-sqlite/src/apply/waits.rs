//! The waits of tasks, and what has arrived for them.

use rusqlite::{Connection, Result, params};
use stepwell_core::store::{ArrivedMessage, Facts, Finish, Wait};
use stepwell_core::{Key, Kind, Listed as _, Name, Payload, TaskId, deleted};

use crate::apply::Applying;
use crate::base::rows::{Sql, Statements as _, get, known, opt};

/// Selects the tasks that wait for the end of a task.
pub(crate) const AWAITS: &str = "SELECT DISTINCT task_id FROM stepwell_waits WHERE target = ?1 AND \
                                 kind = 'child' ORDER BY task_id";

/// Adds a wait, and marks it if its target may have arrived already. One mark for each topic is
/// enough.
///
/// `INDEXED BY`, here and below, is for tasks with many waits, all of which a search by the task's
/// id would read.
pub(crate) const ADD: &str =
    "INSERT OR REPLACE INTO stepwell_waits (task_id, kind, name, ordinal, target, due_at, arrived)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, CASE ?2
        WHEN 'event' THEN EXISTS (SELECT 1 FROM stepwell_events WHERE name = ?5
            AND queue IN ('', (SELECT queue FROM stepwell_tasks WHERE task_id = ?1)))
        WHEN 'message' THEN
            EXISTS (SELECT 1 FROM stepwell_messages WHERE task_id = ?1 AND topic = ?5)
            AND NOT EXISTS (SELECT 1 FROM stepwell_waits INDEXED BY stepwell_waits_arrived
                WHERE task_id = ?1 AND arrived = 1 AND kind = 'message' AND target = ?5
                    AND (name, ordinal) <> (?3, ?4))
        WHEN 'child' THEN NOT EXISTS (SELECT 1 FROM stepwell_tasks
            WHERE task_id = ?5 AND state IN ('pending', 'running', 'suspended'))
        ELSE 0 END)";

/// Marks the waits of a task for an event or a child.
pub(crate) const MARK: &str =
    "UPDATE stepwell_waits INDEXED BY stepwell_waits_target SET arrived = 1
    WHERE target = ?2 AND kind = ?3 AND task_id = ?1";

/// Marks one of a task's waits for a message of a topic, if there is such a message.
pub(crate) const MARK_ONE: &str = "UPDATE stepwell_waits SET arrived = 1
    WHERE EXISTS (SELECT 1 FROM stepwell_messages WHERE task_id = ?1 AND topic = ?2)
        AND (task_id, kind, name, ordinal) = (
            SELECT task_id, kind, name, ordinal FROM stepwell_waits INDEXED BY stepwell_waits_target
            WHERE target = ?2 AND kind = 'message' AND task_id = ?1 LIMIT 1)";

/// Removes the marks from the waits of a task for a target.
pub(crate) const UNMARK: &str =
    "UPDATE stepwell_waits INDEXED BY stepwell_waits_arrived SET arrived = 0
    WHERE task_id = ?1 AND arrived = 1 AND kind = ?3 AND target = ?2";

/// Selects the targets of a task's marked waits.
pub(crate) const ARRIVED: &str = "SELECT kind, target
    FROM stepwell_waits INDEXED BY stepwell_waits_arrived WHERE task_id = ?1 AND arrived = 1";

/// Selects the messages of a topic.
pub(crate) const MESSAGES: &str =
    "SELECT id, payload FROM stepwell_messages WHERE task_id = ?1 AND topic = ?2 ORDER BY id";

/// Selects a task's waits for messages of a topic.
pub(crate) const RECEIVING: &str = "SELECT 1 FROM stepwell_waits INDEXED BY stepwell_waits_target
    WHERE target = ?2 AND kind = 'message' AND task_id = ?1";

pub(crate) fn add(conn: &Connection, task_id: TaskId, wait: &Wait) -> Result<()> {
    let Wait { key, target, due_at } = wait;
    conn.run(
        ADD,
        params![
            Sql(&task_id),
            Sql(&key.kind),
            Sql(&key.name),
            key.ordinal,
            target.as_ref().map(Sql),
            due_at.as_ref().map(Sql)
        ],
    )?;
    Ok(())
}

impl Applying<'_, '_> {
    pub(crate) fn remove_wait(&self, task_id: TaskId, key: &Key) -> Result<()> {
        let which = params![Sql(&task_id), Sql(&key.kind), Sql(&key.name), key.ordinal];
        let topic: Option<Option<Name>> = match key.kind {
            Kind::Message => self.conn.one(
                "SELECT target FROM stepwell_waits
                WHERE task_id = ?1 AND kind = ?2 AND name = ?3 AND ordinal = ?4 AND arrived = 1",
                which,
                |row| opt(row, 0),
            )?,
            _ => None,
        };
        self.conn.run(
            "DELETE FROM stepwell_waits WHERE task_id = ?1 AND kind = ?2 AND name = ?3 AND ordinal \
             = ?4",
            which,
        )?;
        // The mark of the wait's topic goes to another wait, if there is one.
        if let Some(topic) = topic.flatten() {
            self.conn.run(MARK_ONE, params![Sql(&task_id), Sql(&topic)])?;
        }
        Ok(())
    }

    pub(crate) fn drop_waits(&self, task_id: TaskId) -> Result<()> {
        self.conn.run("DELETE FROM stepwell_waits WHERE task_id = ?1", params![Sql(&task_id)])?;
        Ok(())
    }

    /// Returns the tasks that wait for the end of the task.
    pub(crate) fn awaiting(&self, task_id: TaskId) -> Result<Vec<TaskId>> {
        self.conn.readable("a wait", AWAITS, params![Sql(&task_id)], |row| get(row, 0))
    }

    /// Notifies a task that an event, or the end of a child, has arrived for one of its waits.
    pub(crate) fn arrive(&mut self, task_id: TaskId, kind: Kind, target: &str) -> Result<()> {
        self.conn.run(MARK, params![Sql(&task_id), target, Sql(&kind)])?;
        self.notify(task_id)
    }

    /// Notifies a task that a message of a topic has arrived, if it waits for one.
    pub(crate) fn arrive_message(&mut self, task_id: TaskId, topic: &Name) -> Result<()> {
        match self.conn.run(MARK_ONE, params![Sql(&task_id), Sql(topic)])? {
            0 => Ok(()),
            _ => self.notify(task_id),
        }
    }

    /// Returns what has arrived for the waits of a task in the queue, as far as the answer has
    /// room.
    pub(crate) fn facts(&mut self, task_id: TaskId, queue: Option<&Name>) -> Result<Facts> {
        let mut facts = Facts::default();
        let mut arrived = self.conn.all(ARRIVED, params![Sql(&task_id)], |row| {
            Ok((get::<Kind>(row, 0)?, opt::<Name>(row, 1)?))
        })?;
        arrived.sort_unstable();
        arrived.dedup();
        for (kind, target) in arrived {
            let Some(target) = target else { continue };
            let found = match kind {
                // When the answer is full, no payload is read, because each of them may be long.
                Kind::Event | Kind::Message | Kind::Child if self.room.is_full() => {
                    facts.more = true;
                    true
                }
                Kind::Event => {
                    let payload = self.event(&target, queue)?;
                    let found = payload.is_some();
                    if let Some(payload) = payload
                        && facts.has_room(&mut self.room, payload.as_str().len())
                    {
                        facts.events.push((target.clone(), payload));
                    }
                    found
                }
                Kind::Message => self.messages(task_id, &target, &mut facts)?,
                Kind::Child => {
                    let Ok(child) = target.as_str().parse() else { continue };
                    let finish = self.end_of(child)?;
                    let found = finish.is_some();
                    if let Some(finish) = finish
                        && facts.has_room(&mut self.room, finish.bytes())
                    {
                        facts.children.push((child, finish));
                    }
                    found
                }
                _ => continue,
            };
            if !found {
                self.conn.run(UNMARK, params![Sql(&task_id), Sql(&target), Sql(&kind)])?;
            }
        }
        Ok(facts)
    }

    /// Adds the first messages of a topic, at most one for each wait, as far as the answer has
    /// room. The result is `false` when there are no messages.
    fn messages(&mut self, task_id: TaskId, topic: &Name, facts: &mut Facts) -> Result<bool> {
        let (mut waits, mut messages) =
            (self.conn.prepare_cached(RECEIVING)?, self.conn.prepare_cached(MESSAGES)?);
        let mut waits = waits.query(params![Sql(&task_id), Sql(topic)])?;
        let mut messages = messages.query(params![Sql(&task_id), Sql(topic)])?;
        let mut found = false;
        while let (Some(_), Some(row)) = (waits.next()?, messages.next()?) {
            found = true;
            let message =
                ArrivedMessage { id: row.get(0)?, topic: topic.clone(), payload: get(row, 1)? };
            if !facts.has_room(&mut self.room, message.bytes()) {
                break;
            }
            facts.messages.push(message);
        }
        Ok(found)
    }

    /// Returns the event for a task in the queue: an event for all queues precedes one for this
    /// queue.
    fn event(&self, name: &Name, queue: Option<&Name>) -> Result<Option<Payload>> {
        self.conn.one(
            "SELECT payload FROM stepwell_events WHERE name = ?1 AND queue IN ('', ?2) ORDER BY \
             queue LIMIT 1",
            params![Sql(name), queue.map(Sql)],
            |row| get(row, 0),
        )
    }

    /// Returns how a child ended, or `None` when it has not ended or its state cannot be read.
    fn end_of(&self, child: TaskId) -> Result<Option<Finish>> {
        let finish = self.conn.one(
            "SELECT state, output, failure FROM stepwell_tasks WHERE task_id = ?1",
            params![Sql(&child)],
            |row| match known(row, 0) {
                Some(state) => Ok(Finish::of(state, opt(row, 1)?, opt(row, 2)?)),
                None => Ok(None),
            },
        )?;
        Ok(finish.unwrap_or_else(|| Some(Finish::Failed(deleted()))))
    }
}
