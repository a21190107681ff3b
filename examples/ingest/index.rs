//! The index: its tables, and what the tasks write to them.
//!
//! Everything here is called within a transaction of a task's step, and so happens exactly once.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use stepwell::sqlite::rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};

use crate::file::{Content, FileParams};
use crate::folder::{FolderParams, Found};

const TABLES: &str = r#"
    -- What is known of each file. Those without text say why.
    CREATE TABLE IF NOT EXISTS documents (
        id       INTEGER PRIMARY KEY,
        folder   TEXT NOT NULL,
        path     TEXT NOT NULL,
        size     INTEGER NOT NULL,
        modified INTEGER NOT NULL, -- microseconds since 1970
        settled  INTEGER NOT NULL, -- whether size and time tell that the file is unchanged
        hash     TEXT,             -- SHA-256
        title    TEXT,
        skipped  TEXT,             -- binary, too_large, unreadable
        detail   TEXT,
        UNIQUE (folder, path)
    ) STRICT;
    CREATE VIRTUAL TABLE IF NOT EXISTS documents_fts
        USING fts5(content, path, tokenize = "unicode61 remove_diacritics 2");
    -- The files that the ingest of a folder has to look into.
    CREATE TABLE IF NOT EXISTS ingest_files (
        folder TEXT NOT NULL,
        run    INTEGER NOT NULL,
        number INTEGER NOT NULL,
        path   TEXT NOT NULL,
        done   INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (folder, number)
    ) STRICT, WITHOUT ROWID;
"#;

/// Why a file is not in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reason {
    Binary,
    TooLarge,
    Unreadable,
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::TooLarge => "too_large",
            Self::Unreadable => "unreadable",
        }
    }
}

/// What became of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Indexed { bytes: i64 },
    Unchanged,
    Skipped(Reason),
    Failed(String),
}

/// What became of a folder's files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// All that were found: indexed, unchanged, skipped and failed ones.
    pub(crate) files: u64,
    pub(crate) indexed: u64,
    pub(crate) unchanged: u64,
    /// Documents whose files have vanished.
    pub(crate) removed: u64,
    pub(crate) skipped: Skipped,
    pub(crate) failed: u64,
    /// The first failure.
    pub(crate) failure: Option<String>,
    /// How much was indexed.
    pub(crate) bytes: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Skipped {
    pub(crate) binary: u64,
    pub(crate) too_large: u64,
    pub(crate) unreadable: u64,
}

impl Skipped {
    pub(crate) fn total(&self) -> u64 {
        self.binary + self.too_large + self.unreadable
    }
}

impl Summary {
    pub(crate) fn count(&mut self, outcome: &Outcome) {
        self.files += 1;
        match outcome {
            Outcome::Indexed { bytes } => {
                self.indexed += 1;
                self.bytes += bytes;
            }
            Outcome::Unchanged => self.unchanged += 1,
            Outcome::Skipped(Reason::Binary) => self.skipped.binary += 1,
            Outcome::Skipped(Reason::TooLarge) => self.skipped.too_large += 1,
            Outcome::Skipped(Reason::Unreadable) => self.skipped.unreadable += 1,
            Outcome::Failed(why) => {
                self.failed += 1;
                self.failure.get_or_insert_with(|| why.clone());
            }
        }
    }
}

/// What a listing gives.
#[derive(Serialize, Deserialize)]
pub(crate) struct Listed {
    /// The files of which nothing more has to be known.
    pub(crate) summary: Summary,
    /// How many have to be looked into; they are numbered from 1.
    pub(crate) changed: i64,
}

/// Opens the index to read it, while another connection may write.
pub(crate) fn open(database: &Path) -> anyhow::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(database, flags)
        .with_context(|| format!("cannot open the database {}", database.display()))?;
    Ok(conn)
}

pub(crate) fn create_tables(tx: &Connection) -> anyhow::Result<()> {
    Ok(tx.execute_batch(TABLES)?)
}

/// What the `documents` table holds of a file.
struct Known {
    id: i64,
    size: i64,
    modified: i64,
    settled: bool,
    hash: Option<String>,
    skipped: Option<String>,
}

impl Known {
    const COLUMNS: &str = "id, size, modified, settled, hash, skipped";

    fn read(row: &Row<'_>) -> Result<Self, stepwell::sqlite::rusqlite::Error> {
        Ok(Self {
            id: row.get(0)?,
            size: row.get(1)?,
            modified: row.get(2)?,
            settled: row.get(3)?,
            hash: row.get(4)?,
            skipped: row.get(5)?,
        })
    }

    /// What became of the file when it was last looked into, if that still holds.
    fn still_holds(&self, file: &Found) -> Option<Outcome> {
        if !self.settled || (self.size, self.modified) != (file.size, file.modified) {
            return None;
        }
        match self.skipped.as_deref() {
            None => Some(Outcome::Unchanged),
            Some("binary") => Some(Outcome::Skipped(Reason::Binary)),
            // It may be readable now, and the limit may be another.
            Some(_) => None,
        }
    }
}

/// Compares what was found with what is known, notes which files have to be looked into, and
/// removes what has vanished.
pub(crate) fn record_listing(
    tx: &Connection,
    ingest: &FolderParams,
    files: Vec<Found>,
) -> anyhow::Result<Listed> {
    let folder = &ingest.folder;
    let mut known = HashMap::new();
    let mut select =
        tx.prepare(&format!("SELECT {}, path FROM documents WHERE folder = ?1", Known::COLUMNS))?;
    for row in
        select.query_map([folder], |row| Ok((row.get::<_, String>(6)?, Known::read(row)?)))?
    {
        let (path, document) = row?;
        known.insert(path, document);
    }
    forget_listing(tx, folder)?;
    let mut insert =
        tx.prepare("INSERT INTO ingest_files (folder, run, number, path) VALUES (?1, ?2, ?3, ?4)")?;
    let mut listed = Listed { summary: Summary::default(), changed: 0 };
    let mut closed = Vec::new();
    for file in files {
        let document = known.remove(&file.path);
        let outcome = if let Some(problem) = &file.problem {
            let outcome = skip(
                tx,
                folder,
                &file,
                document.map(|known| known.id),
                Reason::Unreadable,
                problem,
            )?;
            closed.push(format!("{}/", file.path));
            outcome
        } else if file.size > ingest.max_size {
            let detail = format!("over {} bytes", ingest.max_size);
            skip(tx, folder, &file, document.map(|known| known.id), Reason::TooLarge, &detail)?
        } else if let Some(outcome) = document.and_then(|known| known.still_holds(&file)) {
            outcome
        } else {
            listed.changed += 1;
            insert.execute(params![folder, ingest.run, listed.changed, file.path])?;
            continue;
        };
        listed.summary.count(&outcome);
    }
    for (path, document) in known {
        // Of what is in a folder that cannot be listed, nobody knows whether it has vanished.
        if !closed.iter().any(|folder| path.starts_with(folder)) {
            remove(tx, document.id)?;
            listed.summary.removed += u64::from(document.skipped.is_none());
        }
    }
    Ok(listed)
}

fn skip(
    tx: &Connection,
    folder: &str,
    file: &Found,
    known: Option<i64>,
    reason: Reason,
    detail: &str,
) -> anyhow::Result<Outcome> {
    let content = Content {
        size: file.size,
        modified: file.modified,
        settled: true,
        text: Err((reason, detail.to_owned())),
    };
    write(tx, folder, &file.path, &content, known)?;
    Ok(Outcome::Skipped(reason))
}

/// The listing of a finished or former ingest.
pub(crate) fn forget_listing(tx: &Connection, folder: &str) -> anyhow::Result<()> {
    tx.execute("DELETE FROM ingest_files WHERE folder = ?1", [folder])?;
    Ok(())
}

/// So many files of the listing, from the first of these numbers on.
pub(crate) fn changed_files(
    database: &Path,
    folder: &str,
    first: i64,
    count: usize,
) -> anyhow::Result<Vec<(i64, String)>> {
    let conn = open(database)?;
    let mut select = conn.prepare(
        "SELECT number, path FROM ingest_files WHERE folder = ?1 AND number >= ?2 ORDER BY number \
         LIMIT ?3",
    )?;
    let rows = select
        .query_map(params![folder, first, count as i64], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Writes what a file holds, unless the index has just that.
pub(crate) fn record_file(
    tx: &Connection,
    file: &FileParams,
    content: &Content,
) -> anyhow::Result<Outcome> {
    let FileParams { ingest: FolderParams { folder, run, .. }, number, path } = file;
    tx.prepare_cached(
        "UPDATE ingest_files SET done = 1 WHERE folder = ?1 AND number = ?2 AND run = ?3",
    )?
    .execute(params![folder, number, run])?;
    let known = tx
        .prepare_cached(&format!(
            "SELECT {} FROM documents WHERE folder = ?1 AND path = ?2",
            Known::COLUMNS
        ))?
        .query_row(params![folder, path], Known::read)
        .optional()?;
    if let (Some(known), Ok(text)) = (&known, &content.text)
        && known.hash.as_ref() == Some(&text.hash)
    {
        tx.prepare_cached("UPDATE documents SET modified = ?2, settled = ?3 WHERE id = ?1")?
            .execute(params![known.id, content.modified, content.settled])?;
        return Ok(Outcome::Unchanged);
    }
    write(tx, folder, path, content, known.map(|known| known.id))?;
    Ok(match &content.text {
        Ok(_) => Outcome::Indexed { bytes: content.size },
        Err((reason, _)) => Outcome::Skipped(*reason),
    })
}

fn write(
    tx: &Connection,
    folder: &str,
    path: &str,
    content: &Content,
    known: Option<i64>,
) -> anyhow::Result<()> {
    if let Some(id) = known {
        remove(tx, id)?;
    }
    let (text, skipped) = (content.text.as_ref().ok(), content.text.as_ref().err());
    tx.prepare_cached(
        "INSERT INTO documents (folder, path, size, modified, settled, hash, title, skipped, detail)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?
    .execute(params![
        folder,
        path,
        content.size,
        content.modified,
        content.settled,
        text.map(|text| &text.hash),
        text.map(|text| &text.title),
        skipped.map(|(reason, _)| reason.as_str()),
        skipped.map(|(_, detail)| detail),
    ])?;
    if let Some(text) = text {
        tx.prepare_cached("INSERT INTO documents_fts (rowid, content, path) VALUES (?1, ?2, ?3)")?
            .execute(params![tx.last_insert_rowid(), text.text, path])?;
    }
    Ok(())
}

fn remove(tx: &Connection, id: i64) -> anyhow::Result<()> {
    tx.prepare_cached("DELETE FROM documents_fts WHERE rowid = ?1")?.execute([id])?;
    tx.prepare_cached("DELETE FROM documents WHERE id = ?1")?.execute([id])?;
    Ok(())
}

/// Files of the folder that cannot be read, with the reason.
pub(crate) fn unreadable(
    database: &Path,
    folder: &str,
    limit: usize,
) -> anyhow::Result<Vec<(String, String)>> {
    let conn = open(database)?;
    let mut select = conn.prepare(
        "SELECT path, coalesce(detail, '') FROM documents
         WHERE folder = ?1 AND skipped = 'unreadable' ORDER BY path LIMIT ?2",
    )?;
    let rows =
        select.query_map(params![folder, limit as i64], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// How many files the ingest has to look into, and how many it has; `None` before they are listed.
pub(crate) fn progress(conn: &Connection, folder: &str, run: i64) -> Option<(i64, i64)> {
    let mut count = conn
        .prepare_cached(
            "SELECT count(*), coalesce(sum(done), 0) FROM ingest_files WHERE folder = ?1 AND run = \
             ?2",
        )
        .ok()?;
    let (all, done) =
        count.query_row(params![folder, run], |row| Ok((row.get(0)?, row.get(1)?))).ok()?;
    (all > 0).then_some((all, done))
}

/// What keeps a file from being read.
pub(crate) fn why_unreadable(path: &Path, error: &std::io::Error) -> String {
    if error.kind() != std::io::ErrorKind::NotFound {
        error.to_string()
    } else if path.is_symlink() {
        "broken symbolic link".into()
    } else {
        "vanished".into()
    }
}
