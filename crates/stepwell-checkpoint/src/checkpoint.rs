//! A checkpoint: what a script has done, in a key-value store.

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

/// What one run of a script has done, kept under an id in a key-value store, so that the next run
/// goes on from there.
///
/// One process at a time has it, by a lease that is renewed while the process lives. Dropping it
/// without [`Checkpoint::complete`] keeps its state, and gives it free as well as can be done in
/// passing; [`Checkpoint::release`] does so for sure.
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
    /// Loads the checkpoint of that id, or begins it. Set options on what this returns, then await
    /// it.
    ///
    /// Cleanups that the last process left run before this returns, the latest first: see
    /// [`Checkpoint::cleaned`].
    ///
    /// # Errors
    /// [`CheckpointError::InUse`] when another process has it, [`CheckpointError::Completed`] when
    /// its result is kept, [`CheckpointError::UnknownCleanup`] when a cleanup is to run that is
    /// not registered, and whatever is wrong with what is stored. Then nothing has been
    /// written, and nothing has run.
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

    /// A step: an operation whose result is recorded, and that does not run again once it is. Set
    /// its options on what this returns, then await it.
    ///
    /// A step is known by its name and, with [`Step::input`], by its input; the second call of a
    /// name (with one input) is another step, shown as `name#2`, and so on. When the process
    /// dies before the result is recorded, the step runs again.
    ///
    /// # Errors
    /// [`CheckpointError::Step`] when the closure fails: a failure is recorded too, but the step
    /// runs again when the checkpoint is loaded again. [`CheckpointError::Payload`] when its
    /// result does not serialise, or what was recorded is of another type.
    pub fn step<'a, F, Fut, T>(&'a self, name: impl Into<StepName>, closure: F) -> Step<'a, F>
    where
        F: FnOnce() -> Fut + 'a,
        Fut: Future<Output = anyhow::Result<T>>,
        T: Serialize + DeserializeOwned,
    {
        Step::new(&self.ledger, name.into(), closure)
    }

    /// Many items, each of which is done once: set options on what this returns, then call
    /// [`Items::each`].
    ///
    /// Items are known by their places, so their order and number have to be the same each time.
    /// Where they may change, give [`Items::input`]; then others begin afresh.
    pub fn items<'a, T>(&'a self, name: impl Into<StepName>, items: Vec<T>) -> Items<'a, T> {
        Items::new(&self.ledger, name.into(), items)
    }

    /// Records that something is to be cleaned up, before whatever makes it necessary. When this
    /// process dies or fails before that is discharged ([`Cleanup::done`],
    /// [`Step::discharges`], [`Checkpoint::complete`]), what was registered under the name runs
    /// with the payload at the next load.
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

    /// The cleanups that ran when this was loaded, in their order. One that failed does not run
    /// again.
    pub fn cleaned(&self) -> &[Cleaned] {
        &self.cleaned
    }

    /// Gives up: runs the outstanding cleanups right away, the latest first, and gives the
    /// checkpoint free. What was recorded stays for the next load.
    ///
    /// # Errors
    /// When the store fails. Cleanups that are not recorded as run by then will run at the next
    /// load.
    pub async fn abandon(&self) -> Result<Vec<Cleaned>, CheckpointError> {
        self.ledger.check_owned().await?;
        let cleaned = run_all(&self.ledger, &self.runners).await?;
        self.ledger.release().await?;
        Ok(cleaned)
    }

    /// Gives the checkpoint free with all that is recorded, so that it can be loaded again at once.
    /// Cleanups stay outstanding.
    ///
    /// # Errors
    /// When the store fails; then it is free when its lease ends.
    pub async fn release(&self) -> Result<(), CheckpointError> {
        self.ledger.release().await
    }

    /// The work is done: removes all that is stored, outstanding cleanups included, which do not
    /// run.
    ///
    /// # Errors
    /// When the store fails; to be called again then. [`CheckpointError::Lost`] when another
    /// process has the checkpoint.
    pub fn complete(&self) -> Complete<'_> {
        Complete { ledger: &self.ledger, kept: None }
    }

    /// The result that [`Complete::keep`] kept. `None` when there is none, or no longer.
    ///
    /// # Errors
    /// [`CheckpointError::Payload`] when it is of another type.
    pub async fn result<R: DeserializeOwned>(
        store: &dyn KeyValueStore,
        id: &str,
    ) -> Result<Option<R>, CheckpointError> {
        let inspection = Self::inspect(store, id).await?;
        let result = inspection.and_then(|inspection| inspection.result);
        result.map(|result| decode("the result", &result)).transpose()
    }

    /// Looks at a checkpoint, whoever has it, and changes nothing. `None` when there is none of
    /// that id.
    ///
    /// # Errors
    /// When the store cannot be read, or what it has.
    pub async fn inspect(
        store: &dyn KeyValueStore,
        id: &str,
    ) -> Result<Option<Inspection>, CheckpointError> {
        Inspection::read(store, id).await
    }

    /// What is recorded of this checkpoint, in numbers.
    ///
    /// # Errors
    /// As [`Checkpoint::inspect`].
    pub async fn status(&self) -> Result<Status, CheckpointError> {
        Ok(self.look().await?.status)
    }

    /// All that is recorded of this checkpoint, in order, as entries of the engine's journal.
    ///
    /// # Errors
    /// As [`Checkpoint::inspect`].
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

/// The end of a checkpoint, made by [`Checkpoint::complete`]: await it.
#[must_use = "nothing is completed until this is awaited"]
pub struct Complete<'a> {
    ledger: &'a Ledger,
    kept: Option<(Result<Payload, CheckpointError>, Duration)>,
}

impl Complete<'_> {
    /// Keeps a result for so long, for [`Checkpoint::result`]. Until then the checkpoint cannot be
    /// loaded, so that the work is not done twice.
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
