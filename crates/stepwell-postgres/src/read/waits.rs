//! The waits of tasks, and the messages that tasks have yet to receive.

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use stepwell_core::store::{ArrivedMessage, MessageId, TaskWaits, Wait};
use stepwell_core::{
    ANSWER_ITEMS, Key, Kind, Page, Payload, Scope, StoreError, TaskId, UnknownWord,
};

use crate::connection::Shared;
use crate::connection::call::Query;
use crate::read::filter::Asked;
use crate::read::page::{next, paged, rows_for};
use crate::values::columns::Moment;
use crate::values::rows::{awaited, broken, count, id, name, unreadable};

/// Reads a row of `waits`.
fn wait(row: &PgRow) -> sqlx::Result<(TaskId, Wait)> {
    let word = |column: &str| row.try_get::<&str, _>(column);
    let kind = word("kind")?;
    let kind = Kind::parse(kind).ok_or_else(|| broken(UnknownWord(kind.to_owned())))?;
    let key = Key { kind, name: name(word("name")?)?, ordinal: count(row.try_get("ordinal")?)? };
    let target = row.try_get::<Option<&str>, _>("target")?.map(name).transpose()?;
    let due_at = row.try_get::<Option<Moment>, _>("due_at")?.map(|moment| moment.0);
    Ok((id(row)?, Wait { key, target, due_at }))
}

impl Shared {
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

    /// Returns the waits of a task, in the order of their keys.
    pub(crate) async fn waits_of(&self, task_id: TaskId) -> Result<Vec<Wait>, StoreError> {
        let schema = &self.options.schema;
        let sql = format!(
            "SELECT task_id, kind, name, ordinal, target, due_at FROM {schema}.waits
            WHERE task_id = $1"
        );
        let rows = self.read(&sql, |query| query.bind(*task_id.as_uuid())).await?;
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
        let number = |row: &PgRow| row.try_get("id");
        let next = next(&mut rows, usize::MAX, number).map_err(|error| self.error(error))?;
        let message = |row: &PgRow| {
            let payload = Payload::from_json(row.try_get::<&str, _>("payload")?);
            let topic = name(row.try_get::<&str, _>("topic")?)?;
            Ok(ArrivedMessage { id: number(row)?, topic, payload })
        };
        let items = rows.iter().map(message).collect::<sqlx::Result<_>>();
        Ok(Page { items: items.map_err(|error| self.error(error))?, next })
    }
}
