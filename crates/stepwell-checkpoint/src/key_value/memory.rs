//! A key-value store in memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use stepwell_core::async_trait;

use super::{KeyValueError, KeyValueStore, Pattern};

/// A key-value store in the memory of this process, for tests and caches. Clones share one store.
///
/// ```
/// # use stepwell_checkpoint::key_value::{KeyValueStore, Memory};
/// # async fn example() -> Result<(), stepwell_checkpoint::key_value::KeyValueError> {
/// let store = Memory::new();
/// assert!(store.compare_and_set("leader", None, Some("me"), None).await?);
/// assert!(!store.compare_and_set("leader", None, Some("you"), None).await?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Memory {
    values: Cache<String, Value>,
}

#[derive(Clone, Debug)]
struct Value {
    text: Arc<str>,
    ttl: Option<Duration>,
}

/// The expiry of values: each lives for its own time to live after it was set.
struct Lives;

impl Expiry<String, Value> for Lives {
    fn expire_after_create(&self, _: &String, value: &Value, _: Instant) -> Option<Duration> {
        value.ttl
    }

    fn expire_after_update(
        &self,
        _: &String,
        value: &Value,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        value.ttl
    }
}

impl Memory {
    /// Returns a store without a limit on its size.
    pub fn new() -> Self {
        Self { values: Cache::builder().expire_after(Lives).build() }
    }

    /// Returns a store with a maximum number of values, which removes the least recently used value
    /// first. Such a store is not suitable for checkpoints, which must not lose values.
    pub fn with_capacity(values: u64) -> Self {
        let cache = Cache::builder().max_capacity(values).eviction_policy(EvictionPolicy::lru());
        Self { values: cache.expire_after(Lives).build() }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl KeyValueStore for Memory {
    async fn get(&self, key: &str) -> Result<Option<String>, KeyValueError> {
        Ok(self.values.get(key).map(|value| value.text.as_ref().to_owned()))
    }

    async fn set(
        &self,
        key: &str,
        value: &str,
        ttl: Option<Duration>,
    ) -> Result<(), KeyValueError> {
        self.values.insert(key.to_owned(), Value { text: value.into(), ttl });
        Ok(())
    }

    async fn delete(&self, key: &str) -> Result<bool, KeyValueError> {
        // `remove` would also return an expired value.
        let mut was_there = false;
        self.values.entry_by_ref(key).and_compute_with(|entry| {
            was_there = entry.is_some();
            Op::Remove
        });
        Ok(was_there)
    }

    async fn exists(&self, key: &str) -> Result<bool, KeyValueError> {
        Ok(self.values.contains_key(key))
    }

    async fn keys(&self, pattern: &str) -> Result<Vec<String>, KeyValueError> {
        let pattern = Pattern::new(pattern);
        let keys = self.values.iter().map(|(key, _)| key.as_ref().clone());
        Ok(keys.filter(|key| pattern.matches(key)).collect())
    }

    async fn compare_and_set(
        &self,
        key: &str,
        expected: Option<&str>,
        new: Option<&str>,
        ttl: Option<Duration>,
    ) -> Result<bool, KeyValueError> {
        let mut swapped = false;
        self.values.entry_by_ref(key).and_compute_with(|entry| {
            let found = entry.map(|entry| entry.into_value().text);
            swapped = found.as_deref() == expected;
            match new {
                _ if !swapped => Op::Nop,
                Some(text) => Op::Put(Value { text: text.into(), ttl }),
                None => Op::Remove,
            }
        });
        Ok(swapped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_not_used_for_longest_is_forgotten_first() {
        let store = Memory::with_capacity(3);
        for key in ["a", "b", "c"] {
            store.set(key, "value", None).await.unwrap();
        }
        // moka evicts values in maintenance, which runs here.
        store.values.run_pending_tasks();
        assert!(store.get("a").await.unwrap().is_some());
        store.set("d", "value", None).await.unwrap();
        store.values.run_pending_tasks();
        assert_eq!(store.get("b").await.unwrap(), None);
        assert!(store.exists("a").await.unwrap());
    }
}
