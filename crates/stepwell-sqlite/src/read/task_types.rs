//! The descriptions of task types.

use rusqlite::types::Type;
use rusqlite::{Connection, Error, Result};
use stepwell_core::TaskTypeInfo;

use crate::base::rows::{Statements as _, get};

/// Returns the descriptions of all task types.
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
