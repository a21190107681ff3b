//! A cache of step results in a key-value store.

use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use stepwell_core::{BoxFuture, Payload, StepCache, StepCacheError};

use crate::key_value::KeyValueStore;

/// A cache in a key-value store, under a prefix: in files, Redis, DynamoDB… Processes that use one
/// store and one prefix share it.
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
    /// A cache in this store.
    pub fn new<S: KeyValueStore + Clone + 'static>(store: &S) -> Self {
        Self { store: Arc::new(store.clone()), prefix: "cache:".into(), ttl: None }
    }

    /// What stands before its keys. Default: `cache:`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// How long a value lives after it was set. Default: for ever.
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
            // Somebody else may have written there.
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
            // A star within the prefix stands for more than itself.
            for key in keys.iter().filter(|key| key.starts_with(&self.prefix)) {
                self.store.delete(key).await.map_err(StepCacheError::new)?;
            }
            Ok(())
        })
    }
}
