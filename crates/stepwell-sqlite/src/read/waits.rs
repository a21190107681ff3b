//! The waits of tasks.

use rusqlite::types::ToSql;
use rusqlite::{Connection, Result, Row, params};
use stepwell_core::store::{TaskWaits, Wait};
use stepwell_core::{Page, Room, Scope, TaskId};

use crate::base::rows::{Readable, Sql, Statements as _, get, key, opt};
use crate::read::labels::{Conditions, Label};

/// Returns the waits of a task, in the order of their keys.
pub(crate) fn of(conn: &Connection, task_id: TaskId) -> Result<Vec<Wait>> {
    let mut waits = conn.all(
        "SELECT kind, name, ordinal, target, due_at FROM stepwell_waits WHERE task_id = ?1",
        params![Sql(&task_id)],
        |row| Ok(Wait { key: key(row, 0)?, target: opt(row, 3)?, due_at: opt(row, 4)? }),
    )?;
    waits.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    Ok(waits)
}

/// Returns the waits whose target has the prefix, by their tasks. Texts are ordered by their bytes,
/// and none has a character over U+10FFFF.
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
            "AND EXISTS (SELECT 1 FROM stepwell_tasks WHERE stepwell_tasks.task_id = \
             stepwell_waits.task_id AND {})",
            theirs.all()
        ),
    };
    let sql = format!(
        "SELECT kind, name, ordinal, target, due_at, task_id FROM stepwell_waits
        WHERE target >= ?1 AND target < ?1 || char(1114111) AND (?2 IS NULL OR task_id > ?2)
            {within}
        ORDER BY task_id"
    );
    let behind = behind.as_ref().map(Sql);
    let given: [&dyn ToSql; 2] = [&prefix, &behind];
    let given: Vec<_> =
        given.into_iter().chain(theirs.params.iter().map(|param| &**param)).collect();
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
