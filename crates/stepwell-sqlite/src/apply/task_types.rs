//! The descriptions of task types.

use rusqlite::{Connection, Result, params};
use stepwell_core::TaskTypeInfo;

use crate::base::rows::{Sql, Statements as _};

pub(crate) fn describe(conn: &Connection, info: &TaskTypeInfo) -> Result<()> {
    conn.run(
        "INSERT INTO stepwell_task_types (task_type, params, output) VALUES (?1, ?2, ?3)
        ON CONFLICT (task_type) DO UPDATE SET params = excluded.params, output = excluded.output
        WHERE params <> excluded.params OR output <> excluded.output",
        params![Sql(&info.task_type), info.params.to_string(), info.output.to_string()],
    )
    .map(drop)
}
