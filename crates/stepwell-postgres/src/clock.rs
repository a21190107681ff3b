//! The server's clock, as it is known here.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use stepwell_core::{Runtime, Timestamp, after};

pub(crate) struct Clock {
    /// In place of the server's.
    given: Option<Arc<dyn Runtime>>,
    /// What the server's clock showed in its latest answer, and when that came. The answer was on
    /// its way for a while, so the estimate lags, and is never ahead: no timer fires early by
    /// it.
    heard: Mutex<(Timestamp, Instant)>,
}

impl Clock {
    pub(crate) fn new(given: Option<Arc<dyn Runtime>>) -> Self {
        Self { given, heard: Mutex::new((Timestamp::UNIX_EPOCH, Instant::now())) }
    }

    /// What the server is to take for the time, if it is not its own clock's.
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
        // Whole microseconds, as stores keep them.
        after(
            then,
            Duration::from_micros(u64::try_from(heard.elapsed().as_micros()).unwrap_or(u64::MAX)),
        )
    }
}
