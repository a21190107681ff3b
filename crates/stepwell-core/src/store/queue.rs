//! Queues: what holds for all of a queue's tasks, on all workers together.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::name::Name;
use crate::base::time::{Timestamp, from_micros};

/// Limits that hold for a queue's tasks. By default there are none.
///
/// ```
/// # use std::time::Duration;
/// # use stepwell_core::{QueueLimits, RateLimit};
/// let gentle = QueueLimits {
///     max_running: Some(10),
///     rate: Some(RateLimit { starts: 100, per: Duration::from_secs(60) }),
///     ..QueueLimits::default()
/// };
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct QueueLimits {
    /// How many tasks run at the same time, on all workers together.
    pub max_running: Option<u32>,
    /// How many tasks run at the same time on one worker.
    pub max_running_per_worker: Option<u32>,
    /// How many attempts start in a time. A task that goes on after it was suspended starts none.
    pub rate: Option<RateLimit>,
}

/// How many attempts may start in a time: that many at once after a pause, and that many per `per`
/// in the long run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct RateLimit {
    /// How many.
    pub starts: u32,
    /// In how long.
    pub per: Duration,
}

/// What is to become of a queue. One that nobody knows yet is made by it.
#[derive(Clone, Debug)]
pub struct QueueChange {
    /// The queue.
    pub queue: Name,
    /// What to do.
    pub action: QueueAction,
}

/// What to do with a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueAction {
    /// No task of it is claimed any more. Those that run go on.
    Pause,
    /// Its tasks are claimed again.
    Resume,
    /// These limits hold from now on, in place of those before.
    Limit(QueueLimits),
}

/// What a store knows of a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct QueueInfo {
    /// Its name.
    pub queue: Name,
    /// Whether it is paused.
    pub paused: bool,
    /// Its limits.
    pub limits: QueueLimits,
    /// How many tasks wait to be claimed, or for their time to be.
    pub pending: u64,
    /// How many run.
    pub running: u64,
    /// How many are suspended.
    pub suspended: u64,
    /// The earliest moment from which on a pending task that is not paused could have been
    /// claimed, but for the queue's limits: how long ago that is, is how long the queue keeps
    /// tasks waiting. In the future when each waits for its time; `None` when there is none.
    pub ready_at: Option<Timestamp>,
}

impl QueueLimits {
    /// Whether nothing is limited.
    pub const fn are_none(&self) -> bool {
        self.max_running.is_none() && self.max_running_per_worker.is_none() && self.rate.is_none()
    }

    /// Whether a task that stops running makes room for another.
    pub const fn count_running(&self) -> bool {
        self.max_running.is_some() || self.max_running_per_worker.is_some()
    }
}

/// By how much more than it can be a moment may be ahead of the clock before that proves that the
/// clock was set back: the clocks by which processes go differ a little.
const CLOCKS_DIFFER: i64 = 60_000_000;

/// The rate is kept as one moment: the one up to which the starts so far have used up the time.
/// Each start takes an equal part of `per`, and they may be ahead of the clock by `per` at most.
impl RateLimit {
    /// The part of the time that a start takes, in microseconds.
    fn part(&self) -> i64 {
        let per = i64::try_from(self.per.as_micros()).unwrap_or(i64::MAX).max(1);
        (per / i64::from(self.starts.max(1))).max(1)
    }

    /// By how many microseconds what is used up is ahead of the clock. What is ahead by more than
    /// it can be was written before the clock was set back, and holds no longer.
    fn ahead(&self, now: Timestamp, used_until: Option<Timestamp>) -> i64 {
        let per = i64::try_from(self.per.as_micros()).unwrap_or(i64::MAX);
        let ahead =
            used_until.map_or(0, |used| used.as_microsecond().saturating_sub(now.as_microsecond()));
        if ahead > per.saturating_add(CLOCKS_DIFFER) { 0 } else { ahead.max(0) }
    }

    /// How many may start now.
    pub fn allowed(&self, now: Timestamp, used_until: Option<Timestamp>) -> usize {
        let per = i64::try_from(self.per.as_micros()).unwrap_or(i64::MAX);
        let parts = per.saturating_sub(self.ahead(now, used_until)).max(0) / self.part();
        usize::try_from(parts).unwrap_or(usize::MAX).min(self.starts as usize)
    }

    /// Up to when the time is used up after so many more starts.
    pub fn used_until(
        &self,
        now: Timestamp,
        used_until: Option<Timestamp>,
        starts: usize,
    ) -> Timestamp {
        let from = now.as_microsecond().saturating_add(self.ahead(now, used_until));
        let starts = i64::try_from(starts).unwrap_or(i64::MAX);
        from_micros(from.saturating_add(self.part().saturating_mul(starts)))
    }

    /// When the next one may start, once none may.
    pub fn next(&self, used_until: Timestamp) -> Timestamp {
        let per = i64::try_from(self.per.as_micros()).unwrap_or(i64::MAX);
        from_micros(used_until.as_microsecond().saturating_sub(per).saturating_add(self.part()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::time::after;

    #[test]
    fn a_rate_lets_so_many_start_at_once_and_then_one_after_another() {
        let rate = RateLimit { starts: 4, per: Duration::from_secs(2) };
        let now = from_micros(1_700_000_000_000_000);
        assert_eq!(rate.allowed(now, None), 4);
        let used = rate.used_until(now, None, 3);
        assert_eq!(rate.allowed(now, Some(used)), 1);
        let used = rate.used_until(now, Some(used), 1);
        assert_eq!(rate.allowed(now, Some(used)), 0);
        let next = rate.next(used);
        assert_eq!(next, after(now, Duration::from_millis(500)));
        assert_eq!(
            (
                rate.allowed(from_micros(next.as_microsecond() - 1), Some(used)),
                rate.allowed(next, Some(used))
            ),
            (0, 1)
        );
        assert_eq!(rate.allowed(after(now, Duration::from_secs(60)), Some(used)), 4);
    }

    #[test]
    fn a_clock_that_is_set_back_stops_nobody() {
        let rate = RateLimit { starts: 4, per: Duration::from_secs(2) };
        let now = from_micros(1_700_000_000_000_000);
        let used = rate.used_until(now, None, 4);
        let back = from_micros(now.as_microsecond() - 3_600_000_000);
        assert_eq!(rate.allowed(back, Some(used)), 4);
        let again = rate.used_until(back, Some(used), 4);
        assert_eq!(rate.allowed(back, Some(again)), 0);
        assert_eq!(rate.next(again), after(back, Duration::from_millis(500)));
        let little = from_micros(now.as_microsecond() - 1_000);
        assert_eq!(rate.allowed(little, Some(used)), 0, "another process's clock");
    }

    #[test]
    fn odd_rates_stop_nobody_for_good() {
        let now = from_micros(1_700_000_000_000_000);
        for rate in [
            RateLimit { starts: 0, per: Duration::from_secs(1) },
            RateLimit { starts: u32::MAX, per: Duration::ZERO },
            RateLimit { starts: 3, per: Duration::MAX },
        ] {
            let used = rate.used_until(now, None, 1);
            assert!(used >= now);
            let _ = (rate.allowed(now, Some(used)), rate.next(used));
        }
    }
}
