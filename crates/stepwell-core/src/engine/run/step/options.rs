//! The options of a step.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::base::input_hash::InputHash;
use crate::base::journal::{Key, Kind, Outcome, to_payload};
use crate::base::retry::RetryStrategy;
use crate::base::runtime::{MaybeSend, MaybeSync};
use crate::engine::run::compensation::{Record, Undo, Undoing};
use crate::engine::run::state::{Effect, Request};
use crate::engine::run::step::{Closure, Recording, Step};
use crate::engine::run::step_cache::{Cached, StepCache};
use crate::engine::task_error::TaskError;

impl<F: Closure> Step<F> {
    /// Tries the step again when its closure fails, up to 5 times in all (see
    /// [`Step::max_attempts`]).
    ///
    /// Each failed try is journaled, and the task may suspend until the next one. Without a
    /// strategy, the step fails with the first failure. The step fails with [`TaskError::Options`]
    /// when the strategy is not valid.
    pub fn retry(mut self, strategy: RetryStrategy) -> Self
    where
        F: Clone,
    {
        self.again = Some(F::clone);
        if let Err(invalid) = strategy.check() {
            self.key = Err(Some(invalid.into()));
        }
        self.retry = strategy;
        self
    }

    /// Sets the number of tries of a step with [`Step::retry`], including the first one; at least
    /// 1. Default: 5.
    pub fn max_attempts(mut self, tries: u32) -> Self {
        self.max_tries = tries.max(1);
        self
    }

    /// Stores the number of each try in `count` before the closure is called.
    pub(crate) fn count_tries(mut self, count: Arc<AtomicU32>) -> Self {
        self.count = Some(count);
        self
    }

    /// Sets the longest time of one try. Default: no limit.
    ///
    /// A try that takes longer is dropped, and has failed.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// Keys the step by its input as well, by a [stable hash](crate::InputHash) of the value.
    ///
    /// The step runs again when the task reaches it with a new input, in a retry or after a crash.
    /// It does not run again with an input that it had before. Without this option, a step that has
    /// a result never runs again, with any input.
    ///
    /// Later steps that have a result keep it, unless their own inputs have changed.
    ///
    /// ```
    /// # use stepwell_core::{TaskContext, TaskResult};
    /// # async fn summarise(_: &str, _model: &str) -> anyhow::Result<String> { Ok(String::new()) }
    /// async fn digest(ctx: &TaskContext, text: &str, model: &str) -> TaskResult<String> {
    ///     ctx.step("summarise", || summarise(text, model)).input(&(text, model)).await
    /// }
    /// ```
    pub fn input<T: Serialize + ?Sized>(mut self, input: &T) -> Self {
        if let Ok(key) = &mut self.key {
            let hash = InputHash::of(input);
            let hash = hash.map_err(|source| TaskError::Payload { name: key.label(), source });
            match hash.and_then(|hash| Ok(key.clone().with_input(hash)?)) {
                Ok(with_input) => {
                    if let Some(recording) = &mut self.record {
                        let name = with_input.name.clone();
                        let ordinal = self.run.state().next_ordinal(Kind::Compensate, &name);
                        recording.key = Key { kind: Kind::Compensate, name, ordinal };
                    }
                    *key = with_input;
                }
                Err(error) => self.key = Err(Some(error)),
            }
        }
        self
    }

    /// Looks for the step's result in a cache before its closure starts, and puts the closure's
    /// result there.
    ///
    /// The cache keeps the result under the key. It is for results that are useful to more than one
    /// task. An error of the cache is logged, and the step goes on without it.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use stepwell_core::{InputHash, StepCache, TaskContext, TaskResult};
    /// # async fn embed(_text: &str) -> anyhow::Result<Vec<f32>> { Ok(Vec::new()) }
    /// async fn embedding(
    ///     ctx: &TaskContext,
    ///     cache: &Arc<dyn StepCache>,
    ///     text: &str,
    /// ) -> TaskResult<Vec<f32>> {
    ///     let key = format!("embedding:{}", InputHash::of(text).map_err(anyhow::Error::from)?);
    ///     ctx.step("embed", || embed(text)).cached(cache, key).await
    /// }
    /// ```
    pub fn cached(mut self, cache: &Arc<dyn StepCache>, key: impl Into<String>) -> Self {
        self.cache = Some(Cached::new(cache, key.into()));
        self
    }

    /// Sets the compensation of the step, which runs when the task fails for good or is cancelled.
    ///
    /// The closure receives the step's result, and runs only if there is one. The compensations of
    /// a task run in reverse order of the beginnings of their steps. Each is journaled, is tried up
    /// to 5 times, and is done once over all crashes. A compensation that fails in the end is noted
    /// in the task's failure, and does not stop the others. The task's state is
    /// [`Compensating`](crate::TaskState::Compensating) until all of them have run.
    ///
    /// The compensation is recorded in the journal before the step's closure starts. To obtain its
    /// closure, the engine replays the task's code from the journal up to where it failed. The
    /// closure may therefore capture the task's values, and it has to own them.
    ///
    /// ```
    /// # use stepwell_core::{TaskContext, TaskResult};
    /// # async fn charge(_key: String) -> anyhow::Result<u64> { Ok(1) }
    /// # async fn refund(_receipt: u64) -> anyhow::Result<()> { Ok(()) }
    /// async fn order(_: (), ctx: TaskContext) -> TaskResult<u64> {
    ///     ctx.step("charge", || charge(format!("{}:charge", ctx.task_id)))
    ///         .compensate(|receipt| async move { refund(receipt).await })
    ///         .await
    /// }
    /// ```
    pub fn compensate<C, Fut, O>(self, undo: C) -> Self
    where
        C: Fn(F::Value) -> Fut + MaybeSend + MaybeSync + 'static,
        Fut: Future<Output = anyhow::Result<O>> + MaybeSend + 'static,
        F::Value: DeserializeOwned + MaybeSend + 'static,
        O: 'static,
    {
        let undo = move |result: Option<F::Value>| {
            let undoing = result.map(&undo);
            async {
                match undoing {
                    Some(undoing) => undoing.await.map(drop),
                    None => Ok(()),
                }
            }
        };
        self.record(false, Arc::new(Undoing::new(undo)))
    }

    /// Sets a compensation as [`Step::compensate`] does, for a step that may have taken effect
    /// without a result.
    ///
    /// Such a step failed, took too long, or was cut off by a crash or by another branch of the
    /// code. The closure receives the result if there is one.
    ///
    /// ```
    /// # use stepwell_core::{TaskContext, TaskResult};
    /// # async fn charge(_key: String) -> anyhow::Result<u64> { Ok(1) }
    /// # async fn refund_by_key(_key: String) -> anyhow::Result<()> { Ok(()) }
    /// async fn order(_: (), ctx: TaskContext) -> TaskResult<u64> {
    ///     let key = format!("{}:charge", ctx.task_id);
    ///     let undo_key = key.clone();
    ///     ctx.step("charge", || charge(key))
    ///         .compensate_begun(move |_receipt| refund_by_key(undo_key.clone()))
    ///         .await
    /// }
    /// ```
    pub fn compensate_begun<C, Fut, O>(self, undo: C) -> Self
    where
        C: Fn(Option<F::Value>) -> Fut + MaybeSend + MaybeSync + 'static,
        Fut: Future<Output = anyhow::Result<O>> + MaybeSend + 'static,
        F::Value: DeserializeOwned + 'static,
        O: 'static,
    {
        self.record(true, Arc::new(Undoing::new(undo)))
    }

    fn record(mut self, begun: bool, undo: Arc<dyn Undo>) -> Self {
        let Ok(key) = &self.key else { return self };
        let ordinal = self.run.state().next_ordinal(Kind::Compensate, &key.name);
        let record = to_payload(&Record::Step { ordinal: key.ordinal, begun });
        let request = Some(Request::Finished(Outcome::Done(record), Effect::None));
        let key = Key { kind: Kind::Compensate, ordinal, ..key.clone() };
        self.record = Some(Box::new(Recording { key, request, undo }));
        self
    }
}
