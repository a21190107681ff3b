//! Many items in one step, each done once.
//!
//! ```text
//!   journal:  items "rows" {done [0..99]} | items "rows" {done [100..180]} | … | step "rows" {failures}
//!             ╰──── not deliveries: what is done, as it ends ────────────╯       ╰─ the delivery ─╯
//! ```
//!
//! While one chunk is on its way to the store, what ends gathers for the next. Small chunks are
//! merged, and the merged ones removed, so that a journal holds few of them however many items
//! there are.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::mem;
use std::sync::Arc;
use std::task::Poll;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::base::failure::{Failure, Retry};
use crate::base::input_hash::InputHash;
use crate::base::journal::{Key, Kind};
use crate::base::name::StepName;
use crate::base::payload::Payload;
use crate::base::runtime::BoxFuture;
use crate::context::TaskContext;
use crate::context::item_progress::{
    ErrorPolicy, ItemCounts, ItemError, ItemProgress, ItemsReport,
};
use crate::context::item_work::{WorkError, Worked, work_on_items};
use crate::engine::run::Run;
use crate::engine::run::step::Step;
use crate::engine::task_error::{ControlFlow, TaskError, TaskResult, closure_failure};

/// So many small chunks are merged into one.
const MERGE: usize = 32;
/// A chunk of this many bytes is no longer small.
const LARGE: usize = 64 << 10;

/// Items to be worked on, made by [`TaskContext::items`]: set options, then call [`Items::each`].
#[must_use = "nothing is done until `each` is awaited"]
pub struct Items<'a, I> {
    run: &'a Arc<Run>,
    key: TaskResult<Key>,
    items: I,
    concurrency: usize,
    on_error: ErrorPolicy,
    on_progress: Option<Box<dyn FnMut(ItemCounts) + Send + 'a>>,
}

impl TaskContext {
    /// Works on many items, each done once: a step that remembers how far it came. After a crash it
    /// goes on with the items that are not done; those whose end was not yet durable run again.
    ///
    /// ```
    /// # use stepwell_core::{ErrorPolicy, TaskContext, TaskResult};
    /// # async fn insert(_row: String) -> anyhow::Result<u64> { Ok(1) }
    /// async fn import(rows: Vec<String>, ctx: TaskContext) -> TaskResult<usize> {
    ///     let report = ctx
    ///         .items("rows", rows)
    ///         .concurrency(16)
    ///         .on_error(ErrorPolicy::Skip)
    ///         .each(|row| async move { insert(row).await })
    ///         .await?;
    ///     Ok(report.failures.len())
    /// }
    /// ```
    ///
    /// The items are to be the same, in the same order, whenever the task comes here. Any number of
    /// them is kept in few rows of the journal; results other than `()` are kept as well, and
    /// are all in memory when the task goes on.
    pub fn items<T>(
        &self,
        name: impl Into<StepName>,
        items: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
    ) -> Items<'_, impl ExactSizeIterator<Item = T>> {
        Items {
            run: self.run(),
            key: self.begin(Kind::Step, &name.into()),
            items: items.into_iter(),
            concurrency: 1,
            on_error: ErrorPolicy::default(),
            on_progress: None,
        }
    }
}

impl<'a, I: ExactSizeIterator> Items<'a, I> {
    /// How many items, or batches of them, are worked on at the same time; at least 1. Default: 1.
    pub fn concurrency(mut self, items: usize) -> Self {
        self.concurrency = items.max(1);
        self
    }

    /// What becomes of the others when an item fails. Default: [`ErrorPolicy::Stop`], with which
    /// the step fails, and the items that are done stay so when it is tried again.
    pub fn on_error(mut self, policy: ErrorPolicy) -> Self {
        self.on_error = policy;
        self
    }

    /// Calls this with what is durable, at the beginning and whenever it is more.
    pub fn on_progress(mut self, call: impl FnMut(ItemCounts) + Send + 'a) -> Self {
        self.on_progress = Some(Box::new(call));
        self
    }

    /// What the items are made of, such as themselves: with another input (by its [`InputHash`])
    /// all of them begin afresh.
    pub fn input<T: Serialize + ?Sized>(mut self, input: &T) -> Self {
        self.key = self.key.and_then(|key| {
            let hash = InputHash::of(input);
            let hash = hash.map_err(|source| TaskError::Payload { name: key.label(), source })?;
            Ok(key.with_input(hash)?)
        });
        self
    }

    /// Does this with each item that is not done yet, and waits for all.
    ///
    /// # Errors
    /// [`TaskError::Step`] when an item fails with [`ErrorPolicy::Stop`], after those under way
    /// have ended, or when there are another number of items than before;
    /// [`TaskError::Payload`] when a recorded result is of another type.
    pub async fn each<R, F, Fut>(self, work: F) -> TaskResult<ItemsReport<R>>
    where
        R: Serialize + DeserializeOwned,
        F: Fn(I::Item) -> Fut,
        Fut: Future<Output = anyhow::Result<R>>,
    {
        let limit = self.run.engine.settings.max_payload_bytes;
        self.work(1, |indexes, items| {
            let working = items.into_iter().next().map(&work);
            async move {
                let ended = match working {
                    Some(working) => working.await,
                    None => return Vec::new(),
                };
                let outcome = ended.map_err(|error| closure_failure(&error));
                indexes
                    .into_iter()
                    .zip([outcome.and_then(|result| encode(&result, limit))])
                    .collect()
            }
        })
        .await
    }

    /// As [`Items::each`], with so many items at a time, for which it gives as many results. When
    /// it fails, all of them have.
    ///
    /// # Errors
    /// As [`Items::each`].
    pub async fn each_batch<R, F, Fut>(self, size: usize, work: F) -> TaskResult<ItemsReport<R>>
    where
        R: Serialize + DeserializeOwned,
        F: Fn(Vec<I::Item>) -> Fut,
        Fut: Future<Output = anyhow::Result<Vec<R>>>,
    {
        let limit = self.run.engine.settings.max_payload_bytes;
        self.work(size.max(1), |indexes, items| {
            let asked = items.len();
            let working = work(items);
            async move {
                let ended = working.await.and_then(|results| {
                    let given = results.len();
                    anyhow::ensure!(
                        given == asked,
                        "a batch of {asked} items gave {given} results"
                    );
                    Ok(results)
                });
                match ended {
                    Ok(results) => indexes
                        .into_iter()
                        .zip(results.iter().map(|result| encode(result, limit)))
                        .collect(),
                    Err(error) => {
                        let failure = closure_failure(&error);
                        indexes.into_iter().map(|index| (index, Err(failure.clone()))).collect()
                    }
                }
            }
        })
        .await
    }

    async fn work<R, F, Fut>(self, size: usize, work: F) -> TaskResult<ItemsReport<R>>
    where
        R: DeserializeOwned,
        F: Fn(Vec<usize>, Vec<I::Item>) -> Fut,
        Fut: Future<Output = Worked>,
    {
        let Self { run, key, items, concurrency, on_error, on_progress } = self;
        let key = key?;
        let mut on_progress = on_progress.unwrap_or_else(|| Box::new(|_| {}));
        let mut chunks = Chunks::new(run, &key);
        let read = chunks.read(items.len());
        let (mut progress, misfit) = match read {
            Ok(progress) => (progress, None),
            Err(misfit) => (ItemProgress::new(items.len()), Some(misfit)),
        };
        let (recorded, chunks) = (&mut progress, &mut chunks);
        let step = Step::new(run, Ok(key.clone()), move || async move {
            misfit.map_or(Ok(()), |misfit| Err(TaskError::permanent(misfit)))?;
            on_progress(recorded.counts());
            let done = recorded.clone();
            let mut left = items.enumerate().filter(move |(index, _)| !done.is_done(*index));
            let batches = std::iter::from_fn(move || {
                let (indexes, items): (Vec<_>, Vec<_>) = left.by_ref().take(size).unzip();
                (!indexes.is_empty()).then_some((indexes, items))
            });
            let todo = batches.map(|(indexes, items)| {
                let working = work(indexes, items);
                async {
                    let mut worked = working.await;
                    if run.control().is_some() {
                        // What failed did so likely because it was told to stop.
                        worked.retain(|(_, outcome)| outcome.is_ok());
                    }
                    worked
                }
            });
            let failures = work_on_items(
                recorded,
                todo,
                concurrency,
                on_error,
                |fresh| chunks.add(fresh),
                |progress| on_progress(progress.counts()),
            );
            let failures = failures.await;
            run.control().map_or(Ok(()), |control| Err(TaskError::from(control)))?;
            failures
                .map_err(|error| match error {
                    WorkError::Item { index, failure } => {
                        let retry = failure.retry;
                        TaskError::Failed {
                            error: anyhow::Error::new(failure).context(format!("item {index}")),
                            retry,
                        }
                    }
                    WorkError::Record(control) => control.into(),
                    WorkError::Misfit(misfit) => TaskError::permanent(misfit),
                })
                .map_err(anyhow::Error::from)
        });
        let failures: BTreeMap<usize, Failure> = step.await?;

        let mut report =
            ItemsReport { results: BTreeMap::new(), failures, counts: progress.counts() };
        for index in 0..report.counts.total {
            match progress.outcome(index) {
                Some(Ok(result)) => {
                    let result = result.decode();
                    let result = result
                        .map_err(|source| TaskError::Payload { name: key.label(), source })?;
                    report.results.insert(index, result);
                }
                Some(Err(failure)) => _ = report.failures.insert(index, failure),
                None => {}
            }
        }
        report.counts.failed = report.failures.len();
        Ok(report)
    }
}

fn encode<R: Serialize + DeserializeOwned>(result: &R, limit: usize) -> Result<Payload, Failure> {
    Payload::encode_proven(result, limit)
        .map_err(|error| Failure { retry: Retry::Never, ..closure_failure(&error.into()) })
}

/// The journal's entries of one call.
struct Chunks {
    run: Arc<Run>,
    key: Key,
    /// Those that are to be merged, with their places.
    small: Vec<(u64, ItemProgress)>,
}

impl Chunks {
    fn new(run: &Arc<Run>, step: &Key) -> Self {
        Self { run: run.clone(), key: Key { kind: Kind::Items, ..step.clone() }, small: Vec::new() }
    }

    /// What the journal holds.
    fn read(&mut self, total: usize) -> Result<ItemProgress, ItemError> {
        let mut progress = ItemProgress::new(total);
        for (seq, chunk) in self.run.operations().take_items(&self.key) {
            progress.absorb(&chunk)?;
            if chunk.as_str().len() < LARGE {
                self.small.push((seq, ItemProgress::from_chunk(&chunk)?));
            }
        }
        Ok(progress)
    }

    /// Journals what has ended. Ready when that is durable, or the run has to stop.
    fn add(&mut self, fresh: &ItemProgress) -> BoxFuture<'static, Result<(), ControlFlow>> {
        let (mut merged, mut superseded) = (fresh.clone(), Vec::new());
        if self.small.len() >= MERGE {
            for (seq, small) in mem::take(&mut self.small) {
                superseded.push(seq);
                merged.merge(small);
            }
        }
        let chunks = merged.to_chunks(4 * LARGE);
        let (mut whole, mut last) = ((chunks.len() == 1).then_some(merged), 0);
        for chunk in chunks {
            let read = || whole.take().map_or_else(|| ItemProgress::from_chunk(&chunk), Ok);
            let small = (chunk.as_str().len() < LARGE).then(read);
            last = self.run.operations().add_items(
                &self.key,
                chunk,
                self.run.engine.store.now(),
                mem::take(&mut superseded),
            );
            self.small.extend(small.and_then(Result::ok).map(|small| (last, small)));
        }
        self.run.waker.wake_executor();
        let run = self.run.clone();
        Box::pin(poll_fn(move |cx| {
            let mut operations = run.operations();
            match operations.control() {
                // What is on its way when a task is cancelled is still written.
                Some(control) if control != ControlFlow::Cancelled => Poll::Ready(Err(control)),
                _ => operations.poll_durable(last, cx.waker()).map(Ok),
            }
        }))
    }
}
