//! Caches of step results, for steps whose result is worth more than one task.

use crate::base::payload::Payload;
use crate::base::runtime::{BoxFuture, MaybeSend, MaybeSync};

/// A cache of step results by key. `stepwell-checkpoint` has some: in memory, in files, in any
/// key-value store.
///
/// A cache may forget anything at any time. What it answers is a value that was set under that very
/// key.
pub trait StepCache: MaybeSend + MaybeSync {
    /// The value of a key; `None` when the cache has none, or no longer.
    ///
    /// # Errors
    /// When the cache cannot be reached, or holds something else than a value.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Payload>, StepCacheError>>;

    /// Sets the value of a key, in place of another.
    ///
    /// # Errors
    /// When the cache cannot be reached, or refuses the value.
    fn set<'a>(&'a self, key: &'a str, value: Payload)
    -> BoxFuture<'a, Result<(), StepCacheError>>;

    /// Whether the cache has a value for the key.
    ///
    /// # Errors
    /// When the cache cannot be reached.
    fn has<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<bool, StepCacheError>>;

    /// Removes the value of a key; whether there was one.
    ///
    /// # Errors
    /// When the cache cannot be reached.
    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<bool, StepCacheError>>;

    /// Removes all values of this cache.
    ///
    /// # Errors
    /// When the cache cannot be reached. Some of the values may be removed then.
    fn clear(&self) -> BoxFuture<'_, Result<(), StepCacheError>>;
}

/// Why a cache could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("the step cache failed: {0}")]
pub struct StepCacheError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl StepCacheError {
    /// With what the cache's own means say.
    pub fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(error.into())
    }
}
