//! The application of a batch in one transaction.
//!
//! A batch that changes nothing (an idle worker's claim) writes no page, and so its COMMIT syncs
//! nothing.

use std::cell::Cell;

use stepwell_core::store::{Batch, Committed, News};
use stepwell_core::{Room, StoreError, guard};

use crate::apply::Applying;
use crate::base::error::Fault;
use crate::base::rows::Statements as _;
use crate::state::Writer;
use crate::state::ends::Ends;
use crate::state::liveness::Liveness;
use crate::state::prepared::Prepared;

/// Applies the whole batch, or nothing of it.
pub(crate) fn commit(
    conn: &Prepared<'_>,
    writer: &Writer,
    liveness: &mut Liveness,
    ends: &mut Ends,
    batch: &Batch,
) -> Result<Committed, Fault> {
    let signals = !batch.workers.is_empty();
    conn.run("BEGIN IMMEDIATE", [])?;
    ends.begin(conn);
    // The time is read after the lock was taken, so that it is later than the times of earlier
    // commits.
    let now = writer.runtime.now();
    let applying = Applying {
        conn,
        writer,
        liveness: &mut *liveness,
        ends: &mut *ends,
        now,
        news: News::default(),
        doomed: Vec::new(),
        any_queue: Cell::new(None),
        room: Room::default(),
    };
    let applied = guard(|| applying.apply(batch)).unwrap_or_else(|panic| {
        Err(StoreError::Backend(format!("the batch panicked: {panic}")).into())
    });
    let applied = applied.and_then(|committed| {
        // The files are checked before and after the commit. A refused batch must not be applied
        // later, when the file comes back.
        writer.check_files()?;
        conn.run("COMMIT", [])?;
        Ok(committed)
    });
    match &applied {
        Ok(_) => liveness.committed(conn, signals),
        Err(_) => {
            liveness.rolled_back();
            ends.rolled_back();
            // Some failures end the transaction themselves.
            if !conn.is_autocommit() {
                conn.run("ROLLBACK", [])?;
            }
        }
    }
    applied
}
