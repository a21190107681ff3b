//! The lifecycle events that the store keeps.

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use stepwell_core::store::{Happening, HistoryFilter};
use stepwell_core::{Page, Payload, StoreError};
use uuid::Uuid;

use crate::connection::Shared;
use crate::connection::call::Query;
use crate::read::page::{next, paged, rows_for};
use crate::values::columns::{Moment, bigint};
use crate::values::rows::{name, unreadable_name};

/// The size of the events in one statement, in bytes: PostgreSQL limits a statement to 1 GiB.
const PART: usize = 32 << 20;

impl Shared {
    /// Adds lifecycle events to the history. An event may be added twice when a connection is lost.
    pub(crate) async fn record(&self, happenings: Vec<Happening>) -> Result<(), StoreError> {
        let mut bytes = 0;
        let parts = happenings.chunk_by(|happening, _| {
            bytes += happening.event.as_str().len();
            let fits = bytes < PART;
            if !fits {
                bytes = 0;
            }
            fits
        });
        for part in parts {
            self.record_part(part).await?;
        }
        Ok(())
    }

    async fn record_part(&self, happenings: &[Happening]) -> Result<(), StoreError> {
        let sql = format!(
            "SELECT {}.record(p_tasks => $1, p_at => $2, p_names => $3, p_events => $4)",
            self.options.schema
        );
        let rows = self.read(&sql, |query| {
            let tasks: Vec<Uuid> =
                happenings.iter().map(|happening| *happening.task_id.as_uuid()).collect();
            let times: Vec<Moment> =
                happenings.iter().map(|happening| Moment(happening.at)).collect();
            let names: Vec<_> =
                happenings.iter().map(|happening| happening.name.as_str().to_owned()).collect();
            let events: Vec<_> =
                happenings.iter().map(|happening| happening.event.as_str().to_owned()).collect();
            query.bind(tasks).bind(times).bind(names).bind(events)
        });
        rows.await.map(drop)
    }

    pub(crate) async fn history(
        &self,
        which: HistoryFilter,
    ) -> Result<Page<(u64, Happening)>, StoreError> {
        let of = if which.task_id.is_some() { "task_id = $3" } else { "$3::uuid IS NULL" };
        let schema = &self.options.schema;
        let list = format!(
            "SELECT id, task_id, at, name, event,
                512::bigint + pg_catalog.octet_length(event) AS bytes
            FROM {schema}.history WHERE id > $1 AND {of} ORDER BY id LIMIT $2"
        );
        let sql = paged(schema, &list, "p.id");
        let number = bigint(which.after);
        let task_id = which.task_id.map(|task_id| *task_id.as_uuid());
        let bind = |query: Query| query.bind(number).bind(rows_for(which.limit)).bind(task_id);
        let mut rows = self.read(&sql, bind).await?;
        let id = |row: &PgRow| row.try_get::<i64, _>("id").map(i64::unsigned_abs);
        let next = next(&mut rows, which.limit, id).map_err(|error| self.error(error))?;
        // No row is omitted, because readers of the history continue by its numbers.
        let entry = |row: &PgRow| {
            let happening = Happening {
                task_id: row.try_get::<Uuid, _>("task_id")?.into(),
                at: row.try_get::<Moment, _>("at")?.0,
                name: name(row.try_get::<&str, _>("name")?).or_else(|_| unreadable_name())?,
                event: Payload::stored(row.try_get("event")?, "`event`"),
            };
            Ok((id(row)?, happening))
        };
        let items = rows
            .iter()
            .map(entry)
            .collect::<sqlx::Result<_>>()
            .map_err(|error| self.error(error))?;
        Ok(Page { items, next })
    }
}
