//! Compensations, which undo the work of a task that fails for good or is cancelled.
//!
//! ```text
//!   ctx.step(..).compensate(..)     record ─▶ gate ─▶ closure ─▶ result
//!                                   the record is durable before the closure starts
//!   ctx.cleanup(..)                 record
//!
//!   the task fails: the store makes it claimable again, as compensating; the worker that claims it
//!     1. replays its code, which hands over the closures of its compensations again, and drops it;
//!     2. runs what was recorded, in reverse order, each as a step of its own:
//!        journaled, tried again, once;
//!     3. ends the task as it would have ended, with what could not be undone.
//! ```
//!
//! The way is the same for all cases: a failure, a cancellation, a process that died in the last
//! attempt or in the middle of a compensation.

use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::base::failure::{CompensationError, Failure, FailureKind};
use crate::base::guard::{Guarded, guard};
use crate::base::journal::{Compensation, Key, Kind, to_payload};
use crate::base::payload::Payload;
use crate::base::retry::RetryStrategy;
use crate::base::runtime::{BoxFuture, MaybeSend, MaybeSync};
use crate::engine::run::Run;
use crate::engine::run::step::Step;
use crate::engine::task_error::{TaskError, TaskResult};

/// The number of tries of a compensation, with the pauses of [`RetryStrategy::exponential`] between
/// them.
const TRIES: u32 = 5;

/// The subject of a record in the journal, whose key has the name.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Record {
    /// A step.
    Step {
        /// The number of the step among the steps of the name.
        ordinal: u32,
        /// Set when the step is undone even without a result.
        begun: bool,
    },
    /// A registered cleanup, with its payload.
    Cleanup(Payload),
}

/// A recorded cleanup, made by [`TaskContext::cleanup`](crate::TaskContext::cleanup).
#[derive(Clone, Debug)]
pub struct Cleanup {
    pub(crate) key: Key,
}

/// The code of a compensation.
pub(crate) trait Undo: MaybeSend + MaybeSync {
    /// Undoes a step by its result, or cleans up by the payload.
    fn undo(&self, result: Option<&Payload>) -> BoxFuture<'static, anyhow::Result<()>>;
}

/// A closure that undoes a step or cleans up.
pub(crate) struct Undoing<C, T>(C, PhantomData<fn(T)>);

impl<C, T> Undoing<C, T> {
    pub(crate) fn new(closure: C) -> Self {
        Self(closure, PhantomData)
    }
}

impl<C, T, Fut, O> Undo for Undoing<C, T>
where
    C: Fn(Option<T>) -> Fut + MaybeSend + MaybeSync,
    Fut: Future<Output = anyhow::Result<O>> + MaybeSend + 'static,
    T: DeserializeOwned,
{
    fn undo(&self, result: Option<&Payload>) -> BoxFuture<'static, anyhow::Result<()>> {
        match result.map(Payload::decode).transpose() {
            Ok(result) => {
                let undoing = self.0(result);
                Box::pin(async { undoing.await.map(drop) })
            }
            Err(error) => Box::pin(async { Err(TaskError::permanent(error).into()) }),
        }
    }
}

/// Runs the recorded compensations in reverse order, and returns those that failed.
pub(crate) async fn compensate(run: Arc<Run>, compensation: Compensation) -> TaskResult<Payload> {
    let Compensation { recorded, results, .. } = compensation;
    // Another worker may have the key.
    for (key, payload) in recorded.iter().map(|(key, record)| (key, record)).chain(&results) {
        if let Some(source) = payload.unreadable() {
            return Err(TaskError::Payload { name: key.label(), source: source.clone() });
        }
    }
    let (mut errors, mut further) = (Vec::new(), 0);
    for (key, record) in recorded.into_iter().rev() {
        let (undo, result) = match record.decode() {
            Ok(Record::Step { ordinal, begun }) => {
                let step = Key { kind: Kind::Step, ordinal, ..key.clone() };
                let result = results.get(&step).cloned();
                if result.is_none() && !begun {
                    continue;
                }
                (run.undo(&key), result)
            }
            Ok(Record::Cleanup(payload)) => (run.engine.registry.cleanup(&key.name), Some(payload)),
            Err(_) => (None, None),
        };
        let undoing =
            Step::new(&run, Ok(Key { kind: Kind::Compensated, ..key.clone() }), move || {
                let undoing =
                    undo.as_ref().map(|undo| guard(|| Guarded::new(undo.undo(result.as_ref()))));
                async move {
                    let undoing =
                        undoing.ok_or_else(|| TaskError::permanent(anyhow::anyhow!(UNKNOWN)))?;
                    // The other compensations have to run in any case.
                    let undone = match undoing {
                        Ok(undoing) => undoing.await,
                        Err(panic) => Err(panic),
                    };
                    undone.unwrap_or_else(|panic| Err(anyhow::anyhow!("it panicked: {panic}")))
                }
            });
        let failure = match undoing.retry(RetryStrategy::exponential()).max_attempts(TRIES).await {
            Ok(()) => continue,
            Err(error @ TaskError::Control(_)) => return Err(error),
            Err(TaskError::Step { failure, .. }) => *failure,
            Err(error) => error.to_failure(),
        };
        let (task_id, compensation) = (run.task_id, key.label());
        tracing::error!(%task_id, %compensation, %failure, "a compensation failed");
        if errors.len() < MAX_ERRORS {
            errors.push(CompensationError { name: key.label(), failure });
        } else {
            further += 1;
        }
    }
    if further > 0 {
        let message = format!("{further} more of them failed: the journal has their failures");
        let failure = Failure::new(FailureKind::Error, message);
        errors.push(CompensationError { name: "further compensations".into(), failure });
    }
    Ok(to_payload(&errors))
}

/// The number of failed compensations that a failure lists.
const MAX_ERRORS: usize = 100;

const UNKNOWN: &str = "this program has no code for it: the task did not come to the step again in \
                       its last attempt, or no cleanup is registered under this name. Undo it by \
                       hand";
