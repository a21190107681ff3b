//! Whether the path still names the file that is open.
//!
//! A file that is deleted or replaced lives on for those who have it open. SQLite would go on
//! writing to it, and all of that would be gone with this process. So each batch is committed, and
//! answered, only while the path names the file that was opened, and SQLite's write-ahead log and
//! its index are where they were: SQLite's locks lie in the index, and with another one programs
//! would write over each other.
//!
//! A `stat` behind a sync of the disk takes up to 10 µs, which a task that runs alone would pay six
//! times for each commit. No file can be deleted, moved or put into the place of another without a
//! change of its folder. So while the folder is as it was, its own `stat` is enough.

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
    /// `None` where the files need not be in one folder: the database was opened through a
    /// symbolic link.
    folder: Option<Folder>,
}

/// The folder that all files of a database are in.
struct Folder {
    path: PathBuf,
    /// What it was when all files were in it, and when that was.
    seen: Mutex<Option<(State, Instant)>>,
}

/// What a folder is, and how long after 1970 it changed last.
type State = (FileId, Duration);

/// How long the files are not looked at while their folder is as it was, should its file system
/// not keep the time of its last change.
const TRUSTED: Duration = Duration::from_secs(1);

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

/// Returns the time of the folder's last change, once every later change is going to have another
/// time.
#[cfg(unix)]
fn settled(metadata: &Metadata) -> Option<Duration> {
    use std::os::unix::fs::MetadataExt as _;
    // Times go by the kernel's ticks, of up to 10 ms. A file system without fractions has seconds,
    // or two of them.
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
    /// The folder of a file, if it is the one that is meant.
    fn of(path: &Path, canonical: &Path) -> io::Result<Option<Self>> {
        let (Some(path), Some(canonical)) = (path.parent(), canonical.parent()) else {
            return Ok(None);
        };
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let is_it = id_of(&fs::metadata(path)?) == id_of(&fs::metadata(canonical)?);
        Ok(is_it.then(|| Self { path: path.to_owned(), seen: Mutex::default() }))
    }

    /// The folder's state, once it has settled.
    fn state(&self) -> Option<State> {
        let metadata = fs::metadata(&self.path).ok()?;
        Some((id_of(&metadata), settled(&metadata)?))
    }
}

/// Returns the path of the file that SQLite keeps beside the database.
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

    /// Tells what became of the file, if it is not at its path.
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
    /// The files of an open database: the path by which it was opened, and the file's one true
    /// path.
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

    /// Checks that all files are where they were.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        let Some(folder) = &self.folder else { return self.look() };
        // Before the files: what happens meanwhile is seen the next time.
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

    /// Whether the next check may look at the folder alone.
    #[cfg(test)]
    pub(crate) fn trusts_the_folder(&self) -> bool {
        self.folder
            .as_ref()
            .is_some_and(|folder| folder.seen.lock().is_ok_and(|seen| seen.is_some()))
    }

    /// Looks at each file.
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

    /// Whether other files are in the place of those that are open, which nothing may be done to.
    /// Where those of SQLite are gone and nothing is in their place, nobody has opened the
    /// database since.
    pub(crate) fn has_heirs(&self) -> bool {
        let replaced = |file: &Known| matches!(file.look(), Err(REPLACED));
        self.database.look().is_err() || replaced(&self.wal) || replaced(&self.shm)
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// Two changes within a tick of the kernel's clock have one time.
    #[test]
    fn a_folder_has_settled_once_later_changes_have_another_time() {
        let folder = tempfile::tempdir().unwrap();
        let now = || settled(&fs::metadata(folder.path()).unwrap());
        loop {
            let begun = Instant::now();
            fs::write(folder.path().join("file"), "").unwrap();
            let at_once = now();
            fs::remove_file(folder.path().join("file")).unwrap();
            // The time of a change is up to 10 ms behind the clock. Another process may have had
            // the processor meanwhile.
            if begun.elapsed() < Duration::from_millis(30) {
                assert_eq!(at_once, None);
                break;
            }
        }
        while now().is_none() {}
    }
}
