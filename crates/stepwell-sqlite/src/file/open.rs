//! The opening and the settings of a database.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use stepwell_core::StoreError;

use crate::base::error::{self, Fault};
use crate::base::location::Location;
use crate::base::rows::Statements as _;
use crate::file::checkpoint::{DURABLE, GROWN};
use crate::file::identity::Identity;
use crate::file::log;
use crate::file::migrate::{self, MIGRATIONS};

/// The time for which a connection waits for another process's lock.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The connections to one database.
pub(crate) struct Opened {
    pub(crate) writer: Connection,
    /// The connection that reads; `None` for a database in memory, which has a single connection.
    pub(crate) reader: Option<Connection>,
    /// The path of the file without symbolic links.
    pub(crate) path: Option<PathBuf>,
    /// The identity of the files.
    pub(crate) identity: Option<Arc<Identity>>,
    /// `true` while the user's code has the writer's connection, which cannot commit then.
    pub(crate) user_works: Arc<AtomicBool>,
}

/// The treatment of a database that does not exist or has an older schema.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// The database is created or migrated.
    Migrate,
    /// The call fails, and changes nothing.
    Refuse,
}

pub(crate) fn open(
    location: &Location,
    missing: Missing,
    busy_timeout: Duration,
) -> Result<Opened, StoreError> {
    let opened = match location {
        Location::Memory => Connection::open_in_memory().map_err(Fault::from).and_then(|writer| {
            migrate::migrate(&writer, MIGRATIONS, location)?;
            Ok((writer, None, None, None))
        }),
        Location::File(path) => open_file(location, path, missing, busy_timeout),
    };
    let (writer, reader, path, identity) = opened.map_err(|fault| fault.at(location))?;
    let user_works = Arc::new(AtomicBool::new(false));
    let refuse_commit = user_works.clone();
    writer
        .commit_hook(Some(move || refuse_commit.load(Ordering::Relaxed)))
        .map_err(|error| Fault::from(error).at(location))?;
    for conn in [Some(&writer), reader.as_ref()].into_iter().flatten() {
        conn.set_prepared_statement_cache_capacity(128);
    }
    Ok(Opened { writer, reader, path, identity, user_works })
}

type File = (Connection, Option<Connection>, Option<PathBuf>, Option<Arc<Identity>>);

fn open_file(
    location: &Location,
    path: &PathBuf,
    missing: Missing,
    busy_timeout: Duration,
) -> Result<File, Fault> {
    // The path is absolute, so that SQLite does not read it as a URI or as `:memory:`.
    let path = std::path::absolute(path)
        .map_err(|error| error::open(location, &error.to_string(), "Mend the path"))?;
    if let Some(obstacle) = error::obstacle(&path) {
        return Err(obstacle.into());
    }
    let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let create = match missing {
        Missing::Migrate => OpenFlags::SQLITE_OPEN_CREATE,
        Missing::Refuse => OpenFlags::empty(),
    };
    let writer =
        Connection::open_with_flags(&path, flags | OpenFlags::SQLITE_OPEN_READ_WRITE | create)?;
    // If opening fails, a log that is not durable yet must be neither copied nor deleted.
    writer.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    writer.busy_timeout(busy_timeout)?;
    if writer.is_readonly("main")? {
        // SQLite has opened the file for reading only, and would fail at the first write.
        return Err(error::not_writable(location).into());
    }
    let found = migrate::version(&writer)?;
    migrate::check(found, MIGRATIONS, location)?;
    if missing == Missing::Refuse {
        migrate::require(found, MIGRATIONS, location)?;
    }
    use_wal(&writer, location, busy_timeout)?;
    sync_folder(&path).map_err(|error| error::unsynced(location, &error))?;
    log::settle(&writer, &path, location)?;
    writer.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    // 32 MiB of pages are cached. The log grows to 8 MiB and is then written from its beginning,
    // because syncing a file that does not grow is faster. The application's settings of its own
    // connections do not affect this one.
    writer.execute_batch(DURABLE)?;
    writer.execute_batch(&format!(
        "PRAGMA cache_size = -32768; PRAGMA wal_autocheckpoint = 2000;
        PRAGMA journal_size_limit = {GROWN}; PRAGMA temp_store = MEMORY;
        PRAGMA locking_mode = NORMAL; PRAGMA recursive_triggers = OFF;
        PRAGMA trusted_schema = OFF"
    ))?;
    migrate::migrate(&writer, MIGRATIONS, location)?;

    let reader = Connection::open_with_flags(&path, flags | OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    reader.busy_timeout(busy_timeout)?;
    let moved = |error: std::io::Error| {
        error::open(location, &error.to_string(), "See that nobody moves the file or its `-wal`")
    };
    let canonical = path.canonicalize().map_err(moved)?;
    let identity = Identity::of(&path, &canonical).map_err(moved)?;
    Ok((writer, Some(reader), Some(canonical), Some(Arc::new(identity))))
}

/// Makes the names of the database and of its write-ahead log durable, before the log has content.
///
/// SQLite does so too, but continues when it fails. Batches accepted after such a failure would be
/// in a log whose name a loss of power removes. An earlier log may then reappear under that name,
/// with pages that no longer fit the database.
fn sync_folder(database: &Path) -> io::Result<()> {
    #[cfg(unix)]
    if let Some(folder) = database.canonicalize()?.parent() {
        let synced = match std::fs::File::open(folder) {
            Ok(folder) => folder.sync_all(),
            // A user without the right to read a folder cannot sync it, but may use its files.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            Err(error) => Err(error),
        };
        match synced {
            // The file system does not support syncing a folder.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
                ) => {}
            synced => return synced,
        }
    }
    #[cfg(not(unix))]
    let _ = database;
    Ok(())
}

/// Sets the database's journal mode. SQLite does not wait for other processes where waiting could
/// deadlock, so this call tries again itself.
fn use_wal(conn: &Connection, location: &Location, busy_timeout: Duration) -> Result<(), Fault> {
    let begin = Instant::now();
    loop {
        let mode = conn.one("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0));
        match mode {
            Ok(Some(mode)) if mode == "wal" => return Ok(()),
            Ok(_) => {
                let reason =
                    "its file system does not allow SQLite's WAL mode, which needs shared memory";
                return Err(error::open(location, reason, "Put it on a local disk").into());
            }
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && begin.elapsed() < busy_timeout =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error.into()),
        }
    }
}
