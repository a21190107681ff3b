//! The short lists: queues, workers, schedules, and the task types that wait.

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use sqlx::types::Uuid;
use stepwell_core::store::{ScheduleFilter, SchedulePlan, Scheduled};
use stepwell_core::{
    Name, Page, Payload, QueueInfo, QueueLimits, RateLimit, StoreError, TaskId, WorkerInfo, after,
};

use crate::connection::Shared;
use crate::read::page::{paged, rows_for};
use crate::values::columns::{Moment, duration};
use crate::values::rows::{attempt, count, name, worker_state};

fn queue_info(row: &PgRow) -> sqlx::Result<QueueInfo> {
    let limit =
        |column: &str| Ok::<_, sqlx::Error>(row.try_get::<Option<i64>, _>(column)?.map(attempt));
    let count = |column: &str| Ok::<_, sqlx::Error>(row.try_get::<i64, _>(column)?.unsigned_abs());
    let per: Option<i64> = row.try_get("rate_per")?;
    let per = per.map(duration);
    Ok(QueueInfo {
        queue: name(row.try_get::<&str, _>("name")?)?,
        paused: row.try_get("paused")?,
        limits: QueueLimits {
            max_running: limit("max_running")?,
            max_running_per_worker: limit("max_running_per_worker")?,
            rate: limit("rate_starts")?.zip(per).map(|(starts, per)| RateLimit { starts, per }),
        },
        pending: count("pending")?,
        running: count("running")?,
        suspended: count("suspended")?,
        ready_at: row.try_get::<Option<Moment>, _>("ready_at")?.map(|moment| moment.0),
    })
}

impl Shared {
    pub(crate) async fn queues(&self) -> Result<Vec<QueueInfo>, StoreError> {
        let sql = format!(
            "SELECT coalesce(q.queue, c.queue) AS name, coalesce(q.paused, false) AS paused,
                q.max_running, q.max_running_per_worker, q.rate_starts, q.rate_per,
                coalesce(c.pending, 0) AS pending,
                coalesce(c.running, 0) AS running, coalesce(c.suspended, 0) AS suspended, c.ready_at
            FROM {0}.queues q FULL JOIN (
                SELECT queue, count(*) FILTER (WHERE state = 'pending') AS pending,
                    count(*) FILTER (WHERE state = 'running') AS running,
                    count(*) FILTER (WHERE state = 'suspended') AS suspended,
                    min(coalesce(due_at, ready_at)) FILTER (
                        WHERE state = 'pending' AND NOT blocked AND NOT paused) AS ready_at
                FROM {0}.live_tasks GROUP BY queue
            ) c USING (queue)
            WHERE c.queue IS NOT NULL OR q.restricts
            ORDER BY coalesce(q.queue, c.queue) COLLATE \"C\"",
            self.options.schema
        );
        let rows = self.read(&sql, |query| query).await?;
        self.readable("a queue", &rows, queue_info)
    }

    pub(crate) async fn workers(&self) -> Result<Vec<WorkerInfo>, StoreError> {
        let sql = format!(
            "SELECT w.worker_id, w.name, w.queues, w.concurrency, w.code_version, w.state,
                w.registered_at, w.heartbeat_at, w.lease, coalesce(l.running, 0) AS running
            FROM {0}.workers w LEFT JOIN (
                SELECT worker_id, count(*) AS running FROM {0}.live_tasks
                WHERE running_in IS NOT NULL GROUP BY worker_id
            ) l USING (worker_id)
            ORDER BY w.worker_id",
            self.options.schema
        );
        let rows = self.read(&sql, |query| query).await?;
        let now = self.clock.now();
        let info = |row: &PgRow| {
            let heartbeat_at = row.try_get::<Moment, _>("heartbeat_at")?.0;
            let lease = duration(row.try_get("lease")?);
            let queues: Vec<String> = row.try_get("queues")?;
            let code_version: Option<&str> = row.try_get("code_version")?;
            Ok(WorkerInfo {
                worker_id: row.try_get::<Uuid, _>("worker_id")?.into(),
                name: row.try_get("name")?,
                queues: queues.into_iter().map(name).collect::<sqlx::Result<_>>()?,
                concurrency: count(row.try_get("concurrency")?)?,
                code_version: code_version.map(name).transpose()?,
                state: worker_state(row.try_get::<&str, _>("state")?)?,
                alive: after(heartbeat_at, lease) > now,
                running: row.try_get::<i64, _>("running")?.unsigned_abs(),
                registered_at: row.try_get::<Moment, _>("registered_at")?.0,
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
            let next_at = row.try_get::<Option<Moment>, _>("next_at")?.map(|moment| moment.0);
            Ok((next_at, name(row.try_get::<&str, _>("name")?)?))
        };
        let schedule = |row: &PgRow| {
            let plan = SchedulePlan {
                version: row.try_get::<Uuid, _>("version")?.into(),
                definition: Payload::from_json(row.try_get::<&str, _>("definition")?),
                next_at: row.try_get::<Option<Moment>, _>("next_at")?.map(|moment| moment.0),
            };
            let last_task = row.try_get::<Option<Uuid>, _>("last_task")?.map(TaskId::from);
            Ok(Scheduled { name: name(row.try_get::<&str, _>("name")?)?, plan, last_task })
        };
        self.page("a schedule", rows.await?, limit, cursor, schedule)
    }

    pub(crate) async fn waiting_types(&self, queues: Vec<Name>) -> Result<Vec<Name>, StoreError> {
        let sql = format!(
            "SELECT DISTINCT l.task_type FROM pg_catalog.unnest($1) AS q(queue) CROSS JOIN LATERAL (
                SELECT l.task_type FROM {}.live_tasks l
                WHERE l.queue = q.queue AND l.state = 'pending' AND l.due_at IS NULL
                    AND NOT l.blocked AND NOT l.paused AND l.crashes < 2
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
}
