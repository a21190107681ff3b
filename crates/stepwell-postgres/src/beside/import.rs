//! The import of exported tasks.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use stepwell_core::store::{ArrivedMessage, MessageId, TaskState, Wait};
use stepwell_core::{FailureKind, Page, Payload, StoreError, TaskId, TaskRecord, labels};

use crate::Shared;
use crate::batch::answer::{awaited, name, unreadable};
use crate::batch::arguments::{is_own, scope};
use crate::connection::call::Query;
use crate::connection::session;
use crate::read::page::{next, paged, rows_for};
use crate::read::query::wait;
use crate::values::columns::{Moment, micros};

impl Shared {
    /// Returns the waits of a task, in the order of their keys.
    pub(crate) async fn waits_of(&self, task_id: TaskId) -> Result<Vec<Wait>, StoreError> {
        let schema = &self.options.schema;
        let id = *task_id.as_uuid();
        let sql = format!(
            "SELECT task_id, kind, name, ordinal, target, due_at FROM {schema}.waits WHERE task_id \
             = $1"
        );
        let rows = self.read(&sql, |query| query.bind(id)).await?;
        let waits =
            rows.iter().map(|row| awaited(wait(row)?.1)).collect::<sqlx::Result<Vec<Wait>>>();
        let hurt = |error| {
            unreadable("a row of `waits`", error)
                .map_or_else(|error| self.error(error), StoreError::from)
        };
        let mut waits = waits.map_err(hurt)?;
        waits.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(waits)
    }

    /// Returns the messages in a task's mailbox after the given one.
    pub(crate) async fn messages(
        &self,
        task_id: TaskId,
        behind: Option<MessageId>,
    ) -> Result<Page<ArrivedMessage>, StoreError> {
        let schema = &self.options.schema;
        let list = format!(
            "SELECT id, topic, payload, 512::bigint + pg_catalog.octet_length(payload) AS bytes
            FROM {schema}.messages WHERE task_id = $1 AND id > $2 ORDER BY id LIMIT $3"
        );
        let (task_id, behind) = (*task_id.as_uuid(), behind.unwrap_or(MessageId::MIN));
        let bind = |query: Query| query.bind(task_id).bind(behind).bind(rows_for(usize::MAX));
        let mut rows = self.read(&paged(schema, &list, "p.id"), bind).await?;
        let id = |row: &PgRow| row.try_get(0);
        let next = next(&mut rows, usize::MAX, id).map_err(|error| self.error(error))?;
        let message = |row: &PgRow| {
            let payload = Payload::from_json(row.try_get::<&str, _>(2)?);
            Ok(ArrivedMessage { id: id(row)?, topic: name(row.try_get::<&str, _>(1)?)?, payload })
        };
        let items = rows.iter().map(message).collect::<sqlx::Result<_>>();
        Ok(Page { items: items.map_err(|error| self.error(error))?, next })
    }

    /// Imports a task in its own transaction. The result is `false` when the task, or a task with
    /// its idempotency key, exists.
    pub(crate) async fn import(&self, record: TaskRecord) -> Result<bool, StoreError> {
        let mut conn = self.pool.acquire().await.map_err(|error| self.error(error))?;
        self.insert(&mut conn, &record).await.map_err(|error| self.error(error))
    }

    async fn insert(&self, conn: &mut PgConnection, record: &TaskRecord) -> sqlx::Result<bool> {
        let TaskRecord { info, journal, waits, messages, needs } = record;
        let schema = &self.options.schema;
        let sql = |text: &str| AssertSqlSafe(text.replace("{schema}", schema));
        let id = *info.task_id.as_uuid();
        let text =
            |name: &Option<stepwell_core::Name>| name.as_ref().map(|name| name.as_str().to_owned());
        let json = |failed: serde_json::Error| sqlx::Error::Encode(failed.into());
        let failure = info.failure.as_ref().map(serde_json::to_string).transpose().map_err(json)?;
        let mut tx = conn.begin_with(session::BEGIN).await?;

        let spawned = sqlx::query(sql(
            "INSERT INTO {schema}.tasks (task_id, task_type, queue, priority, max_attempts, parent, idempotency_key,
                concurrency_key, code_version, spawned_at, max_duration, retry, headers, params, scope)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) ON CONFLICT DO NOTHING",
        ))
        .persistent(false)
        .bind(id)
        .bind(info.task_type.as_str())
        .bind(info.queue.as_str())
        .bind(info.priority)
        .bind(i64::from(info.max_attempts))
        .bind(info.parent.map(|parent| *parent.as_uuid()))
        .bind(text(&info.idempotency_key))
        .bind(text(&info.concurrency_key))
        .bind(text(&info.code_version))
        .bind(Moment(info.spawned_at))
        .bind(info.max_duration.map(micros))
        .bind(serde_json::to_string(&info.retry).map_err(json)?)
        .bind(serde_json::to_string(&info.headers).map_err(json)?)
        .bind(info.params.as_str())
        .bind(scope(&info.scope))
        .execute(&mut *tx)
        .await?;
        if spawned.rows_affected() == 0 {
            return Ok(false);
        }
        for (name, value) in labels(&info.headers) {
            sqlx::query(sql(
                "INSERT INTO {schema}.labels (task_id, name, value, own) VALUES ($1, $2, $3, $4)",
            ))
            .persistent(false)
            .bind(id)
            .bind(name)
            .bind(value)
            .bind(is_own(&info.scope, name, value))
            .execute(&mut *tx)
            .await?;
        }
        for entry in journal {
            let (outcome, payload) = entry.outcome.to_columns();
            sqlx::query(sql(
                "INSERT INTO {schema}.journal (task_id, seq, kind, name, ordinal, outcome, payload, at)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            ))
            .persistent(false)
            .bind(id)
            .bind(i64::try_from(entry.seq).unwrap_or(i64::MAX))
            .bind(entry.key.kind.as_str())
            .bind(entry.key.name.as_str())
            .bind(i64::from(entry.key.ordinal))
            .bind(outcome)
            .bind(payload.as_str())
            .bind(Moment(entry.at))
            .execute(&mut *tx)
            .await?;
        }
        // From here on, other batches that spawn with the key wait for this transaction.
        if let Some(key) = &info.idempotency_key {
            let taken = sqlx::query(sql(
                "INSERT INTO {schema}.idempotency_keys (task_type, idempotency_key, task_id, key_space)
                VALUES ($1, $2, $3, {schema}.key_space($4)) ON CONFLICT DO NOTHING",
            ))
            .persistent(false)
            .bind(info.task_type.as_str())
            .bind(key.as_str())
            .bind(id)
            .bind(scope(&info.scope))
            .execute(&mut *tx)
            .await?;
            if taken.rows_affected() == 0 {
                return Ok(false);
            }
        }
        for (topic, payload) in messages.iter().filter(|_| info.state != TaskState::Completed) {
            sqlx::query(sql(
                "INSERT INTO {schema}.messages (task_id, topic, payload) VALUES ($1, $2, $3)",
            ))
            .persistent(false)
            .bind(id)
            .bind(topic.as_str())
            .bind(payload.as_str())
            .execute(&mut *tx)
            .await?;
        }
        for needed in needs {
            sqlx::query(sql(
                "INSERT INTO {schema}.needs (task_id, needed_by) VALUES ($1, $2) ON CONFLICT DO \
                 NOTHING",
            ))
            .persistent(false)
            .bind(*needed.as_uuid())
            .bind(id)
            .execute(&mut *tx)
            .await?;
        }
        if info.state.is_finished() {
            sqlx::query(sql(
                "INSERT INTO {schema}.outcomes (task_id, run_id, state, attempt, cancel_requested, started_at, finished_at,
                    output, failure)
                VALUES ($1, $2, $3, $4, false, $5, coalesce($6, now()), $7, $8)",
            ))
            .persistent(false)
            .bind(id)
            .bind(*info.run_id.as_uuid())
            .bind(info.state.as_str())
            .bind(i64::from(info.attempt))
            .bind(info.started_at.map(Moment))
            .bind(info.finished_at.map(Moment))
            .bind(info.output.as_ref().map(|output| output.as_str().to_owned()))
            .bind(failure)
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
            return Ok(true);
        }
        for Wait { key, target, due_at } in waits {
            sqlx::query(sql(
                "INSERT INTO {schema}.waits (task_id, kind, name, ordinal, target, due_at, arrived)
                VALUES ($1, $2, $3, $4, $5, $6, $5 IS NOT NULL)",
            ))
            .persistent(false)
            .bind(id)
            .bind(key.kind.as_str())
            .bind(key.name.as_str())
            .bind(i64::from(key.ordinal))
            .bind(text(target))
            .bind(due_at.map(Moment))
            .execute(&mut *tx)
            .await?;
        }
        if let Some(key) = text(&info.concurrency_key) {
            // The lock is the one of a spawn with the key: the task before this one must not end
            // unnoticed.
            let lock = "SELECT {schema}.lock_names(p_keys => ARRAY[ROW({schema}.key_space($2), \
                        $1)::{schema}.turn])";
            sqlx::query(sql(lock))
                .persistent(false)
                .bind(key)
                .bind(scope(&info.scope))
                .execute(&mut *tx)
                .await?;
        }
        let (pending, running) =
            (info.state == TaskState::Pending, info.state == TaskState::Running);
        let now = self.clock.now();
        let compensating = info.state == TaskState::Compensating;
        let kind = info.failure.as_ref().map(|failure| failure.kind);
        let ends_as = match kind {
            _ if !compensating => None,
            Some(FailureKind::Cancelled) => Some("cancelled"),
            _ => Some("failed"),
        };
        sqlx::query(sql(
            "INSERT INTO {schema}.live_tasks (task_id, run_id, task_type, queue, state, priority, attempt, parent,
                code_version, concurrency_key, place, blocked, ready_at, started_at, due_at, cancel_at, failure, compensating,
                known, key_space, ends_as)
            SELECT $1, $2, $3, $4, 'pending', $5, $6, $7, $8, $9, CASE WHEN $9 IS NOT NULL THEN pg_catalog.nextval('{schema}.places') END,
                EXISTS (SELECT FROM {schema}.live_tasks l WHERE l.concurrency_key = $9 AND l.key_space = {schema}.key_space($17)),
                $10, $11, CASE WHEN $12 > $10 THEN $12 END, $13, $14, $15, $16,
                CASE WHEN $9 IS NOT NULL THEN {schema}.key_space($17) END, $18",
        ))
        .persistent(false)
        .bind(id)
        .bind(*info.run_id.as_uuid())
        .bind(info.task_type.as_str())
        .bind(info.queue.as_str())
        .bind(info.priority)
        .bind(i64::from(info.attempt.saturating_sub(u32::from(running))))
        .bind(info.parent.map(|parent| *parent.as_uuid()))
        .bind(text(&info.code_version))
        .bind(text(&info.concurrency_key))
        .bind(Moment(now))
        .bind(info.started_at.map(Moment))
        .bind(info.due_at.filter(|_| pending).map(Moment))
        .bind(info.cancel_at.map(Moment))
        .bind(failure)
        .bind(compensating)
        .bind(info.parent.is_some() || info.idempotency_key.is_some() || info.concurrency_key.is_some())
        .bind(scope(&info.scope))
        .bind(ends_as)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(true)
    }
}
