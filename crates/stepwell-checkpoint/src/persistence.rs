//! State of runs by their ids: saved as a whole, with metadata, and loaded again elsewhere.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use stepwell_core::store::Headers;
use stepwell_core::{Payload, PayloadError, Timestamp};

use crate::key_value::{KeyValueError, KeyValueStore};
use crate::ledger::now;

/// The format that this version writes, and the newest that it reads.
const VERSION: u32 = 1;

/// Keeps the state of runs in a key-value store.
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

/// A state that was saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedState<S> {
    /// The state.
    pub state: S,
    /// What was saved with it.
    pub metadata: Headers,
    /// When.
    pub saved_at: Timestamp,
}

/// Why a state could not be saved or loaded.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PersistenceError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] KeyValueError),
    /// The state does not serialise, or is of another type than what was saved.
    #[error("the state of run \"{run_id}\": {source}")]
    State {
        /// The run.
        run_id: String,
        /// Why.
        source: PayloadError,
    },
    /// What is stored is no state.
    #[error(
        "what is stored under {key:?} is no saved state ({reason}): use another prefix, or remove \
         it"
    )]
    Foreign {
        /// The key in the store.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A newer version of this crate wrote it.
    #[error("the state under {key:?} has version {version}, this program knows {known}: update it")]
    Newer {
        /// The key in the store.
        key: String,
        /// The version that it has.
        version: u32,
        /// The newest that this program reads.
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
    /// States in this store.
    pub fn new<S: KeyValueStore + Clone + 'static>(store: &S) -> Self {
        Self { store: Arc::new(store.clone()), prefix: "state:".into() }
    }

    /// What stands before the run ids in the store's keys. Default: `state:`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Saves the state of a run, in place of what was saved before.
    ///
    /// # Errors
    /// [`PersistenceError::State`] when it does not serialise, [`PersistenceError::Store`].
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

    /// The state of a run; `None` when none is saved.
    ///
    /// # Errors
    /// When what is stored cannot be read, or is of another type.
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

    /// The ids of all runs that have a saved state, sorted.
    ///
    /// # Errors
    /// [`PersistenceError::Store`].
    pub async fn list(&self) -> Result<Vec<String>, PersistenceError> {
        let keys = self.store.keys(&format!("{}*", self.prefix)).await?;
        let ids = keys.iter().filter_map(|key| Some(key.strip_prefix(&self.prefix)?.to_owned()));
        let mut ids: Vec<_> = ids.collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Removes the state of a run; whether there was one.
    ///
    /// # Errors
    /// [`PersistenceError::Store`].
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
