//! States of runs, which are saved as a whole with metadata, and loaded by the ids of the runs.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use stepwell_core::store::Headers;
use stepwell_core::{Payload, PayloadError, Timestamp};

use crate::key_value::{KeyValueError, KeyValueStore};
use crate::ledger::now;

/// The version of the format that this crate writes, and the newest that it reads.
const VERSION: u32 = 1;

/// A store of the states of runs, in a key-value store.
///
/// ```
/// # use stepwell_checkpoint::StatePersistence;
/// # use stepwell_checkpoint::key_value::Memory;
/// # async fn example() -> anyhow::Result<()> {
/// let persistence = StatePersistence::new(&Memory::new()).prefix("workflow:state:");
/// let metadata = [("user".to_owned(), "user_456".into())].into();
/// persistence.save("run_123", &vec![1, 2, 3], metadata).await?;
/// let saved = persistence.load::<Vec<u32>>("run_123").await?;
/// assert_eq!(saved.map(|saved| saved.state), Some(vec![1, 2, 3]));
/// assert_eq!(persistence.list().await?, ["run_123"]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct StatePersistence {
    store: Arc<dyn KeyValueStore>,
    prefix: String,
}

/// A saved state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedState<S> {
    /// The state.
    pub state: S,
    /// The metadata that was saved with the state.
    pub metadata: Headers,
    /// The time of the save.
    pub saved_at: Timestamp,
}

/// The errors of saving and loading a state.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PersistenceError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] KeyValueError),
    /// The state cannot be serialised, or the saved state has another type.
    #[error("the state of run \"{run_id}\": {source}")]
    State {
        /// The run's id.
        run_id: String,
        /// The error of the serialisation.
        source: PayloadError,
    },
    /// The stored value is not a saved state.
    #[error(
        "what is stored under {key:?} is no saved state ({reason}): use another prefix, or remove \
         it"
    )]
    Foreign {
        /// The key in the store.
        key: String,
        /// The reason why the value is not a state.
        reason: String,
    },
    /// A newer version of this crate wrote the state.
    #[error("the state under {key:?} has version {version}, this program knows {known}: update it")]
    Newer {
        /// The key in the store.
        key: String,
        /// The version of the stored value.
        version: u32,
        /// The newest version that this program reads.
        known: u32,
    },
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    saved_at: Timestamp,
    metadata: Headers,
    state: Payload,
}

impl StatePersistence {
    /// Returns a persistence in a store, with the prefix `state:`.
    pub fn new<S: KeyValueStore + Clone + 'static>(store: &S) -> Self {
        Self { store: Arc::new(store.clone()), prefix: "state:".into() }
    }

    /// Sets the prefix of the keys in the store, which the run ids follow. Default: `state:`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Saves the state of a run. The new state replaces an earlier one of the run.
    ///
    /// # Errors
    /// [`PersistenceError::State`] when the state cannot be serialised; [`PersistenceError::Store`]
    /// when the store fails.
    pub async fn save<S: Serialize + ?Sized>(
        &self,
        run_id: &str,
        state: &S,
        metadata: Headers,
    ) -> Result<(), PersistenceError> {
        let unfit = |source| PersistenceError::State { run_id: run_id.into(), source };
        let state = Payload::encode(state, usize::MAX).map_err(unfit)?;
        let stored = Stored { version: VERSION, saved_at: now(), metadata, state };
        let text = Payload::document(&stored).map_err(unfit)?;
        Ok(self.store.set(&self.key(run_id), text.as_str(), None).await?)
    }

    /// Returns the state of a run, or `None` when none is saved.
    ///
    /// # Errors
    /// [`PersistenceError::Store`] when the store fails; [`PersistenceError::State`] when the saved
    /// state has another type; [`PersistenceError::Foreign`] or [`PersistenceError::Newer`] when
    /// the stored value cannot be read.
    pub async fn load<S: DeserializeOwned>(
        &self,
        run_id: &str,
    ) -> Result<Option<SavedState<S>>, PersistenceError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let key = self.key(run_id);
        let Some(text) = self.store.get(&key).await? else { return Ok(None) };
        let foreign = |error: serde_json::Error| PersistenceError::Foreign {
            key: key.clone(),
            reason: error.to_string(),
        };
        let Version { version } = serde_json::from_str(&text).map_err(foreign)?;
        if version > VERSION {
            return Err(PersistenceError::Newer { key, version, known: VERSION });
        }
        let Stored { saved_at, metadata, state, .. } =
            serde_json::from_str(&text).map_err(foreign)?;
        let state = state
            .decode()
            .map_err(|source| PersistenceError::State { run_id: run_id.into(), source })?;
        Ok(Some(SavedState { state, metadata, saved_at }))
    }

    /// Returns the ids of all runs with a saved state, sorted.
    ///
    /// # Errors
    /// [`PersistenceError::Store`] when the store fails.
    pub async fn list(&self) -> Result<Vec<String>, PersistenceError> {
        let keys = self.store.keys(&format!("{}*", self.prefix)).await?;
        let ids = keys.iter().filter_map(|key| Some(key.strip_prefix(&self.prefix)?.to_owned()));
        let mut ids: Vec<_> = ids.collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Removes the state of a run, and returns whether there was one.
    ///
    /// # Errors
    /// [`PersistenceError::Store`] when the store fails.
    pub async fn delete(&self, run_id: &str) -> Result<bool, PersistenceError> {
        Ok(self.store.delete(&self.key(run_id)).await?)
    }

    fn key(&self, run_id: &str) -> String {
        format!("{}{run_id}", self.prefix)
    }
}

impl std::fmt::Debug for StatePersistence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StatePersistence").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}
