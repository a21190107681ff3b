//! Cleanups: what is to be undone when a process does not come to the end.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use stepwell_core::{
    BoxFuture, Failure, FailureKind, Guarded, Key, Kind, Outcome, Panic, Payload, closure_failure,
    discard, guard,
};

use crate::error::CheckpointError;
use crate::ledger::Ledger;

/// What runs for the cleanups of one name.
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

/// A cleanup that is outstanding, made by [`Checkpoint::cleanup`](crate::Checkpoint::cleanup).
/// Dropping it discharges nothing.
#[must_use = "the cleanup runs at the next load, unless it is discharged"]
pub struct Cleanup<'a> {
    ledger: &'a Ledger,
    key: Key,
}

/// A cleanup that ran.
#[derive(Clone, Debug, PartialEq)]
pub struct Cleaned {
    /// Its name; a further one of that name is `name#2`.
    pub name: String,
    /// What it was registered with.
    pub payload: Payload,
    /// Why it failed, if it did. It does not run again.
    pub result: Result<(), Failure>,
}

impl<'a> Cleanup<'a> {
    pub(crate) fn new(ledger: &'a Ledger, key: Key) -> Self {
        Self { ledger, key }
    }

    /// The cleanup is no longer needed. To say so in one write with a step's result, use
    /// [`Step::discharges`](crate::Step::discharges).
    ///
    /// # Errors
    /// When the store fails.
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

/// Runs all outstanding cleanups, the latest first, each recorded before the next one begins. One
/// that fails does not stop the rest.
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
            // Checked before, when it was registered or loaded.
            None => Err(Failure::new(FailureKind::Misuse, "nothing is registered under its name")),
        };
        let outcome = match &result {
            Ok(()) => Outcome::Done(Payload::null()),
            Err(failure) => {
                tracing::error!(checkpoint = %ledger.id, cleanup = %key.label(), %failure, "a cleanup failed");
                Outcome::failed(failure.clone())
            }
        };
        ledger.record([(cleaned(&key), outcome)]).await?;
        all.push(Cleaned { name: key.label(), payload, result });
    }
    Ok(all)
}

/// A panic is a failure of that cleanup alone.
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
