//! Key-value stores, in which checkpoints and caches keep their state.
//!
//! [`KeyValueStore`] is the interface of a store. The adapters in this module are thin: each uses
//! the client or the pool that a program already has, or opens its own.

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

/// A store of texts by key. A value with a time to live is removed after that time, by the store's
/// clock or the caller's.
///
/// Invariant: when a call has returned, its effect is visible to every later call of any process.
/// The store decides how long the effect lasts: a database keeps it after a crash, memory does not.
#[async_trait]
pub trait KeyValueStore: Send + Sync {
    /// Returns the value of a key.
    ///
    /// # Errors
    /// [`KeyValueError::Failed`] when the store cannot be read.
    async fn get(&self, key: &str) -> Result<Option<String>, KeyValueError>;

    /// Sets the value of a key. The new value and its time to live replace the earlier ones.
    ///
    /// # Errors
    /// [`KeyValueError::Failed`] when the store could not be written, or when its answer was lost:
    /// then the value may have been written.
    async fn set(&self, key: &str, value: &str, ttl: Option<Duration>)
    -> Result<(), KeyValueError>;

    /// Removes a key, and returns whether it existed.
    ///
    /// # Errors
    /// The errors of [`KeyValueStore::set`].
    async fn delete(&self, key: &str) -> Result<bool, KeyValueError>;

    /// Returns whether the key exists.
    ///
    /// # Errors
    /// [`KeyValueError::Failed`] when the store cannot be read.
    async fn exists(&self, key: &str) -> Result<bool, KeyValueError>;

    /// Returns the keys that match a pattern, in any order. In a pattern, `*` stands for any text,
    /// and every other character for itself.
    ///
    /// The call may read every key of the store. The call is for maintenance, not for a program's
    /// normal work.
    ///
    /// # Errors
    /// [`KeyValueError::Failed`] when the store cannot be read.
    async fn keys(&self, pattern: &str) -> Result<Vec<String>, KeyValueError>;

    /// Replaces the value of a key if it is `expected`, in one atomic operation, and returns
    /// whether it did so. `expected` is `None` for a key that does not exist. `new` is `None` to
    /// remove the key.
    ///
    /// # Errors
    /// The errors of [`KeyValueStore::set`].
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
