//! Labels of tasks, and what finds the tasks of a scope by them.

use rusqlite::types::ToSql;
use rusqlite::{Connection, Result, params};
use stepwell_core::store::Headers;
use stepwell_core::{Scope, TaskId, labels};

use crate::rows::{Sql, Statements as _};

/// How many tasks of a label are counted to tell which of several labels is the rarest.
const COUNTED: u32 = 1_000;

/// A label, as a statement asks for it.
pub(crate) type Label<'a> = (&'a str, &'a str);

/// Keeps a task's labels.
pub(crate) fn add(conn: &Connection, task_id: TaskId, headers: &Headers) -> Result<()> {
    labels(headers).try_for_each(|(name, value)| {
        let sql = "INSERT INTO stepwell_labels (task_id, name, value) VALUES (?1, ?2, ?3)";
        conn.run(sql, params![Sql(&task_id), name, value]).map(drop)
    })
}

/// Puts the label first that the fewest tasks have: a list reads the tasks of the first, and looks at each for the others.
pub(crate) fn rarest_first(conn: &Connection, labels: &mut [Label<'_>]) -> Result<()> {
    if labels.len() < 2 {
        return Ok(());
    }
    let mut rarest = (u32::MAX, 0);
    for (place, (name, value)) in labels.iter().enumerate() {
        let sql = "SELECT count(*) FROM (
            SELECT 1 FROM stepwell_labels WHERE name = ?1 AND value = ?2 LIMIT ?3)";
        let count = conn.one(sql, params![name, value, COUNTED], |row| row.get(0))?;
        rarest = rarest.min((count.unwrap_or(0), place));
    }
    labels.swap(0, rarest.1);
    Ok(())
}

/// Conditions of a statement, and their parameters in order.
#[derive(Default)]
pub(crate) struct Conditions<'a> {
    pub(crate) texts: Vec<String>,
    pub(crate) params: Vec<Box<dyn ToSql + 'a>>,
}

impl<'a> Conditions<'a> {
    pub(crate) fn add(&mut self, text: &str, params: impl IntoIterator<Item = Box<dyn ToSql + 'a>>) {
        self.texts.push(text.into());
        self.params.extend(params);
    }

    /// That a task has a label.
    pub(crate) fn label(&mut self, (name, value): Label<'a>) {
        let text = "EXISTS (SELECT 1 FROM stepwell_labels l
            WHERE l.task_id = stepwell_tasks.task_id AND l.name = ? AND l.value = ?)";
        self.add(text, [Box::new(name) as _, Box::new(value) as _]);
    }

    /// That a task with the scope's labels is in the scope, which is so if its own scope, if any, asks for the same.
    pub(crate) fn scope(&mut self, scope: &'a Scope) {
        if let Some(queue) = scope.only_queue() {
            let text = "queue = ? AND (scope = '' OR json_extract(nullif(scope, ''), '$.queue') = ?)";
            self.add(text, [Box::new(Sql(queue)) as _, Box::new(Sql(queue)) as _]);
        }
        for (name, value) in scope.labels() {
            let text = "(scope = '' OR EXISTS (
                SELECT 1 FROM json_each(nullif(scope, ''), '$.labels') WHERE key = ? AND value = ?))";
            self.add(text, [Box::new(name) as _, Box::new(value) as _]);
        }
    }

    pub(crate) fn all(&self) -> String {
        if self.texts.is_empty() { "TRUE".into() } else { self.texts.join(" AND ") }
    }
}
