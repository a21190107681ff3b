//! A checkpoint: the saved state of a program in a key-value store.

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use stepwell_core::{BoxFuture, Entry, Kind, Name, Outcome, Payload, StepName, after};
use tokio::task::JoinHandle;

use crate::cleanup::{Cleaned, Cleanup, Runner, run_all};
use crate::error::CheckpointError;
use crate::inspect::{Inspection, Status};
use crate::items::Items;
use crate::key_value::KeyValueStore;
use crate::ledger::{Ledger, now};
use crate::load::{Load, check_cleanup};
use crate::step::Step;
use crate::values::{decode, encode};

/// The saved state of one run of a script, stored under an id in a key-value store. The next run
/// continues from that state.
///
/// One process at a time owns a checkpoint, by a lease that is renewed while the process lives. A
/// checkpoint that is dropped without [`Checkpoint::complete`] keeps its state. The drop starts a
/// release in the background, which may fail without an error; [`Checkpoint::release`] reports
/// whether the checkpoint was released.
///
/// ```
/// use stepwell_checkpoint::Checkpoint;
/// use stepwell_checkpoint::key_value::Memory;
///
/// # async fn count(path: String) -> anyhow::Result<u64> { Ok(path.len() as u64) }
/// # #[tokio::main]
/// # async fn main() -> anyhow::Result<()> {
/// let store = Memory::new();
/// let cp = Checkpoint::load(&store, "file-123")
///     .on_cleanup("delete_temp", |path: String| async move { Ok(std::fs::remove_file(path)?) })
///     .await?;
///
/// let path = "/tmp/rows.csv".to_owned();
/// let temp = cp.cleanup("delete_temp", &path).await?;
/// // Does not run again for this input, once its result is recorded.
/// let rows = cp.step("count", || count(path.clone())).input(&path).discharges(&temp).await?;
/// let report = cp
///     .items("rows", (0..rows).collect())
///     .concurrency(8)
///     .each(|row| async move { Ok(row * 2) })
///     .await?;
/// assert_eq!(report.results[&3], 6);
/// cp.complete().await?;
/// # Ok(())
/// # }
/// ```
pub struct Checkpoint {
    ledger: Arc<Ledger>,
    runners: BTreeMap<String, Runner>,
    cleaned: Vec<Cleaned>,
    renewing: JoinHandle<()>,
}

impl Checkpoint {
    /// Loads the checkpoint of an id, or creates it. Set options on the returned value, then await
    /// it.
    ///
    /// Cleanups that the last process left outstanding run before the load returns, the latest
    /// first: [`Checkpoint::cleaned`] returns them.
    ///
    /// # Errors
    /// - [`CheckpointError::InUse`] when another process owns the checkpoint.
    /// - [`CheckpointError::Completed`] when the checkpoint was completed and its result is kept.
    /// - [`CheckpointError::UnknownCleanup`] when a cleanup is outstanding whose name is not
    ///   registered.
    /// - [`CheckpointError::Foreign`], [`CheckpointError::Damaged`] or [`CheckpointError::Newer`]
    ///   when the stored record cannot be read.
    /// - [`CheckpointError::Name`] for an invalid id, [`CheckpointError::Store`] when the store
    ///   fails.
    ///
    /// With each of these errors except [`CheckpointError::Store`], no cleanup has run, and no
    /// entry was changed.
    pub fn load<S: KeyValueStore + Clone + 'static>(store: &S, id: &str) -> Load {
        Load::new(Arc::new(store.clone()), id)
    }

    pub(crate) fn new(
        ledger: Arc<Ledger>,
        runners: BTreeMap<String, Runner>,
        renewing: JoinHandle<()>,
    ) -> Self {
        Self { ledger, runners, cleaned: Vec::new(), renewing }
    }

    pub(crate) fn with_cleaned(mut self, cleaned: Vec<Cleaned>) -> Self {
        self.cleaned = cleaned;
        self
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub(crate) fn runners(&self) -> &BTreeMap<String, Runner> {
        &self.runners
    }

    /// Prepares a step: an operation whose result is recorded, and which does not run again
    /// afterwards. Set options on the returned value, then await it.
    ///
    /// A step is identified by its name and, with [`Step::input`], by its input. The second call
    /// with a name (and the same input) is another step, displayed as `name#2`, and so on. When the
    /// process dies before the result is recorded, the step runs again.
    ///
    /// # Errors
    /// [`CheckpointError::Step`] when the closure fails. A failure is recorded too, but the step
    /// runs again when the checkpoint is loaded again. [`CheckpointError::Payload`] when the result
    /// cannot be serialised, or when the recorded result has another type.
    pub fn step<'a, F, Fut, T>(&'a self, name: impl Into<StepName>, closure: F) -> Step<'a, F>
    where
        F: FnOnce() -> Fut + 'a,
        Fut: Future<Output = anyhow::Result<T>>,
        T: Serialize + DeserializeOwned,
    {
        Step::new(&self.ledger, name.into(), closure)
    }

    /// Prepares work on many items, each of which is done once. Set options on the returned value,
    /// then call [`Items::each`].
    ///
    /// An item is identified by its position, so the order and the number of items must be the same
    /// in each run. If they may change, set [`Items::input`]: with another input, all items start
    /// from the beginning.
    pub fn items<'a, T>(&'a self, name: impl Into<StepName>, items: Vec<T>) -> Items<'a, T> {
        Items::new(&self.ledger, name.into(), items)
    }

    /// Records a cleanup, before the work that makes it necessary. The next load runs the function
    /// that is registered under the name, with the payload, unless the cleanup was discharged
    /// before: by [`Cleanup::done`], [`Step::discharges`] or [`Checkpoint::complete`].
    ///
    /// # Errors
    /// [`CheckpointError::UnknownCleanup`] when nothing is registered under the name.
    pub async fn cleanup<P: Serialize + ?Sized>(
        &self,
        name: impl Into<StepName>,
        payload: &P,
    ) -> Result<Cleanup<'_>, CheckpointError> {
        let key = self.ledger.next_key(Kind::Compensate, Name::new(name.into().to_string())?);
        check_cleanup(&self.runners, &key)?;
        let payload = encode(&key.label(), payload)?;
        self.ledger.check_owned().await?;
        self.ledger.record([(key.clone(), Outcome::Done(payload))]).await?;
        Ok(Cleanup::new(&self.ledger, key))
    }

    /// Returns the cleanups that ran during the load, in their order. A cleanup that failed does
    /// not run again.
    pub fn cleaned(&self) -> &[Cleaned] {
        &self.cleaned
    }

    /// Runs the outstanding cleanups now, the latest first, and releases the checkpoint. The
    /// recorded steps and items stay for the next load.
    ///
    /// # Errors
    /// [`CheckpointError::Store`] when the store fails. Cleanups that are not recorded as run by
    /// then run at the next load. [`CheckpointError::Lost`] when another process owns the
    /// checkpoint.
    pub async fn abandon(&self) -> Result<Vec<Cleaned>, CheckpointError> {
        self.ledger.check_owned().await?;
        let cleaned = run_all(&self.ledger, &self.runners).await?;
        self.ledger.release().await?;
        Ok(cleaned)
    }

    /// Releases the checkpoint with its state, so that it can be loaded again at once. Cleanups
    /// stay outstanding.
    ///
    /// # Errors
    /// [`CheckpointError::Store`] when the store fails: then the checkpoint is free when its lease
    /// ends. [`CheckpointError::Lost`] when another process owns the checkpoint.
    pub async fn release(&self) -> Result<(), CheckpointError> {
        self.ledger.release().await
    }

    /// Ends the checkpoint, and removes all that is stored. Outstanding cleanups are removed too,
    /// and do not run.
    ///
    /// # Errors
    /// [`CheckpointError::Store`] when the store fails: call it again then.
    /// [`CheckpointError::Lost`] when another process owns the checkpoint.
    pub fn complete(&self) -> Complete<'_> {
        Complete { ledger: &self.ledger, kept: None }
    }

    /// Returns the result that [`Complete::keep`] kept, or `None` when there is no result or its
    /// time is over.
    ///
    /// # Errors
    /// [`CheckpointError::Payload`] when the result has another type, and the errors of
    /// [`Checkpoint::inspect`].
    pub async fn result<R: DeserializeOwned>(
        store: &dyn KeyValueStore,
        id: &str,
    ) -> Result<Option<R>, CheckpointError> {
        let inspection = Self::inspect(store, id).await?;
        let result = inspection.and_then(|inspection| inspection.result);
        result.map(|result| decode("the result", &result)).transpose()
    }

    /// Reads a checkpoint without owning it, and changes nothing. The result is `None` when no
    /// checkpoint has the id.
    ///
    /// # Errors
    /// [`CheckpointError::Store`] when the store cannot be read; [`CheckpointError::Foreign`],
    /// [`CheckpointError::Damaged`] or [`CheckpointError::Newer`] when the record cannot be read.
    pub async fn inspect(
        store: &dyn KeyValueStore,
        id: &str,
    ) -> Result<Option<Inspection>, CheckpointError> {
        Inspection::read(store, id).await
    }

    /// Returns a summary of the recorded state.
    ///
    /// # Errors
    /// The errors of [`Checkpoint::inspect`].
    pub async fn status(&self) -> Result<Status, CheckpointError> {
        Ok(self.look().await?.status)
    }

    /// Returns all that is recorded, in order, as entries of the engine's journal.
    ///
    /// # Errors
    /// The errors of [`Checkpoint::inspect`].
    pub async fn entries(&self) -> Result<Vec<Entry>, CheckpointError> {
        Ok(self.look().await?.entries)
    }

    async fn look(&self) -> Result<Inspection, CheckpointError> {
        let found = Inspection::read(&*self.ledger.store, &self.ledger.id).await?;
        found.ok_or_else(|| CheckpointError::Ended(self.ledger.id.clone()))
    }
}

impl Drop for Checkpoint {
    fn drop(&mut self) {
        self.renewing.abort();
        if self.ledger.has_ended() {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let ledger = self.ledger.clone();
            runtime.spawn(async move {
                if let Err(error) = ledger.release().await {
                    tracing::debug!(checkpoint = %ledger.id, %error, "it is free when its lease \
                                                                      ends");
                }
            });
        }
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint").field("id", &self.ledger.id).finish_non_exhaustive()
    }
}

/// The completion of a checkpoint, made by [`Checkpoint::complete`]: await it.
#[must_use = "nothing is completed until this is awaited"]
pub struct Complete<'a> {
    ledger: &'a Ledger,
    kept: Option<(Result<Payload, CheckpointError>, Duration)>,
}

impl Complete<'_> {
    /// Keeps a result for the given time, for [`Checkpoint::result`]. The checkpoint cannot be
    /// loaded until then, so that the work is not done twice.
    pub fn keep<R: Serialize + ?Sized>(mut self, result: &R, ttl: Duration) -> Self {
        self.kept = Some((encode("the result", result), ttl));
        self
    }
}

impl<'a> IntoFuture for Complete<'a> {
    type Output = Result<(), CheckpointError>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let kept = match self.kept {
                Some((result, ttl)) => Some((result?, after(now(), ttl))),
                None => None,
            };
            self.ledger.complete(kept).await
        })
    }
}
