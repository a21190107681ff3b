//! Rows that cannot be read: each of them affects its own task, and no other.

use std::error::Error;

/// A stored part of a task that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unreadable {
    /// The part holds a word that this program does not know, and that a newer program may know.
    #[error(
        "{what} cannot be read by this program ({reason}): run one that is as new as the one that \
         wrote it"
    )]
    Newer {
        /// The name of the part.
        what: String,
        /// The word that is unknown.
        reason: String,
    },
    /// The part is damaged.
    #[error(
        "{what} cannot be read ({reason}): correct that column of the task's row, and retry the \
         task"
    )]
    Damaged {
        /// The name of the part.
        what: String,
        /// The error of the decoder.
        reason: String,
    },
}

/// A word in a column that this program does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is unknown")]
pub struct UnknownWord(pub String);

/// A number in a column that is out of the range of its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{number} is out of range")]
pub struct OutOfRange {
    /// The number.
    pub number: i64,
}

impl Unreadable {
    /// Returns the error of a part that could not be read, according to the error of its decoder.
    pub fn new(what: impl Into<String>, error: &(dyn Error + 'static)) -> Self {
        let (what, reason) = (what.into(), error.to_string());
        // serde has no type of its own for the error of an enum.
        if error.is::<UnknownWord>() || reason.starts_with("unknown variant") {
            Self::Newer { what, reason }
        } else {
            Self::Damaged { what, reason }
        }
    }
}
