//! Faults of a simulated world, as data. A seed decides them, a replay repeats them, and a failing
//! case is made smaller by removing them.

use std::fmt;
use std::time::Duration;

use super::dice::Dice;

/// A fault of a simulated world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process dies as by `kill -9`, and another process takes its place after a while.
    Crash {
        /// The number of the process, from 0.
        process: usize,
        /// The time until another process takes its place.
        down: Duration,
    },
    /// The process stops, and later continues as if no time had passed.
    Freeze {
        /// The number of the process, from 0.
        process: usize,
        /// The time for which the process stops.
        time: Duration,
    },
    /// The process cannot use the store.
    Outage {
        /// The number of the process, from 0; `None` for all processes.
        process: Option<usize>,
        /// The time that the outage lasts.
        time: Duration,
        /// The kind of outage.
        how: Outage,
    },
    /// The store's clock is set forward or back.
    Jump {
        /// The change of the clock in microseconds, negative for a jump back.
        micros: i64,
    },
}

/// A kind of outage of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// The store refuses every call.
    Refuses,
    /// A call reaches the store when the outage is over.
    Hangs,
    /// The store executes a call at once, and its answer arrives when the outage is over.
    LosesAnswers,
}

impl Fault {
    /// Returns the name of the fault's kind.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Crash { .. } => "crash",
            Self::Freeze { .. } => "freeze",
            Self::Outage { how: Outage::Refuses, .. } => "outage (refuses)",
            Self::Outage { how: Outage::Hangs, .. } => "outage (hangs)",
            Self::Outage { how: Outage::LosesAnswers, .. } => "outage (loses answers)",
            Self::Jump { micros: 0.. } => "jump forward",
            Self::Jump { .. } => "jump back",
        }
    }

    /// Returns how long the fault lasts: zero for a jump.
    pub const fn lasts(&self) -> Duration {
        match self {
            Self::Crash { down: time, .. }
            | Self::Freeze { time, .. }
            | Self::Outage { time, .. } => *time,
            Self::Jump { .. } => Duration::ZERO,
        }
    }

    /// Draws a fault for a world with `processes` processes. `pause` is an ordinary pause, such as
    /// the workers' lease. Most faults last at most twice that time, and few last up to a hundred
    /// times.
    pub fn draw(dice: &Dice, processes: usize, pause: Duration) -> Self {
        let process = usize::try_from(dice.roll(processes as u64)).unwrap_or(0);
        let time = Self::time(dice, pause);
        match dice.roll(10) {
            0..3 => Self::Crash { process, down: time },
            3..5 => Self::Freeze { process, time },
            5..8 => Self::Outage {
                process: (!dice.one_in(3)).then_some(process),
                time,
                how: match dice.roll(3) {
                    0 => Outage::Refuses,
                    1 => Outage::Hangs,
                    _ => Outage::LosesAnswers,
                },
            },
            _ => {
                let micros = i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
                Self::Jump { micros: if dice.one_in(2) { micros } else { -micros } }
            }
        }
    }

    /// Draws a time from a tenth of `pause` to a hundred times `pause`; long times are rare.
    pub fn time(dice: &Dice, pause: Duration) -> Duration {
        let tenths = match dice.roll(60) {
            0 => 100 + dice.roll(900),
            1..10 => 10 + dice.roll(90),
            _ => 1 + dice.roll(20),
        };
        pause / 10 * u32::try_from(tenths).unwrap_or(1)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crash { process, down } => {
                write!(f, "process {process} dies, and is back after {down:?}")
            }
            Self::Freeze { process, time } => {
                write!(f, "process {process} stands still for {time:?}")
            }
            Self::Outage { process, time, how } => {
                match process {
                    Some(process) => write!(f, "for process {process}")?,
                    None => f.write_str("for all")?,
                }
                let how = match how {
                    Outage::Refuses => "refuses everything",
                    Outage::Hangs => "does not answer",
                    Outage::LosesAnswers => "does what it is asked and does not answer",
                };
                write!(f, " the store {how}, for {time:?}")
            }
            Self::Jump { micros } => {
                let time = Duration::from_micros(micros.unsigned_abs());
                write!(
                    f,
                    "the store's clock is set {} by {time:?}",
                    if *micros < 0 { "back" } else { "forward" }
                )
            }
        }
    }
}

/// A fault and its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The time from the beginning of the world to the fault.
    pub at: Duration,
    /// The fault.
    pub fault: Fault,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.at, self.fault)
    }
}

/// The amount of faults, for [`World::suffer`](super::World::suffer).
#[derive(Clone, Debug)]
pub struct Faults {
    /// The maximum number of faults. There is at least one fault.
    pub most: u64,
    /// The time within which the faults begin.
    pub within: Duration,
    /// An ordinary pause, such as the workers' lease, to which the length of faults is relative.
    pub pause: Duration,
}

impl Default for Faults {
    /// Returns at most 8 faults within 2 minutes, relative to a lease of 30 seconds.
    fn default() -> Self {
        Self { most: 8, within: Duration::from_secs(120), pause: Duration::from_secs(30) }
    }
}

impl Faults {
    /// Draws faults for the given number of processes, in the order of their times.
    pub fn draw(&self, dice: &Dice, processes: usize) -> Vec<Planned> {
        let within = u64::try_from(self.within.as_micros()).unwrap_or(u64::MAX);
        let planned = |_| Planned {
            at: Duration::from_micros(dice.roll(within)),
            fault: Fault::draw(dice, processes, self.pause),
        };
        let mut plan: Vec<_> = (0..1 + dice.roll(self.most)).map(planned).collect();
        plan.sort_by_key(|planned| planned.at);
        plan
    }
}
