//! The labels of tasks, and the search for a scope's tasks by them.

use rusqlite::types::ToSql;
use rusqlite::{Connection, Result, params};
use stepwell_core::Scope;
use stepwell_core::store::TaskFilter;

use crate::base::rows::Sql;

/// The maximum number of tasks that are counted for a label, to find the rarest of several labels.
const COUNTED: u32 = 1_000;

/// A label as a condition of a statement.
#[derive(Clone, Copy)]
pub(crate) struct Label<'a> {
    pub(crate) name: &'a str,
    pub(crate) value: &'a str,
    /// `true` if the label must be the task's own: it comes from the scope in which the task was
    /// spawned, or the task was spawned without a scope. A task is then in the scopes that require
    /// no more than its labels. A tenant can set any other label in its tasks' headers.
    pub(crate) own: bool,
}

/// Returns the labels that a filter requires, its scope's first, or `None` when no task can have
/// all of them.
pub(crate) fn asked(filter: &TaskFilter) -> Option<Vec<Label<'_>>> {
    let of_scope = |name, value| filter.scope.labels().get(name).is_some_and(|own| own == value);
    let all = filter.all_labels()?.into_iter();
    let mut all: Vec<_> =
        all.map(|(name, value)| Label { name, value, own: of_scope(name, value) }).collect();
    all.sort_by_key(|label| !label.own);
    Some(all)
}

/// Moves the rarest label to the front. A list reads the tasks of the first label, and checks each
/// for the others.
pub(crate) fn rarest_first(conn: &Connection, labels: &mut [Label<'_>]) -> Result<()> {
    if labels.len() < 2 {
        return Ok(());
    }
    let mut rarest = (u32::MAX, 0);
    for (place, label) in labels.iter().enumerate() {
        let own = if label.own { "AND own = 1" } else { "" };
        let sql = format!(
            "SELECT count(*) FROM (
                SELECT 1 FROM stepwell_labels WHERE name = ?1 AND value = ?2 {own} LIMIT ?3)"
        );
        let asked = params![label.name, label.value, COUNTED];
        let count = conn.prepare_cached(&sql)?.query_row(asked, |row| row.get(0))?;
        rarest = rarest.min((count, place));
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
    pub(crate) fn add(
        &mut self,
        text: &str,
        params: impl IntoIterator<Item = Box<dyn ToSql + 'a>>,
    ) {
        self.texts.push(text.into());
        self.params.extend(params);
    }

    /// Adds the condition that a task has a label.
    pub(crate) fn label(&mut self, Label { name, value, own }: Label<'a>) {
        let text = format!(
            "EXISTS (SELECT 1 FROM stepwell_labels l
                WHERE l.task_id = stepwell_tasks.task_id AND l.name = ? AND l.value = ? {})",
            if own { "AND l.own = 1" } else { "" }
        );
        self.add(&text, [Box::new(name) as _, Box::new(value) as _]);
    }

    /// Adds the condition that a task is in the scope's queue, and that its own scope, if it has
    /// one, requires that queue.
    pub(crate) fn queue_of(&mut self, scope: &'a Scope) {
        if let Some(queue) = scope.only_queue() {
            let text = "queue = ? AND (scope = '' OR EXISTS (SELECT 1 FROM stepwell_labels l
                WHERE l.task_id = stepwell_tasks.task_id AND l.name = '' AND l.value = queue))";
            self.add(text, [Box::new(Sql(queue)) as _]);
        }
    }

    pub(crate) fn all(&self) -> String {
        if self.texts.is_empty() { "TRUE".into() } else { self.texts.join(" AND ") }
    }
}
