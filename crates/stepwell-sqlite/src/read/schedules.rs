//! Schedules.

use rusqlite::{Connection, Result, Row, params};
use stepwell_core::store::{ScheduleFilter, SchedulePlan, Scheduled};
use stepwell_core::{Page, Room, Timestamp};

use crate::base::rows::{Sql, Statements as _, get, opt};

const ALL: &str = "SELECT name, version, definition, next_at, last_task FROM stepwell_schedules
    WHERE name > ?1 ORDER BY name";
const NAMED: &str =
    "SELECT name, version, definition, next_at, last_task FROM stepwell_schedules WHERE name = ?1";
pub(crate) const NEXT: &str =
    "SELECT name, version, definition, next_at, last_task FROM stepwell_schedules
    WHERE next_at IS NOT NULL AND (next_at, name) > (?1, ?2) ORDER BY next_at, name";

fn schedule(row: &Row<'_>) -> Result<Scheduled> {
    let plan =
        SchedulePlan { version: get(row, 1)?, definition: get(row, 2)?, next_at: opt(row, 3)? };
    Ok(Scheduled { name: get(row, 0)?, plan, last_task: opt(row, 4)? })
}

pub(crate) fn schedules(conn: &Connection, which: &ScheduleFilter) -> Result<Page<Scheduled>> {
    match which {
        // No name is empty.
        ScheduleFilter::All { behind } => {
            let behind = behind.as_ref().map_or("", |(_, name)| name.as_str());
            conn.page(usize::MAX, "a schedule", ALL, params![behind], schedule)
        }
        ScheduleFilter::Named(name) => {
            conn.part(&mut Room::default(), 1, NAMED, params![Sql(name)], schedule)
        }
        ScheduleFilter::Next { behind, limit } => {
            let (at, name) = behind.as_ref().map_or((None, ""), |(at, name)| (*at, name.as_str()));
            let at = at.unwrap_or(Timestamp::MIN);
            conn.page(*limit, "a schedule", NEXT, params![Sql(&at), name], schedule)
        }
    }
}
