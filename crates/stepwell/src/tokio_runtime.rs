//! The engine's world on tokio.

use std::time::{Duration, SystemTime};

use stepwell_core::{BoxFuture, Runtime, Timestamp, from_micros};
use tokio::runtime::Handle;

/// Runs the engine on the tokio runtime in which it was made.
pub struct TokioRuntime {
    handle: Handle,
}

impl TokioRuntime {
    /// On the runtime of the calling task.
    ///
    /// # Panics
    /// Outside of a tokio runtime, as tokio itself does.
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
        // Without a budget: one that ran out in the middle of a poll would make `select!` skip what
        // was delivered.
        self.handle.spawn(tokio::task::unconstrained(future));
    }

    fn random(&self) -> u64 {
        rand::random()
    }
}
