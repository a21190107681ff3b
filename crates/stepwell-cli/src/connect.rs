//! The database.

use std::fmt;

use anyhow::Result;
use stepwell::sqlite::Location;
use stepwell::{DEFAULT_DATABASE_URL, Durable, DurableBuilder};

/// There is no such file: whoever looks at tasks wants those that are there, and no new database.
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

/// Opens a database that is there, with the tables that this version needs: to look at tasks is not
/// to change what their programs work on.
pub(crate) async fn open(url: &str) -> Result<Durable> {
    Ok(existing(url)?.build().await?)
}

/// What opens it.
pub(crate) fn existing(url: &str) -> Result<DurableBuilder> {
    let url = if url.is_empty() { DEFAULT_DATABASE_URL } else { url };
    if let Ok(Location::File(path)) = Location::parse(url)
        && !path.exists()
    {
        return Err(NoDatabase(path.display().to_string()).into());
    }
    Ok(Durable::builder().database_url(url).without_migration())
}

/// Opens a database, and makes it when it is not there.
pub(crate) async fn create(url: &str) -> Result<Durable> {
    Ok(Durable::builder().database_url(url).build().await?)
}
