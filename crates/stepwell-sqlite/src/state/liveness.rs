//! The detection of another process's death without a delay.
//!
//! While a handle has a registered worker, it holds a lock on a file beside the database. The
//! operating system releases the lock however the process ends. A lock that another process can
//! take is therefore proof of a death:
//!
//! ```text
//!   stepwell.db                                   workers: worker 1 | handle 6f0c…
//!   stepwell.db-worker-6f0c…   locked by A                 worker 2 | handle 91ab…
//!   stepwell.db-worker-91ab…   not locked: B died, its tasks are claimable again
//! ```
//!
//! Only a lock that can be taken is proof. A file that is gone proves nothing, because another
//! program may have deleted it. Leases cover what a lock does not show: a process that hangs, a
//! file that is gone, a file system without locks.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};

use crate::base::rows::Statements as _;
use crate::file::identity::id_of;

/// The minimum interval at which claims look for dead processes.
const LOOK_EVERY: Duration = Duration::from_millis(500);

impl Held {
    /// Returns whether other processes find the locked file at its path.
    fn is_there(&self) -> bool {
        let [locked, found] = [self.file.metadata(), fs::metadata(&self.path)];
        locked.is_ok_and(|locked| found.is_ok_and(|found| id_of(&found) == id_of(&locked)))
    }
}

/// The lock of one handle, and its knowledge of other handles.
pub(crate) struct Liveness {
    /// The path of the database; `None` for a database in memory, which no other process sees.
    database: Option<PathBuf>,
    held: Option<Held>,
    looked: Option<Instant>,
    /// The lock files of dead processes, which are deleted when the batch is committed.
    graves: Vec<PathBuf>,
    /// The handles that workers in the database may still name, and whose files are gone.
    lost: Vec<String>,
}

struct Held {
    handle: String,
    path: PathBuf,
    /// The file, which is locked while it is open.
    file: File,
    /// `true` if a worker in the database names the handle.
    registered: bool,
}

impl Liveness {
    /// Makes the locks of a handle. `database` must be the path without symbolic links, because
    /// other processes look for the locks beside it.
    pub(crate) fn new(database: Option<PathBuf>) -> Self {
        Self { database, held: None, looked: None, graves: Vec::new(), lost: Vec::new() }
    }

    /// Locks this handle's file, and returns the handle. The result is `None` when files cannot be
    /// locked, so that only leases are left. The lock precedes the commit that names the handle.
    pub(crate) fn hold(&mut self) -> Option<String> {
        if self.held.is_none() {
            // Invariant: a name is never used twice, because a process may be about to delete the
            // old file.
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

    /// Returns a new handle in place of handles whose files were deleted, and those handles. Each
    /// heartbeat makes this call.
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

    /// Returns the handles of processes that have died. The list is empty within 500 ms of the last
    /// look.
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

    /// Finishes a commit, with or without signals of workers.
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

    /// Finishes a batch that was not committed.
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
    /// Keeps the file of workers that are still registered: it is unlocked, and so shows their end.
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

/// Returns a random id. The engine's runtime is not its source, because two simulated processes may
/// draw the same numbers from it.
fn random_uuid() -> String {
    let mut bytes = [0; 16];
    for half in bytes.chunks_exact_mut(8) {
        // The keys of the hasher are random, from the operating system.
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u32(std::process::id());
        hasher.write_u128(
            std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos()),
        );
        half.copy_from_slice(&hasher.finish().to_le_bytes());
    }
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}
