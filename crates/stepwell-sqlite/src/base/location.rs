//! The location of a database.

use std::fmt;
use std::path::PathBuf;

use stepwell_core::StoreError;

/// The location of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A database in memory. The database ends with its store, and no other store sees it.
    Memory,
    /// A database in this file, which is created if it does not exist. SQLite keeps two more files
    /// beside it, with the suffixes `-wal` and `-shm`.
    File(PathBuf),
}

impl Location {
    /// Parses a URL: `sqlite://relative.db`, `sqlite:///absolute/path.db`, `sqlite:path.db`,
    /// `sqlite::memory:`. The path is used as it is, without percent-decoding.
    ///
    /// # Errors
    /// [`StoreError::Open`] for another kind of URL, a URL without a path, a URL with options
    /// (`?…`), or a path with a NUL character.
    pub fn parse(url: &str) -> Result<Self, StoreError> {
        let wrong = |reason: &str, advice: &str| {
            Err(StoreError::Open {
                location: url.into(),
                reason: reason.into(),
                advice: advice.into(),
            })
        };
        let Some(rest) = url.strip_prefix("sqlite:") else {
            return wrong(
                "this is not a URL of SQLite",
                "Write `sqlite://relative.db`, `sqlite:///absolute/path.db` or `sqlite::memory:`",
            );
        };
        match rest.strip_prefix("//").unwrap_or(rest) {
            ":memory:" => Ok(Self::Memory),
            "" => wrong(
                "the URL names no file",
                "Write `sqlite://stepwell.db`, say, or `sqlite::memory:`",
            ),
            path if path.contains('?') => {
                wrong("the URL has options (`?…`), which this store does not take", "Remove them")
            }
            path if path.contains('\0') => wrong("the path holds a NUL character", "Remove it"),
            path => Ok(Self::File(path.into())),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("sqlite::memory:"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_files_or_memory() {
        let file = |path: &str| Some(Location::File(path.into()));
        for (url, location) in [
            ("sqlite://relative.db", file("relative.db")),
            ("sqlite:///abs/path.db", file("/abs/path.db")),
            ("sqlite:path.db", file("path.db")),
            ("sqlite:///with space/ü%20.db", file("/with space/ü%20.db")),
            ("sqlite::memory:", Some(Location::Memory)),
            ("sqlite://:memory:", Some(Location::Memory)),
            ("sqlite:", None),
            ("sqlite://", None),
            ("postgres://host/db", None),
            ("stepwell.db", None),
            ("sqlite://x.db?mode=rwc", None),
            ("sqlite://a\0b", None),
        ] {
            assert_eq!(Location::parse(url).ok(), location, "{url:?}");
        }
        let error = Location::parse("stepwell.db").unwrap_err().to_string();
        assert!(error.contains("not a URL of SQLite. Write `sqlite://relative.db`"), "{error}");
    }
}
