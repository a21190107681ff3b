//! The clock of a store under test.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use stepwell_core::{BoxFuture, Runtime, Timestamp, from_micros};
use tokio::runtime::Handle;

/// The first time, in microseconds. The time is neither a whole second nor a whole millisecond.
const START: i64 = 1_700_000_000_123_457;

/// A clock that stands still until it is advanced, with random numbers that are the same in each
/// run. The background work of a store runs on tokio, and its sleeps take real time.
pub struct Clock {
    micros: AtomicI64,
    drawn: AtomicU64,
    tokio: Handle,
}

impl Clock {
    /// Returns a clock within the current tokio runtime.
    ///
    /// # Panics
    /// Panics outside of a tokio runtime.
    pub fn new() -> Arc<Self> {
        let (micros, drawn) = (AtomicI64::new(START), AtomicU64::new(0));
        Arc::new(Self { micros, drawn, tokio: Handle::current() })
    }

    /// Advances the clock.
    pub fn advance(&self, duration: Duration) {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        self.micros.fetch_add(micros, Ordering::SeqCst);
    }

    /// Sets the clock back, as an administrator might.
    pub fn set_back(&self, duration: Duration) {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        self.micros.fetch_sub(micros, Ordering::SeqCst);
    }
}

impl Runtime for Clock {
    fn now(&self) -> Timestamp {
        from_micros(self.micros.load(Ordering::SeqCst))
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let _within = self.tokio.enter();
        Box::pin(tokio::time::sleep(duration))
    }

    fn spawn(&self, future: BoxFuture<'static, ()>) {
        self.tokio.spawn(tokio::task::unconstrained(future));
    }

    fn random(&self) -> u64 {
        (self.drawn.fetch_add(1, Ordering::SeqCst) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}
