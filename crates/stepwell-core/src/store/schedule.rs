//! Schedules: rules by which tasks are spawned.
//!
//! A schedule ticks at the times of a cron pattern, or at an interval. Each tick spawns one task,
//! however many workers there are, and however many of them die meanwhile. The workers of every
//! client handle the schedules of its store.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::ids::TaskId;
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::time::Timestamp;
use crate::store::spawn_options::{SpawnOptions, Start};
use crate::store::ticks::Ticks;
use crate::store::timing::{InvalidSchedule, Timing};

/// A schedule: the times of its ticks, and the policies for them.
///
/// The call that [puts the schedule into the store](crate::Schedules::put) names the tasks
/// that it spawns.
///
/// ```
/// use std::time::Duration;
/// use stepwell_core::{CatchUp, Overlap, Schedule, SpawnOptions};
///
/// let nightly = Schedule::cron("nightly report", "0 2 * * *")
///     .time_zone("Europe/Berlin")
///     .catch_up(CatchUp::All)
///     .options(SpawnOptions::new().queue("reports"));
/// let poll = Schedule::every("poll", Duration::from_secs(30))
///     .overlap(Overlap::Skip)
///     .jitter(Duration::from_secs(5));
/// ```
///
/// # Cron patterns
///
/// A pattern has five fields: minute, hour, day of the month, month, and day of the week. For the
/// day of the week, 0 and 7 are Sunday, and names such as `MON-FRI` are allowed. A sixth field,
/// before these, is the second, and a seventh field, after them, is the year.
///
/// `*`, `1-5`, `*/15` and `1,15` have their usual meaning. `L` is the last day of the month, `15W`
/// the working day nearest to the 15th, `5#2` the second Friday, and `5#L` the last Friday.
/// `@hourly`, `@daily`, `@weekly`, `@monthly` and `@yearly` are allowed as well. When a pattern has
/// both the day of the month and the day of the week, one match is enough. With a `+` before the
/// day of the week, both must match.
///
/// # When clocks are set forward and back
///
/// A pattern follows the wall clock of its [time zone](Self::time_zone). The pattern decides what
/// happens in an hour that is left out, or that comes twice:
///
/// | pattern | in an hour that is left out | in an hour that comes twice |
/// | --- | --- | --- |
/// | second, minute and hour are one value each: `30 2 * * *` | ticks at the first moment after it | ticks the first time |
/// | all others: `*/30 * * * *`, `30 1-4 * * *` | has no ticks in it | ticks both times |
///
/// In Berlin, `30 2 * * *` ticks at 03:00 on 29 March 2026, and at 02:30 summer time on 25 October.
/// An interval follows the time that passes, and such hours do not change it.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub(crate) name: String,
    pub(crate) timing: Timing,
    pub(crate) jitter: Duration,
    pub(crate) catch_up: CatchUp,
    pub(crate) overlap: Overlap,
    pub(crate) options: SpawnOptions,
}

impl Schedule {
    fn new(name: impl Into<String>, timing: Timing) -> Self {
        Self {
            name: name.into(),
            timing,
            jitter: Duration::ZERO,
            catch_up: CatchUp::default(),
            overlap: Overlap::default(),
            options: SpawnOptions::new(),
        }
    }

    /// Returns a schedule that ticks at the times of a cron pattern, in UTC unless a [time
    /// zone](Self::time_zone) is set.
    pub fn cron(name: impl Into<String>, pattern: impl Into<String>) -> Self {
        Self::new(name, Timing::Cron { pattern: pattern.into(), time_zone: "UTC".into() })
    }

    /// Returns a schedule that ticks at this interval, which is at least a second.
    ///
    /// The first tick is one interval after the schedule was put into the store. Ticks do not
    /// drift, however late a worker sees one of them.
    pub fn every(name: impl Into<String>, interval: Duration) -> Self {
        Self::new(name, Timing::Every { interval })
    }

    /// Sets the time zone of a cron pattern, by its IANA name: `Europe/Berlin`.
    ///
    /// The name is looked up in the machine's own time zone database. Default: `UTC`. An interval
    /// has no time zone.
    pub fn time_zone(mut self, name: impl Into<String>) -> Self {
        if let Timing::Cron { time_zone, .. } = &mut self.timing {
            *time_zone = name.into();
        }
        self
    }

    /// Sets the policy for ticks that no worker was there for; default: [`CatchUp::One`].
    pub fn catch_up(mut self, catch_up: CatchUp) -> Self {
        self.catch_up = catch_up;
        self
    }

    /// Sets the policy for a tick when the task of the tick before has not ended; default:
    /// [`Overlap::Allow`].
    pub fn overlap(mut self, overlap: Overlap) -> Self {
        self.overlap = overlap;
        self
    }

    /// Delays each tick by up to this time, and never up to the next tick, so that many schedules
    /// of one pattern do not all start at once.
    ///
    /// The delay depends only on the schedule's name and the tick. Default: no delay.
    pub fn jitter(mut self, jitter: Duration) -> Self {
        self.jitter = jitter;
        self
    }

    /// Sets the options with which the schedule spawns its tasks.
    ///
    /// An idempotency key or a fixed start time is refused, because the schedule could spawn only
    /// once. Options that [coalesce](SpawnOptions::coalesced) are refused as well.
    pub fn options(mut self, options: SpawnOptions) -> Self {
        self.options = options;
        self
    }

    /// Returns the ticks after a moment, without their jitter.
    ///
    /// ```
    /// use stepwell_core::{Schedule, Timestamp};
    ///
    /// let nightly = Schedule::cron("nightly report", "30 2 * * *").time_zone("Europe/Berlin");
    /// let begin: Timestamp = "2026-03-27T12:00:00Z".parse()?;
    /// let ticks: Vec<_> = nightly.ticks(begin)?.take(3).map(|tick| tick.to_string()).collect();
    /// // Clocks are set forward on the 29th: there is no 02:30, and 03:00 comes instead.
    /// assert_eq!(ticks, ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`InvalidSchedule`] when it has no valid ticks.
    pub fn ticks(
        &self,
        after: Timestamp,
    ) -> Result<impl Iterator<Item = Timestamp>, InvalidSchedule> {
        let ticks = Ticks::new(&self.timing, self.jitter, &self.name)?;
        let mut last = Some(after);
        Ok(std::iter::from_fn(move || {
            last = ticks.after(last?);
            last
        }))
    }

    /// Checks the schedule, and returns it as it is put into the store at that moment, for tasks of
    /// that type.
    pub(crate) fn check(
        self,
        now: Timestamp,
        task_type: Name,
        params: Payload,
    ) -> Result<ScheduleInfo, InvalidSchedule> {
        let name = Name::new(&self.name)?;
        if self.options.idempotency_key.is_some() || matches!(self.options.start, Start::At(_)) {
            return Err(InvalidSchedule::Once);
        }
        if self.options.coalesce.is_some() {
            return Err(InvalidSchedule::Coalesced);
        }
        // Errors in the options are found now, and not at each tick.
        self.options.check()?;
        let SpawnOptions { queue, concurrency_key, code_version, .. } = &self.options;
        for name in [queue, concurrency_key, code_version].into_iter().flatten() {
            Name::new(name)?;
        }
        let mut info = ScheduleInfo {
            name,
            timing: self.timing,
            jitter: self.jitter,
            catch_up: self.catch_up,
            overlap: self.overlap,
            task_type,
            params,
            options: self.options,
            paused: false,
            next_tick: None,
            next_at: None,
            last_tick: None,
            last_task: None,
        };
        info.go_on_after(now)?;
        match (&info.timing, info.next_tick) {
            (Timing::Cron { pattern, .. }, None) => Err(InvalidSchedule::Never(pattern.clone())),
            _ => Ok(info),
        }
    }
}

/// The policy for ticks that were missed, because no worker was alive.
///
/// A paused schedule has no ticks to miss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CatchUp {
    /// Missed ticks are left out; a tick is missed when no worker has come to it within a minute,
    /// or before the next tick.
    Skip,
    /// One task is spawned for all missed ticks: the task of the last one.
    #[default]
    One,
    /// A task is spawned for each missed tick.
    ///
    /// With [`Overlap::Skip`] these tasks would overlap, and the policy works as [`CatchUp::One`].
    /// A [`concurrency_key`](crate::SpawnOptions::concurrency_key) makes the tasks run one after
    /// another instead.
    All,
}

/// The policy for a tick when the task that the schedule spawned before has not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// The tick spawns a task beside the other one.
    #[default]
    Allow,
    /// The tick is left out, so that no two tasks of the schedule exist at the same time.
    Skip,
}

/// A schedule as its store keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct ScheduleInfo {
    /// The name of the schedule.
    pub name: Name,
    /// The timing of the ticks.
    pub timing: Timing,
    /// The longest delay of a tick.
    pub jitter: Duration,
    /// The policy for missed ticks.
    pub catch_up: CatchUp,
    /// The policy for a tick when the task of the tick before has not ended.
    pub overlap: Overlap,
    /// The type of the tasks that the schedule spawns.
    pub task_type: Name,
    /// The parameters of the tasks.
    pub params: Payload,
    /// The options with which the tasks are spawned.
    ///
    /// The options come from the schedule; those that it does not set come from the client that put
    /// it into the store.
    pub options: SpawnOptions,
    /// `true` when the schedule is paused.
    pub paused: bool,
    /// The tick that comes next; `None` while the schedule is paused, and when there are no more
    /// ticks.
    pub next_tick: Option<Timestamp>,
    /// The time at which the next tick is due, which is the tick plus its jitter.
    pub next_at: Option<Timestamp>,
    /// The last tick that a worker came to, also when the tick spawned nothing.
    pub last_tick: Option<Timestamp>,
    /// The last task that the schedule spawned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_task: Option<TaskId>,
}

impl ScheduleInfo {
    pub(crate) fn ticks(&self) -> Result<Ticks, InvalidSchedule> {
        Ticks::new(&self.timing, self.jitter, self.name.as_str())
    }

    /// Resumes the schedule, whose next tick is the first one after this moment.
    pub(crate) fn go_on_after(&mut self, from: Timestamp) -> Result<(), InvalidSchedule> {
        let ticks = self.ticks()?;
        self.paused = false;
        self.wait_for(&ticks, ticks.after(from));
        Ok(())
    }

    pub(crate) fn wait_for(&mut self, ticks: &Ticks, next_tick: Option<Timestamp>) {
        self.next_tick = next_tick;
        self.next_at = next_tick.map(|tick| ticks.due(tick));
    }

    /// Returns this schedule in the place of an earlier one; it goes on at the earlier one's next
    /// tick when both tick at the same times.
    pub(crate) fn in_place_of(mut self, old: &Self) -> Self {
        if (&self.timing, self.jitter) == (&old.timing, old.jitter) {
            (self.next_tick, self.next_at) = (old.next_tick, old.next_at);
        }
        (self.last_tick, self.last_task) = (old.last_tick, old.last_task);
        if old.paused {
            self.pause();
        }
        self
    }

    pub(crate) fn pause(&mut self) {
        self.paused = true;
        (self.next_tick, self.next_at) = (None, None);
    }
}
