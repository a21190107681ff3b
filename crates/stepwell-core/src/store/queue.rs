//! Queues: the settings that hold for all tasks of a queue, on all workers together.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::name::Name;
use crate::base::time::{Timestamp, from_micros, micros};

/// The limits of a queue's tasks; by default there are none.
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
    /// The maximum number of tasks that run at the same time, on all workers together; `None` for
    /// no limit.
    pub max_running: Option<u32>,
    /// The maximum number of tasks that run at the same time on one worker; `None` for no limit.
    pub max_running_per_worker: Option<u32>,
    /// The rate at which attempts start; a task that goes on after it was suspended starts no
    /// attempt.
    pub rate: Option<RateLimit>,
}

/// A limit to the number of attempts that start in a time.
///
/// Up to `starts` attempts start at once after a pause, and `starts` per `per` in the long run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct RateLimit {
    /// The number of starts.
    pub starts: u32,
    /// The time for this number of starts.
    pub per: Duration,
}

/// A change of a queue, which makes the queue if it does not exist.
#[derive(Clone, Debug)]
pub struct QueueChange {
    /// The queue.
    pub queue: Name,
    /// The change.
    pub action: QueueAction,
}

/// The kind of change of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueAction {
    /// Workers claim no task of the queue any more; running tasks go on.
    Pause,
    /// Workers claim tasks of the queue again.
    Resume,
    /// The given limits replace the earlier ones from now on.
    Limit(QueueLimits),
}

/// The data that a store returns of a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct QueueInfo {
    /// The name of the queue.
    pub queue: Name,
    /// `true` when the queue is paused.
    pub paused: bool,
    /// The limits of the queue.
    pub limits: QueueLimits,
    /// The number of tasks that wait to be claimed, at once or at a later time.
    pub pending: u64,
    /// The number of tasks that run.
    pub running: u64,
    /// The number of tasks that are suspended.
    pub suspended: u64,
    /// The earliest moment from which a pending task of the queue could have been claimed, apart
    /// from the queue's limits.
    ///
    /// Paused tasks, and tasks whose turn by their concurrency key has not come, do not count. The
    /// time that has passed since this moment is the time for which the queue keeps tasks waiting.
    /// The moment is in the future when each task waits for its time, and `None` when there is no
    /// such task.
    pub ready_at: Option<Timestamp>,
}

impl QueueLimits {
    /// Returns whether nothing is limited.
    pub const fn are_none(&self) -> bool {
        self.max_running.is_none() && self.max_running_per_worker.is_none() && self.rate.is_none()
    }

    /// Returns whether a task that stops running makes room for another.
    pub const fn count_running(&self) -> bool {
        self.max_running.is_some() || self.max_running_per_worker.is_some()
    }
}

/// The difference between the clocks of two processes, in microseconds, up to which a moment does
/// not prove that a clock was set back.
const CLOCKS_DIFFER: i64 = 60_000_000;

/// The arithmetic of the rate, whose state is one moment: the starts so far have used up the time
/// until then.
///
/// Each start takes an equal part of `per`. Invariant: the moment is ahead of the clock by `per` at
/// most.
impl RateLimit {
    /// Returns the part of the time that a start takes, in microseconds.
    fn part(&self) -> i64 {
        let per = micros(self.per).max(1);
        (per / i64::from(self.starts.max(1))).max(1)
    }

    /// Returns the number of microseconds by which the used time is ahead of the clock.
    ///
    /// A moment that is further ahead than possible was written before the clock was set back, and
    /// counts no longer.
    fn ahead(&self, now: Timestamp, used_until: Option<Timestamp>) -> i64 {
        let per = micros(self.per);
        let ahead =
            used_until.map_or(0, |used| used.as_microsecond().saturating_sub(now.as_microsecond()));
        if ahead > per.saturating_add(CLOCKS_DIFFER) { 0 } else { ahead.max(0) }
    }

    /// Returns the number of attempts that may start now.
    pub fn allowed(&self, now: Timestamp, used_until: Option<Timestamp>) -> usize {
        let per = micros(self.per);
        let parts = per.saturating_sub(self.ahead(now, used_until)).max(0) / self.part();
        // The number of starts is the lower limit, and fits.
        usize::try_from(parts).unwrap_or(usize::MAX).min(self.starts as usize)
    }

    /// Returns the moment up to which the time is used up after `starts` more starts.
    pub fn used_until(
        &self,
        now: Timestamp,
        used_until: Option<Timestamp>,
        starts: usize,
    ) -> Timestamp {
        let from = now.as_microsecond().saturating_add(self.ahead(now, used_until));
        // A limit: so many starts use up the time beyond the calendar.
        let starts = i64::try_from(starts).unwrap_or(i64::MAX);
        from_micros(from.saturating_add(self.part().saturating_mul(starts)))
    }

    /// Returns the time at which the next attempt may start, when none may start now.
    pub fn next(&self, used_until: Timestamp) -> Timestamp {
        let per = micros(self.per);
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
