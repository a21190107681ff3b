//! Cleanups: functions that undo the work of a process that did not finish.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use stepwell_core::{
    BoxFuture, Failure, FailureKind, Guarded, Key, Kind, Outcome, Panic, Payload, closure_failure,
    discard, guard,
};

use crate::error::CheckpointError;
use crate::ledger::Ledger;

/// A function that runs the cleanups of one name.
pub(crate) type Runner =
    Arc<dyn Fn(&Payload) -> Result<BoxFuture<'static, anyhow::Result<()>>, Failure> + Send + Sync>;

pub(crate) fn runner<P, F, Fut>(run: F) -> Runner
where
    P: DeserializeOwned,
    F: Fn(P) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    Arc::new(move |payload| match payload.decode() {
        Ok(payload) => Ok(Box::pin(run(payload))),
        Err(error) => Err(Failure::new(FailureKind::Payload, error.to_string())),
    })
}

/// An outstanding cleanup, made by [`Checkpoint::cleanup`](crate::Checkpoint::cleanup). Dropping it
/// does not discharge the cleanup.
#[must_use = "the cleanup runs at the next load, unless it is discharged"]
pub struct Cleanup<'a> {
    ledger: &'a Ledger,
    key: Key,
}

/// A cleanup that has run.
#[derive(Clone, Debug, PartialEq)]
pub struct Cleaned {
    /// The name of the cleanup; the second one of a name is `name#2`.
    pub name: String,
    /// The payload that the cleanup was recorded with.
    pub payload: Payload,
    /// The result of the cleanup. A cleanup that failed does not run again.
    pub result: Result<(), Failure>,
}

impl<'a> Cleanup<'a> {
    pub(crate) fn new(ledger: &'a Ledger, key: Key) -> Self {
        Self { ledger, key }
    }

    /// Discharges the cleanup, because it is no longer needed. To discharge it in the same write as
    /// a step's result, use [`Step::discharges`](crate::Step::discharges).
    ///
    /// # Errors
    /// [`CheckpointError::Store`] when the store fails; [`CheckpointError::Lost`] when another
    /// process owns the checkpoint.
    pub async fn done(self) -> Result<(), CheckpointError> {
        self.ledger.record([(self.cleaned_key(), Outcome::Done(Payload::null()))]).await
    }

    pub(crate) fn cleaned_key(&self) -> Key {
        cleaned(&self.key)
    }
}

impl std::fmt::Debug for Cleanup<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Cleanup").field(&self.key).finish()
    }
}

fn cleaned(key: &Key) -> Key {
    Key { kind: Kind::Compensated, ..key.clone() }
}

/// Runs all outstanding cleanups, the latest first. Each cleanup is recorded before the next one
/// starts. A cleanup that fails does not stop the others.
pub(crate) async fn run_all(
    ledger: &Ledger,
    runners: &BTreeMap<String, Runner>,
) -> Result<Vec<Cleaned>, CheckpointError> {
    let outstanding = ledger.memory().cleanups.clone();
    let mut all = Vec::new();
    for (key, payload) in outstanding.into_values().rev() {
        ledger.check_owned().await?;
        let result = match runners.get(key.name.as_str()).map(|runner| guard(|| runner(&payload))) {
            Some(Ok(Ok(run))) => ledger.while_owned(guarded(run)).await?,
            Some(Ok(Err(failure))) => Err(failure),
            Some(Err(panic)) => Err(panicked(&panic)),
            // Invariant: the name was checked when the cleanup was recorded or loaded.
            None => Err(Failure::new(FailureKind::Misuse, "nothing is registered under its name")),
        };
        let outcome = match &result {
            Ok(()) => Outcome::Done(Payload::null()),
            Err(failure) => {
                tracing::error!(
                    checkpoint = %ledger.id,
                    cleanup = %key.label(),
                    %failure,
                    "a cleanup failed"
                );
                Outcome::failed(failure.clone())
            }
        };
        ledger.record([(cleaned(&key), outcome)]).await?;
        all.push(Cleaned { name: key.label(), payload, result });
    }
    Ok(all)
}

/// Runs a cleanup. A panic counts as a failure of this cleanup alone.
async fn guarded(run: BoxFuture<'static, anyhow::Result<()>>) -> Result<(), Failure> {
    match Guarded::new(run).await {
        Ok(result) => result.map_err(|error| {
            let failure = closure_failure(&error);
            discard(error);
            failure
        }),
        Err(panic) => Err(panicked(&panic)),
    }
}

fn panicked(panic: &Panic) -> Failure {
    Failure::new(FailureKind::Panic, panic.to_string())
}
