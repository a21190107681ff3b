//! SQLite files as the stores of histories.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use stepwell::sqlite::rusqlite::Connection;
use stepwell::sqlite::{Location, SqliteStore, TransactionExt as _};
use stepwell::testing::World;
use stepwell::{Delivery, Durable, SpawnOptions, TaskContext, TaskId};

use crate::params::Params;
use crate::params::Row;
use crate::plan::Transact;

/// The folder of a history's file, which is removed with it.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    /// Creates the folder. Within one process, the name of the folder depends only on the seed,
    /// because errors name the file.
    pub(crate) fn new(seed: u64) -> Result<Self> {
        let name = format!("stepwell-simulation-{}-{seed}", std::process::id());
        Ok(Self(tempfile::Builder::new().prefix(&name).rand_bytes(0).tempdir()?))
    }

    pub(crate) fn url(&self) -> String {
        format!("sqlite://{}", self.file().display())
    }

    fn file(&self) -> std::path::PathBuf {
        self.0.path().join("tasks.db")
    }

    pub(crate) async fn user(&self, world: &World) -> Result<SqliteUser> {
        let runtime = world.runtime();
        let store =
            world.look(SqliteStore::open(Location::parse(&self.url())?, runtime.clone()))?;
        let builder = Durable::builder().store(Arc::new(store)).runtime(runtime);
        let client = builder.answer_timeout(std::time::Duration::MAX).build().await?;
        let conn = Connection::open(self.file())?;
        conn.execute_batch("CREATE TABLE simulated (task TEXT, step TEXT, number INTEGER)")?;
        Ok(SqliteUser { client, conn: Mutex::new(conn) })
    }
}

/// A user of the file.
pub(crate) struct SqliteUser {
    client: Durable,
    conn: Mutex<Connection>,
}

impl SqliteUser {
    pub(crate) fn transaction(
        ctx: &TaskContext,
        name: &str,
        write: impl FnOnce() -> (u64, bool) + Send + 'static,
    ) -> Delivery<u64> {
        let (task, step) = (ctx.task_id.to_string(), name.to_owned());
        ctx.transaction(name, move |tx| {
            let (number, fails) = write();
            tx.execute(
                "INSERT INTO simulated VALUES (?1, ?2, ?3)",
                (task, step, i64::try_from(number)?),
            )?;
            anyhow::ensure!(!fails, "simulated");
            Ok(number)
        })
    }

    pub(crate) fn spawn(
        &self,
        transact: &Transact,
        task_type: &str,
        params: &Params,
        options: SpawnOptions,
    ) -> Result<TaskId> {
        let mut conn = self.conn.lock().unwrap_or_else(PoisonError::into_inner);
        let tx = conn.transaction()?;
        let spawned = self.client.spawn_named(task_type, params).options(options).in_tx(&tx)?;
        if transact.commits {
            tx.commit()?;
        }
        Ok(spawned.task_id)
    }

    pub(crate) fn rows(&self) -> Result<Vec<Row>> {
        let conn = self.conn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut select = conn.prepare("SELECT task, step, number FROM simulated")?;
        let rows =
            select.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, i64>(2)?)))?;
        rows.map(|row| {
            let (task, step, number) = row?;
            Ok((task, step, u64::try_from(number)?))
        })
        .collect()
    }

    pub(crate) fn run(&self, sql: &str) -> Result<()> {
        self.conn.lock().unwrap_or_else(PoisonError::into_inner).execute(sql, [])?;
        Ok(())
    }
}
