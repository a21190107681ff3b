//! Caches of step results, for results that are useful to more than one task.

use std::sync::Arc;

use serde::de::DeserializeOwned;

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

/// The cache of a step, and the key under which it keeps the step's result.
#[derive(Clone)]
pub(super) struct Cached {
    cache: Arc<dyn StepCache>,
    key: String,
    looked_up: bool,
}

impl Cached {
    pub(super) fn new(cache: &Arc<dyn StepCache>, key: String) -> Self {
        Self { cache: cache.clone(), key, looked_up: false }
    }

    /// Returns the look-up of the result, the first time that it is called.
    pub(super) fn first_look<T: DeserializeOwned>(
        &mut self,
    ) -> Option<BoxFuture<'static, Option<Payload>>> {
        let first = !std::mem::replace(&mut self.looked_up, true);
        first.then(|| self.clone().look_up::<T>())
    }

    /// Returns the cached result, if the cache has one that can be decoded.
    fn look_up<T: DeserializeOwned>(self) -> BoxFuture<'static, Option<Payload>> {
        Box::pin(async move {
            match self.cache.get(&self.key).await {
                Ok(found) => found.filter(|found| {
                    let fits = found.decode::<T>().map(drop);
                    fits.inspect_err(|error| self.warn(error)).is_ok()
                }),
                Err(error) => {
                    self.warn(&error);
                    None
                }
            }
        })
    }

    /// Keeps the result of a try.
    pub(super) fn put(self, result: Payload) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if let Err(error) = self.cache.set(&self.key, result).await {
                self.warn(&error);
            }
        })
    }

    fn warn(&self, error: &dyn std::fmt::Display) {
        tracing::warn!(key = self.key, %error, "a step does without its cache");
    }
}
