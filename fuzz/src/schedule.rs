//! Schedules: cron patterns, time zones and intervals. An input is a line for each: the pattern or
//! the number of milliseconds of an interval, the time zone, the moment after which it ticks, and
//! the jitter in milliseconds.

use std::time::Duration;

use stepwell::testing::Harness;
use stepwell::{Schedule, ScheduleInfo, Timestamp};

use crate::{in_virtual_time, said};

pub(crate) fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let mut next = || lines.next().unwrap_or_default();
    let (pattern, zone, after, jitter) = (next(), next(), next(), next());
    let Ok(after) = after.parse::<Timestamp>() else { return };
    let schedule = match pattern.parse() {
        Ok(millis) => Schedule::every("fuzz", Duration::from_millis(millis)),
        Err(_) => Schedule::cron("fuzz", pattern).time_zone(zone),
    };
    let schedule = schedule.jitter(Duration::from_millis(jitter.parse().unwrap_or(0)));
    match schedule.ticks(after) {
        Ok(ticks) => {
            let ticks: Vec<_> = ticks.take(4).collect();
            let mut before = after;
            for tick in &ticks {
                assert!(before < *tick, "{tick} comes after {before}");
                before = *tick;
            }
            is_the_same_from_anywhere(&schedule, after, &ticks, pattern);
        }
        Err(error) => _ = said(error, text.len()),
    }
    in_virtual_time(is_kept(schedule, text.len()));
}

/// A cron pattern ticks at its times, whenever it is asked.
fn is_the_same_from_anywhere(
    schedule: &Schedule,
    after: Timestamp,
    ticks: &[Timestamp],
    pattern: &str,
) {
    let Some(first) = ticks.first().filter(|_| pattern.parse::<u64>().is_err()) else { return };
    let between = after.as_microsecond().midpoint(first.as_microsecond());
    let just_before = first.as_microsecond() - 1;
    for from in [between, just_before].map(stepwell::store::from_micros) {
        if from >= after && from < *first {
            let found = schedule.ticks(from).unwrap().next();
            assert_eq!(found, Some(*first), "after {from}, in place of after {after}");
        }
    }
}

async fn is_kept(schedule: Schedule, input: usize) {
    let process = Harness::new().start().await;
    let put = process.schedules().put_named(schedule, "type", &()).await;
    if let Err(error) = put {
        said(error, input);
        return assert_eq!(process.schedules().list().await.unwrap(), []);
    }
    let kept = process.schedules().get("fuzz").await.unwrap().unwrap();
    let json = serde_json::to_string(&kept).unwrap();
    assert_eq!(serde_json::from_str::<ScheduleInfo>(&json).unwrap(), kept);
    assert!(kept.next_tick <= kept.next_at);
}
