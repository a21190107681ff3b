//! Tasks, one or a list of them, and how they ended.

use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use sqlx::types::Uuid;
use stepwell_core::store::{Ends, TaskFilter, TaskInfo, TaskState};
use stepwell_core::{Failure, Page, Payload, StoreError, TaskId, UnknownWord};

use crate::connection::Shared;
use crate::read::filter::{Asked, Value};
use crate::read::page::{paged, rows_for};
use crate::values::columns::Moment;
use crate::values::rows::{broken, finish, id, name, scope};

/// The columns that are read of each task; the tables follow.
const INFO: &str = "SELECT t.task_id, coalesce(l.run_id, o.run_id) AS run_id, t.task_type, t.queue,
        CASE WHEN l.compensating THEN 'compensating' ELSE coalesce(l.state, o.state) END AS state,
        t.params, o.output, coalesce(l.failure, o.failure) AS failure, t.headers, t.priority,
        coalesce(l.attempt, o.attempt) AS attempt, t.max_attempts, t.parent, t.idempotency_key,
        coalesce(l.cancel_requested, o.cancel_requested) AS cancel_requested, t.spawned_at,
        coalesce(l.started_at, o.started_at) AS started_at, o.finished_at, l.due_at,
        t.concurrency_key, t.code_version, t.retry, t.max_duration, l.cancel_at,
        coalesce(l.paused, false) AS paused, t.scope";

/// The size of a task in an answer. PostgreSQL knows a length without reading the value.
const INFO_BYTES: &str =
    "512::bigint + pg_catalog.octet_length(t.params) + pg_catalog.octet_length(t.headers)
        + pg_catalog.octet_length(t.retry) + coalesce(pg_catalog.octet_length(o.output), 0)
        + coalesce(pg_catalog.octet_length(coalesce(l.failure, o.failure)), 0)";

fn info(row: &PgRow) -> sqlx::Result<TaskInfo> {
    let moment = |column: &str| {
        Ok::<_, sqlx::Error>(row.try_get::<Option<Moment>, _>(column)?.map(|moment| moment.0))
    };
    let text = |column: &str| row.try_get::<Option<&str>, _>(column);
    let named = |column: &str| text(column)?.map(name).transpose();
    let state: &str = row.try_get("state")?;
    let (mut headers, retry) = TaskInfo::options(row.try_get("headers")?, row.try_get("retry")?);
    let mut count = |what, column: &str| -> sqlx::Result<u32> {
        Ok(TaskInfo::number(&mut headers, what, row.try_get(column)?, [0, u32::MAX]))
    };
    let attempt = count("`attempt`", "attempt")?;
    let max_attempts = count("`max_attempts`", "max_attempts")?;
    let max_duration = row.try_get::<Option<i64>, _>("max_duration")?.map(|micros| {
        Duration::from_micros(TaskInfo::number(&mut headers, "`max_duration`", micros, [0, 0]))
    });
    Ok(TaskInfo {
        task_id: id(row)?,
        run_id: row.try_get::<Uuid, _>("run_id")?.into(),
        task_type: name(row.try_get::<&str, _>("task_type")?)?,
        queue: name(row.try_get::<&str, _>("queue")?)?,
        state: TaskState::parse(state).ok_or_else(|| broken(UnknownWord(state.to_owned())))?,
        params: Payload::stored(row.try_get("params")?, "`params`"),
        output: text("output")?.map(|output| Payload::stored(output, "`output`")),
        failure: text("failure")?.map(Failure::stored),
        headers,
        priority: row.try_get("priority")?,
        attempt,
        max_attempts,
        parent: row.try_get::<Option<Uuid>, _>("parent")?.map(TaskId::from),
        idempotency_key: named("idempotency_key")?,
        cancel_requested: row.try_get("cancel_requested")?,
        spawned_at: row.try_get::<Moment, _>("spawned_at")?.0,
        started_at: moment("started_at")?,
        finished_at: moment("finished_at")?,
        due_at: moment("due_at")?,
        concurrency_key: named("concurrency_key")?,
        code_version: named("code_version")?,
        retry,
        max_duration,
        cancel_at: moment("cancel_at")?,
        paused: row.try_get("paused")?,
        scope: scope(text("scope")?)?,
    })
}

/// Returns the statement for a filter with these labels, and its parameters except the first one,
/// the limit. The statement begins with the tables that have the fewest other rows.
fn list(schema: &str, filter: &TaskFilter, labels: &[(&str, &str)]) -> (String, Asked) {
    let (mut tables, states, id) = match filter.state {
        None => (
            format!(
                "{schema}.tasks t LEFT JOIN {schema}.live_tasks l USING (task_id)
                LEFT JOIN {schema}.outcomes o USING (task_id)"
            ),
            "true".to_owned(),
            "t.task_id",
        ),
        Some(state) if state.is_finished() => (
            format!(
                "{schema}.outcomes o JOIN {schema}.tasks t USING (task_id) LEFT JOIN \
                 {schema}.live_tasks l ON false"
            ),
            format!("o.state = '{state}'"),
            "o.task_id",
        ),
        Some(state) => (
            format!(
                "{schema}.live_tasks l JOIN {schema}.tasks t USING (task_id) LEFT JOIN \
                 {schema}.outcomes o ON false"
            ),
            match state {
                TaskState::Compensating => "l.compensating".to_owned(),
                state => format!("l.state = '{state}' AND NOT l.compensating"),
            },
            "l.task_id",
        ),
    };
    let mut asked = Asked::after(1);
    let mut ids = vec![id.to_owned()];
    for (place, label) in labels.iter().enumerate() {
        let alias = format!("b{place}");
        tables.push_str(&format!(" JOIN {schema}.labels {alias} ON {alias}.task_id = t.task_id"));
        asked.label(&alias, *label, &filter.scope);
        ids.push(format!("{alias}.task_id"));
    }
    asked.scope(&filter.scope, schema);
    let texts = [("t.queue =", &filter.queue), ("t.task_type =", &filter.task_type)];
    for (condition, name) in
        texts.into_iter().filter_map(|(condition, name)| Some((condition, name.as_ref()?)))
    {
        asked.add_text(condition, name.as_str());
    }
    if let Some(parent) = filter.parent {
        asked.add("t.parent =", Value::Id(*parent.as_uuid()));
    }
    if let Some(before) = filter.before {
        // The condition is added for each table with which a list may begin.
        ids.iter().for_each(|id| asked.add(&format!("{id} <"), Value::Id(*before.as_uuid())));
    }
    let list = format!(
        "{INFO}, {INFO_BYTES} AS bytes FROM {tables} WHERE {states}{} ORDER BY {id} DESC LIMIT $1",
        asked.sql
    );
    (paged(schema, &list, "p.task_id DESC"), asked)
}

impl Shared {
    pub(crate) async fn task(&self, task_id: TaskId) -> Result<Option<TaskInfo>, StoreError> {
        let schema = &self.options.schema;
        let sql = format!(
            "{INFO} FROM {schema}.tasks t LEFT JOIN {schema}.live_tasks l USING (task_id)
            LEFT JOIN {schema}.outcomes o USING (task_id) WHERE t.task_id = $1"
        );
        let rows = self.read(&sql, |query| query.bind(*task_id.as_uuid())).await?;
        rows.first().map(info).transpose().map_err(|error| self.error(error))
    }

    pub(crate) async fn tasks(&self, filter: TaskFilter) -> Result<Page<TaskInfo>, StoreError> {
        let Some(labels) = filter.all_labels() else { return Ok(Page::default()) };
        let labels: Vec<_> = labels.into_iter().collect();
        let (sql, asked) = list(&self.options.schema, &filter, &labels);
        let most = rows_for(filter.limit);
        // The statement is planned for these values each time: a generic plan would be good either
        // for rare labels or for common ones.
        let rows = self.read(&sql, |query| asked.bind(query.bind(most)).persistent(false)).await?;
        self.page("a task", rows, filter.limit, id, info)
    }

    pub(crate) async fn ends(&self, tasks: Vec<TaskId>) -> Result<Ends, StoreError> {
        let list = format!(
            // `OFFSET 0` forces a join task by task, whatever sizes the planner assumes. A task
            // that was replaced by another one ends as that task does, while that task exists.
            "SELECT t.task_id, e.state, e.output, e.failure,
                512::bigint + coalesce(pg_catalog.octet_length(e.output), 0)
                + coalesce(pg_catalog.octet_length(e.failure), 0) AS bytes
            FROM pg_catalog.unnest($1) AS x(task_id)
            CROSS JOIN LATERAL (SELECT t.task_id FROM {0}.tasks t
                WHERE t.task_id = x.task_id OFFSET 0) t
            LEFT JOIN LATERAL (SELECT o.* FROM {0}.outcomes o
                WHERE o.task_id = x.task_id OFFSET 0) o ON true
            LEFT JOIN LATERAL (SELECT coalesce(o.instead, x.task_id) AS task_id FROM {0}.tasks i
                WHERE i.task_id = o.instead OFFSET 0) i ON true
            LEFT JOIN LATERAL (SELECT e.* FROM {0}.outcomes e
                WHERE e.task_id = coalesce(i.task_id, x.task_id) OFFSET 0) e ON true",
            self.options.schema
        );
        let sql = paged(&self.options.schema, &list, "p.task_id");
        let ids: Vec<Uuid> = tasks.iter().map(|task_id| *task_id.as_uuid()).collect();
        let rows = self.read(&sql, |query| query.bind(ids.clone())).await?;
        let end = |row: &PgRow| {
            let state: Option<&str> = row.try_get("state")?;
            let end = state
                .map(|state| finish(Some(state), row.try_get("output")?, row.try_get("failure")?))
                .transpose()?;
            Ok((id(row)?, end))
        };
        self.page("a task", rows, usize::MAX, id, end)
    }
}
