//! Access to the database.

use std::fmt;

use anyhow::Result;
use stepwell::sqlite::Location;
use stepwell::{DEFAULT_DATABASE_URL, Durable, DurableBuilder};

/// The error of a database file that does not exist. A command that reads tasks never creates a
/// database.
#[derive(Debug)]
pub(crate) struct NoDatabase(String);

impl fmt::Display for NoDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "there is no database {}: name another one with --database-url or \
             DURABLE_DATABASE_URL, or make it with `stepwell migrate`",
            self.0
        )
    }
}

impl std::error::Error for NoDatabase {}

/// Opens an existing database without a migration, so it must have the tables that this version
/// needs. A command that reads tasks must not change the tables that other programs use.
pub(crate) async fn open(url: &str) -> Result<Durable> {
    Ok(existing(url)?.build().await?)
}

/// Returns the builder for an existing database.
pub(crate) fn existing(url: &str) -> Result<DurableBuilder> {
    let url = if url.is_empty() { DEFAULT_DATABASE_URL } else { url };
    if let Ok(Location::File(path)) = Location::parse(url)
        && !path.exists()
    {
        return Err(NoDatabase(path.display().to_string()).into());
    }
    Ok(Durable::builder().database_url(url).without_migration())
}

/// Opens a database, and creates it when it does not exist.
pub(crate) async fn create(url: &str) -> Result<Durable> {
    Ok(Durable::builder().database_url(url).build().await?)
}
