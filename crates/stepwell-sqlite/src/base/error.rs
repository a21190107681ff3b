//! The conversion of SQLite's errors to the store's.

use std::path::Path;

use rusqlite::ffi::{self, ErrorCode};
use stepwell_core::{StoreError, Unreadable};

use crate::base::location::Location;

/// The advice for a disk or a file system that fails.
const DISK_FAILS: &str = "the disk or its file system fails, and its own log says why. What was \
    to be written is not accepted, and is tried again: mend the disk, or free space on it, and the \
    engine goes on by itself";

/// The error of a batch or a query.
#[derive(Debug)]
pub(crate) enum Fault {
    /// An error of SQLite.
    Sqlite(rusqlite::Error),
    /// An error of the store.
    Store(StoreError),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Fault {
    /// Returns the error for the store's callers.
    pub(crate) fn at(self, location: &Location) -> StoreError {
        match self {
            Self::Store(error) => error,
            Self::Sqlite(error) => of_sqlite(&error, location),
        }
    }
}

/// Returns whether the error is caused by a row that cannot be read or written.
pub(crate) fn is_of_a_row(error: &rusqlite::Error) -> bool {
    matches!(
        of_sqlite(error, &Location::Memory),
        StoreError::Backend(_) | StoreError::Unreadable(_)
    )
}

fn of_sqlite(error: &rusqlite::Error, location: &Location) -> StoreError {
    let text = format!("{location}: {error}");
    let rusqlite::Error::SqliteFailure(ffi::Error { code, extended_code }, _) = error else {
        return match error {
            rusqlite::Error::FromSqlConversionFailure(_, _, reason) => {
                Unreadable::new(format!("a row in {location}"), &**reason).into()
            }
            rusqlite::Error::InvalidColumnType(..) => {
                Unreadable::new(format!("a row in {location}"), error).into()
            }
            _ => StoreError::Backend(text),
        };
    };
    match code {
        ErrorCode::DiskFull => StoreError::Full(text),
        // The index of the write-ahead log is a file, too.
        ErrorCode::SystemIoFailure if *extended_code == ffi::SQLITE_IOERR_SHMSIZE => {
            StoreError::Full(text)
        }
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => StoreError::Locked(text),
        ErrorCode::DatabaseCorrupt => StoreError::Corrupt(text),
        ErrorCode::NotADatabase => open(
            location,
            "the file is not an SQLite database",
            "It is left as it is: mend the path, or use another file",
        ),
        ErrorCode::CannotOpen => cannot_open(location, error),
        ErrorCode::PermissionDenied
        | ErrorCode::ReadOnly
        | ErrorCode::AuthorizationForStatementDenied => not_writable(location),
        ErrorCode::SystemIoFailure => {
            StoreError::Unavailable(format!("{text} (SQLite's code {extended_code}): {DISK_FAILS}"))
        }
        // The cause of these errors is not the call.
        ErrorCode::OutOfMemory
        | ErrorCode::FileLockingProtocolFailed
        | ErrorCode::OperationInterrupted
        | ErrorCode::OperationAborted
        | ErrorCode::SchemaChanged
        | ErrorCode::NoLargeFileSupport => StoreError::Unavailable(text),
        _ => StoreError::Backend(text),
    }
}

/// Returns the error of a write that did not reach the disk.
pub(crate) fn unsynced(location: &Location, error: &std::io::Error) -> StoreError {
    let text = format!("{location}: {error}");
    if error.kind() == std::io::ErrorKind::StorageFull {
        return StoreError::Full(text);
    }
    StoreError::Unavailable(format!("{text}: {DISK_FAILS}"))
}

fn cannot_open(location: &Location, error: &rusqlite::Error) -> StoreError {
    match location {
        Location::File(path) => match obstacle(path) {
            Some(error) => error,
            None => open(
                location,
                &error.to_string(),
                "See that this user may read and write the file and its folder",
            ),
        },
        Location::Memory => StoreError::Backend(error.to_string()),
    }
}

/// Returns the error of a path that cannot be opened for an obvious reason.
pub(crate) fn obstacle(path: &Path) -> Option<StoreError> {
    let location = Location::File(path.to_owned());
    if path.is_dir() {
        return Some(open(&location, "it is a folder", "Give the path of a file in it"));
    }
    let folder = path.parent()?;
    if folder.is_dir() {
        return None;
    }
    Some(match folder.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => open(
            &location,
            &format!("the folder {} does not exist", folder.display()),
            "Create it, or mend the path",
        ),
        Err(error) => open(
            &location,
            &format!("the folder {} cannot be read ({error})", folder.display()),
            "Give this user the right to enter it",
        ),
        Ok(_) => open(&location, &format!("{} is not a folder", folder.display()), "Mend the path"),
    })
}

pub(crate) fn not_writable(location: &Location) -> StoreError {
    open(
        location,
        "it cannot be written",
        "Give this user the right to write the file and its folder",
    )
}

pub(crate) fn open(location: &Location, reason: &str, advice: &str) -> StoreError {
    StoreError::Open {
        location: location.to_string(),
        reason: reason.into(),
        advice: advice.into(),
    }
}
