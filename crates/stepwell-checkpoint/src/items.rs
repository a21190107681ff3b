//! Many items, each done once.

use std::collections::BTreeMap;

use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use stepwell_core::{
    BoxFuture, ErrorPolicy, Failure, InputHash, ItemCounts, ItemError, ItemProgress, ItemsReport, Key, Kind,
    Outcome, PayloadError, StepName, closure_failure,
};

use crate::checkpoint::{decode, encode};
use crate::error::CheckpointError;
use crate::ledger::Ledger;
use crate::step::place;

/// Items to be worked on, made by [`Checkpoint::items`](crate::Checkpoint::items): set options, then call [`Items::each`].
///
/// Results are recorded in groups: whatever ended while one write was under way goes with the next. An item whose
/// result was not recorded when the process died runs again.
#[must_use = "nothing is done until `each` is awaited"]
pub struct Items<'a, T> {
    ledger: &'a Ledger,
    name: StepName,
    items: Vec<T>,
    input: Result<Option<InputHash>, PayloadError>,
    concurrency: usize,
    on_error: ErrorPolicy,
    on_progress: Option<Box<dyn FnMut(ItemCounts) + Send + 'a>>,
}

impl<'a, T> Items<'a, T> {
    pub(crate) fn new(ledger: &'a Ledger, name: StepName, items: Vec<T>) -> Self {
        Self {
            ledger,
            name,
            items,
            input: Ok(None),
            concurrency: 1,
            on_error: ErrorPolicy::default(),
            on_progress: None,
        }
    }

    /// How many items are worked on at the same time; at least 1. Default: 1.
    pub fn concurrency(mut self, items: usize) -> Self {
        self.concurrency = items.max(1);
        self
    }

    /// What becomes of the others when an item fails. Default: [`ErrorPolicy::Stop`].
    pub fn on_error(mut self, policy: ErrorPolicy) -> Self {
        self.on_error = policy;
        self
    }

    /// Calls this with what is recorded, at the beginning and after each write.
    pub fn on_progress(mut self, call: impl FnMut(ItemCounts) + Send + 'a) -> Self {
        self.on_progress = Some(Box::new(call));
        self
    }

    /// What the items are made of, such as themselves: with another input (by its [`InputHash`]) all of them begin afresh.
    pub fn input<I: Serialize + ?Sized>(mut self, input: &I) -> Self {
        self.input = InputHash::of(input).map(Some);
        self
    }

    /// Does this with each item that is not done yet, and waits for all.
    ///
    /// # Errors
    /// [`CheckpointError::Item`] with [`ErrorPolicy::Stop`], after what was under way has ended and is recorded;
    /// [`CheckpointError::Items`] when another number of items was recorded.
    pub async fn each<R, F, Fut>(self, work: F) -> Result<ItemsReport<R>, CheckpointError>
    where
        R: Serialize + DeserializeOwned,
        F: Fn(T) -> Fut,
        Fut: Future<Output = anyhow::Result<R>>,
    {
        let key = place(self.ledger, Kind::Items, &self.name, self.input)?;
        let misfit = |source: ItemError| CheckpointError::Items { name: key.label(), source };
        let mut recorded = ItemProgress::new(self.items.len());
        let chunks = self.ledger.memory().items.remove(&key).unwrap_or_default();
        chunks.iter().try_for_each(|chunk| recorded.absorb(chunk)).map_err(misfit)?;

        self.ledger.check_owned().await?;
        let on_progress = self.on_progress.unwrap_or_else(|| Box::new(|_| {}));
        let mut group = Group { ledger: self.ledger, key: &key, recorded, fresh: None, on_progress };
        (group.on_progress)(group.recorded.counts());
        let todo: Vec<_> =
            self.items.into_iter().enumerate().filter(|(index, _)| !group.recorded.is_done(*index)).collect();
        let working = todo.into_iter().map(|(index, item)| {
            let work = work(item);
            async move { (index, work.await) }
        });
        let failures =
            self.ledger.while_owned(group.work(working, self.concurrency, self.on_error)).await??;

        let mut report = ItemsReport { results: BTreeMap::new(), failures, counts: group.recorded.counts() };
        for index in 0..report.counts.total {
            match group.recorded.outcome(index) {
                Some(Ok(result)) => _ = report.results.insert(index, decode(&key.label(), &result)?),
                Some(Err(failure)) => _ = report.failures.insert(index, failure),
                None => {}
            }
        }
        report.counts.failed = report.failures.len();
        Ok(report)
    }
}

/// Items that are worked on, and what is recorded of them.
struct Group<'a> {
    ledger: &'a Ledger,
    key: &'a Key,
    recorded: ItemProgress,
    /// What has ended since the last write.
    fresh: Option<ItemProgress>,
    on_progress: Box<dyn FnMut(ItemCounts) + Send + 'a>,
}

impl<'a> Group<'a> {
    /// Works on all of them. Gives the failures that are not recorded.
    async fn work<R: Serialize>(
        &mut self,
        mut todo: impl Iterator<Item = impl Future<Output = (usize, anyhow::Result<R>)>>,
        concurrency: usize,
        policy: ErrorPolicy,
    ) -> Result<BTreeMap<usize, Failure>, CheckpointError> {
        let mut running = FuturesUnordered::new();
        let mut writing: Option<(ItemProgress, BoxFuture<'a, Result<(), CheckpointError>>)> = None;
        let mut failures = BTreeMap::new();
        loop {
            let stopped = policy == ErrorPolicy::Stop && !failures.is_empty();
            let free = if stopped { 0 } else { concurrency.saturating_sub(running.len()) };
            running.extend(todo.by_ref().take(free));
            if writing.is_none()
                && let Some(fresh) = self.fresh.take()
            {
                let outcome = (self.key.clone(), Outcome::Done(fresh.to_chunk()));
                writing = Some((fresh, Box::pin(self.ledger.record([outcome]))));
            }
            let ended = match &mut writing {
                None if running.is_empty() => break,
                None => running.next().await,
                Some((group, write)) => {
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
                            written?;
                            self.absorb(&group.to_chunk())?;
                            (self.on_progress)(self.recorded.counts());
                            writing = None;
                            continue;
                        }
                    }
                }
            };
            if let Some((index, result)) = ended
                && let Some(failure) = self.ended(index, result, policy)?
            {
                failures.insert(index, failure);
            }
        }
        match failures.pop_first() {
            Some((index, failure)) if policy == ErrorPolicy::Stop => {
                Err(CheckpointError::Item { name: self.key.label(), index, failure: Box::new(failure) })
            }
            Some((index, failure)) => {
                failures.insert(index, failure);
                Ok(failures)
            }
            None => Ok(failures),
        }
    }

    /// An item has ended. Gives its failure, when that is not to be recorded.
    fn ended<R: Serialize>(
        &mut self,
        index: usize,
        result: anyhow::Result<R>,
        policy: ErrorPolicy,
    ) -> Result<Option<Failure>, CheckpointError> {
        let outcome = match result {
            Ok(value) => Ok(encode(&format!("{}[{index}]", self.key.label()), &value)?),
            Err(error) => match closure_failure(&error) {
                failure if policy == ErrorPolicy::Skip => Err(failure),
                failure => return Ok(Some(failure)),
            },
        };
        let total = self.recorded.counts().total;
        let fresh = self.fresh.get_or_insert_with(|| ItemProgress::new(total));
        fresh
            .mark(index, outcome)
            .map_err(|source| CheckpointError::Items { name: self.key.label(), source })?;
        Ok(None)
    }

    fn absorb(&mut self, chunk: &stepwell_core::Payload) -> Result<(), CheckpointError> {
        let absorbed = self.recorded.absorb(chunk);
        absorbed.map_err(|source| CheckpointError::Items { name: self.key.label(), source })
    }
}
