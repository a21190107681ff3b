//! Key-value stores: what a checkpoint and the caches keep their state in.
//!
//! [`KeyValueStore`] is what they ask of a store. The adapters here are thin: each takes the client
//! or the pool that a program has already, and opens one of its own where there is none.

#[cfg(feature = "dynamodb")]
mod dynamodb;
mod error;
mod files;
#[cfg(feature = "memory")]
mod memory;
mod pattern;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::sync::Arc;
use std::time::Duration;

use stepwell_core::async_trait;

#[cfg(feature = "dynamodb")]
pub use dynamodb::DynamoDb;
pub use error::KeyValueError;
pub use files::Files;
#[cfg(feature = "memory")]
pub use memory::Memory;
pub use pattern::Pattern;
#[cfg(feature = "postgres")]
pub use postgres::Postgres;
#[cfg(feature = "redis")]
pub use redis::Redis;
#[cfg(feature = "sqlite")]
pub use sqlite::Sqlite;

/// A store of texts by key. A value with a time to live is gone when that has passed, by the
/// store's clock or the caller's.
///
/// What has been answered has been done, and is seen by every later call of any process. How long
/// it then lasts is the store's: a database keeps it, memory does not.
#[async_trait]
pub trait KeyValueStore: Send + Sync {
    /// The value of a key.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn get(&self, key: &str) -> Result<Option<String>, KeyValueError>;

    /// Sets the value of a key, in place of another and of its time to live.
    ///
    /// # Errors
    /// When the store could not be written, or the answer was lost: then it may have been.
    async fn set(&self, key: &str, value: &str, ttl: Option<Duration>)
    -> Result<(), KeyValueError>;

    /// Removes a key; whether it was there.
    ///
    /// # Errors
    /// As [`KeyValueStore::set`].
    async fn delete(&self, key: &str) -> Result<bool, KeyValueError>;

    /// Whether there is such a key.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn exists(&self, key: &str) -> Result<bool, KeyValueError>;

    /// The keys that match a pattern, in any order. In it, `*` stands for any text, every other
    /// character for itself.
    ///
    /// It may look at every key of the store, so it is for maintenance, not for the usual course of
    /// a program.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn keys(&self, pattern: &str) -> Result<Vec<String>, KeyValueError>;

    /// In one atomic step: when the key's value is `expected` (`None`: the key is not there), makes
    /// it `new` (`None`: removes it), with that time to live. Whether it was so.
    ///
    /// # Errors
    /// As [`KeyValueStore::set`].
    async fn compare_and_set(
        &self,
        key: &str,
        expected: Option<&str>,
        new: Option<&str>,
        ttl: Option<Duration>,
    ) -> Result<bool, KeyValueError>;
}

#[async_trait]
impl<S: KeyValueStore + ?Sized> KeyValueStore for Arc<S> {
    async fn get(&self, key: &str) -> Result<Option<String>, KeyValueError> {
        (**self).get(key).await
    }

    async fn set(
        &self,
        key: &str,
        value: &str,
        ttl: Option<Duration>,
    ) -> Result<(), KeyValueError> {
        (**self).set(key, value, ttl).await
    }

    async fn delete(&self, key: &str) -> Result<bool, KeyValueError> {
        (**self).delete(key).await
    }

    async fn exists(&self, key: &str) -> Result<bool, KeyValueError> {
        (**self).exists(key).await
    }

    async fn keys(&self, pattern: &str) -> Result<Vec<String>, KeyValueError> {
        (**self).keys(pattern).await
    }

    async fn compare_and_set(
        &self,
        key: &str,
        expected: Option<&str>,
        new: Option<&str>,
        ttl: Option<Duration>,
    ) -> Result<bool, KeyValueError> {
        (**self).compare_and_set(key, expected, new, ttl).await
    }
}
