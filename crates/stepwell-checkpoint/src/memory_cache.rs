//! A cache of step results in memory.

use std::time::Duration;

use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use stepwell_core::{BoxFuture, Payload, StepCache, StepCacheError};

/// A cache in the memory of this process. The cache removes the least recently used values, and
/// values that are older than their time to live. Clones share one cache.
///
/// ```
/// # use std::time::Duration;
/// # use stepwell_checkpoint::MemoryCache;
/// let cache = MemoryCache::builder().max_entries(1_000).ttl(Duration::from_secs(60)).build();
/// ```
#[derive(Clone, Debug)]
pub struct MemoryCache {
    values: Cache<String, Payload>,
}

/// A builder of a [`MemoryCache`].
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryCacheBuilder {
    max_entries: Option<u64>,
    ttl: Option<Duration>,
}

impl MemoryCacheBuilder {
    /// Sets the maximum number of values. Default: no limit.
    pub fn max_entries(mut self, entries: u64) -> Self {
        self.max_entries = Some(entries);
        self
    }

    /// Sets the time to live of a value after it was set. Default: no limit.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Returns the cache.
    pub fn build(self) -> MemoryCache {
        // moka refuses a longer time.
        const LONGEST: Duration = Duration::from_secs(1_000 * 365 * 24 * 3600);
        let mut cache = Cache::builder().eviction_policy(EvictionPolicy::lru());
        if let Some(entries) = self.max_entries {
            cache = cache.max_capacity(entries);
        }
        if let Some(ttl) = self.ttl {
            cache = cache.time_to_live(ttl.min(LONGEST));
        }
        MemoryCache { values: cache.build() }
    }
}

impl MemoryCache {
    /// Returns a cache without limits.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Returns a builder of a cache.
    pub fn builder() -> MemoryCacheBuilder {
        MemoryCacheBuilder::default()
    }

    /// Returns all keys and values, in any order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (String, Payload)> {
        self.values.iter().map(|(key, value)| (key.as_ref().clone(), value))
    }

    pub(crate) fn insert(&self, key: &str, value: Payload) {
        self.values.insert(key.to_owned(), value);
    }
}

impl Default for MemoryCache {
    fn default() -> Self {
        Self::new()
    }
}

impl StepCache for MemoryCache {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Payload>, StepCacheError>> {
        Box::pin(async move { Ok(self.values.get(key)) })
    }

    fn set<'a>(
        &'a self,
        key: &'a str,
        value: Payload,
    ) -> BoxFuture<'a, Result<(), StepCacheError>> {
        Box::pin(async move {
            self.insert(key, value);
            Ok(())
        })
    }

    fn has<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<bool, StepCacheError>> {
        Box::pin(async move { Ok(self.values.contains_key(key)) })
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<bool, StepCacheError>> {
        Box::pin(async move {
            // `remove` would also return an expired value.
            let mut was_there = false;
            self.values.entry_by_ref(key).and_compute_with(|entry| {
                was_there = entry.is_some();
                Op::Remove
            });
            Ok(was_there)
        })
    }

    fn clear(&self) -> BoxFuture<'_, Result<(), StepCacheError>> {
        Box::pin(async move {
            self.values.invalidate_all();
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_not_used_for_longest_is_forgotten_first() {
        let cache = MemoryCache::builder().max_entries(2).build();
        for key in ["a", "b"] {
            cache.set(key, Payload::null()).await.unwrap();
        }
        // moka evicts values in maintenance, which runs here.
        cache.values.run_pending_tasks();
        assert!(cache.get("a").await.unwrap().is_some());
        cache.set("c", Payload::null()).await.unwrap();
        cache.values.run_pending_tasks();
        assert_eq!((cache.has("a").await.unwrap(), cache.has("b").await.unwrap()), (true, false));
    }
}
