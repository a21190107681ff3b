//! The client's estimate of the server's clock.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use stepwell_core::{Runtime, Timestamp, after};

pub(crate) struct Clock {
    /// The clock that replaces the server's.
    given: Option<Arc<dyn Runtime>>,
    /// The time of the server's latest answer, and the moment of its arrival. Invariant: the
    /// estimate is never ahead of the server's clock, because the answer took time to arrive. No
    /// timer fires early by it.
    heard: Mutex<(Timestamp, Instant)>,
}

impl Clock {
    pub(crate) fn new(given: Option<Arc<dyn Runtime>>) -> Self {
        Self { given, heard: Mutex::new((Timestamp::UNIX_EPOCH, Instant::now())) }
    }

    /// Returns the time that the server uses instead of its own clock's, if there is one.
    pub(crate) fn given(&self) -> Option<Timestamp> {
        self.given.as_ref().map(|clock| clock.now())
    }

    pub(crate) fn hear(&self, now: Timestamp) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = (now, Instant::now());
    }

    pub(crate) fn now(&self) -> Timestamp {
        if let Some(given) = self.given() {
            return given;
        }
        let (then, heard) = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        // Stores keep whole microseconds.
        after(
            then,
            Duration::from_micros(u64::try_from(heard.elapsed().as_micros()).unwrap_or(u64::MAX)),
        )
    }
}
