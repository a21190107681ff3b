//! The writer's statements, found by the addresses of their texts.
//!
//! rusqlite's cache finds a statement by its text, which it copies, hashes and compares each time.
//! The search was a sixth of the time of a step. The texts of this store are constants, so their
//! addresses are enough.

use std::cell::RefCell;
use std::ops::Deref;

use hashbrown::HashMap;
use rusqlite::{Connection, PrepFlags, Result, Statement};

use crate::base::rows::Statements;

/// A connection with the statements that were prepared on it.
pub(crate) struct Prepared<'c> {
    conn: &'c Connection,
    /// The statements; `None` for a user's connection, which uses rusqlite's cache.
    kept: Option<RefCell<HashMap<Address, Statement<'c>>>>,
}

/// The address and the length of a constant text.
type Address = (*const u8, usize);

impl<'c> Prepared<'c> {
    /// Wraps the store's own connection. The connection's statements are kept until this value is
    /// dropped.
    pub(crate) fn of_writer(conn: &'c Connection) -> Self {
        Self { conn, kept: Some(RefCell::default()) }
    }

    /// Wraps a user's connection. The statements stay in the connection's own cache.
    pub(crate) fn of_user(conn: &'c Connection) -> Self {
        Self { conn, kept: None }
    }
}

impl Deref for Prepared<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.conn
    }
}

impl Statements for Prepared<'_> {
    fn with<R>(
        &self,
        sql: &'static str,
        work: impl FnOnce(&mut Statement<'_>) -> Result<R>,
    ) -> Result<R> {
        let Some(kept) = &self.kept else { return self.conn.with(sql, work) };
        let address = (sql.as_ptr(), sql.len());
        // The statement is taken out of the map, because the work may use other statements.
        let known = kept.borrow_mut().remove(&address);
        // Without the flag, kept statements would use up the memory that SQLite reserves for
        // short-lived ones.
        let prepare = || self.conn.prepare_with_flags(sql, PrepFlags::SQLITE_PREPARE_PERSISTENT);
        let mut statement = known.map_or_else(prepare, Ok)?;
        let result = work(&mut statement);
        // A long payload must not stay in memory until the next use of the statement.
        statement.clear_bindings();
        kept.borrow_mut().insert(address, statement);
        result
    }
}
