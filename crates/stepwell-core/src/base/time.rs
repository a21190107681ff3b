//! Time, as stores keep it: UTC, to the microsecond.

use std::time::Duration;

/// A moment in UTC; stores keep microseconds, and [`Runtime::now`](crate::Runtime::now) returns no
/// finer moments.
pub type Timestamp = jiff::Timestamp;

/// Returns `from` plus `duration`.
///
/// A moment beyond the calendar (the year 9999) becomes the last moment of the calendar, so that a
/// sleep of a thousand centuries is long and no error.
pub fn after(from: Timestamp, duration: Duration) -> Timestamp {
    from_micros(from.as_microsecond().saturating_add(micros(duration)))
}

/// Returns a duration in microseconds.
///
/// A duration of more than 292,000 years becomes that long. Every time plus such a duration is
/// beyond the calendar in any case, so the number is not another one than was meant.
pub(crate) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// Returns the moment this many microseconds after 1970, held within the calendar.
pub fn from_micros(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or(if micros < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    })
}

/// Returns the time from `now` to `then`; zero when `then` has passed.
pub fn until(now: Timestamp, then: Timestamp) -> Duration {
    Duration::from_micros(
        u64::try_from(then.as_microsecond().saturating_sub(now.as_microsecond())).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_that_no_number_holds_is_as_long_as_the_calendar() {
        assert_eq!(micros(Duration::from_secs(3)), 3_000_000);
        assert_eq!(micros(Duration::MAX), i64::MAX);
        assert_eq!(after(Timestamp::MIN, Duration::MAX), Timestamp::MAX);
    }

    #[test]
    fn times_beyond_the_calendar_are_held_within_it() {
        let now = from_micros(1_700_000_000_000_000);
        assert_eq!(after(now, Duration::MAX), Timestamp::MAX);
        assert_eq!(from_micros(i64::MIN), Timestamp::MIN);
        assert_eq!(until(now, Timestamp::MIN), Duration::ZERO);
        assert_eq!(until(now, after(now, Duration::from_secs(5))), Duration::from_secs(5));
    }
}
