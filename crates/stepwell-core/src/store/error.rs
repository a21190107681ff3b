//! The errors of stores.

use std::time::Duration;

use crate::base::unreadable::Unreadable;

/// An error of a store.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store cannot be reached or opened.
    #[error("cannot open the database {location}: {reason}. {advice}")]
    Open {
        /// The location of the database.
        location: String,
        /// The cause of the error.
        reason: String,
        /// A proposal for the operator.
        advice: String,
    },
    /// The database was written by a newer Stepwell.
    #[error(
        "the database {location} has schema version {found}, this program knows versions up to \
         {known}: run a newer build of it, or use another database"
    )]
    NewerSchema {
        /// The location of the database.
        location: String,
        /// The schema version of the database.
        found: i64,
        /// The newest version that this program knows.
        known: i64,
    },
    /// The database was written by an older Stepwell, or by none, and is to be left as it is.
    #[error(
        "the database {location} has {}, this program needs version {known}: bring it up to date \
         with `stepwell migrate`, when the programs that use it can read that",
        tables_of(*found)
    )]
    OlderSchema {
        /// The location of the database.
        location: String,
        /// The schema version of the database; 0 when it has no tables of Stepwell.
        found: i64,
        /// The version that this program needs.
        known: i64,
    },
    /// The disk is full; the write is not lost, because the engine tries it again.
    #[error("the disk is full ({0}): free some space, the engine goes on by itself")]
    Full(String),
    /// Another program holds the database's lock.
    #[error("the database is locked ({0}): end the program that holds a transaction open on it")]
    Locked(String),
    /// The path no longer names the file that this process has open: the file was deleted, moved or
    /// replaced, and the write is not accepted.
    #[error(
        "{what} was {fate} while this program had it open, and so nothing is accepted: what is \
         written now would not be there afterwards. {advice}"
    )]
    Detached {
        /// The file: of the database, or of its write-ahead log.
        what: String,
        /// The change that the file met: deleted, moved or replaced.
        fate: &'static str,
        /// A proposal for the operator.
        advice: &'static str,
    },
    /// The content of the database is damaged.
    #[error("the database is damaged ({0}): stop all programs that use it, and restore a backup")]
    Corrupt(String),
    /// The result holds a row that cannot be read.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// No payload can be encoded just now, because the codec fails whatever it is given.
    #[error("{0}")]
    Encode(String),
    /// This payload cannot be encoded, because the codec does not take it, and others can.
    #[error("{0}")]
    NotEncodable(String),
    /// The backend cannot do anything just now: it is out of memory or of connections, a device
    /// fails, it lacks a privilege or a table, or a time limit passed.
    #[error("the store cannot work just now: {0}")]
    Unavailable(String),
    /// The store has not answered within the client's time limit; the request may have been carried
    /// out, or may still be.
    #[error(
        "the store has not answered within {0:?}, and it is not known whether it will still do \
         what was asked for: look before it is asked for again, or give spawns an idempotency key"
    )]
    Unanswered(Duration),
    /// The backend failed in another way, and does not accept the request.
    #[error("the store failed: {0}")]
    Backend(String),
    /// The store has been closed.
    #[error("the store has been closed")]
    Closed,
}

impl StoreError {
    /// Returns whether the store may accept the same request later, unchanged.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Open { .. }
            | Self::NewerSchema { .. }
            | Self::OlderSchema { .. }
            | Self::Full(_)
            | Self::Locked(_)
            | Self::Detached { .. }
            | Self::Encode(_)
            | Self::Unavailable(_)
            | Self::Unanswered(_)
            | Self::Closed => true,
            Self::Corrupt(_) | Self::Unreadable(_) | Self::NotEncodable(_) | Self::Backend(_) => {
                false
            }
        }
    }

    /// Returns whether one item of the request fails, and not the store as a whole.
    ///
    /// The engine then finds that item, and sends the rest without it.
    pub const fn is_of_an_item(&self) -> bool {
        matches!(self, Self::Encode(_)) || !self.is_transient()
    }
}

fn tables_of(version: i64) -> String {
    match version {
        0 => "no tables of Stepwell".into(),
        version => format!("schema version {version}"),
    }
}
