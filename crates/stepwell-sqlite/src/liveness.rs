//! How processes notice at once that another one has died.
//!
//! While a handle has a registered worker it holds a file beside the database locked. The operating
//! system gives the lock back however the process ends, so a lock that another process can take is
//! a death certificate:
//!
//! ```text
//!   stepwell.db                                   workers: worker 1 | handle 6f0c…
//!   stepwell.db-worker-6f0c…   locked by A                 worker 2 | handle 91ab…
//!   stepwell.db-worker-91ab…   not locked: B died, its tasks are claimable again
//! ```
//!
//! Only a lock that can be taken says so: a file that is gone, which somebody may have tidied away,
//! says nothing. Leases work beside it, for what a lock does not show: a process that hangs, a file
//! that is gone, a file system without locks.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};

use crate::identity::id_of;
use crate::rows::Statements as _;

/// How often claims look for the dead, at most.
const LOOK_EVERY: Duration = Duration::from_millis(500);

impl Held {
    /// Whether others find the file that is locked.
    fn is_there(&self) -> bool {
        let [locked, found] = [self.file.metadata(), fs::metadata(&self.path)];
        locked.is_ok_and(|locked| found.is_ok_and(|found| id_of(&found) == id_of(&locked)))
    }
}

/// The locks of one handle and its knowledge of others.
pub(crate) struct Liveness {
    /// `None` for a database in memory, which no other process sees.
    database: Option<PathBuf>,
    held: Option<Held>,
    looked: Option<Instant>,
    /// Files of the dead, to be deleted once that is committed.
    graves: Vec<PathBuf>,
    /// Handles that workers in the database may still name, and whose files are gone.
    lost: Vec<String>,
}

struct Held {
    handle: String,
    path: PathBuf,
    /// Locked as long as it is open.
    file: File,
    /// Whether a worker in the database names it.
    registered: bool,
}

impl Liveness {
    /// `database` must be the file's one true path: other processes look for the locks beside it.
    pub(crate) fn new(database: Option<PathBuf>) -> Self {
        Self { database, held: None, looked: None, graves: Vec::new(), lost: Vec::new() }
    }

    /// Locks this handle's file, and names it; `None` where that does not work, and only leases are
    /// left. Comes before the commit that names the file.
    pub(crate) fn hold(&mut self) -> Option<String> {
        if self.held.is_none() {
            // Never a name that was used before: its file may be about to be deleted.
            let handle = random_uuid();
            let path = self.path(&handle)?;
            match lock(&path) {
                Ok(file) => self.held = Some(Held { handle, path, file, registered: false }),
                Err(error) => {
                    let path = path.display();
                    tracing::warn!(%path, %error, "cannot lock a file: should this process die, \
                                                   others learn of it when its lease ends");
                }
            }
        }
        self.held.as_ref().map(|held| held.handle.clone())
    }

    /// Another handle in the place of those whose files somebody has deleted, and those. Asked for
    /// with each sign of life.
    pub(crate) fn renewed(&mut self) -> Option<(String, Vec<String>)> {
        if let Some(held) = self.held.take_if(|held| !held.is_there()) {
            tracing::warn!(path = %held.path.display(), "the lock file of a worker is gone: it \
                                                         must stay while the program runs");
            self.lost.push(held.handle);
            self.hold();
        }
        let held = self.held.as_ref().filter(|_| !self.lost.is_empty())?;
        Some((held.handle.clone(), self.lost.clone()))
    }

    /// Handles of processes that have died. Empty when it has only just been looked.
    pub(crate) fn dead_handles(&mut self, conn: &Connection) -> rusqlite::Result<Vec<String>> {
        let looked_just_now = self.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY);
        if self.database.is_none() || looked_just_now {
            return Ok(Vec::new());
        }
        self.looked = Some(Instant::now());
        let own = self.held.as_ref().map_or("", |held| &held.handle);
        let mut handles: Vec<String> = conn.all(
            "SELECT DISTINCT handle FROM stepwell_workers WHERE handle <> ?1",
            params![own],
            |row| row.get(0),
        )?;
        handles.retain(|handle| self.is_dead(handle));
        Ok(handles)
    }

    fn is_dead(&mut self, handle: &str) -> bool {
        let Some(path) = self.path(handle) else { return false };
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) if file.try_lock().is_ok() => {
                self.graves.push(path);
                true
            }
            Ok(_) | Err(_) => false,
        }
    }

    /// What is left to do when a batch has been committed, with or without signals of workers.
    pub(crate) fn committed(&mut self, conn: &Connection, signals: bool) {
        for path in self.graves.drain(..) {
            remove(&path);
        }
        if signals {
            self.lost.clear();
        }
        if let Some(held) = self.held.as_mut().filter(|_| signals) {
            let registered = conn.one(
                "SELECT 1 FROM stepwell_workers WHERE handle = ?1 LIMIT 1",
                params![held.handle],
                |_| Ok(()),
            );
            match registered {
                Ok(Some(())) => held.registered = true,
                Ok(None) => self.release(),
                Err(_) => {}
            }
        }
    }

    /// What is left to do when a batch was not committed.
    pub(crate) fn rolled_back(&mut self) {
        self.graves.clear();
        self.looked = None;
    }

    fn release(&mut self) {
        if let Some(held) = self.held.take() {
            remove(&held.path);
        }
    }

    fn path(&self, handle: &str) -> Option<PathBuf> {
        let mut path = OsString::from(self.database.as_ref()?);
        path.push("-worker-");
        path.push(handle);
        Some(path.into())
    }
}

impl Drop for Liveness {
    /// The file of workers that are still registered stays, unlocked, and so tells of their end.
    fn drop(&mut self) {
        if self.held.as_ref().is_some_and(|held| !held.registered) {
            self.release();
        }
    }
}

fn lock(path: &PathBuf) -> std::io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(error) => {
            remove(path);
            Err(match error {
                TryLockError::Error(error) => error,
                TryLockError::WouldBlock => ErrorKind::WouldBlock.into(),
            })
        }
    }
}

fn remove(path: &PathBuf) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot delete the lock file of a worker");
    }
}

/// Not from the engine's runtime: two simulated processes may well draw the same numbers there.
fn random_uuid() -> String {
    let mut bytes = [0; 16];
    for half in bytes.chunks_exact_mut(8) {
        // Its keys are random, from the operating system.
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u32(std::process::id());
        hasher.write_u128(
            std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos()),
        );
        half.copy_from_slice(&hasher.finish().to_le_bytes());
    }
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}
