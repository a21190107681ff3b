//! Pages of lists. The server chooses the rows for which an answer has room, by their lengths
//! alone. The server does not read the long values that are left out, and the client never holds
//! more of them than one answer.

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use stepwell_core::{ANSWER_ITEMS, Listed, Page, StoreError};

use crate::connection::Shared;

/// Returns the statement for a page of a list. The list has the given order and a column `bytes`.
pub(crate) fn paged(schema: &str, list: &str, order: &str) -> String {
    format!(
        "SELECT * FROM (
            SELECT p.*, pg_catalog.sum(p.bytes) OVER w - p.bytes < {schema}.answer_bytes() AS fits,
                pg_catalog.lead(true) OVER w IS NOT NULL AS more
            FROM ({list}) p WINDOW w AS (ORDER BY {order} ROWS UNBOUNDED PRECEDING)
        ) p WHERE p.fits ORDER BY {order}"
    )
}

/// Returns the maximum number of rows to read for a page of `limit` rows. One row more is read to
/// see whether there is a next page.
pub(crate) fn rows_for(limit: usize) -> i64 {
    i64::try_from(limit.min(ANSWER_ITEMS)).unwrap_or(i64::MAX).saturating_add(1)
}

/// Removes the rows that are not on the page. The result is the position of the page's last row, if
/// more rows follow.
pub(crate) fn next<C>(
    rows: &mut Vec<PgRow>,
    limit: usize,
    cursor: impl Fn(&PgRow) -> sqlx::Result<C>,
) -> sqlx::Result<Option<C>> {
    let limit = limit.min(ANSWER_ITEMS);
    let more = rows.len() > limit;
    rows.truncate(limit);
    match rows.last() {
        Some(last) if more || last.try_get("more")? => cursor(last).map(Some),
        _ => Ok(None),
    }
}

impl Shared {
    /// Returns a page of the rows that can be read.
    pub(crate) fn page<T: Listed>(
        &self,
        what: &str,
        mut rows: Vec<PgRow>,
        limit: usize,
        cursor: impl Fn(&PgRow) -> sqlx::Result<T::Cursor>,
        read: impl Fn(&PgRow) -> sqlx::Result<T>,
    ) -> Result<Page<T>, StoreError> {
        let next = next(&mut rows, limit, cursor).map_err(|error| self.error(error))?;
        Ok(Page { items: self.readable(what, &rows, read)?, next })
    }
}
