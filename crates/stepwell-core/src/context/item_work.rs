//! Working on many items at once, for whoever keeps their progress.

use std::collections::BTreeMap;
use std::future::Future;

use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt as _};

use crate::base::failure::Failure;
use crate::base::payload::Payload;
use crate::base::runtime::BoxFuture;
use crate::context::item_progress::{ErrorPolicy, ItemError, ItemProgress};

/// How the items of one future ended.
pub type Worked = Vec<(usize, Result<Payload, Failure>)>;

/// Why work on items came to no end.
#[derive(Debug)]
pub enum WorkError<E> {
    /// An item failed, and the others were not to go on.
    Item {
        /// The first one, by index.
        index: usize,
        /// Why.
        failure: Failure,
    },
    /// What ended could not be recorded.
    Record(E),
    /// An item is not one of those.
    Misfit(ItemError),
}

/// Runs the futures, so many at a time. What has ended is recorded in groups: whatever ended while
/// one record was under way goes with the next, and what is recorded is in `progress`, of which
/// `on_record` is told. Gives the failures that are not recorded.
///
/// # Errors
/// When an item fails with [`ErrorPolicy::Stop`], after what was under way has ended and is
/// recorded.
pub async fn work_on_items<'a, E>(
    progress: &mut ItemProgress,
    mut todo: impl Iterator<Item = impl Future<Output = Worked>>,
    concurrency: usize,
    policy: ErrorPolicy,
    mut record: impl FnMut(&ItemProgress) -> BoxFuture<'a, Result<(), E>>,
    mut on_record: impl FnMut(&ItemProgress),
) -> Result<BTreeMap<usize, Failure>, WorkError<E>> {
    let total = progress.counts().total;
    let mut running = FuturesUnordered::new();
    let mut writing: Option<(ItemProgress, BoxFuture<'a, Result<(), E>>)> = None;
    let mut fresh = ItemProgress::new(total);
    let mut failures = BTreeMap::new();
    loop {
        let stopped = policy == ErrorPolicy::Stop && !failures.is_empty();
        let free = if stopped { 0 } else { concurrency.max(1).saturating_sub(running.len()) };
        running.extend(todo.by_ref().take(free));
        if writing.is_none() && !fresh.is_empty() {
            let group = std::mem::replace(&mut fresh, ItemProgress::new(total));
            let write = record(&group);
            writing = Some((group, write));
        }
        let ended = match &mut writing {
            None if running.is_empty() => break,
            None => running.next().await,
            Some((_, write)) => {
                let written = if running.is_empty() {
                    Either::Left(write.await)
                } else {
                    match select(write, running.next()).await {
                        Either::Left((written, _)) => Either::Left(written),
                        Either::Right((ended, _)) => Either::Right(ended),
                    }
                };
                match written {
                    Either::Right(ended) => ended,
                    Either::Left(written) => {
                        written.map_err(WorkError::Record)?;
                        if let Some((group, _)) = writing.take() {
                            progress.merge(group);
                        }
                        on_record(progress);
                        continue;
                    }
                }
            }
        };
        for (index, outcome) in ended.into_iter().flatten() {
            match outcome {
                Err(failure) if policy != ErrorPolicy::Skip => _ = failures.insert(index, failure),
                outcome => fresh.mark(index, outcome).map_err(WorkError::Misfit)?,
            }
        }
    }
    match failures.pop_first() {
        Some((index, failure)) if policy == ErrorPolicy::Stop => {
            Err(WorkError::Item { index, failure })
        }
        first => {
            failures.extend(first);
            Ok(failures)
        }
    }
}
