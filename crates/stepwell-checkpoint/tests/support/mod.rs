//! A store that dies or fails at a chosen write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use stepwell_checkpoint::key_value::{KeyValueError, KeyValueStore, Memory};
use stepwell_core::{CancellationToken, async_trait};

/// What happens at the chosen write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process dies before the write is applied.
    DiesBefore,
    /// The process dies when the write is applied, before it learns that.
    DiesAfter,
    /// The write fails, and was not applied.
    FailsBefore,
    /// The write fails, but was applied.
    FailsAfter,
}

/// A store as one process sees it.
#[derive(Clone)]
pub(crate) struct Faulty {
    pub(crate) inner: Memory,
    writes: Arc<AtomicU64>,
    at: u64,
    fault: Fault,
    dead: CancellationToken,
}

impl Faulty {
    /// Fails at the write of that number, from 1; never when it is 0.
    pub(crate) fn new(inner: &Memory, at: u64, fault: Fault) -> Self {
        Self {
            inner: inner.clone(),
            writes: Arc::default(),
            at,
            fault,
            dead: CancellationToken::new(),
        }
    }

    /// Runs the future until the process dies; then nothing that it began goes on. `None` when it
    /// died.
    pub(crate) async fn run<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        self.dead.run_until_cancelled(future).await
    }

    /// How many writes there were.
    pub(crate) fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    async fn alive(&self) {
        if self.dead.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }

    async fn write<T>(
        &self,
        write: impl Future<Output = Result<T, KeyValueError>>,
    ) -> Result<T, KeyValueError> {
        self.alive().await;
        let is_chosen = self.writes.fetch_add(1, Ordering::Relaxed) + 1 == self.at;
        if !is_chosen {
            return write.await;
        }
        if matches!(self.fault, Fault::DiesAfter | Fault::FailsAfter) {
            drop(write.await?);
        }
        if matches!(self.fault, Fault::DiesBefore | Fault::DiesAfter) {
            self.dead.cancel();
            self.alive().await;
        }
        Err(KeyValueError::failed("the test's store", "write", "as it was told"))
    }
}

#[async_trait]
impl KeyValueStore for Faulty {
    async fn get(&self, key: &str) -> Result<Option<String>, KeyValueError> {
        self.alive().await;
        self.inner.get(key).await
    }

    async fn set(
        &self,
        key: &str,
        value: &str,
        ttl: Option<Duration>,
    ) -> Result<(), KeyValueError> {
        self.write(self.inner.set(key, value, ttl)).await
    }

    async fn delete(&self, key: &str) -> Result<bool, KeyValueError> {
        self.write(self.inner.delete(key)).await
    }

    async fn exists(&self, key: &str) -> Result<bool, KeyValueError> {
        self.alive().await;
        self.inner.exists(key).await
    }

    async fn keys(&self, pattern: &str) -> Result<Vec<String>, KeyValueError> {
        self.alive().await;
        self.inner.keys(pattern).await
    }

    async fn compare_and_set(
        &self,
        key: &str,
        expected: Option<&str>,
        new: Option<&str>,
        ttl: Option<Duration>,
    ) -> Result<bool, KeyValueError> {
        self.write(self.inner.compare_and_set(key, expected, new, ttl)).await
    }
}
