//! A cache in memory that starts with the values that another process saved.

use std::collections::BTreeMap;

use stepwell_core::store::Headers;
use stepwell_core::{BoxFuture, Payload, StepCache, StepCacheError};

use crate::memory_cache::MemoryCache;
use crate::persistence::{PersistenceError, StatePersistence};

/// A [`MemoryCache`] whose values are saved and loaded as the state of a run.
///
/// ```
/// # use stepwell_checkpoint::{HydratingCache, MemoryCache, StatePersistence};
/// # async fn example(persistence: StatePersistence) -> anyhow::Result<()> {
/// let cache = HydratingCache::new(MemoryCache::new(), persistence, "run_123");
/// cache.hydrate().await?;
/// // …run steps with the cache, and in the end or when it fails:
/// cache.save(Default::default()).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct HydratingCache {
    memory: MemoryCache,
    persistence: StatePersistence,
    run_id: String,
}

impl HydratingCache {
    /// Makes a cache of the values in `memory`, without the saved values.
    pub fn new(
        memory: MemoryCache,
        persistence: StatePersistence,
        run_id: impl Into<String>,
    ) -> Self {
        Self { memory, persistence, run_id: run_id.into() }
    }

    /// Loads the values that were saved for the run into memory, where they replace values of the
    /// same keys. The result is the number of loaded values.
    ///
    /// # Errors
    /// The errors of [`StatePersistence::load`].
    pub async fn hydrate(&self) -> Result<usize, PersistenceError> {
        let saved = self.persistence.load::<BTreeMap<String, Payload>>(&self.run_id).await?;
        let values = saved.map(|saved| saved.state).unwrap_or_default();
        for (key, value) in &values {
            self.memory.insert(key, value.clone());
        }
        Ok(values.len())
    }

    /// Saves the values in memory for the run, with metadata.
    ///
    /// # Errors
    /// [`PersistenceError::Store`] when the store fails.
    pub async fn save(&self, metadata: Headers) -> Result<(), PersistenceError> {
        let values: BTreeMap<_, _> = self.memory.entries().collect();
        self.persistence.save(&self.run_id, &values, metadata).await
    }
}

impl StepCache for HydratingCache {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Payload>, StepCacheError>> {
        self.memory.get(key)
    }

    fn set<'a>(
        &'a self,
        key: &'a str,
        value: Payload,
    ) -> BoxFuture<'a, Result<(), StepCacheError>> {
        self.memory.set(key, value)
    }

    fn has<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<bool, StepCacheError>> {
        self.memory.has(key)
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<bool, StepCacheError>> {
        self.memory.delete(key)
    }

    fn clear(&self) -> BoxFuture<'_, Result<(), StepCacheError>> {
        self.memory.clear()
    }
}
