//! The import of exported tasks.

use sqlx::types::Uuid;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use stepwell_core::store::{TaskState, Wait};
use stepwell_core::{FailureKind, Name, StoreError, TaskRecord, labels};

use crate::connection::call::Query;
use crate::connection::{Shared, session};
use crate::values::columns::{Moment, is_own, micros, scope_text, seq};

impl Shared {
    /// Imports a task in its own transaction. The result is `false` when the task, or a task with
    /// its idempotency key, exists.
    pub(crate) async fn import(&self, record: TaskRecord) -> Result<bool, StoreError> {
        let mut conn = self.pool.acquire().await.map_err(|error| self.error(error))?;
        self.insert(&mut conn, &record).await.map_err(|error| self.error(error))
    }

    async fn insert(&self, conn: &mut PgConnection, record: &TaskRecord) -> sqlx::Result<bool> {
        let id = *record.info.task_id.as_uuid();
        let import = Import { schema: &self.options.schema, id, record };
        let mut tx = conn.begin_with(session::BEGIN).await?;
        if !import.task(&mut tx).await? {
            return Ok(false);
        }
        import.labels(&mut tx).await?;
        import.journal(&mut tx).await?;
        if !import.idempotency_key(&mut tx).await? {
            return Ok(false);
        }
        import.mailbox(&mut tx).await?;
        import.needs(&mut tx).await?;
        if record.info.state.is_finished() {
            import.outcome(&mut tx).await?;
        } else {
            import.waits(&mut tx).await?;
            import.lock_concurrency_key(&mut tx).await?;
            import.live_task(&mut tx, Moment(self.clock.now())).await?;
        }
        tx.commit().await?;
        Ok(true)
    }
}

/// The statements that import a task, each for one table.
struct Import<'a> {
    schema: &'a str,
    id: Uuid,
    record: &'a TaskRecord,
}

fn text(name: &Option<Name>) -> Option<String> {
    name.as_ref().map(|name| name.as_str().to_owned())
}

fn json(value: &impl serde::Serialize) -> sqlx::Result<String> {
    serde_json::to_string(value).map_err(|error| sqlx::Error::Encode(error.into()))
}

fn query(sql: String) -> Query {
    sqlx::query(AssertSqlSafe(sql)).persistent(false)
}

impl Import<'_> {
    /// Returns `false` when the task exists.
    async fn task(&self, tx: &mut PgConnection) -> sqlx::Result<bool> {
        let info = &self.record.info;
        let spawned = query(format!(
            "INSERT INTO {}.tasks (task_id, task_type, queue, priority, max_attempts, parent,
                idempotency_key, concurrency_key, code_version, spawned_at, max_duration, retry,
                headers, params, scope)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
            ON CONFLICT DO NOTHING",
            self.schema
        ))
        .bind(self.id)
        .bind(info.task_type.as_str().to_owned())
        .bind(info.queue.as_str().to_owned())
        .bind(info.priority)
        .bind(i64::from(info.max_attempts))
        .bind(info.parent.map(|parent| *parent.as_uuid()))
        .bind(text(&info.idempotency_key))
        .bind(text(&info.concurrency_key))
        .bind(text(&info.code_version))
        .bind(Moment(info.spawned_at))
        .bind(info.max_duration.map(micros))
        .bind(json(&info.retry)?)
        .bind(json(&info.headers)?)
        .bind(info.params.as_str().to_owned())
        .bind(scope_text(&info.scope))
        .execute(tx)
        .await?;
        Ok(spawned.rows_affected() > 0)
    }

    async fn labels(&self, tx: &mut PgConnection) -> sqlx::Result<()> {
        let info = &self.record.info;
        for (name, value) in labels(&info.headers) {
            query(format!(
                "INSERT INTO {}.labels (task_id, name, value, own) VALUES ($1, $2, $3, $4)",
                self.schema
            ))
            .bind(self.id)
            .bind(name.to_owned())
            .bind(value.to_owned())
            .bind(is_own(&info.scope, name, value))
            .execute(&mut *tx)
            .await?;
        }
        Ok(())
    }

    async fn journal(&self, tx: &mut PgConnection) -> sqlx::Result<()> {
        for entry in &self.record.journal {
            let (outcome, payload) = entry.outcome.to_columns();
            query(format!(
                "INSERT INTO {}.journal (task_id, seq, kind, name, ordinal, outcome, payload, at)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
                self.schema
            ))
            .bind(self.id)
            .bind(seq(entry.seq).map_err(sqlx::Error::Encode)?)
            .bind(entry.key.kind.as_str())
            .bind(entry.key.name.as_str().to_owned())
            .bind(i64::from(entry.key.ordinal))
            .bind(outcome)
            .bind(payload.as_str().to_owned())
            .bind(Moment(entry.at))
            .execute(&mut *tx)
            .await?;
        }
        Ok(())
    }

    /// Returns `false` when another task has the key. Otherwise batches that spawn with the key
    /// wait for this transaction.
    async fn idempotency_key(&self, tx: &mut PgConnection) -> sqlx::Result<bool> {
        let info = &self.record.info;
        let Some(key) = text(&info.idempotency_key) else { return Ok(true) };
        let taken = query(format!(
            "INSERT INTO {0}.idempotency_keys (task_type, idempotency_key, task_id, key_space)
            VALUES ($1, $2, $3, {0}.key_space($4)) ON CONFLICT DO NOTHING",
            self.schema
        ))
        .bind(info.task_type.as_str().to_owned())
        .bind(key)
        .bind(self.id)
        .bind(scope_text(&info.scope))
        .execute(tx)
        .await?;
        Ok(taken.rows_affected() > 0)
    }

    async fn mailbox(&self, tx: &mut PgConnection) -> sqlx::Result<()> {
        if self.record.info.state == TaskState::Completed {
            return Ok(());
        }
        for (topic, payload) in &self.record.messages {
            query(format!(
                "INSERT INTO {}.messages (task_id, topic, payload) VALUES ($1, $2, $3)",
                self.schema
            ))
            .bind(self.id)
            .bind(topic.as_str().to_owned())
            .bind(payload.as_str().to_owned())
            .execute(&mut *tx)
            .await?;
        }
        Ok(())
    }

    async fn needs(&self, tx: &mut PgConnection) -> sqlx::Result<()> {
        for needed in &self.record.needs {
            query(format!(
                "INSERT INTO {}.needs (task_id, needed_by) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                self.schema
            ))
            .bind(*needed.as_uuid())
            .bind(self.id)
            .execute(&mut *tx)
            .await?;
        }
        Ok(())
    }

    async fn outcome(&self, tx: &mut PgConnection) -> sqlx::Result<()> {
        let info = &self.record.info;
        query(format!(
            "INSERT INTO {}.outcomes (task_id, run_id, state, attempt, cancel_requested,
                started_at, finished_at, output, failure)
            VALUES ($1, $2, $3, $4, false, $5, coalesce($6, now()), $7, $8)",
            self.schema
        ))
        .bind(self.id)
        .bind(*info.run_id.as_uuid())
        .bind(info.state.as_str())
        .bind(i64::from(info.attempt))
        .bind(info.started_at.map(Moment))
        .bind(info.finished_at.map(Moment))
        .bind(info.output.as_ref().map(|output| output.as_str().to_owned()))
        .bind(info.failure.as_ref().map(json).transpose()?)
        .execute(tx)
        .await
        .map(drop)
    }

    async fn waits(&self, tx: &mut PgConnection) -> sqlx::Result<()> {
        for Wait { key, target, due_at } in &self.record.waits {
            query(format!(
                "INSERT INTO {}.waits (task_id, kind, name, ordinal, target, due_at, arrived)
                VALUES ($1, $2, $3, $4, $5, $6, $5 IS NOT NULL)",
                self.schema
            ))
            .bind(self.id)
            .bind(key.kind.as_str())
            .bind(key.name.as_str().to_owned())
            .bind(i64::from(key.ordinal))
            .bind(text(target))
            .bind(due_at.map(Moment))
            .execute(&mut *tx)
            .await?;
        }
        Ok(())
    }

    /// Takes the lock of a spawn with the task's concurrency key: the task before this one must not
    /// end unnoticed.
    async fn lock_concurrency_key(&self, tx: &mut PgConnection) -> sqlx::Result<()> {
        let info = &self.record.info;
        let Some(key) = text(&info.concurrency_key) else { return Ok(()) };
        query(format!(
            "SELECT {0}.lock_names(p_keys => ARRAY[ROW({0}.key_space($2), $1)::{0}.turn])",
            self.schema
        ))
        .bind(key)
        .bind(scope_text(&info.scope))
        .execute(tx)
        .await
        .map(drop)
    }

    async fn live_task(&self, tx: &mut PgConnection, now: Moment) -> sqlx::Result<()> {
        let info = &self.record.info;
        let (pending, running) =
            (info.state == TaskState::Pending, info.state == TaskState::Running);
        let compensating = info.state == TaskState::Compensating;
        let ends_as = match info.failure.as_ref().map(|failure| failure.kind) {
            _ if !compensating => None,
            Some(FailureKind::Cancelled) => Some("cancelled"),
            _ => Some("failed"),
        };
        let known = [&info.idempotency_key, &info.concurrency_key].into_iter().any(Option::is_some)
            || info.parent.is_some();
        query(format!(
            "INSERT INTO {0}.live_tasks (task_id, run_id, task_type, queue, state, priority,
                attempt, parent, code_version, concurrency_key, place, blocked, ready_at,
                started_at, due_at, cancel_at, failure, compensating, known, key_space, ends_as)
            SELECT $1, $2, $3, $4, 'pending', $5, $6, $7, $8, $9,
                CASE WHEN $9 IS NOT NULL THEN pg_catalog.nextval('{0}.places') END,
                EXISTS (SELECT FROM {0}.live_tasks l
                    WHERE l.concurrency_key = $9 AND l.key_space = {0}.key_space($17)),
                $10, $11, CASE WHEN $12 > $10 THEN $12 END, $13, $14, $15, $16,
                CASE WHEN $9 IS NOT NULL THEN {0}.key_space($17) END, $18",
            self.schema
        ))
        .bind(self.id)
        .bind(*info.run_id.as_uuid())
        .bind(info.task_type.as_str().to_owned())
        .bind(info.queue.as_str().to_owned())
        .bind(info.priority)
        .bind(i64::from(info.attempt.saturating_sub(u32::from(running))))
        .bind(info.parent.map(|parent| *parent.as_uuid()))
        .bind(text(&info.code_version))
        .bind(text(&info.concurrency_key))
        .bind(now)
        .bind(info.started_at.map(Moment))
        .bind(info.due_at.filter(|_| pending).map(Moment))
        .bind(info.cancel_at.map(Moment))
        .bind(info.failure.as_ref().map(json).transpose()?)
        .bind(compensating)
        .bind(known)
        .bind(scope_text(&info.scope))
        .bind(ends_as)
        .execute(tx)
        .await
        .map(drop)
    }
}
