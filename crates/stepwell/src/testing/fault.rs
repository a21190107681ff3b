//! What goes wrong in a simulated world, as data: it is drawn from a seed, replayed, and made
//! smaller.

use std::fmt;
use std::time::Duration;

use super::dice::Dice;

/// Something that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process dies as by `kill -9`, and another one takes its place after a while.
    Crash {
        /// Which process, from 0.
        process: usize,
        /// For how long there is none in its place.
        down: Duration,
    },
    /// The process stands still, and goes on as if nothing had been.
    Freeze {
        /// Which process, from 0.
        process: usize,
        /// For how long.
        time: Duration,
    },
    /// The process and the store do not understand each other.
    Outage {
        /// Which process, from 0; `None` for all of them.
        process: Option<usize>,
        /// For how long.
        time: Duration,
        /// How it shows.
        how: Outage,
    },
    /// The store's clock is set forward, or back.
    Jump {
        /// By how many microseconds.
        micros: i64,
    },
}

/// How an outage of the store shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// Whatever the store is asked, it refuses.
    Refuses,
    /// What the store is asked arrives when the outage is over.
    Hangs,
    /// The store does what it is asked, and its answer arrives when the outage is over.
    LosesAnswers,
}

impl Fault {
    /// Returns what sort of fault it is.
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

    /// Returns how long it lasts; a jump is over at once.
    pub const fn lasts(&self) -> Duration {
        match self {
            Self::Crash { down: time, .. }
            | Self::Freeze { time, .. }
            | Self::Outage { time, .. } => *time,
            Self::Jump { .. } => Duration::ZERO,
        }
    }

    /// Draws a fault of a world with so many processes, in which an ordinary pause is so long (a
    /// lease, say): most last a part of it, few up to a hundred times as long.
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

    /// Draws how long something lasts.
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

/// A fault, and when it comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// How long after the world began.
    pub at: Duration,
    /// What.
    pub fault: Fault,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.at, self.fault)
    }
}

/// How much goes wrong, for [`World::suffer`](super::World::suffer).
#[derive(Clone, Debug)]
pub struct Faults {
    /// How many faults there are at most; at least one.
    pub most: u64,
    /// The time over which they come.
    pub within: Duration,
    /// An ordinary pause, which faults are short or long beside: the workers' lease.
    pub pause: Duration,
}

impl Default for Faults {
    /// Up to eight within two minutes, beside a lease of 30 seconds.
    fn default() -> Self {
        Self { most: 8, within: Duration::from_secs(120), pause: Duration::from_secs(30) }
    }
}

impl Faults {
    /// Draws faults for that many processes, in the order in which they come.
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
