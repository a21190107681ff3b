//! The descriptions of task types.

use rusqlite::types::Type;
use rusqlite::{Connection, Error, Result, params};
use stepwell_core::TaskTypeInfo;

use crate::base::rows::{Sql, Statements as _, get};

pub(crate) fn describe(conn: &Connection, info: &TaskTypeInfo) -> Result<()> {
    conn.run(
        "INSERT INTO stepwell_task_types (task_type, params, output) VALUES (?1, ?2, ?3)
        ON CONFLICT (task_type) DO UPDATE SET params = excluded.params, output = excluded.output
        WHERE params <> excluded.params OR output <> excluded.output",
        params![Sql(&info.task_type), info.params.to_string(), info.output.to_string()],
    )
    .map(drop)
}

pub(crate) fn task_types(conn: &Connection) -> Result<Vec<TaskTypeInfo>> {
    let sql = "SELECT task_type, params, output FROM stepwell_task_types ORDER BY task_type";
    conn.readable("a task type", sql, [], |row| {
        let json = |column| {
            serde_json::from_str(&row.get::<_, String>(column)?)
                .map_err(|error| Error::FromSqlConversionFailure(column, Type::Text, error.into()))
        };
        Ok(TaskTypeInfo { task_type: get(row, 0)?, params: json(1)?, output: json(2)? })
    })
}
