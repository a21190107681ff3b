//! What tasks wait for, and what has arrived of it.

use std::collections::BTreeMap;

use rusqlite::types::ToSql;
use rusqlite::{Connection, Result, Row, params};
use stepwell_core::store::{ArrivedMessage, Facts, Finish, TaskWaits, Wait};
use stepwell_core::{Key, Kind, Name, Page, Payload, Room, Scope, TaskId, deleted};

use crate::commit::Applying;
use crate::labels::{Conditions, Label};
use crate::rows::{Readable, Sql, Statements as _, get, key, known, opt};

/// The tasks that wait for the end of a task.
pub(crate) const AWAITS: &str =
    "SELECT DISTINCT task_id FROM stepwell_waits WHERE target = ?1 AND kind = 'child' ORDER BY task_id";

pub(crate) fn add_wait(conn: &Connection, task_id: TaskId, wait: &Wait) -> Result<()> {
    conn.run(
        "INSERT OR REPLACE INTO stepwell_waits (task_id, kind, name, ordinal, target, due_at)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            Sql(&task_id),
            Sql(&wait.key.kind),
            Sql(&wait.key.name),
            wait.key.ordinal,
            wait.target.as_ref().map(Sql),
            wait.due_at.as_ref().map(Sql)
        ],
    )?;
    Ok(())
}

/// What a task waits for, by key.
pub(crate) fn waits_of(conn: &Connection, task_id: TaskId) -> Result<Vec<Wait>> {
    let mut waits = conn.all(
        "SELECT kind, name, ordinal, target, due_at FROM stepwell_waits WHERE task_id = ?1",
        params![Sql(&task_id)],
        |row| Ok(Wait { key: key(row, 0)?, target: opt(row, 3)?, due_at: opt(row, 4)? }),
    )?;
    waits.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    Ok(waits)
}

/// What tasks wait for whose target begins so. Texts are ordered by their bytes, and none of them has one over U+10FFFF.
pub(crate) fn beginning_with(
    conn: &Connection,
    scope: &Scope,
    prefix: &str,
    behind: Option<TaskId>,
    limit: usize,
) -> Result<Page<TaskWaits>> {
    let Some(labels) = scope.possible_labels() else { return Ok(Page::default()) };
    let mut theirs = Conditions::default();
    labels.into_iter().for_each(|(name, value)| theirs.label(Label { name, value, own: true }));
    theirs.queue_of(scope);
    let within = match scope.is_all() {
        true => String::new(),
        false => format!(
            "AND EXISTS (SELECT 1 FROM stepwell_tasks WHERE stepwell_tasks.task_id = stepwell_waits.task_id AND {})",
            theirs.all()
        ),
    };
    let sql = format!(
        "SELECT kind, name, ordinal, target, due_at, task_id FROM stepwell_waits
        WHERE target >= ?1 AND target < ?1 || char(1114111) AND (?2 IS NULL OR task_id > ?2) {within}
        ORDER BY task_id"
    );
    let behind = behind.as_ref().map(Sql);
    let given: [&dyn ToSql; 2] = [&prefix, &behind];
    let given: Vec<_> = given.into_iter().chain(theirs.params.iter().map(|param| &**param)).collect();
    let read = |row: &Row<'_>| -> Result<(TaskId, Wait)> {
        Ok((get(row, 5)?, Wait { key: key(row, 0)?, target: opt(row, 3)?, due_at: opt(row, 4)? }))
    };
    let mut statement = conn.prepare_cached(&sql)?;
    let mut rows = Readable::new("a wait", statement.query(&*given)?);
    let mut first = rows.next(read)?;
    Page::fill(&mut Room::default(), limit, || {
        let Some((task_id, wait)) = first.take() else { return Ok(None) };
        let mut waits = vec![wait];
        loop {
            match rows.next(read)? {
                Some((other, wait)) if other == task_id => waits.push(wait),
                next => {
                    first = next;
                    waits.sort_unstable_by(|a, b| a.key.cmp(&b.key));
                    return Ok(Some((task_id, waits)));
                }
            }
        }
    })
}

impl Applying<'_> {
    pub(crate) fn add_wait(&self, task_id: TaskId, wait: &Wait) -> Result<()> {
        add_wait(self.conn, task_id, wait)
    }

    pub(crate) fn remove_wait(&self, task_id: TaskId, key: &Key) -> Result<()> {
        self.conn.run(
            "DELETE FROM stepwell_waits WHERE task_id = ?1 AND kind = ?2 AND name = ?3 AND ordinal = ?4",
            params![Sql(&task_id), Sql(&key.kind), Sql(&key.name), key.ordinal],
        )?;
        Ok(())
    }

    pub(crate) fn drop_waits(&self, task_id: TaskId) -> Result<()> {
        self.conn.run("DELETE FROM stepwell_waits WHERE task_id = ?1", params![Sql(&task_id)])?;
        Ok(())
    }

    /// The tasks that wait for the end of that one.
    pub(crate) fn awaiting(&self, task_id: TaskId) -> Result<Vec<TaskId>> {
        self.conn.readable("a wait", AWAITS, params![Sql(&task_id)], |row| get(row, 0))
    }

    /// What has arrived for the waits of a task in that queue, as far as the answer has room for it.
    pub(crate) fn facts(&mut self, task_id: TaskId, queue: Option<&Name>, waits: &[Wait]) -> Result<Facts> {
        let mut facts = Facts::default();
        let mut topics: BTreeMap<&Name, u32> = BTreeMap::new();
        for wait in waits {
            let Some(target) = &wait.target else { continue };
            match wait.key.kind {
                // Nothing more is read, lest a long payload be read for each wait.
                Kind::Event | Kind::Message | Kind::Child if self.room.is_full() => facts.more = true,
                Kind::Event => {
                    if let Some(payload) = self.event(target, queue)?
                        && facts.has_room(&mut self.room, payload.as_str().len())
                    {
                        facts.events.push((target.clone(), payload));
                    }
                }
                Kind::Message => *topics.entry(target).or_default() += 1,
                Kind::Child => {
                    let Ok(child) = target.as_str().parse() else { continue };
                    if let Some(finish) = self.end_of(child)?
                        && facts.has_room(&mut self.room, finish.bytes())
                    {
                        facts.children.push((child, finish));
                    }
                }
                _ => {}
            }
        }
        for (topic, waiting) in topics {
            let part = self.conn.part(
                &mut self.room,
                usize::MAX,
                "SELECT id, payload FROM stepwell_messages WHERE task_id = ?1 AND topic = ?2 ORDER BY id LIMIT ?3",
                params![Sql(&task_id), Sql(topic), i64::from(waiting)],
                |row| Ok(ArrivedMessage { id: row.get(0)?, topic: topic.clone(), payload: get(row, 1)? }),
            )?;
            facts.messages.extend(part.items);
            facts.more |= self.room.is_full();
        }
        Ok(facts)
    }

    /// The event as a task in that queue sees it: one for all queues comes before one for its own.
    fn event(&self, name: &Name, queue: Option<&Name>) -> Result<Option<Payload>> {
        self.conn.one(
            "SELECT payload FROM stepwell_events WHERE name = ?1 AND queue IN ('', ?2) ORDER BY queue LIMIT 1",
            params![Sql(name), queue.map(Sql)],
            |row| get(row, 0),
        )
    }

    /// How a child ended; `None` while it has not, as far as this program can tell.
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
