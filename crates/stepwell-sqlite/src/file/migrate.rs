//! The migration of a database to this program's schema, one version after the other.

use rusqlite::Connection;
use stepwell_core::StoreError;

use crate::base::error::{self, Fault};
use crate::base::location::Location;
use crate::base::rows::Statements as _;

/// The statements that lead to version 1, 2, …. Invariant: they do not change after their release.
pub(crate) const MIGRATIONS: &[&str] = &[include_str!("../schema/0001.sql")];

/// The version of a database whose table of versions has no version of a Stepwell.
const UNKNOWN: i64 = -1;

/// Returns the version of the schema, 0 when there is no schema, or [`UNKNOWN`].
pub(crate) fn version(conn: &Connection) -> rusqlite::Result<i64> {
    // `PRAGMA user_version` is not used, because another application may share the file and keep
    // its own version there.
    let is_there = conn
        .one("SELECT 1 FROM sqlite_master WHERE name = 'stepwell_schema'", [], |_| Ok(()))?
        .is_some();
    if !is_there {
        return Ok(0);
    }
    let sql = "SELECT max(version) FROM stepwell_schema";
    let version: Option<i64> = conn.query_row(sql, [], |row| row.get(0))?;
    Ok(version.filter(|version| *version >= 1).unwrap_or(UNKNOWN))
}

/// Checks that this program knows the schema.
pub(crate) fn check(
    found: i64,
    migrations: &[&str],
    location: &Location,
) -> Result<(), StoreError> {
    if found == UNKNOWN {
        let reason = "its table `stepwell_schema` has no version that a Stepwell has written";
        let advice = "Restore the database from a backup, or use another one";
        return Err(error::open(location, reason, advice));
    }
    let known = known(migrations);
    if found > known {
        return Err(StoreError::NewerSchema { location: location.to_string(), found, known });
    }
    Ok(())
}

/// Checks that the schema is not older than this program's. [`check`] comes before.
pub(crate) fn require(
    found: i64,
    migrations: &[&str],
    location: &Location,
) -> Result<(), StoreError> {
    let known = known(migrations);
    if found < known {
        return Err(StoreError::OlderSchema { location: location.to_string(), found, known });
    }
    Ok(())
}

fn known(migrations: &[&str]) -> i64 {
    i64::try_from(migrations.len()).unwrap_or(i64::MAX)
}

/// Applies the missing migrations in one transaction. Several processes may call it at the same
/// time.
pub(crate) fn migrate(
    conn: &Connection,
    migrations: &[&str],
    location: &Location,
) -> Result<(), Fault> {
    if usize::try_from(version(conn)?) == Ok(migrations.len()) {
        return Ok(());
    }
    conn.execute_batch("BEGIN IMMEDIATE")?;
    let migrated =
        steps(conn, migrations, location).and_then(|()| Ok(conn.execute_batch("COMMIT")?));
    if migrated.is_err() && !conn.is_autocommit() {
        conn.execute_batch("ROLLBACK")?;
    }
    migrated
}

fn steps(conn: &Connection, migrations: &[&str], location: &Location) -> Result<(), Fault> {
    // The version is read again, because another process may have migrated while this one waited
    // for the lock.
    let found = version(conn)?;
    check(found, migrations, location)?;
    conn.execute_batch(
        "CREATE TABLE IF NOT EXISTS stepwell_schema (version INTEGER NOT NULL) STRICT",
    )?;
    for (version, step) in (1_i64..).zip(migrations).skip(usize::try_from(found).unwrap_or(0)) {
        conn.execute_batch(step).map_err(|error| explain(error, location))?;
        conn.execute("DELETE FROM stepwell_schema", [])?;
        conn.execute("INSERT INTO stepwell_schema (version) VALUES (?1)", [version])?;
    }
    Ok(())
}

fn explain(error: rusqlite::Error, location: &Location) -> Fault {
    match &error {
        rusqlite::Error::SqlInputError { msg, .. }
        | rusqlite::Error::SqliteFailure(_, Some(msg))
            if msg.contains("already exists") =>
        {
            let reason = format!(
                "it holds another application's data ({msg}), and Stepwell needs that name"
            );
            error::open(location, &reason, "Give Stepwell a file of its own").into()
        }
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "CREATE TABLE things (name TEXT) STRICT; INSERT INTO things VALUES ('old');";
    const V2: &str = "ALTER TABLE things ADD COLUMN size INTEGER; UPDATE things SET size = 7;";
    const BROKEN: &str = "UPDATE things SET size = 8; UPDATE nothing SET size = 8;";

    fn size(conn: &Connection) -> i64 {
        conn.query_row("SELECT size FROM things", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn an_older_schema_is_migrated_step_by_step() {
        let conn = Connection::open_in_memory().unwrap();
        migrate(&conn, &[V1], &Location::Memory).unwrap();
        assert_eq!(version(&conn).unwrap(), 1);
        for _ in 0..2 {
            migrate(&conn, &[V1, V2], &Location::Memory).unwrap();
            assert_eq!((version(&conn).unwrap(), size(&conn)), (2, 7));
        }
    }

    #[test]
    fn a_failed_migration_changes_nothing() {
        let conn = Connection::open_in_memory().unwrap();
        migrate(&conn, &[V1, V2], &Location::Memory).unwrap();
        migrate(&conn, &[V1, V2, BROKEN], &Location::Memory).unwrap_err();
        assert_eq!((version(&conn).unwrap(), size(&conn), conn.is_autocommit()), (2, 7, true));
    }

    #[test]
    fn a_disk_that_fills_up_leaves_no_half_of_a_migration() {
        let conn = Connection::open_in_memory().unwrap();
        migrate(&conn, &[V1], &Location::Memory).unwrap();
        conn.query_row("PRAGMA max_page_count = 3", [], |_| Ok(())).unwrap();
        let large = "ALTER TABLE things ADD COLUMN size INTEGER; INSERT INTO things VALUES \
                     (hex(zeroblob(100000)), 1);";
        let error =
            migrate(&conn, &[V1, large], &Location::Memory).unwrap_err().at(&Location::Memory);
        assert!(matches!(error, StoreError::Full(_)), "{error}");
        assert_eq!((version(&conn).unwrap(), conn.is_autocommit()), (1, true));
        conn.prepare("SELECT size FROM things").unwrap_err();
    }

    #[test]
    fn a_database_without_tables_is_created_and_one_of_an_unknown_version_is_refused() {
        let conn = Connection::open_in_memory().unwrap();
        assert_eq!(version(&conn).unwrap(), 0);
        migrate(&conn, MIGRATIONS, &Location::Memory).unwrap();
        assert_eq!(usize::try_from(version(&conn).unwrap()), Ok(MIGRATIONS.len()));
        for versions in ["", "VALUES (0)", "VALUES (-3)"] {
            conn.execute_batch("DELETE FROM stepwell_schema").unwrap();
            if !versions.is_empty() {
                conn.execute_batch(&format!("INSERT INTO stepwell_schema {versions}")).unwrap();
            }
            let migrated = migrate(&conn, MIGRATIONS, &Location::Memory);
            let error = migrated.unwrap_err().at(&Location::Memory);
            assert!(matches!(error, StoreError::Open { .. }), "{error:?}");
            assert!(
                error.to_string().contains("no version that a Stepwell has written"),
                "{error}"
            );
            assert!(conn.is_autocommit());
        }
    }

    #[test]
    fn an_older_schema_is_refused_where_it_may_not_be_migrated() {
        for found in [0, 1] {
            check(found, &[V1, V2], &Location::Memory).unwrap();
            let error = require(found, &[V1, V2], &Location::Memory).unwrap_err();
            let same = |other| other == found;
            assert!(
                matches!(error, StoreError::OlderSchema { found, known: 2, .. } if same(found)),
                "{error:?}"
            );
        }
        require(2, &[V1, V2], &Location::Memory).unwrap();
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let conn = Connection::open_in_memory().unwrap();
        migrate(&conn, &[V1, V2], &Location::Memory).unwrap();
        let error = migrate(&conn, &[V1], &Location::Memory).unwrap_err().at(&Location::Memory);
        assert!(matches!(error, StoreError::NewerSchema { found: 2, known: 1, .. }), "{error}");
    }
}
