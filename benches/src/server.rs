//! The PostgreSQL server that is measured, and a schema of its own for each run of a workload.

use std::path::Path;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _};
use stepwell::postgres::{PostgresOptions, PostgresStore};
use throwaway::Postgres;
use tokio::runtime::Handle;
use tokio::task::block_in_place;

/// A server.
#[derive(Debug)]
pub(crate) struct Server {
    url: String,
    /// Stopped and removed with this value, when this program has started it.
    own: Option<Postgres>,
    /// How many schemas there have been.
    schemas: AtomicU32,
}

impl Server {
    /// Starts a server with PostgreSQL's default settings, and its data in a new folder in `dir`.
    pub(crate) fn start(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)
            .with_context(|| format!("could not create {}", dir.display()))?;
        let own = Postgres::start_in(dir, &[]).context("give a server with --database-url")?;
        Ok(Self { url: own.url(), own: Some(own), schemas: AtomicU32::new(0) })
    }

    /// Names a server that runs already, and that the program does not stop.
    pub(crate) fn given(url: String) -> Self {
        Self { url, own: None, schemas: AtomicU32::new(0) }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Whether its data is in the folder on the disk to be measured.
    pub(crate) fn is_own(&self) -> bool {
        self.own.is_some()
    }

    pub(crate) async fn version(&self) -> Result<String> {
        let mut conn = self.options()?.connect().await?;
        Ok(sqlx::query_scalar("SHOW server_version").fetch_one(&mut conn).await?)
    }

    /// A schema that is not there yet. Its name has this process's id in it, since others may use
    /// the server as well.
    pub(crate) fn schema(self: &Arc<Self>) -> Schema {
        let number = self.schemas.fetch_add(1, Ordering::Relaxed) + 1;
        let name = format!("bench_{}_{number}", std::process::id());
        Schema { server: self.clone(), name, own: true }
    }

    /// A schema that another process has made, and will drop.
    pub(crate) fn schema_of_another(self: &Arc<Self>, name: &str) -> Schema {
        Schema { server: self.clone(), name: name.to_owned(), own: false }
    }

    fn options(&self) -> Result<PgConnectOptions> {
        PgConnectOptions::from_str(&self.url).context("the URL of the database cannot be read")
    }
}

/// A schema for Stepwell's tables. Gone with this value.
pub(crate) struct Schema {
    server: Arc<Server>,
    name: String,
    own: bool,
}

impl Schema {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A store of its own connections. The first one creates the tables.
    pub(crate) async fn store(&self) -> Result<PostgresStore> {
        let options = PostgresOptions::parse(&self.server.url)?.schema(&self.name)?;
        Ok(PostgresStore::connect(options).await?)
    }

    /// A bare connection, to which the tables are known without the schema's name.
    pub(crate) async fn connect(&self) -> Result<PgConnection> {
        let options = self.server.options()?.options([("search_path", &self.name)]);
        options.connect().await.context("could not connect to the server")
    }

    async fn drop_tables(&self) -> Result<()> {
        let mut conn = self.server.options()?.connect().await?;
        let sql = format!(
            "SET client_min_messages = warning; DROP SCHEMA IF EXISTS {} CASCADE",
            self.name
        );
        conn.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
        Ok(conn.close().await?)
    }
}

impl Drop for Schema {
    fn drop(&mut self) {
        let Ok(runtime) = Handle::try_current() else { return };
        if self.own
            && let Err(error) = block_in_place(|| runtime.block_on(self.drop_tables()))
        {
            eprintln!("warning: the schema {} could not be dropped: {error:#}", self.name);
        }
    }
}
