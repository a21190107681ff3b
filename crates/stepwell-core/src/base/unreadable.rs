//! Rows that cannot be read: they hurt their own task, and nothing else.

use std::error::Error;

/// A part of a task that is in the store, and could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unreadable {
    /// It holds a word that this program does not know, and that a newer one may.
    #[error(
        "{what} cannot be read by this program ({reason}): run one that is as new as the one that \
         wrote it"
    )]
    Newer {
        /// What it is.
        what: String,
        /// What is unknown.
        reason: String,
    },
    /// It is damaged.
    #[error(
        "{what} cannot be read ({reason}): correct that column of the task's row, and retry the \
         task"
    )]
    Damaged {
        /// What it is.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// A word in a column that is none of those which this program knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is unknown")]
pub struct UnknownWord(pub String);

impl Unreadable {
    /// Why this could not be read, by the error of its decoder.
    pub fn new(what: impl Into<String>, error: &(dyn Error + 'static)) -> Self {
        let (what, reason) = (what.into(), error.to_string());
        // An enum's error of serde has no type of its own.
        if error.is::<UnknownWord>() || reason.starts_with("unknown variant") {
            Self::Newer { what, reason }
        } else {
            Self::Damaged { what, reason }
        }
    }
}
