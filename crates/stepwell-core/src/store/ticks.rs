//! The ticks of a schedule: cron patterns in their time zones, intervals, and the delay of each
//! tick.
//!
//! Invariant: ticks are a function of the schedule alone, and the same on every machine.

use std::time::Duration;

use croner::Cron;
use jiff::Zoned;
use jiff::tz::TimeZone;

use crate::base::time::{Timestamp, after, from_micros, micros, until};
use crate::store::timing::InvalidSchedule;
use crate::store::timing::Timing;

/// The shortest interval, which is also the shortest time between two ticks of a cron pattern.
const SHORTEST: Duration = Duration::from_secs(1);

/// The ticks of a schedule.
pub(crate) struct Ticks {
    rule: Rule,
    jitter: Duration,
    /// A number from the schedule's name, which delays schedules of the same pattern differently.
    seed: u64,
}

enum Rule {
    Cron { cron: Box<Cron>, zone: TimeZone },
    Every(i64),
}

impl Ticks {
    pub(crate) fn new(
        timing: &Timing,
        jitter: Duration,
        name: &str,
    ) -> Result<Self, InvalidSchedule> {
        let rule = match timing {
            Timing::Cron { pattern, time_zone } => {
                let cron: Cron = pattern.parse().map_err(|error: croner::errors::CronError| {
                    InvalidSchedule::Pattern { pattern: pattern.clone(), reason: error.to_string() }
                })?;
                Rule::Cron { cron: Box::new(cron), zone: zone(time_zone)? }
            }
            Timing::Every { interval } if *interval < SHORTEST => {
                return Err(InvalidSchedule::Interval(*interval));
            }
            Timing::Every { interval } => Rule::Every(micros(*interval)),
        };
        Ok(Self {
            rule,
            jitter,
            seed: mix(name.bytes().fold(0, |seed, byte| mix(seed ^ u64::from(byte)))),
        })
    }

    /// Returns the first tick after that tick or moment, from which an interval is counted; `None`
    /// when there are no more ticks.
    pub(crate) fn after(&self, from: Timestamp) -> Option<Timestamp> {
        let next = match &self.rule {
            Rule::Cron { cron, zone } => {
                cron.find_next_occurrence(&in_zone(from, zone), false).ok()?.timestamp()
            }
            Rule::Every(interval) => from_micros(from.as_microsecond().saturating_add(*interval)),
        };
        // The calendar ends.
        (next > from).then_some(next)
    }

    /// Returns the last tick that is not after `now`, of `first` and the ticks that follow it; at
    /// least `first`.
    fn last(&self, first: Timestamp, now: Timestamp) -> Timestamp {
        let last = match &self.rule {
            Rule::Cron { cron, zone } => {
                let last = cron.find_previous_occurrence(&in_zone(now, zone), true);
                last.map_or(first, |last| last.timestamp())
            }
            Rule::Every(interval) => {
                let passed = now.as_microsecond().saturating_sub(first.as_microsecond());
                from_micros(first.as_microsecond() + passed.max(0) / interval * interval)
            }
        };
        last.max(first)
    }

    /// Returns the time at which a tick is due: the tick plus its jitter, and never as late as the
    /// next tick, so that ticks keep their order.
    pub(crate) fn due(&self, tick: Timestamp) -> Timestamp {
        if self.jitter.is_zero() {
            return tick;
        }
        let gap = self.after(tick).map_or(Duration::MAX, |next| until(tick, next));
        // A limit: the jitter ends before the next tick.
        let longest = u64::try_from(self.jitter.min(gap).as_micros()).unwrap_or(u64::MAX);
        let drawn = mix(self.seed ^ tick.as_microsecond().unsigned_abs());
        after(tick, Duration::from_micros(drawn % longest.max(1)))
    }

    /// Returns the last tick that is due, of `first` and those that follow it; `None` when `first`
    /// is not due.
    pub(crate) fn last_due(&self, first: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let last = self.last(first, now);
        if self.due(last) <= now {
            return Some(last);
        }
        // The tick before is due by then, because no tick is delayed as far as the next one.
        let before = from_micros(last.as_microsecond() - 1);
        (last > first).then(|| self.last(first, before))
    }
}

/// Returns the whole second of a moment, in which patterns tick.
///
/// In an hour that comes twice, the search takes a part of a second for the next second.
fn in_zone(moment: Timestamp, zone: &TimeZone) -> Zoned {
    let second = from_micros(moment.as_microsecond().div_euclid(1_000_000) * 1_000_000);
    Zoned::new(second, zone.clone())
}

fn zone(name: &str) -> Result<TimeZone, InvalidSchedule> {
    // UTC also works on a machine without time zones.
    if name == "UTC" {
        return Ok(TimeZone::UTC);
    }
    TimeZone::get(name).map_err(|_| InvalidSchedule::TimeZone {
        time_zone: name.to_owned(),
        advice: if jiff::tz::db().is_definitively_empty() {
            "this machine has no time zones: install its `tzdata` package, or set TZDIR to where \
             they are"
        } else {
            "use a name of the IANA time zone database, such as `Europe/Berlin` or `UTC`"
        },
    })
}

/// Returns the number mixed by SplitMix64, so that every bit of the result depends on every bit of
/// the number.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends by a panic")]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn cron(pattern: &str, time_zone: &str) -> Result<Ticks, InvalidSchedule> {
        let timing = Timing::Cron { pattern: pattern.into(), time_zone: time_zone.into() };
        Ticks::new(&timing, Duration::ZERO, "name")
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// Returns the ticks between two moments, as the wall clock in Berlin shows them.
    fn in_berlin(pattern: &str, from: &str, to: &str) -> Vec<String> {
        let ticks = cron(pattern, "Europe/Berlin").unwrap();
        let all = std::iter::successors(ticks.after(after(at(from), Duration::ZERO)), |tick| {
            ticks.after(*tick)
        });
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        all.take_while(|tick| *tick < at(to))
            .map(|tick| Zoned::new(tick, zone.clone()).strftime("%d %H:%M %:z").to_string())
            .collect()
    }

    #[test]
    fn an_hour_that_is_left_out_moves_ticks_of_one_time_and_skips_those_of_wildcards() {
        let night =
            |pattern| in_berlin(pattern, "2026-03-28T23:59:59+01:00", "2026-03-29T05:00:00+02:00");
        assert_eq!(night("30 2 * * *"), ["29 03:00 +02:00"]);
        assert_eq!(night("0 3 * * *"), ["29 03:00 +02:00"]);
        assert_eq!(night("30 1 * * *"), ["29 01:30 +01:00"], "the hour before is not concerned");
        assert_eq!(
            night("30 * * * *"),
            ["29 00:30 +01:00", "29 01:30 +01:00", "29 03:30 +02:00", "29 04:30 +02:00"]
        );
        assert_eq!(
            night("*/30 2-3 * * *"),
            ["29 03:00 +02:00", "29 03:30 +02:00"],
            "its own, and none that was moved"
        );
        assert_eq!(night("30 2,4 * * *"), ["29 04:30 +02:00"], "two times are not one");
        let days =
            in_berlin("30 2 * * *", "2026-03-27T12:00:00+01:00", "2026-03-31T12:00:00+02:00");
        assert_eq!(
            days,
            ["28 02:30 +01:00", "29 03:00 +02:00", "30 02:30 +02:00", "31 02:30 +02:00"]
        );
    }

    #[test]
    fn an_hour_that_comes_twice_has_ticks_of_one_time_once_and_those_of_wildcards_twice() {
        let night =
            |pattern| in_berlin(pattern, "2026-10-25T01:00:00+02:00", "2026-10-25T04:00:00+01:00");
        assert_eq!(night("30 2 * * *"), ["25 02:30 +02:00"]);
        assert_eq!(night("0 2 * * *"), ["25 02:00 +02:00"]);
        assert_eq!(night("0 3 * * *"), ["25 03:00 +01:00"]);
        assert_eq!(
            night("30 * * * *"),
            ["25 01:30 +02:00", "25 02:30 +02:00", "25 02:30 +01:00", "25 03:30 +01:00"]
        );
        assert_eq!(
            night("*/30 2 * * *"),
            ["25 02:00 +02:00", "25 02:30 +02:00", "25 02:00 +01:00", "25 02:30 +01:00"]
        );
        let days =
            in_berlin("30 2 * * *", "2026-10-24T12:00:00+02:00", "2026-10-27T12:00:00+01:00");
        assert_eq!(days, ["25 02:30 +02:00", "26 02:30 +01:00", "27 02:30 +01:00"]);
    }

    /// The last tick before a moment is found backwards, and must be the one that is found
    /// forwards.
    #[test]
    fn the_last_tick_is_one_of_those_that_follow_the_first_in_every_zone_and_season() {
        let zones = [
            "UTC",
            "Europe/Berlin",
            "America/New_York",
            "Australia/Lord_Howe",
            "Africa/Casablanca",
        ];
        let patterns = [
            "30 2 * * *",
            "*/20 * * * *",
            "0 1-3 * * *",
            "0 0 * * MON",
            "15 30 2 * * *",
            "0 12 L * *",
            "45 1 * * *",
        ];
        let mut random = 7;
        for zone in zones {
            for pattern in patterns {
                let ticks = cron(pattern, zone).unwrap();
                for begin in
                    ["2026-03-05T00:00:00Z", "2026-03-26T00:00:00Z", "2026-10-22T00:00:00Z"]
                {
                    let first = ticks.after(at(begin)).unwrap();
                    let until = |days: u32| after(at(begin), 24 * days * HOUR);
                    let all: Vec<_> = std::iter::successors(Some(first), |tick| ticks.after(*tick))
                        .take_while(|tick| *tick <= until(80))
                        .collect();
                    assert!(all.is_sorted_by(|a, b| a < b), "{pattern} in {zone}");
                    let tried = all.partition_point(|tick| *tick <= until(40));
                    for _ in 0..30 {
                        random = mix(random);
                        let tick = all[random as usize % tried];
                        for now in
                            [-1_000_001, -1_000_000, -1, 0, 1, 999_999, 1_000_000, 1_800_000_001]
                        {
                            let now = from_micros(tick.as_microsecond() + now);
                            let forwards =
                                all.iter().rev().find(|tick| **tick <= now).unwrap_or(&first);
                            assert_eq!(
                                ticks.last(first, now),
                                *forwards,
                                "{pattern} in {zone} at {now}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn intervals_keep_their_beat() {
        let ticks =
            Ticks::new(&Timing::Every { interval: 7 * HOUR }, Duration::ZERO, "name").unwrap();
        let first = at("2026-03-29T00:00:00.000123Z");
        let second = ticks.after(first).unwrap();
        assert_eq!(second, after(first, 7 * HOUR));
        for (now, last) in [
            (after(first, HOUR), first),
            (from_micros(second.as_microsecond() - 1), first),
            (second, second),
            (after(first, 1000 * HOUR), after(first, 994 * HOUR)),
        ] {
            assert_eq!(ticks.last_due(first, now), Some(last));
        }
        assert_eq!(ticks.last_due(second, first), None);
        let rare =
            Ticks::new(&Timing::Every { interval: Duration::MAX }, Duration::ZERO, "name").unwrap();
        assert_eq!(rare.after(first).and_then(|tick| rare.after(tick)), None, "the calendar ends");
    }

    #[test]
    fn jitter_delays_each_tick_by_itself_and_never_up_to_the_next() {
        let timing = Timing::Cron { pattern: "*/5 * * * *".into(), time_zone: "UTC".into() };
        let ticks = |jitter, name| Ticks::new(&timing, jitter, name).unwrap();
        let (short, long) = (ticks(HOUR / 60, "a"), ticks(HOUR, "a"));
        let all: Vec<_> = std::iter::successors(short.after(at("2026-01-01T00:00:00Z")), |tick| {
            short.after(*tick)
        })
        .take(1_000)
        .collect();
        let mut delays: Vec<_> = all.iter().map(|tick| until(*tick, short.due(*tick))).collect();
        delays.sort_unstable();
        assert!(
            delays[10] < HOUR / 600 && delays[989] > HOUR * 9 / 600 && delays[999] < HOUR / 60,
            "spread evenly"
        );
        for pair in all.windows(2) {
            assert!(long.due(pair[0]) >= pair[0] && long.due(pair[0]) < pair[1]);
            let just = long.due(pair[1]);
            let before = from_micros(just.as_microsecond() - 1);
            assert_eq!(long.last_due(all[0], just), Some(pair[1]));
            assert_eq!(long.last_due(all[0], before), Some(pair[0]));
            assert_eq!(long.last_due(pair[1], before), None);
        }
        // The delay is the same on every machine, and in every version.
        assert_eq!(
            short.due(all[0]),
            at("2026-01-01T00:05:00Z") + jiff::SignedDuration::from_micros(JITTER)
        );
        assert_ne!(short.due(all[0]), ticks(HOUR / 60, "b").due(all[0]));
    }

    /// The delay of the tick at 00:05 on 1 January 2026, of the schedule "a", with a minute of
    /// jitter.
    const JITTER: i64 = 43_655_231;

    #[test]
    fn what_is_no_schedule_is_refused_with_a_reason() {
        let refused = |pattern: &str, zone: &str| {
            cron(pattern, zone).err().map(|error| error.to_string()).unwrap()
        };
        for pattern in [
            "",
            "* * * *",
            "61 * * * *",
            "* * * * * * * *",
            "a b c d e",
            "*/0 * * * *",
            "5-1 * * * *",
        ] {
            let error = refused(pattern, "UTC");
            assert!(
                error.contains("is no cron pattern") && error.contains("`0 2 * * *`"),
                "{error}"
            );
        }
        let error = refused("* * * * *", "Mars/Olympus");
        assert!(error.contains("\"Mars/Olympus\" is unknown: use a name of the IANA"), "{error}");
        assert!(cron("0 0 30 2 *", "UTC").unwrap().after(at("2026-01-01T00:00:00Z")).is_none());
    }

    #[test]
    fn no_text_makes_the_parser_panic() {
        let parts = [
            "*",
            "/",
            "-",
            ",",
            "L",
            "W",
            "#",
            "5",
            "0",
            "99999999999",
            " ",
            "é",
            "ß",
            "@",
            "MON",
            "JAN",
            "+",
            "?",
        ];
        let mut random = 1;
        for _ in 0..20_000 {
            let mut pattern = String::new();
            for _ in 0..random % 14 {
                random = mix(random);
                pattern += parts[random as usize % parts.len()];
            }
            random = mix(random);
            if let Ok(ticks) = cron(&pattern, "UTC") {
                ticks.after(at("2026-01-01T00:00:00Z"));
            }
        }
    }
}
