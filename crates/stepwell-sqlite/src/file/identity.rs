//! The check that the path still names the open file.
//!
//! A file that is deleted or replaced continues to exist for the programs that have it open. SQLite
//! would write to that file, and all its content would be gone after this process. A batch is
//! therefore committed and answered only while the path names the opened file, and while SQLite's
//! write-ahead log and its index are in their places. SQLite's locks are in the index: with
//! different indexes, programs would overwrite each other's data.
//!
//! A `stat` after a sync of the disk takes up to 10 µs, and a commit of one task would need six of
//! them. A file cannot be deleted, moved or replaced without a change of its folder. While the
//! folder is unchanged, a `stat` of the folder is therefore enough.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use stepwell_core::StoreError;

/// The files of a database, as they were when it was opened.
pub(crate) struct Identity {
    database: Known,
    wal: Known,
    shm: Known,
    /// The folder of the files; `None` when they may be in several folders, because the database
    /// was opened through a symbolic link.
    folder: Option<Folder>,
}

/// The folder that contains all files of a database.
struct Folder {
    path: PathBuf,
    /// The state of the folder when all files were in it, and the time of that check.
    seen: Mutex<Option<(State, Instant)>>,
}

/// The identity of a folder, and the time from 1970 to its last change.
type State = (FileId, Duration);

/// The time after which the files are checked although their folder is unchanged, because its file
/// system may not keep the time of its last change.
const TRUSTED: Duration = Duration::from_secs(1);

struct Known {
    path: PathBuf,
    id: FileId,
}

/// An identity that differs between a file and all other files that are, or were, at its path.
#[cfg(unix)]
pub(crate) type FileId = (u64, u64);
/// The time of the last change. Outside of Unix, an open database cannot be deleted or replaced, so
/// this identity is for programs that overwrite it.
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

/// Returns the time of the folder's last change, when every later change will have a later time.
#[cfg(unix)]
fn settled(metadata: &Metadata) -> Option<Duration> {
    use std::os::unix::fs::MetadataExt as _;
    // Times follow the kernel's ticks of up to 10 ms. A file system without fractions keeps a time
    // to 1 or 2 seconds.
    let tick =
        if metadata.ctime_nsec() == 0 { Duration::from_secs(3) } else { Duration::from_millis(50) };
    let now = std::time::UNIX_EPOCH.elapsed().ok()?;
    let seconds = u64::try_from(metadata.ctime()).ok()?;
    let changed = Duration::new(seconds, u32::try_from(metadata.ctime_nsec()).ok()?);
    (changed + tick < now).then_some(changed)
}

#[cfg(not(unix))]
fn settled(_: &Metadata) -> Option<Duration> {
    None
}

impl Folder {
    /// Returns the folder of a file, if both paths have the same folder.
    fn of(path: &Path, canonical: &Path) -> io::Result<Option<Self>> {
        let (Some(path), Some(canonical)) = (path.parent(), canonical.parent()) else {
            return Ok(None);
        };
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let is_it = id_of(&fs::metadata(path)?) == id_of(&fs::metadata(canonical)?);
        Ok(is_it.then(|| Self { path: path.to_owned(), seen: Mutex::default() }))
    }

    /// Returns the folder's state, when it has settled.
    fn state(&self) -> Option<State> {
        let metadata = fs::metadata(&self.path).ok()?;
        Some((id_of(&metadata), settled(&metadata)?))
    }
}

/// Returns the path of a file that SQLite keeps beside the database.
pub(crate) fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut file = database.as_os_str().to_owned();
    file.push(suffix);
    file.into()
}

impl Known {
    fn now(path: PathBuf) -> io::Result<Self> {
        let id = id_of(&fs::metadata(&path)?);
        Ok(Self { path, id })
    }

    /// Checks that the file is at its path; the error says what happened to it.
    fn look(&self) -> Result<(), &'static str> {
        match fs::metadata(&self.path) {
            Ok(found) if id_of(&found) == self.id => Ok(()),
            Ok(_) => Err(REPLACED),
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
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
    /// Reads the identity of an open database: `path` is the path by which it was opened, and
    /// `canonical` is the path without symbolic links.
    pub(crate) fn of(path: &Path, canonical: &Path) -> io::Result<Self> {
        let folder = match fs::symlink_metadata(path)?.is_symlink() {
            true => None,
            false => Folder::of(path, canonical)?,
        };
        Ok(Self {
            database: Known::now(path.to_owned())?,
            wal: Known::now(beside(canonical, "-wal"))?,
            shm: Known::now(beside(canonical, "-shm"))?,
            folder,
        })
    }

    /// Checks that all files are in their places.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        let Some(folder) = &self.folder else { return self.look() };
        // The folder is read before the files, so that the next check sees a change in between.
        let state = folder.state();
        let mut seen = folder.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_trusted =
            |(known, at): &(State, Instant)| Some(*known) == state && at.elapsed() < TRUSTED;
        if seen.as_ref().is_some_and(is_trusted) {
            return Ok(());
        }
        *seen = None;
        self.look()?;
        *seen = state.map(|state| (state, Instant::now()));
        Ok(())
    }

    /// Returns whether the next check may read the folder only.
    #[cfg(test)]
    pub(crate) fn trusts_the_folder(&self) -> bool {
        self.folder
            .as_ref()
            .is_some_and(|folder| folder.seen.lock().is_ok_and(|seen| seen.is_some()))
    }

    /// Checks each file.
    fn look(&self) -> Result<(), StoreError> {
        self.database.look().map_err(|fate| {
            self.database.detached(
                fate,
                "Put the file back, and the program goes on; or start it again, to use what is \
                 there now",
            )
        })?;
        let of_sqlite = |file: &Known| {
            file.look().map_err(|fate| {
                file.detached(
                    fate,
                    "Stop the programs that use the database in the ordinary way, which loses \
                     nothing, and start them again",
                )
            })
        };
        of_sqlite(&self.shm)?;
        of_sqlite(&self.wal)
    }

    /// Returns whether other files have replaced the open ones. The store must not change those
    /// files. When SQLite's own files are gone and nothing has replaced them, no other program has
    /// opened the database since.
    pub(crate) fn has_heirs(&self) -> bool {
        let replaced = |file: &Known| matches!(file.look(), Err(REPLACED));
        self.database.look().is_err() || replaced(&self.wal) || replaced(&self.shm)
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// Two changes within a tick of the kernel's clock have the same time.
    #[test]
    fn a_folder_has_settled_once_later_changes_have_another_time() {
        let folder = tempfile::tempdir().unwrap();
        let now = || settled(&fs::metadata(folder.path()).unwrap());
        loop {
            let begun = Instant::now();
            fs::write(folder.path().join("file"), "").unwrap();
            let at_once = now();
            fs::remove_file(folder.path().join("file")).unwrap();
            // The time of a change is up to 10 ms behind the clock. Another process may have
            // delayed this one meanwhile.
            if begun.elapsed() < Duration::from_millis(30) {
                assert_eq!(at_once, None);
                break;
            }
        }
        while now().is_none() {}
    }
}
