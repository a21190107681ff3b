//! Work on many items at the same time, for the code that keeps their progress.

use std::collections::BTreeMap;
use std::future::Future;

use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt as _};

use crate::base::failure::Failure;
use crate::base::payload::Payload;
use crate::base::runtime::BoxFuture;
use crate::context::item_progress::{ErrorPolicy, ItemError, ItemProgress};

/// The outcomes of the items of one future, each with its index.
pub type Worked = Vec<(usize, Result<Payload, Failure>)>;

/// The reason why work on items ended early.
#[derive(Debug)]
pub enum WorkError<E> {
    /// An item failed under a policy that stops the others.
    Item {
        /// The index of the item, the lowest of those that failed.
        index: usize,
        /// The reason.
        failure: Failure,
    },
    /// The progress could not be recorded.
    Record(E),
    /// An index is not that of an item.
    Misfit(ItemError),
}

/// Runs the futures, at most `concurrency` at a time, and returns the failures that are not
/// recorded.
///
/// Outcomes are recorded in groups: those that arrive while one record is under way go with the
/// next. `progress` holds what is recorded, and `on_record` is called with it after each record.
///
/// [`WorkError::Item`] when an item fails with [`ErrorPolicy::Stop`], after the items under way
/// have ended and are recorded; [`WorkError::Record`] when a record fails; [`WorkError::Misfit`]
/// when a future returns an index that is not that of an item.
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
