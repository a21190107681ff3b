//! The descriptions of task types.

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use stepwell_core::{StoreError, TaskTypeInfo};

use crate::connection::Shared;
use crate::values::rows::{json, name};

impl Shared {
    pub(crate) async fn describe(&self, info: TaskTypeInfo) -> Result<(), StoreError> {
        let sql = format!(
            "INSERT INTO {}.task_types AS t (task_type, params, output) VALUES ($1, $2, $3)
            ON CONFLICT (task_type) DO UPDATE SET params = excluded.params, output = excluded.output
            WHERE t.params <> excluded.params OR t.output <> excluded.output",
            self.options.schema
        );
        let described = self.read(&sql, |query| {
            let task_type = info.task_type.as_str().to_owned();
            query.bind(task_type).bind(info.params.to_string()).bind(info.output.to_string())
        });
        described.await.map(drop)
    }

    pub(crate) async fn task_types(&self) -> Result<Vec<TaskTypeInfo>, StoreError> {
        let sql = format!(
            "SELECT task_type, params, output FROM {}.task_types ORDER BY task_type COLLATE \"C\"",
            self.options.schema
        );
        let rows = self.read(&sql, |query| query).await?;
        let info = |row: &PgRow| {
            Ok(TaskTypeInfo {
                task_type: name(row.try_get::<&str, _>("task_type")?)?,
                params: json(row.try_get("params")?)?,
                output: json(row.try_get("output")?)?,
            })
        };
        self.readable("a task type", &rows, info)
    }
}
