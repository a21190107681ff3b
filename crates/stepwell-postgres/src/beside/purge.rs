//! Purges of finished tasks.

use std::time::Duration;

use sqlx::Row as _;
use sqlx::types::uuid;
use stepwell_core::store::{Purge, TaskState};
use stepwell_core::{StoreError, after};

use crate::connection::Shared;
use crate::values::columns::Moment;

/// The time by which the clocks of spawning clients may be ahead of the server's. A purge finds
/// tasks that were spawned with such clocks.
const CLOCKS_DIFFER: Duration = Duration::from_secs(3600);

impl Shared {
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
                .bind(purge.state.map(TaskState::as_str))
                .bind(limit)
                .bind(end)
        });
        let purged = rows.await?.first().map_or(Ok(0), |row| row.try_get::<i64, _>(0));
        purged.map(|purged| usize::try_from(purged).unwrap_or(0)).map_err(|error| self.error(error))
    }
}
