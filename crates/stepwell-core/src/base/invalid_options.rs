//! Errors of options.

use std::time::Duration;

/// Why a task cannot be spawned, or a step tried again, with these options.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidOptions {
    /// A header cannot be read back, or they are too large together.
    #[error("the headers cannot be kept: {reason}")]
    Headers {
        /// What is wrong with them.
        reason: String,
    },
    /// A scope has a label that the engine gives to tasks by itself, and by which no task is found.
    #[error(
        "the scope's label \"{name}\" is a header that the engine sets by itself: give the label \
         another name"
    )]
    Scope {
        /// The label's name.
        name: String,
    },
    /// A number of a retry strategy is none that it can have.
    #[error("a retry strategy cannot have the {field} {value}: it has to be {range}")]
    Retry {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        range: &'static str,
    },
    /// A duration is over 1,000 years, which not every store can add to a date.
    #[error("the {field} of {duration:?} is too long: it may be 1,000 years at most")]
    TooLong {
        /// The field.
        field: &'static str,
        /// The duration.
        duration: Duration,
    },
}

impl InvalidOptions {
    /// Refuses a duration that a store could not add to a date.
    pub(crate) fn check_duration(field: &'static str, duration: Duration) -> Result<(), Self> {
        const LONGEST: Duration = Duration::from_secs(1_000 * 366 * 24 * 3_600);
        if duration > LONGEST { Err(Self::TooLong { field, duration }) } else { Ok(()) }
    }
}
