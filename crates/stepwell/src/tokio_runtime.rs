//! The [`Runtime`] on tokio.

use std::time::{Duration, SystemTime};

use stepwell_core::{BoxFuture, Runtime, Timestamp, from_micros};
use tokio::runtime::Handle;

/// A [`Runtime`] that uses the tokio runtime in which it was made.
pub struct TokioRuntime {
    handle: Handle,
}

impl TokioRuntime {
    /// Returns a runtime that spawns on the tokio runtime of the caller.
    ///
    /// # Panics
    /// Panics outside of a tokio runtime, as [`Handle::current`] does.
    pub fn current() -> Self {
        Self { handle: Handle::current() }
    }
}

impl Runtime for TokioRuntime {
    fn now(&self) -> Timestamp {
        let now = SystemTime::now();
        let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        from_micros(i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX))
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn spawn(&self, future: BoxFuture<'static, ()>) {
        // The future has no budget: a budget that ran out in the middle of a poll would make
        // `select!` skip results that were delivered.
        self.handle.spawn(tokio::task::unconstrained(future));
    }

    fn random(&self) -> u64 {
        rand::random()
    }
}
