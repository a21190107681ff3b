//! Many items in one step, each of which is done once.
//!
//! ```text
//!   journal:  items "rows" {done [0..99]} | items "rows" {done [100..180]} | …
//!             ╰────────── not deliveries: what is done, as it ends ──────────╯
//!             | step "rows" {failures}
//!               ╰─── the delivery ───╯
//! ```
//!
//! While one chunk is on its way to the store, the items that end gather for the next one. Small
//! chunks are merged, and their entries removed. A journal therefore holds few chunks, for any
//! number of items.

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

/// The number of small chunks that are merged into one.
const MERGE: usize = 32;
/// The size, in bytes, from which a chunk counts as large.
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
    /// Begins a step over many items, each of which is done once.
    ///
    /// The step remembers which items are done. After a crash it goes on with the others. An item
    /// whose end was not yet durable runs again.
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
    /// The items must be the same, in the same order, each time that the task reaches this call.
    /// The journal keeps any number of items in few rows. Results other than `()` are kept as well,
    /// and all of them are in memory when the task goes on.
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
    /// Sets the number of items, or batches of items, that are worked on at the same time; at least
    /// 1. Default: 1.
    pub fn concurrency(mut self, items: usize) -> Self {
        self.concurrency = items.max(1);
        self
    }

    /// Sets what happens to the other items when one fails. Default: [`ErrorPolicy::Stop`].
    ///
    /// With the default, the step fails. A retry of the step goes on with the items that are not
    /// done.
    pub fn on_error(mut self, policy: ErrorPolicy) -> Self {
        self.on_error = policy;
        self
    }

    /// Sets a function that is called with the durable progress, at the beginning and whenever it
    /// grows.
    pub fn on_progress(mut self, call: impl FnMut(ItemCounts) + Send + 'a) -> Self {
        self.on_progress = Some(Box::new(call));
        self
    }

    /// Sets the input of the step, for instance the items themselves.
    ///
    /// All items begin again from the start when the input's [`InputHash`] changes.
    pub fn input<T: Serialize + ?Sized>(mut self, input: &T) -> Self {
        self.key = self.key.and_then(|key| {
            let hash = InputHash::of(input);
            let hash = hash.map_err(|source| TaskError::Payload { name: key.label(), source })?;
            Ok(key.with_input(hash)?)
        });
        self
    }

    /// Works on each item that is not done yet, and waits for all of them.
    ///
    /// # Errors
    /// [`TaskError::Step`] when an item fails with [`ErrorPolicy::Stop`], after the items under way
    /// have ended; [`TaskError::Step`] when the number of items has changed; [`TaskError::Payload`]
    /// when a recorded result is of another type.
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

    /// Works on batches of at most `size` items (at least 1), as [`Items::each`] does on single
    /// ones.
    ///
    /// The closure returns one result for each item of its batch. All items of a batch fail when
    /// the closure fails.
    ///
    /// # Errors
    /// The errors of [`Items::each`].
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
                        // An item that failed now probably failed because it had to stop.
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
            failures.map_err(stopped).map_err(anyhow::Error::from)
        });
        let failures: BTreeMap<usize, Failure> = step.await?;
        report(&key, &progress, failures)
    }
}

/// Returns the error of a step whose work on items has stopped.
fn stopped(error: WorkError<ControlFlow>) -> TaskError {
    match error {
        WorkError::Item { index, failure } => {
            let retry = failure.retry;
            let error = anyhow::Error::new(failure).context(format!("item {index}"));
            TaskError::Failed { error, retry }
        }
        WorkError::Record(control) => control.into(),
        WorkError::Misfit(misfit) => TaskError::permanent(misfit),
    }
}

/// Returns the report of the items: their results, and their failures beside the given ones.
fn report<R: DeserializeOwned>(
    key: &Key,
    progress: &ItemProgress,
    failures: BTreeMap<usize, Failure>,
) -> TaskResult<ItemsReport<R>> {
    let mut report = ItemsReport { results: BTreeMap::new(), failures, counts: progress.counts() };
    for index in 0..report.counts.total {
        match progress.outcome(index) {
            Some(Ok(result)) => {
                let unreadable = |source| TaskError::Payload { name: key.label(), source };
                report.results.insert(index, result.decode().map_err(unreadable)?);
            }
            Some(Err(failure)) => _ = report.failures.insert(index, failure),
            None => {}
        }
    }
    report.counts.failed = report.failures.len();
    Ok(report)
}

fn encode<R: Serialize + DeserializeOwned>(result: &R, limit: usize) -> Result<Payload, Failure> {
    Payload::encode_proven(result, limit)
        .map_err(|error| Failure { retry: Retry::Never, ..closure_failure(&error.into()) })
}

/// The journal's entries of one call.
struct Chunks {
    run: Arc<Run>,
    key: Key,
    /// The small chunks that are still to be merged, with the numbers of their entries.
    small: Vec<(u64, ItemProgress)>,
}

impl Chunks {
    fn new(run: &Arc<Run>, step: &Key) -> Self {
        Self { run: run.clone(), key: Key { kind: Kind::Items, ..step.clone() }, small: Vec::new() }
    }

    /// Returns the progress that the journal holds.
    fn read(&mut self, total: usize) -> Result<ItemProgress, ItemError> {
        let mut progress = ItemProgress::new(total);
        for (seq, chunk) in self.run.state().take_items(&self.key) {
            progress.absorb(&chunk)?;
            if chunk.as_str().len() < LARGE {
                self.small.push((seq, ItemProgress::from_chunk(&chunk)?));
            }
        }
        Ok(progress)
    }

    /// Journals the items that have ended; the future is ready when they are durable, or the run
    /// has to stop.
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
            last = self.run.state().add_items(
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
            let mut state = run.state();
            match state.control() {
                // A chunk that is on its way when the task is cancelled is still written.
                Some(control) if control != ControlFlow::Cancelled => Poll::Ready(Err(control)),
                _ => state.poll_durable(last, cx.waker()).map(Ok),
            }
        }))
    }
}
