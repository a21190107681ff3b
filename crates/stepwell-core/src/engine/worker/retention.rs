//! The removal of ended tasks.

use std::sync::Arc;
use std::time::Duration;

use crate::base::time::{from_micros, micros};
use crate::engine::Engine;
use crate::engine::worker::slots::Slots;
use crate::store::{Purge, StoreError, TaskState};

/// The interval at which the worker removes tasks that were kept long enough.
const PURGE_EVERY: Duration = Duration::from_secs(60);
/// The number of tasks that one transaction removes.
const PURGE_BATCH: usize = 1_000;

/// Removes finished tasks, in small batches.
pub(crate) async fn purge(
    engine: &Engine,
    older_than: Duration,
    state: Option<TaskState>,
    mut progress: impl FnMut(usize),
) -> Result<usize, StoreError> {
    let age = micros(older_than);
    let before = from_micros(engine.store.now().as_microsecond().saturating_sub(age));
    let mut purged = 0;
    loop {
        let batch = engine
            .answered(engine.store.purge(Purge { before, state, limit: PURGE_BATCH }))
            .await?;
        purged += batch;
        progress(purged);
        if batch < PURGE_BATCH {
            return Ok(purged);
        }
    }
}

/// Removes tasks that ended longer ago than the retention.
pub(super) async fn forget_the_old(slots: Arc<Slots>) {
    let engine = &slots.engine;
    let Some(retention) = engine.settings.retention else { return };
    loop {
        engine.runtime.sleep(PURGE_EVERY).await;
        match purge(engine, retention, None, |_| ()).await {
            Ok(0) => {}
            Ok(purged) => tracing::debug!(purged, "removed tasks that were kept long enough"),
            Err(error) => tracing::warn!(%error, "cannot remove old tasks; trying again later"),
        }
    }
}
