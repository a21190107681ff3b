//! Pages of lists. The server chooses the rows that an answer has room for, by their lengths alone:
//! it reads none of the long values that are left out, and nobody holds more of them than an
//! answer.

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use stepwell_core::{ANSWER_ITEMS, Listed, Page, StoreError};

use crate::Shared;

/// The statement for a page of a list, which is in this order, and has a column `bytes`.
pub(crate) fn paged(schema: &str, list: &str, order: &str) -> String {
    format!(
        "SELECT * FROM (
            SELECT p.*, pg_catalog.sum(p.bytes) OVER w - p.bytes < {schema}.answer_bytes() AS fits,
                pg_catalog.lead(true) OVER w IS NOT NULL AS more
            FROM ({list}) p WINDOW w AS (ORDER BY {order} ROWS UNBOUNDED PRECEDING)
        ) p WHERE p.fits ORDER BY {order}"
    )
}

/// How many rows a list is to have at most for a page of so many: one more tells whether there is
/// one.
pub(crate) fn rows_for(limit: usize) -> i64 {
    i64::try_from(limit.min(ANSWER_ITEMS)).unwrap_or(i64::MAX).saturating_add(1)
}

/// Leaves the rows that are on the page. Returns the last one's place, if there are more behind it.
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
    /// A page of what can be read of these rows.
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
