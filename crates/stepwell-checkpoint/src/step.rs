//! Steps of a checkpoint.

use std::future::IntoFuture;

use serde::Serialize;
use serde::de::DeserializeOwned;
use stepwell_core::{
    BoxFuture, Closure, Failure, InputHash, InvalidOptions, Key, Kind, Outcome, Payload,
    PayloadError, Retry, RetryStrategy, StepName, closure_failure,
};

use crate::cleanup::Cleanup;
use crate::error::CheckpointError;
use crate::ledger::Ledger;
use crate::values::{decode, place, prove};

/// The number of tries of a step with a [`retry`](Step::retry) strategy, when no number is set.
const DEFAULT_TRIES: u32 = 5;

/// A step, made by [`Checkpoint::step`](crate::Checkpoint::step): set options, then await it.
///
/// ```
/// # use stepwell_checkpoint::{Checkpoint, CheckpointError};
/// # use stepwell_core::RetryStrategy;
/// # async fn fetch(url: String) -> anyhow::Result<String> { Ok(url) }
/// async fn page(cp: &Checkpoint, url: String) -> Result<String, CheckpointError> {
///     cp.step("fetch", || fetch(url.clone()))
///         .input(&url)
///         .retry(RetryStrategy::exponential())
///         .max_attempts(3)
///         .await
/// }
/// ```
#[must_use = "a step does nothing until it is awaited"]
pub struct Step<'a, F> {
    ledger: &'a Ledger,
    name: StepName,
    input: Result<Option<InputHash>, PayloadError>,
    closure: F,
    /// The function that clones the closure for the next try.
    again: Option<fn(&F) -> F>,
    retry: Result<RetryStrategy, InvalidOptions>,
    max_tries: u32,
    discharged: Vec<Key>,
}

impl<'a, F> Step<'a, F> {
    pub(crate) fn new(ledger: &'a Ledger, name: StepName, closure: F) -> Self {
        Self {
            ledger,
            name,
            input: Ok(None),
            closure,
            again: None,
            retry: Ok(RetryStrategy::None),
            max_tries: DEFAULT_TRIES,
            discharged: Vec::new(),
        }
    }

    /// Sets the input on which the step's result depends. With another input (by its [`InputHash`])
    /// the step is another one, and runs.
    pub fn input<T: Serialize + ?Sized>(mut self, input: &T) -> Self {
        self.input = InputHash::of(input).map(Some);
        self
    }

    /// Retries the step when its closure fails, with 5 tries in all (see [`Step::max_attempts`]).
    /// Default: the step fails with the first failure.
    pub fn retry(mut self, strategy: RetryStrategy) -> Self
    where
        F: Clone,
    {
        self.again = Some(F::clone);
        self.retry = strategy.check().map(|()| strategy);
        self
    }

    /// Sets the maximum number of tries of a step with [`Step::retry`], the first one included; at
    /// least 1. The number applies to each run of the step. Default: 5.
    pub fn max_attempts(mut self, tries: u32) -> Self {
        self.max_tries = tries.max(1);
        self
    }

    /// Discharges a cleanup when the step succeeds. The discharge and the result are recorded in
    /// the same write, so that neither is ever recorded without the other.
    pub fn discharges(mut self, cleanup: &Cleanup<'_>) -> Self {
        self.discharged.push(cleanup.cleaned_key());
        self
    }
}

/// A step whose key is known.
struct Placed<'a, F> {
    step: Step<'a, F>,
    key: Key,
}

impl<F: Closure> Placed<'_, F> {
    async fn run(self) -> Result<F::Value, CheckpointError>
    where
        F::Value: Serialize + DeserializeOwned,
    {
        let Self { step, key } = self;
        let recorded = step.ledger.memory().steps.get(&key).cloned();
        let discharged =
            step.discharged.iter().map(|key| (key.clone(), Outcome::Done(Payload::null())));
        let discharged: Vec<_> = discharged.collect();
        if let Some(result) = recorded {
            if !discharged.is_empty() {
                step.ledger.record(discharged).await?;
            }
            return decode(&key.label(), &result);
        }
        step.ledger.check_owned().await?;
        let ledger = step.ledger;
        // A closure that runs when the checkpoint is lost is dropped, because the new owner runs
        // the step.
        let failure = match ledger.while_owned(step.tries(&key)).await? {
            Ok(result) => {
                let done = (key.clone(), Outcome::Done(result.clone()));
                ledger.record([done].into_iter().chain(discharged)).await?;
                return decode(&key.label(), &result);
            }
            Err(NoResult::Failed(failure)) => failure,
            Err(NoResult::Unfit(error)) => return Err(error),
        };
        ledger.record([(key.clone(), Outcome::failed(failure.clone()))]).await?;
        Err(CheckpointError::Step { name: key.label(), failure: Box::new(failure) })
    }
}

enum NoResult {
    Failed(Failure),
    /// The closure returned a value that cannot be recorded.
    Unfit(CheckpointError),
}

impl<F: Closure> Step<'_, F> {
    async fn tries(self, key: &Key) -> Result<Payload, NoResult>
    where
        F::Value: Serialize + DeserializeOwned,
    {
        let retry = self.retry.map_err(|invalid| NoResult::Unfit(invalid.into()))?;
        let mut closure = self.closure;
        let mut failed = 0;
        loop {
            failed += 1;
            let next = self.again.map(|again| again(&closure));
            let failure = match closure.call().await {
                Ok(value) => return prove(&key.label(), &value).map_err(NoResult::Unfit),
                Err(error) => closure_failure(&error),
            };
            let delay = match failure.retry {
                _ if failed >= self.max_tries => None,
                Retry::Never => None,
                Retry::After(delay) => Some(delay),
                Retry::ByStrategy => retry.delay(failed, rand::random()),
            };
            let (Some(next), Some(delay)) = (next, delay) else {
                return Err(NoResult::Failed(failure));
            };
            tokio::time::sleep(delay).await;
            closure = next;
        }
    }
}

impl<'a, F> IntoFuture for Step<'a, F>
where
    F: Closure + Send + 'a,
    F::Value: Serialize + DeserializeOwned + Send,
    F::Future: Send,
{
    type Output = Result<F::Value, CheckpointError>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    /// The key is assigned here, not at the first poll: steps of one name that run at the same time
    /// are numbered in the order of the code.
    fn into_future(mut self) -> Self::IntoFuture {
        let input = std::mem::replace(&mut self.input, Ok(None));
        let key = place(self.ledger, Kind::Step, &self.name, input);
        Box::pin(async move {
            let key = key?;
            Placed { step: self, key }.run().await
        })
    }
}
