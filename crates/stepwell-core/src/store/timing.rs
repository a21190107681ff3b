//! The timing of a schedule, as data.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::invalid_options::InvalidOptions;
use crate::base::name::InvalidName;

/// When a schedule ticks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Timing {
    /// At the times of a cron pattern.
    Cron {
        /// The pattern.
        pattern: String,
        /// The IANA name of the time zone that it goes by.
        time_zone: String,
    },
    /// Every so often.
    Every {
        /// How often.
        interval: Duration,
    },
}

/// Why a schedule cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSchedule {
    /// Its name, or one in its options, is not valid.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// Its options cannot be used.
    #[error(transparent)]
    Options(#[from] InvalidOptions),
    /// The cron pattern cannot be read.
    #[error(
        "\"{pattern}\" is no cron pattern ({reason}): it has five fields, minute, hour, day of the \
         month, month and day of the week, as in `0 2 * * *`"
    )]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The cron pattern has no tick.
    #[error(
        "the cron pattern \"{0}\" never ticks: no day to come fits it, or it names a day that no \
         month has"
    )]
    Never(String),
    /// There is no such time zone.
    #[error("the time zone \"{time_zone}\" is unknown: {advice}")]
    TimeZone {
        /// Its name.
        time_zone: String,
        /// What to do.
        advice: &'static str,
    },
    /// The interval is too short.
    #[error(
        "an interval of {0:?} is too short, the shortest is a second: for what comes more often, \
         let a task loop"
    )]
    Interval(Duration),
    /// The options would let it spawn only one task.
    #[error(
        "a schedule's tasks cannot have an idempotency key or a fixed start time, by which only \
         one would be spawned: leave them out of its options"
    )]
    Once,
    /// The tasks would be coalesced.
    #[error(
        "a schedule's tasks cannot be coalesced: say by `overlap` what happens when the one before \
         has not ended, and give them a plain `concurrency_key`"
    )]
    Coalesced,
}
