//! Queries, which change nothing, and purges.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row as _};
use stepwell_core::store::{
    Claimed, Ends, Purge, ScheduleFilter, SchedulePlan, Scheduled, TaskFilter, TaskInfo, TaskState,
    TaskWaits, Wait,
};
use stepwell_core::{
    ANSWER_ITEMS, Entry, Failure, Key, Kind, Name, Page, Payload, QueueInfo, QueueLimits,
    RateLimit, Scope, StoreError, TaskId, UnknownWord, WorkerInfo, after,
};
use tokio::time::timeout;
use uuid::Uuid;

use crate::batch::WAYS_GIVEN;
use crate::batch::answer::{
    attempt, broken, entries, finish, json, name, of_task, scope, unreadable, worker_state,
};
use crate::batch::arguments::is_own;
use crate::connection::call::Query;
use crate::connection::error::Fault;
use crate::connection::link::{ANSWER_TIMEOUT, Line};
use crate::read::page::{paged, rows_for};
use crate::values::columns::Moment;
use crate::{POOL, Shared};

/// The maximum number of journal entries in one read.
const JOURNAL_PART: i64 = 20_000;

/// The time by which the clocks of spawning clients may be ahead of the server's. A purge finds
/// tasks that were spawned with such clocks.
const CLOCKS_DIFFER: Duration = Duration::from_secs(3600);

/// The columns that are read of each task; the tables follow.
const INFO: &str = "SELECT t.task_id, coalesce(l.run_id, o.run_id), t.task_type, t.queue,
        CASE WHEN l.compensating THEN 'compensating' ELSE coalesce(l.state, o.state) END, t.params,
        o.output, coalesce(l.failure, o.failure), t.headers, t.priority, coalesce(l.attempt, o.attempt), t.max_attempts,
        t.parent, t.idempotency_key, coalesce(l.cancel_requested, o.cancel_requested), t.spawned_at,
        coalesce(l.started_at, o.started_at), o.finished_at, l.due_at,
        t.concurrency_key, t.code_version, t.retry, t.max_duration, l.cancel_at, coalesce(l.paused, false),
        t.scope";

/// The size of a task in an answer. PostgreSQL knows a length without reading the value.
const INFO_BYTES: &str =
    "512::bigint + pg_catalog.octet_length(t.params) + pg_catalog.octet_length(t.headers)
        + pg_catalog.octet_length(t.retry) + coalesce(pg_catalog.octet_length(o.output), 0)
        + coalesce(pg_catalog.octet_length(coalesce(l.failure, o.failure)), 0)";

fn info(row: &PgRow) -> sqlx::Result<TaskInfo> {
    let id = |place: usize| row.try_get::<Uuid, _>(place);
    let moment =
        |place: usize| Ok::<_, sqlx::Error>(row.try_get::<Option<Moment>, _>(place)?.map(|m| m.0));
    let text = |place: usize| row.try_get::<Option<&str>, _>(place);
    let state: &str = row.try_get(4)?;
    let (headers, retry) = TaskInfo::options(row.try_get(8)?, row.try_get(21)?);
    Ok(TaskInfo {
        task_id: id(0)?.into(),
        run_id: id(1)?.into(),
        task_type: name(row.try_get::<&str, _>(2)?)?,
        queue: name(row.try_get::<&str, _>(3)?)?,
        state: TaskState::parse(state).ok_or_else(|| broken(UnknownWord(state.to_owned())))?,
        params: Payload::stored(row.try_get(5)?, "`params`"),
        output: text(6)?.map(|output| Payload::stored(output, "`output`")),
        failure: text(7)?.map(Failure::stored),
        headers,
        priority: row.try_get(9)?,
        attempt: attempt(row.try_get(10)?),
        max_attempts: attempt(row.try_get(11)?),
        parent: row.try_get::<Option<Uuid>, _>(12)?.map(TaskId::from),
        idempotency_key: text(13)?.map(name).transpose()?,
        cancel_requested: row.try_get(14)?,
        spawned_at: row.try_get::<Moment, _>(15)?.0,
        started_at: moment(16)?,
        finished_at: moment(17)?,
        due_at: moment(18)?,
        concurrency_key: text(19)?.map(name).transpose()?,
        code_version: text(20)?.map(name).transpose()?,
        retry,
        max_duration: row
            .try_get::<Option<i64>, _>(22)?
            .map(|micros| Duration::from_micros(micros.unsigned_abs())),
        cancel_at: moment(23)?,
        paused: row.try_get(24)?,
        scope: scope(text(25)?)?,
    })
}

/// Reads the columns `task_id, kind, name, ordinal, target, due_at`.
pub(crate) fn wait(row: &PgRow) -> sqlx::Result<(TaskId, Wait)> {
    let word: &str = row.try_get(1)?;
    let kind = Kind::parse(word).ok_or_else(|| broken(UnknownWord(word.to_owned())))?;
    let key =
        Key { kind, name: name(row.try_get::<&str, _>(2)?)?, ordinal: attempt(row.try_get(3)?) };
    let target = row.try_get::<Option<&str>, _>(4)?.map(name).transpose()?;
    let due_at = row.try_get::<Option<Moment>, _>(5)?.map(|moment| moment.0);
    Ok((row.try_get::<Uuid, _>(0)?.into(), Wait { key, target, due_at }))
}

/// Returns the task of a row that begins with its id.
fn id(row: &PgRow) -> sqlx::Result<TaskId> {
    row.try_get::<Uuid, _>(0).map(TaskId::from)
}

fn queue_info(row: &PgRow) -> sqlx::Result<QueueInfo> {
    let limit =
        |place: usize| Ok::<_, sqlx::Error>(row.try_get::<Option<i64>, _>(place)?.map(attempt));
    let count = |place: usize| Ok::<_, sqlx::Error>(row.try_get::<i64, _>(place)?.unsigned_abs());
    let per: Option<i64> = row.try_get(5)?;
    let per = per.map(|per| Duration::from_micros(per.unsigned_abs()));
    Ok(QueueInfo {
        queue: name(row.try_get::<&str, _>(0)?)?,
        paused: row.try_get(1)?,
        limits: QueueLimits {
            max_running: limit(2)?,
            max_running_per_worker: limit(3)?,
            rate: limit(4)?.zip(per).map(|(starts, per)| RateLimit { starts, per }),
        },
        pending: count(6)?,
        running: count(7)?,
        suspended: count(8)?,
        ready_at: row.try_get::<Option<Moment>, _>(9)?.map(|moment| moment.0),
    })
}

/// Additional conditions of a statement, and the values of their parameters.
struct Asked {
    sql: String,
    values: Vec<Value>,
    /// The number of the statement's parameters before these values.
    before: usize,
}

#[derive(Clone)]
enum Value {
    Text(String),
    Id(Uuid),
}

impl Asked {
    fn after(before: usize) -> Self {
        Self { sql: String::new(), values: Vec::new(), before }
    }

    /// Adds a condition, in which `?` stands for the value.
    fn add(&mut self, condition: &str, value: Value) {
        self.values.push(value);
        let number = format!("${}", self.before + self.values.len());
        self.sql.push_str(" AND ");
        self.sql.push_str(&condition.replace('?', &number));
    }

    fn add_text(&mut self, condition: &str, text: &str) {
        self.add(condition, Value::Text(text.to_owned()));
    }

    /// Joins the rows of a label in the table with this alias. For a label of the scope, only the
    /// tasks match that have the label by their own scope.
    fn label(&mut self, alias: &str, (name, value): (&str, &str), scope: &Scope) {
        self.add_text(&format!("{alias}.name = ?"), name);
        self.add_text(&format!("{alias}.value = ?"), value);
        if !scope.is_all() && is_own(scope, name, value) {
            self.sql.push_str(&format!(" AND {alias}.own"));
        }
    }

    /// Adds the condition that a task is in the scope, apart from its labels. A task with its own
    /// scope is in it when its scope is within this one.
    fn scope(&mut self, scope: &Scope, schema: &str) {
        if let Some(queue) = scope.only_queue() {
            self.add_text("t.queue = ?", queue.as_str());
        }
        if !scope.is_all() {
            let within = format!("(t.scope IS NULL OR {schema}.is_within(t.scope, ?))");
            self.add_text(&within, &scope.to_text());
        }
    }

    fn bind(&self, query: Query) -> Query {
        self.values.iter().cloned().fold(query, |query, value| match value {
            Value::Text(text) => query.bind(text),
            Value::Id(id) => query.bind(id),
        })
    }
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
    let texts = [("t.queue = ?", &filter.queue), ("t.task_type = ?", &filter.task_type)];
    for (condition, name) in
        texts.into_iter().filter_map(|(condition, name)| Some((condition, name.as_ref()?)))
    {
        asked.add_text(condition, name.as_str());
    }
    if let Some(parent) = filter.parent {
        asked.add("t.parent = ?", Value::Id(*parent.as_uuid()));
    }
    if let Some(before) = filter.before {
        // The condition is added for each table with which a list may begin.
        ids.iter().for_each(|id| asked.add(&format!("{id} < ?"), Value::Id(*before.as_uuid())));
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

    /// Reads a journal in parts, because its length has no limit.
    pub(crate) async fn journal(&self, task_id: TaskId) -> Result<Vec<Entry>, StoreError> {
        let sql = format!(
            "SELECT pg_catalog.array_agg(j.seq) AS seq, pg_catalog.array_agg(j.kind) AS kind,
                pg_catalog.array_agg(j.name) AS name, pg_catalog.array_agg(j.ordinal) AS ordinal,
                pg_catalog.array_agg(j.outcome) AS outcome, pg_catalog.array_agg(j.payload) AS payload,
                pg_catalog.array_agg(j.at) AS at
            FROM (
                SELECT j.*, pg_catalog.sum(j.bytes) OVER (ORDER BY j.seq) - j.bytes < {0}.answer_bytes() AS fits
                FROM (SELECT *, pg_catalog.octet_length(payload) + pg_catalog.octet_length(name) + 64 AS bytes
                    FROM {0}.journal WHERE task_id = $1 AND seq > $2 ORDER BY seq LIMIT $3) j
                ORDER BY j.seq
            ) j WHERE j.fits",
            self.options.schema
        );
        let mut journal: Vec<Entry> = Vec::new();
        loop {
            let behind =
                journal.last().map_or(-1, |last| i64::try_from(last.seq).unwrap_or(i64::MAX));
            let id = *task_id.as_uuid();
            let rows =
                self.read(&sql, |query| query.bind(id).bind(behind).bind(JOURNAL_PART)).await?;
            let Some(row) = rows.first() else { return Ok(journal) };
            let part: sqlx::Result<Vec<Entry>> = entries(row, "").and_then(Iterator::collect);
            let mut part = part.map_err(|error| self.error(error))?;
            if part.is_empty() {
                return Ok(journal);
            }
            journal.append(&mut part);
        }
    }

    /// Reads the parameters and headers of claimed tasks that were too large for the answer.
    pub(crate) async fn fill(
        &self,
        line: &mut Line,
        apart: &[Uuid],
        claims: &mut [Claimed],
    ) -> Result<(), StoreError> {
        let sql =
            format!("SELECT params, headers FROM {}.tasks WHERE task_id = $1", self.options.schema);
        let tasks = claims.iter_mut().flat_map(|claimed| &mut claimed.tasks);
        for task in tasks.filter(|task| apart.contains(task.task_id.as_uuid())) {
            let id = *task.task_id.as_uuid();
            let rows = self.read_on(line, &sql, |query| query.bind(id)).await?;
            let Some(row) = rows.first() else { continue };
            let mut read = || {
                task.params = Payload::from_json(row.try_get::<&str, _>(0)?);
                task.headers = of_task(&mut task.unreadable, "`headers`", json(row.try_get(1)?))?;
                Ok(())
            };
            read().map_err(|error| self.error(error))?;
        }
        Ok(())
    }

    pub(crate) async fn waits(
        &self,
        scope: Scope,
        prefix: String,
        behind: Option<TaskId>,
        limit: usize,
    ) -> Result<Page<TaskWaits>, StoreError> {
        let Some(labels) = scope.possible_labels() else { return Ok(Page::default()) };
        let schema = &self.options.schema;
        let (mut tables, mut asked) = (String::new(), Asked::after(4));
        if !scope.is_all() {
            tables.push_str(&format!(" JOIN {schema}.tasks t USING (task_id)"));
        }
        for (place, label) in labels.into_iter().enumerate() {
            tables.push_str(&format!(" JOIN {schema}.labels b{place} USING (task_id)"));
            asked.label(&format!("b{place}"), label, &scope);
        }
        asked.scope(&scope, schema);
        let tasks = format!(
            "SELECT o.task_id, pg_catalog.sum(
                512 + pg_catalog.octet_length(o.name) + pg_catalog.octet_length(o.target)) AS bytes
            FROM {schema}.waits o{tables}
            WHERE o.target >= $1 AND o.target < $2 AND ($3::uuid IS NULL OR o.task_id > $3){}
            GROUP BY o.task_id ORDER BY o.task_id LIMIT $4",
            asked.sql
        );
        let sql = format!(
            "SELECT w.task_id, w.kind, w.name, w.ordinal, w.target, w.due_at, p.more
            FROM ({}) p JOIN {schema}.waits w USING (task_id)
            WHERE w.target >= $1 AND w.target < $2 ORDER BY w.task_id",
            paged(schema, &tasks, "p.task_id")
        );
        // No text with the prefix sorts after this one.
        let end = format!("{prefix}\u{10ffff}");
        let after = behind.map(|task_id| *task_id.as_uuid());
        let bind = |query: Query| {
            asked.bind(
                query.bind(prefix.clone()).bind(end.clone()).bind(after).bind(rows_for(limit)),
            )
        };
        let mut rows = self.read(&sql, bind).await?;
        let page = || {
            let of: Vec<TaskId> = rows.iter().map(id).collect::<sqlx::Result<_>>()?;
            let mut tasks = of.clone();
            tasks.dedup();
            let limit = limit.min(ANSWER_ITEMS);
            let more = tasks.len() > limit
                || rows.last().map_or(Ok(false), |last| last.try_get("more"))?;
            tasks.truncate(limit);
            let last = tasks.last().copied();
            let theirs = of.partition_point(|task_id| last.is_some_and(|last| *task_id <= last));
            Ok((theirs, last.filter(|_| more)))
        };
        let (theirs, next) = page().map_err(|error| self.error(error))?;
        rows.truncate(theirs);
        let mut items: Vec<TaskWaits> = Vec::new();
        for (task_id, wait) in self.readable("a wait", &rows, wait)? {
            match items.last_mut() {
                Some((last, waits)) if *last == task_id => waits.push(wait),
                _ => items.push((task_id, vec![wait])),
            }
        }
        items.iter_mut().for_each(|(_, waits)| waits.sort_unstable_by(|a, b| a.key.cmp(&b.key)));
        Ok(Page { items, next })
    }

    pub(crate) async fn queues(&self) -> Result<Vec<QueueInfo>, StoreError> {
        let sql = format!(
            "SELECT coalesce(q.queue, c.queue) AS name, coalesce(q.paused, false), q.max_running,
                q.max_running_per_worker, q.rate_starts, q.rate_per, coalesce(c.pending, 0), coalesce(c.running, 0),
                coalesce(c.suspended, 0), c.ready_at
            FROM {0}.queues q FULL JOIN (
                SELECT queue, count(*) FILTER (WHERE state = 'pending') AS pending,
                    count(*) FILTER (WHERE state = 'running') AS running,
                    count(*) FILTER (WHERE state = 'suspended') AS suspended,
                    min(coalesce(due_at, ready_at)) FILTER (WHERE state = 'pending' AND NOT blocked AND NOT paused) AS ready_at
                FROM {0}.live_tasks GROUP BY queue
            ) c USING (queue)
            WHERE c.queue IS NOT NULL OR q.restricts
            ORDER BY coalesce(q.queue, c.queue) COLLATE \"C\"",
            self.options.schema
        );
        let rows = self.read(&sql, |query| query).await?;
        self.readable("a queue", &rows, queue_info)
    }

    pub(crate) async fn ends(&self, tasks: Vec<TaskId>) -> Result<Ends, StoreError> {
        let list = format!(
            // `OFFSET 0` forces a join task by task, whatever sizes the planner assumes. A task
            // that was replaced by another one ends as that task does, while that task exists.
            "SELECT t.task_id, e.state, e.output, e.failure, 512::bigint + coalesce(pg_catalog.octet_length(e.output), 0)
                + coalesce(pg_catalog.octet_length(e.failure), 0) AS bytes
            FROM pg_catalog.unnest($1) AS x(task_id)
            CROSS JOIN LATERAL (SELECT t.task_id FROM {0}.tasks t WHERE t.task_id = x.task_id OFFSET 0) t
            LEFT JOIN LATERAL (SELECT o.* FROM {0}.outcomes o WHERE o.task_id = x.task_id OFFSET 0) o ON true
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
            let state: Option<&str> = row.try_get(1)?;
            let end = state
                .map(|state| finish(Some(state), row.try_get(2)?, row.try_get(3)?))
                .transpose()?;
            Ok((id(row)?, end))
        };
        self.page("a task", rows, usize::MAX, id, end)
    }

    pub(crate) async fn workers(&self) -> Result<Vec<WorkerInfo>, StoreError> {
        let sql = format!(
            "SELECT w.worker_id, w.name, w.queues, w.concurrency, w.code_version, w.state, w.registered_at, w.heartbeat_at,
                w.lease, coalesce(l.running, 0)
            FROM {0}.workers w LEFT JOIN (
                SELECT worker_id, count(*) AS running FROM {0}.live_tasks WHERE running_in IS NOT NULL GROUP BY worker_id
            ) l USING (worker_id)
            ORDER BY w.worker_id",
            self.options.schema
        );
        let rows = self.read(&sql, |query| query).await?;
        let now = self.clock.now();
        let info = |row: &PgRow| {
            let heartbeat_at = row.try_get::<Moment, _>(7)?.0;
            let lease = Duration::from_micros(row.try_get::<i64, _>(8)?.unsigned_abs());
            let queues: Vec<String> = row.try_get(2)?;
            Ok(WorkerInfo {
                worker_id: row.try_get::<Uuid, _>(0)?.into(),
                name: row.try_get(1)?,
                queues: queues.into_iter().map(name).collect::<sqlx::Result<_>>()?,
                concurrency: attempt(row.try_get(3)?),
                code_version: row.try_get::<Option<&str>, _>(4)?.map(name).transpose()?,
                state: worker_state(row.try_get::<&str, _>(5)?)?,
                alive: after(heartbeat_at, lease) > now,
                running: row.try_get::<i64, _>(9)?.unsigned_abs(),
                registered_at: row.try_get::<Moment, _>(6)?.0,
                heartbeat_at,
                lease,
            })
        };
        self.readable("a worker", &rows, info)
    }

    pub(crate) async fn schedules(
        &self,
        which: ScheduleFilter,
    ) -> Result<Page<Scheduled>, StoreError> {
        let by_name = "p.name COLLATE \"C\"";
        let by_time = "p.next_at, p.name COLLATE \"C\"";
        let (conditions, order, at, behind, limit) = match which {
            ScheduleFilter::All { behind } => {
                let behind = behind.map(|(_, name)| name);
                ("p.name COLLATE \"C\" > $1", by_name, None, behind, usize::MAX)
            }
            ScheduleFilter::Named(name) => ("p.name = $1", by_name, None, Some(name), 1),
            ScheduleFilter::Next { behind, limit } => {
                let (at, behind) = behind.unzip();
                let conditions = "p.next_at IS NOT NULL
                    AND ($3::timestamptz IS NULL OR (p.next_at, p.name COLLATE \"C\") > ($3, $1))";
                (conditions, by_time, Some(at.flatten()), behind, limit)
            }
        };
        let schema = &self.options.schema;
        let list = format!(
            "SELECT p.name, p.version, p.definition, p.next_at, p.last_task,
                512::bigint + pg_catalog.octet_length(p.definition) AS bytes
            FROM {schema}.schedules p WHERE {conditions} ORDER BY {order} LIMIT $2"
        );
        // No name is empty.
        let behind = behind.as_ref().map_or("", Name::as_str);
        let sql = paged(schema, &list, order);
        let rows = self.read(&sql, |query| {
            let query = query.bind(behind.to_owned()).bind(rows_for(limit));
            match at {
                Some(at) => query.bind(at.map(Moment)),
                None => query,
            }
        });
        let cursor = |row: &PgRow| {
            let next_at = row.try_get::<Option<Moment>, _>(3)?.map(|moment| moment.0);
            Ok((next_at, name(row.try_get::<&str, _>(0)?)?))
        };
        let schedule = |row: &PgRow| {
            let plan = SchedulePlan {
                version: row.try_get::<Uuid, _>(1)?.into(),
                definition: Payload::from_json(row.try_get::<&str, _>(2)?),
                next_at: row.try_get::<Option<Moment>, _>(3)?.map(|moment| moment.0),
            };
            let last_task = row.try_get::<Option<Uuid>, _>(4)?.map(TaskId::from);
            Ok(Scheduled { name: name(row.try_get::<&str, _>(0)?)?, plan, last_task })
        };
        self.page("a schedule", rows.await?, limit, cursor, schedule)
    }

    pub(crate) async fn waiting_types(&self, queues: Vec<Name>) -> Result<Vec<Name>, StoreError> {
        let sql = format!(
            "SELECT DISTINCT l.task_type FROM pg_catalog.unnest($1) AS q(queue) CROSS JOIN LATERAL (
                SELECT l.task_type FROM {}.live_tasks l
                WHERE l.queue = q.queue AND l.state = 'pending' AND l.due_at IS NULL AND NOT l.blocked AND NOT l.paused
                    AND l.crashes < 2
                ORDER BY l.priority DESC, l.ready_at, l.task_id LIMIT 1000
            ) l",
            self.options.schema
        );
        let queues: Vec<String> = queues.iter().map(|queue| queue.as_str().to_owned()).collect();
        let rows = self.read(&sql, |query| query.bind(queues.clone())).await?;
        let mut types = self.readable("a task", &rows, |row| name(row.try_get::<&str, _>(0)?))?;
        types.sort_unstable();
        Ok(types)
    }

    pub(crate) async fn purge(&self, purge: Purge) -> Result<usize, StoreError> {
        let sql = format!(
            "SELECT {}.purge(p_before => $1, p_state => $2, p_limit => $3, p_end => $4)",
            self.options.schema
        );
        // The client that spawned a task may have had a clock ahead of the server's.
        let end = after(purge.before, CLOCKS_DIFFER).as_millisecond();
        let end =
            uuid::Builder::from_unix_timestamp_millis(u64::try_from(end).unwrap_or(0), &[0; 10]);
        let end = end.into_uuid();
        let limit = i64::try_from(purge.limit).unwrap_or(i64::MAX);
        let rows = self.read(&sql, |query| {
            query
                .bind(Moment(purge.before))
                .bind(purge.state.map(stepwell_core::TaskState::as_str))
                .bind(limit)
                .bind(end)
        });
        let purged = rows.await?.first().map_or(Ok(0), |row| row.try_get::<i64, _>(0));
        purged.map(|purged| usize::try_from(purged).unwrap_or(0)).map_err(|error| self.error(error))
    }

    /// Reads the server's clock and its timeline.
    pub(crate) async fn begin(&self) -> Result<(), StoreError> {
        let sql = "SELECT pg_catalog.clock_timestamp()";
        let rows = self.read_on(&mut *self.link.line().await, sql, |query| query).await?;
        if let Some(row) = rows.first() {
            self.clock.hear(row.try_get::<Moment, _>(0).map_err(|error| self.error(error))?.0);
        }
        // A standby has no timeline of its own yet. A compatible server that does not know the
        // function is not asked again.
        let sql = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN ''
            ELSE pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8) END";
        let rows = self
            .read_on(&mut *self.link.line().await, sql, |query| query)
            .await
            .unwrap_or_default();
        if let Some(Ok(name)) = rows.first().map(|row| row.try_get::<&str, _>(0)) {
            self.timeline.moved(name);
        }
        Ok(())
    }

    /// Returns the rows of a list that can be read. Rows that cannot be read are logged, and do not
    /// hide the others.
    pub(crate) fn readable<T>(
        &self,
        what: &str,
        rows: &[PgRow],
        read: impl Fn(&PgRow) -> sqlx::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let (mut left_out, mut first) = (0, None);
        let mut all = Vec::with_capacity(rows.len());
        for row in rows {
            match read(row) {
                Ok(row) => all.push(row),
                Err(error) => {
                    left_out += 1;
                    first
                        .get_or_insert(unreadable(what, error).map_err(|error| self.error(error))?);
                }
            }
        }
        if let Some(error) = first {
            tracing::error!(left_out, %error, "rows that cannot be read are left out of a list");
        }
        Ok(all)
    }

    /// Reads over the pool. All connections may have broken since their last use, so that each is
    /// tried once.
    pub(crate) async fn read(
        &self,
        sql: &str,
        bind: impl Fn(Query) -> Query,
    ) -> Result<Vec<PgRow>, StoreError> {
        let (mut tries, mut gave_way, mut begins) = (0, 0, false);
        loop {
            let mut conn = match self.pool.acquire().await {
                Ok(conn) => conn,
                // The connection was cut while it was being made.
                Err(sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::Tls(_))
                    if tries < POOL =>
                {
                    tries += 1;
                    continue;
                }
                Err(error) => return Err(self.error(error)),
            };
            let query = bind(sqlx::query(AssertSqlSafe(sql.to_owned())));
            let Ok(answer) = timeout(ANSWER_TIMEOUT, self.fetch(&mut conn, query, begins)).await
            else {
                conn.close_on_drop();
                let reason = format!("no answer within {ANSWER_TIMEOUT:?}");
                return Err(Fault::Lost(reason).into_error(&self.options));
            };
            match answer {
                Ok(rows) => return Ok(rows),
                Err(error) => match Fault::of(error, &self.options) {
                    Fault::Unfit(_) if !begins => begins = true,
                    Fault::GaveWay if gave_way < WAYS_GIVEN => gave_way += 1,
                    Fault::Lost(_) | Fault::Standby(_) if tries < POOL => {
                        conn.close_on_drop();
                        tries += 1;
                    }
                    fault => return Err(fault.into_error(&self.options)),
                },
            }
        }
    }
}
