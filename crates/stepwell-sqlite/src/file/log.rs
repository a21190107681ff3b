//! The repair of a write-ahead log whose content may not be durable.
//!
//! When a sync fails, the kernel treats the data as written: later reads return it, and no later
//! sync writes it. A batch whose sync failed is refused, and the next batch of the same process
//! overwrites it. When that process dies instead, the next process that opens the database finds
//! the batch in the log, takes it for committed, and writes further batches after it. A loss of
//! power then leaves a hole in the log. SQLite stops reading at the hole, and every batch accepted
//! since is lost. Each process that opens the database therefore writes the log's content again
//! first, and syncs it.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use rusqlite::Connection;

use crate::base::error::{self, Fault};
use crate::base::location::Location;
use crate::file::identity::beside;

/// The length of the log's header, and of the header of each page in it, in bytes.
const HEADER: usize = 32;
const PAGE_HEADER: usize = 24;

/// Writes the log again, unchanged. No other program writes to it meanwhile, because the connection
/// has the lock.
pub(crate) fn settle(conn: &Connection, database: &Path, location: &Location) -> Result<(), Fault> {
    conn.execute_batch("BEGIN IMMEDIATE")?;
    let written =
        database.canonicalize().and_then(|database| write_again(&beside(&database, "-wal")));
    conn.execute_batch("ROLLBACK")?;
    written.map_err(|error| error::unsynced(location, &error).into())
}

/// Writes the part of the log again that SQLite may read.
fn write_again(log: &Path) -> io::Result<()> {
    let mut log = OpenOptions::new().read(true).write(true).open(log)?;
    let mut header = [0; HEADER];
    if !write_part_again(&mut log, &mut header, |_| true)? {
        return Ok(());
    }
    let page_size = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
    if !(512..=65_536).contains(&page_size) {
        // The file is not a log, and SQLite does not read it either.
        return Ok(());
    }
    // Pages that belong to the log's present content have the log's own number.
    let number = &header[16..24];
    let mut page = vec![0; PAGE_HEADER + page_size as usize];
    while write_part_again(&mut log, &mut page, |page| page[8..16] == *number)? {}
    log.sync_data()
}

/// Writes the next part of the log again, if it has the buffer's length and `is_meant` accepts it.
fn write_part_again(
    log: &mut File,
    buffer: &mut [u8],
    is_meant: impl Fn(&[u8]) -> bool,
) -> io::Result<bool> {
    let start = log.stream_position()?;
    match log.read_exact(buffer) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(false),
        read => read?,
    }
    if !is_meant(buffer) {
        return Ok(false);
    }
    log.seek(SeekFrom::Start(start))?;
    log.write_all(buffer)?;
    Ok(true)
}
