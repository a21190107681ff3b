//! Journals, and what was too long for the answer of a claim.

use sqlx::Row as _;
use sqlx::types::Uuid;
use stepwell_core::store::Claimed;
use stepwell_core::{Entry, Payload, StoreError, TaskId};

use crate::connection::Shared;
use crate::connection::link::Line;
use crate::values::columns::bigint;
use crate::values::rows::{entries, json, of_task};

/// The maximum number of journal entries in one read.
const JOURNAL_PART: i64 = 20_000;

impl Shared {
    /// Reads a journal in parts, because its length has no limit.
    pub(crate) async fn journal(&self, task_id: TaskId) -> Result<Vec<Entry>, StoreError> {
        let sql = format!(
            "SELECT pg_catalog.array_agg(j.seq) AS seq, pg_catalog.array_agg(j.kind) AS kind,
                pg_catalog.array_agg(j.name) AS name, pg_catalog.array_agg(j.ordinal) AS ordinal,
                pg_catalog.array_agg(j.outcome) AS outcome,
                pg_catalog.array_agg(j.payload) AS payload,
                pg_catalog.array_agg(j.at) AS at
            FROM (
                SELECT j.*, pg_catalog.sum(j.bytes) OVER (ORDER BY j.seq) - j.bytes
                    < {0}.answer_bytes() AS fits
                FROM (SELECT *, pg_catalog.octet_length(payload)
                        + pg_catalog.octet_length(name) + 64 AS bytes
                    FROM {0}.journal WHERE task_id = $1 AND seq > $2 ORDER BY seq LIMIT $3) j
                ORDER BY j.seq
            ) j WHERE j.fits",
            self.options.schema
        );
        let mut journal: Vec<Entry> = Vec::new();
        loop {
            let behind = journal.last().map_or(i64::MIN, |last| bigint(last.seq));
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
                task.params = Payload::from_json(row.try_get::<&str, _>("params")?);
                let headers = json(row.try_get("headers")?);
                task.headers = of_task(&mut task.unreadable, "`headers`", headers)?;
                Ok(())
            };
            read().map_err(|error| self.error(error))?;
        }
        Ok(())
    }
}
