//! The lifecycle events that the store keeps.

use rusqlite::{Connection, Result, params};
use stepwell_core::Page;
use stepwell_core::store::{Happening, HistoryFilter};

use crate::base::rows::{Sql, Statements as _, get};

pub(crate) const OF_ALL: &str = "SELECT id, task_id, at, name, event FROM stepwell_history
    WHERE id > ?1 AND ?2 IS NULL ORDER BY id";
pub(crate) const OF_TASK: &str = "SELECT id, task_id, at, name, event FROM stepwell_history
    WHERE id > ?1 AND task_id = ?2 ORDER BY id";

pub(crate) fn history(conn: &Connection, which: &HistoryFilter) -> Result<Page<(u64, Happening)>> {
    // No event has a number over this one, and nothing comes after it.
    let after = i64::try_from(which.after).unwrap_or(i64::MAX);
    let sql = if which.task_id.is_some() { OF_TASK } else { OF_ALL };
    let asked = params![after, which.task_id.as_ref().map(Sql)];
    conn.page(which.limit, "an event of the history", sql, asked, |row| {
        let happening = Happening {
            task_id: get(row, 1)?,
            at: get(row, 2)?,
            name: get(row, 3)?,
            event: get(row, 4)?,
        };
        Ok((row.get::<_, i64>(0)?.unsigned_abs(), happening))
    })
}
