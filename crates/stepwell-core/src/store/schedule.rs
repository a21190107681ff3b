//! Schedules: what spawns tasks at set times.
//!
//! A schedule ticks: at the times of a cron pattern, or every so often. Each tick spawns one task,
//! whatever the number of workers, and however many of them die in the midst of it. The workers of
//! every client look after the schedules of its store.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::ids::TaskId;
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::time::Timestamp;
use crate::store::spawn_options::{SpawnOptions, Start};
use crate::store::ticks::Ticks;
use crate::store::timing::{InvalidSchedule, Timing};

/// When a schedule ticks, and what becomes of its ticks. The tasks that it spawns are named when it
/// is [put into the store](crate::Client::put_schedule).
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
/// Five fields: minute, hour, day of the month, month, day of the week (0 or 7 is Sunday, and names
/// such as `MON-FRI` will do). A sixth, before them, is the second, and a seventh, after them, the
/// year. `*`, `1-5`, `*/15`, `1,15` are as everywhere; `L` is the month's last day, `15W` the
/// working day nearest to the 15th, `5#2` the second Friday, `5#L` the last one. `@hourly`,
/// `@daily`, `@weekly`, `@monthly` and `@yearly` will do as well. Where both the day of the month
/// and that of the week are given, either is enough; with a `+` before the day of the week, both
/// must be right.
///
/// # When clocks are set forward and back
///
/// Patterns go by the clock on the wall of their [time zone](Self::time_zone). It depends on the
/// pattern what becomes of an hour that is left out, or comes twice:
///
/// | pattern | in an hour that is left out | in an hour that comes twice |
/// | --- | --- | --- |
/// | second, minute and hour are one value each: `30 2 * * *` | ticks at the first moment after it | ticks the first time |
/// | all others: `*/30 * * * *`, `30 1-4 * * *` | has no ticks in it | ticks both times |
///
/// In Berlin, `30 2 * * *` ticks at 03:00 on 29 March 2026, and at 02:30 summer time on 25 October.
/// Intervals go by the time that passes, and know nothing of this.
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

    /// Ticks at the times of a cron pattern, in UTC unless a [time zone](Self::time_zone) is set.
    pub fn cron(name: impl Into<String>, pattern: impl Into<String>) -> Self {
        Self::new(name, Timing::Cron { pattern: pattern.into(), time_zone: "UTC".into() })
    }

    /// Ticks every so often, a second at least; for the first time when that much time has passed
    /// since it was put into the store. Ticks do not drift, however late one of them is seen.
    pub fn every(name: impl Into<String>, interval: Duration) -> Self {
        Self::new(name, Timing::Every { interval })
    }

    /// The time zone of a cron pattern, by its IANA name: `Europe/Berlin`. It is looked up in the
    /// machine's own time zone database. Default: `UTC`. Intervals have none.
    pub fn time_zone(mut self, name: impl Into<String>) -> Self {
        if let Timing::Cron { time_zone, .. } = &mut self.timing {
            *time_zone = name.into();
        }
        self
    }

    /// What becomes of ticks that no worker was there for. Default: [`CatchUp::One`].
    pub fn catch_up(mut self, catch_up: CatchUp) -> Self {
        self.catch_up = catch_up;
        self
    }

    /// What becomes of a tick when the task of the one before has not ended. Default:
    /// [`Overlap::Allow`].
    pub fn overlap(mut self, overlap: Overlap) -> Self {
        self.overlap = overlap;
        self
    }

    /// Delays each tick by up to this long, and never up to the next tick, so that many schedules
    /// of one pattern do not all start at once. How long depends on the schedule's name and the
    /// tick alone. Default: not at all.
    pub fn jitter(mut self, jitter: Duration) -> Self {
        self.jitter = jitter;
        self
    }

    /// How its tasks are spawned. An idempotency key or a fixed start time would let it spawn only
    /// once, and is refused.
    pub fn options(mut self, options: SpawnOptions) -> Self {
        self.options = options;
        self
    }

    /// Its ticks after that moment, without their jitter.
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

    /// As it is put into the store at that moment, for tasks of that type.
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
        // What is wrong with the options is found now, and not at each tick.
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

/// What becomes of ticks that were missed, because no worker was alive. While a schedule is paused,
/// it has no ticks to miss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CatchUp {
    /// They are left out. A tick is missed when no worker has come to it within a minute, or before
    /// the next one.
    Skip,
    /// One task for all of them: that of the last one.
    #[default]
    One,
    /// A task for each of them. With [`Overlap::Skip`] they would overlap, and it is as
    /// [`CatchUp::One`]; to have them run one after another instead, set a
    /// [`concurrency_key`](crate::SpawnOptions::concurrency_key).
    All,
}

/// What becomes of a tick when the task that the schedule spawned before has not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// It spawns a task beside the other.
    #[default]
    Allow,
    /// It is left out. So no two tasks of the schedule are there at the same time.
    Skip,
}

/// A schedule as its store keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct ScheduleInfo {
    /// Its name.
    pub name: Name,
    /// When it ticks.
    pub timing: Timing,
    /// How long a tick may be delayed.
    pub jitter: Duration,
    /// What becomes of ticks that were missed.
    pub catch_up: CatchUp,
    /// What becomes of a tick when the task of the one before has not ended.
    pub overlap: Overlap,
    /// The type of the tasks that it spawns.
    pub task_type: Name,
    /// Their parameters.
    pub params: Payload,
    /// How they are spawned: as the schedule said, and where it said nothing, as the client was
    /// built that put it into the store.
    pub options: SpawnOptions,
    /// Whether it is paused.
    pub paused: bool,
    /// The tick that comes next; `None` while it is paused, and when there are no more.
    pub next_tick: Option<Timestamp>,
    /// When that is due: later by its jitter.
    pub next_at: Option<Timestamp>,
    /// The last tick that a worker came to, also when it spawned nothing.
    pub last_tick: Option<Timestamp>,
    /// The last task that it spawned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_task: Option<TaskId>,
}

impl ScheduleInfo {
    pub(crate) fn ticks(&self) -> Result<Ticks, InvalidSchedule> {
        Ticks::new(&self.timing, self.jitter, self.name.as_str())
    }

    /// Lets it tick from that moment on.
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

    /// As it becomes where that one was: it goes on where that one stood, when it ticks at the same
    /// times.
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
