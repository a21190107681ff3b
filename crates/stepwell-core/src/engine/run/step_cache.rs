//! Caches of step results, for results that are useful to more than one task.

use crate::base::payload::Payload;
use crate::base::runtime::{BoxFuture, MaybeSend, MaybeSync};

/// A cache of step results by key.
///
/// `stepwell-checkpoint` has several: in memory, in files, in any key-value store.
///
/// A cache may forget anything at any time. Invariant: a value that it returns was set under that
/// very key.
pub trait StepCache: MaybeSend + MaybeSync {
    /// Returns the value of a key; `None` when the cache has none, or no longer.
    ///
    /// # Errors
    /// An error when the cache cannot be reached, or holds something else than a value.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Payload>, StepCacheError>>;

    /// Sets the value of a key, in place of an earlier one.
    ///
    /// # Errors
    /// An error when the cache cannot be reached, or refuses the value.
    fn set<'a>(&'a self, key: &'a str, value: Payload)
    -> BoxFuture<'a, Result<(), StepCacheError>>;

    /// Returns whether the cache has a value for the key.
    ///
    /// # Errors
    /// An error when the cache cannot be reached.
    fn has<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<bool, StepCacheError>>;

    /// Removes the value of a key, and returns whether there was one.
    ///
    /// # Errors
    /// An error when the cache cannot be reached.
    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<bool, StepCacheError>>;

    /// Removes all values of this cache.
    ///
    /// # Errors
    /// An error when the cache cannot be reached, in which case some of the values may be removed.
    fn clear(&self) -> BoxFuture<'_, Result<(), StepCacheError>>;
}

/// The error of a step cache.
#[derive(Debug, thiserror::Error)]
#[error("the step cache failed: {0}")]
pub struct StepCacheError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl StepCacheError {
    /// Returns an error that wraps the cache's own error.
    pub fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(error.into())
    }
}
