//! Errors of options.

use std::time::Duration;

/// The error of options with which no task can be spawned, or no step tried again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidOptions {
    /// A header cannot be read back, or the headers are too large together, or too many of them are
    /// labels.
    #[error("the headers cannot be kept: {reason}")]
    Headers {
        /// The reason why the headers are refused.
        reason: String,
    },
    /// A scope has a label that the engine sets by itself, and by which no task is found.
    #[error(
        "the scope's label \"{name}\" is a header that the engine sets by itself: give the label \
         another name"
    )]
    Scope {
        /// The name of the label.
        name: String,
    },
    /// A number of a retry strategy is outside its range.
    #[error("a retry strategy cannot have the {field} {value}: it has to be {range}")]
    Retry {
        /// The name of the field.
        field: &'static str,
        /// The value of the field.
        value: String,
        /// The range of the field.
        range: &'static str,
    },
    /// A duration is over 1,000 years, which not every store can add to a date.
    #[error("the {field} of {duration:?} is too long: it may be 1,000 years at most")]
    TooLong {
        /// The name of the field.
        field: &'static str,
        /// The duration that is too long.
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
