//! The labels of new tasks.

use rusqlite::{Result, params};
use stepwell_core::store::Headers;
use stepwell_core::{Name, Scope, TaskId, labels};

use crate::base::rows::{Sql, Statements};

/// Stores a task's labels. The queue of its scope is stored as a label without a name.
pub(crate) fn add(
    conn: &impl Statements,
    task_id: TaskId,
    queue: &Name,
    headers: &Headers,
    scope: &Scope,
) -> Result<()> {
    let add = |name: &str, value: &str, own: bool| {
        let sql = "INSERT INTO stepwell_labels (task_id, name, value, own) VALUES (?1, ?2, ?3, ?4)";
        conn.run(sql, params![Sql(&task_id), name, value, own]).map(drop)
    };
    if scope.only_queue() == Some(queue) {
        add("", queue.as_str(), true)?;
    }
    labels(headers).try_for_each(|(name, value)| {
        let own = scope.is_all() || scope.labels().get(name).is_some_and(|own| own == value);
        add(name, value, own)
    })
}
