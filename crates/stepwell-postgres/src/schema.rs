//! The migration of a schema to this program's version, one version after the other.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use stepwell_core::StoreError;

use crate::connection::error::Fault;
use crate::connection::options::PostgresOptions;
use crate::connection::session;

/// The statements that lead to version 1, 2, …, in which `stepwell.` stands for the schema.
/// Invariant: they do not change after their release.
const MIGRATIONS: &[&str] = &[concat!(
    include_str!("schema/tables.sql"),
    include_str!("schema/values.sql"),
    include_str!("schema/waits.sql"),
    include_str!("schema/states.sql"),
    include_str!("schema/circles.sql"),
    include_str!("schema/arrivals.sql"),
    include_str!("schema/spawn.sql"),
    include_str!("schema/commands.sql"),
    include_str!("schema/purge.sql"),
    include_str!("schema/guards.sql"),
    include_str!("schema/outbox.sql"),
    include_str!("schema/schedules.sql"),
    include_str!("schema/history.sql"),
    include_str!("schema/claim.sql"),
    include_str!("schema/workers.sql"),
    include_str!("schema/commit.sql"),
    include_str!("schema/commit_plain.sql"),
    include_str!("schema/commit_one.sql"),
)];

/// Migrates the schema in one transaction. Several processes may call it at the same time: an
/// advisory lock serialises them.
pub(crate) async fn migrate(
    conn: &mut PgConnection,
    options: &PostgresOptions,
) -> Result<(), StoreError> {
    let fault = |error| Fault::of(error, options).into_error(options);
    // A schema that is up to date is not changed, so that a user without the right to create can
    // run workers.
    if check(found(conn, options).await?, options)? == MIGRATIONS.len() {
        return Ok(());
    }
    let mut tx = conn.begin_with(session::BEGIN).await.map_err(fault)?;
    // Functions in SQL, views and expressions of columns resolve names when they are created.
    tx.execute("SET LOCAL search_path = pg_catalog, pg_temp").await.map_err(fault)?;
    let lock = "SELECT pg_advisory_xact_lock(hashtext('stepwell migration'), hashtext($1))";
    sqlx::query(lock)
        .persistent(false)
        .bind(&options.schema)
        .execute(&mut *tx)
        .await
        .map_err(fault)?;
    // The version is read again, because another process may have migrated while this one waited
    // for the lock.
    let found = check(version(&mut tx, options).await.map_err(fault)?, options)?;
    if found == 0 {
        let schema = &options.schema;
        let create = format!(
            "CREATE SCHEMA IF NOT EXISTS {schema};
            CREATE TABLE IF NOT EXISTS {schema}.schema_version (version integer NOT NULL)"
        );
        tx.execute(sqlx::raw_sql(AssertSqlSafe(create))).await.map_err(fault)?;
    }
    for (version, step) in MIGRATIONS.iter().enumerate().skip(found).map(|(i, step)| (i + 1, step))
    {
        let schema = &options.schema;
        let step = step.replace("stepwell.", &format!("{schema}."));
        let step = format!(
            "{step}; DELETE FROM {schema}.schema_version; INSERT INTO {schema}.schema_version \
             VALUES ({version})"
        );
        tx.execute(sqlx::raw_sql(AssertSqlSafe(step))).await.map_err(fault)?;
    }
    tx.commit().await.map_err(fault)
}

/// Checks that the schema has this program's version.
pub(crate) async fn require(
    conn: &mut PgConnection,
    options: &PostgresOptions,
) -> Result<(), StoreError> {
    let found = found(conn, options).await?;
    if check(found, options)? < MIGRATIONS.len() {
        let location = options.to_string();
        return Err(StoreError::OlderSchema { location, found: found.into(), known: known() });
    }
    Ok(())
}

/// Returns the schema's version. The version is read in its own transaction, so that a pooler sends
/// all statements to the same server connection.
async fn found(conn: &mut PgConnection, options: &PostgresOptions) -> Result<i32, StoreError> {
    let fault = |error| Fault::of(error, options).into_error(options);
    let mut tx = conn.begin_with(session::BEGIN_READING).await.map_err(fault)?;
    let encoding = sqlx::query_scalar("SELECT pg_catalog.current_setting('server_encoding')");
    let encoding: String = encoding.persistent(false).fetch_one(&mut *tx).await.map_err(fault)?;
    if encoding != "UTF8" {
        return Err(StoreError::Open {
            location: options.to_string(),
            reason: format!("the database's encoding is {encoding}, which cannot hold every text"),
            advice: "Use a database that was created with ENCODING 'UTF8'".into(),
        });
    }
    let version = version(&mut tx, options).await.map_err(fault)?;
    tx.rollback().await.map_err(fault)?;
    Ok(version)
}

/// Returns the schema's version, or 0 when there is no schema.
async fn version(tx: &mut PgConnection, options: &PostgresOptions) -> sqlx::Result<i32> {
    // `to_regclass` may answer from a cache that lacks what another process has just committed.
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = $1 AND c.relname = 'schema_version')";
    let there: bool =
        sqlx::query_scalar(sql).persistent(false).bind(&options.schema).fetch_one(&mut *tx).await?;
    if !there {
        return Ok(0);
    }
    let sql = AssertSqlSafe(format!(
        "SELECT coalesce(pg_catalog.max(version), 0) FROM {}.schema_version",
        options.schema
    ));
    sqlx::query_scalar(sql).persistent(false).fetch_one(tx).await
}

/// Checks that this program knows the schema's version.
fn check(found: i32, options: &PostgresOptions) -> Result<usize, StoreError> {
    match usize::try_from(found) {
        Ok(found) if found <= MIGRATIONS.len() => Ok(found),
        _ => Err(StoreError::NewerSchema {
            location: options.to_string(),
            found: found.into(),
            known: known(),
        }),
    }
}

/// Returns the newest version that this program knows.
fn known() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const PAGE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/format.md"));

    /// Returns the columns of the tables that the schema creates.
    fn tables(schema: &'static str) -> BTreeMap<&'static str, Vec<&'static str>> {
        let mut tables = BTreeMap::<_, Vec<_>>::new();
        for table in schema.split("CREATE TABLE stepwell.").skip(1) {
            let (name, rest) = table.split_once(" (").unwrap();
            let lines = rest.lines().skip(1).take_while(|line| !line.starts_with(')'));
            let lines: Vec<_> = lines.filter_map(|line| line.strip_prefix("    ")).collect();
            let columns = lines.iter().filter_map(|line| Some(line.split_once(' ')?.0));
            let is_name = |column: &&str| column.starts_with(|c: char| c.is_ascii_lowercase());
            let mut columns: Vec<_> = columns.filter(is_name).collect();
            let like = lines.iter().find_map(|line| line.strip_prefix("LIKE stepwell."));
            if let Some(other) = like {
                columns.extend(tables.get(other.trim_end_matches(',')).unwrap());
            }
            tables.insert(name, columns);
        }
        tables
    }

    /// Returns the columns that the page describes for a table, with the rows of the page.
    fn described(table: &str) -> BTreeMap<&'static str, &'static str> {
        let heading = format!("`{table}`");
        let is_of_table = |section: &&str| section.lines().next().unwrap().contains(&heading);
        let section = PAGE.split("\n### ").skip(1).find(is_of_table).unwrap_or_default();
        let section = section.split("\n## ").next().unwrap();
        let rows = section.lines().filter(|line| line.starts_with("| `"));
        rows.flat_map(|row| {
            let names = row[2..].split(" | ").next().unwrap().split(", ");
            names.map(move |name| (name.trim_matches('`'), row))
        })
        .collect()
    }

    #[test]
    fn every_column_is_on_the_page_and_no_other() {
        assert!(PAGE.contains("`schema_version` in PostgreSQL"));
        let tables = tables(MIGRATIONS[0]);
        assert_eq!(tables.len(), 18, "{:?}", tables.keys());
        for (table, columns) in tables {
            let described = described(table);
            for column in &columns {
                assert!(described.contains_key(column), "{table}.{column} is not on the page");
            }
            for (column, row) in described {
                let is_there = columns.contains(&column);
                assert!(is_there || row.contains("(SQLite only)"), "{table} has no {column}");
            }
        }
    }
}
