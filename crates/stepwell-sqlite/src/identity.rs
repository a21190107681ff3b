//! Whether the path still names the file that is open.
//!
//! A file that is deleted or replaced lives on for those who have it open. SQLite would go on writing to it, and all of
//! that would be gone with this process. So each batch is committed, and answered, only while the path names the file that
//! was opened, and SQLite's write-ahead log and its index are where they were: SQLite's locks lie in the index, and with another
//! one programs would write over each other. That takes three `stat` calls each, 4 µs in all.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use stepwell_core::StoreError;

/// The files of a database, as they were when it was opened.
pub(crate) struct Identity {
    database: Known,
    wal: Known,
    shm: Known,
}

struct Known {
    path: PathBuf,
    id: FileId,
}

/// Tells a file from all others that are, or were, at its path.
#[cfg(unix)]
pub(crate) type FileId = (u64, u64);
/// An open database cannot be deleted or replaced there, so this is for what copies over it.
#[cfg(not(unix))]
pub(crate) type FileId = Option<std::time::SystemTime>;

#[cfg(unix)]
pub(crate) fn id_of(metadata: &Metadata) -> FileId {
    use std::os::unix::fs::MetadataExt as _;
    (metadata.dev(), metadata.ino())
}

#[cfg(not(unix))]
pub(crate) fn id_of(metadata: &Metadata) -> FileId {
    metadata.created().ok()
}

impl Known {
    fn now(path: PathBuf) -> io::Result<Self> {
        let id = id_of(&fs::metadata(&path)?);
        Ok(Self { path, id })
    }

    /// What is at the path, or what became of the file.
    fn look(&self) -> Result<Metadata, &'static str> {
        match fs::metadata(&self.path) {
            Ok(found) if id_of(&found) == self.id => Ok(found),
            Ok(_) => Err(REPLACED),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Err("deleted or moved")
            }
            Err(_) => Err("made inaccessible"),
        }
    }

    fn detached(&self, fate: &'static str, advice: &'static str) -> StoreError {
        StoreError::Detached { what: self.path.display().to_string(), fate, advice }
    }
}

const REPLACED: &str = "replaced by another file";

impl Identity {
    /// The files of an open database: the path by which it was opened, and the file's one true path.
    pub(crate) fn of(path: &Path, canonical: &Path) -> io::Result<Self> {
        let beside = |suffix| {
            let mut file = canonical.as_os_str().to_owned();
            file.push(suffix);
            Known::now(file.into())
        };
        Ok(Self { database: Known::now(path.to_owned())?, wal: beside("-wal")?, shm: beside("-shm")? })
    }

    /// Whether all is where it was. Returns the length of the write-ahead log in bytes.
    pub(crate) fn check(&self) -> Result<u64, StoreError> {
        self.database.look().map_err(|fate| {
            self.database.detached(
                fate,
                "Put the file back, and the program goes on; or start it again, to use what is there now",
            )
        })?;
        let of_sqlite = |file: &Known| {
            file.look().map_err(|fate| {
                file.detached(
                    fate,
                    "Stop the programs that use the database in the ordinary way, which loses nothing, and start them again",
                )
            })
        };
        of_sqlite(&self.shm)?;
        Ok(of_sqlite(&self.wal)?.len())
    }

    /// Whether other files are in the place of those that are open, which nothing may be done to. Where those of SQLite are
    /// gone and nothing is in their place, nobody has opened the database since.
    pub(crate) fn has_heirs(&self) -> bool {
        let replaced = |file: &Known| matches!(file.look(), Err(REPLACED));
        self.database.look().is_err() || replaced(&self.wal) || replaced(&self.shm)
    }
}
