//! A cache of step results in a key-value store.

use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use stepwell_core::{BoxFuture, Payload, StepCache, StepCacheError};

use crate::key_value::KeyValueStore;

/// A cache in a key-value store: files, Redis, DynamoDB… Its keys have a prefix. Processes with the
/// same store and prefix share the cache.
///
/// ```
/// # use std::time::Duration;
/// # use stepwell_checkpoint::KeyValueCache;
/// # use stepwell_checkpoint::key_value::Files;
/// # async fn example() -> anyhow::Result<()> {
/// let files = Files::open("./workflow-cache").await?;
/// let cache = KeyValueCache::new(&files).prefix("workflow:cache:").ttl(Duration::from_secs(3600));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct KeyValueCache {
    store: Arc<dyn KeyValueStore>,
    prefix: String,
    ttl: Option<Duration>,
}

impl KeyValueCache {
    /// Returns a cache in a store, with the prefix `cache:` and without a time to live.
    pub fn new<S: KeyValueStore + Clone + 'static>(store: &S) -> Self {
        Self { store: Arc::new(store.clone()), prefix: "cache:".into(), ttl: None }
    }

    /// Sets the prefix of the cache's keys. Default: `cache:`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets the time to live of a value after it was set. Default: no limit.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

impl std::fmt::Debug for KeyValueCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyValueCache").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl StepCache for KeyValueCache {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Payload>, StepCacheError>> {
        Box::pin(async move {
            let key = self.key(key);
            let Some(text) = self.store.get(&key).await.map_err(StepCacheError::new)? else {
                return Ok(None);
            };
            // Another program may have written the value.
            serde_json::from_str::<&RawValue>(&text).map_err(|error| {
                StepCacheError::new(format!(
                    "what is stored under {key:?} is no JSON ({error}): use another prefix"
                ))
            })?;
            Ok(Some(Payload::from_json(text)))
        })
    }

    fn set<'a>(
        &'a self,
        key: &'a str,
        value: Payload,
    ) -> BoxFuture<'a, Result<(), StepCacheError>> {
        Box::pin(async move {
            let set = self.store.set(&self.key(key), value.as_str(), self.ttl).await;
            set.map_err(StepCacheError::new)
        })
    }

    fn has<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<bool, StepCacheError>> {
        Box::pin(
            async move { self.store.exists(&self.key(key)).await.map_err(StepCacheError::new) },
        )
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<bool, StepCacheError>> {
        Box::pin(
            async move { self.store.delete(&self.key(key)).await.map_err(StepCacheError::new) },
        )
    }

    fn clear(&self) -> BoxFuture<'_, Result<(), StepCacheError>> {
        Box::pin(async move {
            let keys =
                self.store.keys(&format!("{}*", self.prefix)).await.map_err(StepCacheError::new)?;
            // A star in the prefix matches other keys too, so keys are filtered here.
            for key in keys.iter().filter(|key| key.starts_with(&self.prefix)) {
                self.store.delete(key).await.map_err(StepCacheError::new)?;
            }
            Ok(())
        })
    }
}
