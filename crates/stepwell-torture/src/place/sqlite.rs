//! A database file of SQLite.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rusqlite::Connection;
use rusqlite::types::ValueRef;

pub(crate) const CHRONICLE: &str = "
    CREATE TABLE chronicle (n INTEGER PRIMARY KEY AUTOINCREMENT, what TEXT, task TEXT, run TEXT,
        seq INTEGER) STRICT;
    CREATE TRIGGER chronicle_spawn AFTER INSERT ON stepwell_tasks BEGIN
        INSERT INTO chronicle (what, task, run, seq) VALUES (new.state, new.task_id, new.run_id, 0);
    END;
    CREATE TRIGGER chronicle_state AFTER UPDATE OF state, run_id ON stepwell_tasks
    WHEN new.state <> old.state OR new.run_id <> old.run_id BEGIN
        INSERT INTO chronicle (what, task, run, seq) VALUES (new.state, new.task_id, new.run_id, 0);
    END;
    CREATE TRIGGER chronicle_paused AFTER UPDATE OF state ON stepwell_tasks
    WHEN new.state = 'running' AND old.state <> 'running' AND new.paused BEGIN
        INSERT INTO chronicle (what, task, run, seq)
            VALUES ('paused claim', new.task_id, new.run_id, 0);
    END;
    CREATE TRIGGER chronicle_entry AFTER INSERT ON stepwell_journal BEGIN
        INSERT INTO chronicle (what, task, run, seq)
            SELECT 'entry', new.task_id, run_id, new.seq FROM stepwell_tasks
            WHERE task_id = new.task_id;
    END;";

/// A database file, and the host's own connection to it.
pub(crate) struct File {
    path: PathBuf,
    connection: Mutex<Option<Connection>>,
}

impl File {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { path: folder.join("tasks.db"), connection: Mutex::new(None) }
    }

    pub(crate) fn url(&self) -> String {
        format!("sqlite://{}", self.path.display())
    }

    /// Returns the size of the file in bytes.
    pub(crate) fn size(&self) -> Result<u64> {
        Ok(std::fs::metadata(&self.path)?.len())
    }

    fn with<T>(&self, call: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.is_none() {
            let opened = Connection::open(&self.path)?;
            // The timeout is longer than the stop of a process that holds the file locked.
            opened.busy_timeout(Duration::from_secs(60))?;
            *connection = Some(opened);
        }
        Ok(call(connection.as_ref().context("no connection")?)?)
    }

    pub(crate) fn run(&self, sql: &str) -> Result<()> {
        self.with(|connection| connection.execute_batch(sql))
    }

    pub(crate) fn rows(&self, sql: &str) -> Result<Vec<Vec<String>>> {
        self.with(|connection| {
            let mut statement = connection.prepare(sql)?;
            let columns = statement.column_count();
            let text = |value: ValueRef<'_>| match value {
                ValueRef::Integer(number) => number.to_string(),
                value => value.as_str().unwrap_or_default().to_owned(),
            };
            let read = |row: &rusqlite::Row<'_>| {
                (0..columns).map(|column| Ok(text(row.get_ref(column)?))).collect()
            };
            statement.query_map([], read)?.collect()
        })
    }
}
