//! The user's table, and the one beside it in which rows wait until all have been read.

use std::path::Path;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use stepwell::sqlite::rusqlite::{
    self, Connection, ErrorCode, TransactionBehavior, params_from_iter,
};

use crate::source::Row;

/// How many bad rows are reported.
const REPORTED: usize = 20;

/// What came of an import.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Imported {
    pub(crate) rows: u64,
    pub(crate) bad: u64,
    /// The first of the bad rows.
    pub(crate) first_bad: Vec<BadRow>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BadRow {
    pub(crate) line: u64,
    pub(crate) why: String,
}

/// Creates the user's table by this SQL, when it is not there, and the one for rows that wait. The
/// table has to have the columns.
pub(crate) fn prepare(
    conn: &Connection,
    table: &str,
    columns: &[String],
    create: Option<&str>,
) -> anyhow::Result<()> {
    conn.execute_batch(
        "CREATE TABLE IF NOT EXISTS csv_import_rows (
            import TEXT NOT NULL, line INTEGER NOT NULL, fields TEXT NOT NULL,
            PRIMARY KEY (import, line)
        ) STRICT, WITHOUT ROWID",
    )?;
    if !conn.table_exists(None, table)? {
        let create = create.with_context(|| {
            format!(
                "the database has no table {table:?}: create it, or give its SQL with `--create`"
            )
        })?;
        conn.execute_batch(create).context("the SQL of `--create`")?;
        ensure!(conn.table_exists(None, table)?, "the SQL of `--create` makes no table {table:?}");
    }
    for column in columns {
        ensure!(
            conn.column_exists(None, table, column)?,
            "the table {table:?} has no column {column:?}, which the first line of the file names"
        );
    }
    Ok(())
}

/// Puts rows beside the user's table. Rows that are there already stay, so that it may be done
/// twice.
pub(crate) fn stage(conn: &mut Connection, import: &str, rows: &[Row]) -> anyhow::Result<()> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    {
        let mut insert =
            tx.prepare_cached("INSERT OR IGNORE INTO csv_import_rows VALUES (?1, ?2, ?3)")?;
        for row in rows {
            let fields = row.fields.as_ref().map(|record| record.iter().collect::<Vec<_>>());
            let line = i64::try_from(row.line)?;
            insert.execute((import, line, serde_json::to_string(&fields)?))?;
        }
    }
    Ok(tx.commit()?)
}

/// Moves the rows into the user's table. Those that it does not take are left out.
pub(crate) fn publish(
    conn: &Connection,
    import: &str,
    table: &str,
    columns: &[String],
) -> anyhow::Result<Imported> {
    let names: Vec<_> = columns.iter().map(|column| quoted(column)).collect();
    let places = vec!["?"; columns.len()].join(", ");
    let insert = format!("INSERT INTO {} ({}) VALUES ({places})", quoted(table), names.join(", "));
    let mut insert = conn.prepare(&insert)?;
    let mut select =
        conn.prepare("SELECT line, fields FROM csv_import_rows WHERE import = ?1 ORDER BY line")?;
    let mut staged = select.query([import])?;
    let mut imported = Imported::default();
    while let Some(row) = staged.next()? {
        let (line, fields): (i64, String) = (row.get(0)?, row.get(1)?);
        let fields: Result<Vec<String>, String> = serde_json::from_str(&fields)?;
        let problem = match fields {
            Err(problem) => Some(problem),
            Ok(fields) => {
                // An empty field is a value that is not there.
                let values =
                    fields.iter().map(|field| Some(field).filter(|field| !field.is_empty()));
                match insert.execute(params_from_iter(values)) {
                    Ok(_) => None,
                    Err(error) => Some(refusal(error)?),
                }
            }
        };
        match problem {
            None => imported.rows += 1,
            Some(why) => {
                imported.bad += 1;
                if imported.first_bad.len() < REPORTED {
                    imported.first_bad.push(BadRow { line: line.unsigned_abs(), why });
                }
            }
        }
    }
    forget(conn, import)?;
    Ok(imported)
}

/// Why the table does not take a row, when it is the row's fault.
fn refusal(error: rusqlite::Error) -> anyhow::Result<String> {
    match error.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch) => Ok(error.to_string()),
        _ => Err(error.into()),
    }
}

/// Removes the rows of an import that wait.
pub(crate) fn forget(conn: &Connection, import: &str) -> anyhow::Result<()> {
    conn.execute("DELETE FROM csv_import_rows WHERE import = ?1", [import])?;
    Ok(())
}

/// A connection beside Stepwell's own.
pub(crate) fn open(database: &Path) -> anyhow::Result<Connection> {
    let conn = Connection::open(database)?;
    // As Stepwell has it: what is committed survives a power cut.
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.busy_timeout(std::time::Duration::from_secs(30))?;
    Ok(conn)
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
