//! The timing of a schedule, as data.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::invalid_options::InvalidOptions;
use crate::base::name::InvalidName;

/// The timing of a schedule: the rule for its ticks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Timing {
    /// The schedule ticks at the times of a cron pattern.
    Cron {
        /// The cron pattern.
        pattern: String,
        /// The IANA name of the time zone whose clock the pattern uses.
        time_zone: String,
    },
    /// The schedule ticks at a fixed interval.
    Every {
        /// The time between two ticks.
        interval: Duration,
    },
}

/// The error of a schedule that is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSchedule {
    /// The name of the schedule, or a name in its options, is not valid.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The options cannot be used.
    #[error(transparent)]
    Options(#[from] InvalidOptions),
    /// The cron pattern cannot be read.
    #[error(
        "\"{pattern}\" is no cron pattern ({reason}): it has five fields, minute, hour, day of the \
         month, month and day of the week, as in `0 2 * * *`"
    )]
    Pattern {
        /// The cron pattern.
        pattern: String,
        /// The reason why the pattern cannot be read.
        reason: String,
    },
    /// The cron pattern has no tick.
    #[error(
        "the cron pattern \"{0}\" never ticks: no day to come fits it, or it names a day that no \
         month has"
    )]
    Never(String),
    /// The time zone is unknown.
    #[error("the time zone \"{time_zone}\" is unknown: {advice}")]
    TimeZone {
        /// The name of the time zone.
        time_zone: String,
        /// A proposal for the user.
        advice: &'static str,
    },
    /// The interval is shorter than a second.
    #[error(
        "an interval of {0:?} is too short, the shortest is a second: for what comes more often, \
         let a task loop"
    )]
    Interval(Duration),
    /// The options would let the schedule spawn only one task.
    #[error(
        "a schedule's tasks cannot have an idempotency key or a fixed start time, by which only \
         one would be spawned: leave them out of its options"
    )]
    Once,
    /// The options would coalesce the tasks of the schedule.
    #[error(
        "a schedule's tasks cannot be coalesced: say by `overlap` what happens when the one before \
         has not ended, and give them a plain `concurrency_key`"
    )]
    Coalesced,
}
