//! Work on many items, each done once.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use stepwell_core::{
    ErrorPolicy, InputHash, ItemCounts, ItemError, ItemProgress, ItemsReport, Kind, Outcome,
    PayloadError, StepName, WorkError, closure_failure, work_on_items,
};

use crate::error::CheckpointError;
use crate::ledger::Ledger;
use crate::values::{decode, place, prove};

/// Work on many items, made by [`Checkpoint::items`](crate::Checkpoint::items): set options, then
/// call [`Items::each`].
///
/// Results are recorded in groups: the results that arrive during one write are recorded by the
/// next one. An item whose result was not recorded when the process died runs again.
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

    /// Sets the number of items that run at the same time; at least 1. Default: 1.
    pub fn concurrency(mut self, items: usize) -> Self {
        self.concurrency = items.max(1);
        self
    }

    /// Sets what happens to the other items when an item fails. Default: [`ErrorPolicy::Stop`].
    pub fn on_error(mut self, policy: ErrorPolicy) -> Self {
        self.on_error = policy;
        self
    }

    /// Sets a function that is called with the recorded progress, at the beginning and after each
    /// write.
    pub fn on_progress(mut self, call: impl FnMut(ItemCounts) + Send + 'a) -> Self {
        self.on_progress = Some(Box::new(call));
        self
    }

    /// Sets a value that identifies the items, such as the items themselves. With another input (by
    /// its [`InputHash`]), all items start from the beginning.
    pub fn input<I: Serialize + ?Sized>(mut self, input: &I) -> Self {
        self.input = InputHash::of(input).map(Some);
        self
    }

    /// Runs `work` for each item that is not done yet, and waits for all of them.
    ///
    /// # Errors
    /// [`CheckpointError::Item`] with [`ErrorPolicy::Stop`], after the items in progress have ended
    /// and are recorded; [`CheckpointError::Items`] when the recorded number of items is another
    /// one.
    pub async fn each<R, F, Fut>(self, work: F) -> Result<ItemsReport<R>, CheckpointError>
    where
        R: Serialize + DeserializeOwned,
        F: Fn(T) -> Fut,
        Fut: Future<Output = anyhow::Result<R>>,
    {
        let key = &place(self.ledger, Kind::Items, &self.name, self.input)?;
        let misfit = |source: ItemError| CheckpointError::Items { name: key.label(), source };
        let mut recorded = ItemProgress::new(self.items.len());
        let chunks = self.ledger.memory().items.remove(key).unwrap_or_default();
        chunks.iter().try_for_each(|chunk| recorded.absorb(chunk)).map_err(misfit)?;

        self.ledger.check_owned().await?;
        let mut on_progress = self.on_progress.unwrap_or_else(|| Box::new(|_| {}));
        on_progress(recorded.counts());
        let mut todo: Vec<_> = self.items.into_iter().enumerate().collect();
        todo.retain(|(index, _)| !recorded.is_done(*index));
        let working = todo.into_iter().map(|(index, item)| {
            let work = work(item);
            async move {
                let result = work.await.and_then(|value| Ok(prove(&key.label(), &value)?));
                vec![(index, result.map_err(|error| closure_failure(&error)))]
            }
        });
        let working = work_on_items(
            &mut recorded,
            working,
            self.concurrency,
            self.on_error,
            |fresh| Box::pin(self.ledger.record([(key.clone(), Outcome::Done(fresh.to_chunk()))])),
            |recorded| on_progress(recorded.counts()),
        );
        let failures = self.ledger.while_owned(working).await?.map_err(|error| match error {
            WorkError::Item { index, failure } => {
                CheckpointError::Item { name: key.label(), index, failure: Box::new(failure) }
            }
            WorkError::Record(error) => error,
            WorkError::Misfit(source) => misfit(source),
        })?;

        let mut report =
            ItemsReport { results: BTreeMap::new(), failures, counts: recorded.counts() };
        for index in 0..report.counts.total {
            match recorded.outcome(index) {
                Some(Ok(result)) => {
                    _ = report.results.insert(index, decode(&key.label(), &result)?);
                }
                Some(Err(failure)) => _ = report.failures.insert(index, failure),
                None => {}
            }
        }
        report.counts.failed = report.failures.len();
        Ok(report)
    }
}
