//! The task: reads a file into a table.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::anyhow;
use serde::{Deserialize, Serialize};
use stepwell::sqlite::TransactionExt;
use stepwell::sqlite::rusqlite::Connection;
use stepwell::{Task, TaskContext, TaskError, TaskResult, async_trait};
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;

use crate::progress::Progress;
use crate::source::{self, Rows};
use crate::table::{self, Imported};

/// The cleanup after an import that failed.
pub(crate) const FORGET_ROWS: &str = "forget-rows";

/// A connection beside Stepwell's own.
pub(crate) type Database = Arc<Mutex<Connection>>;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Import {
    pub(crate) path: PathBuf,
    /// The SHA-256 of the file.
    pub(crate) hash: String,
    pub(crate) table: String,
    /// The SQL that creates the table.
    pub(crate) create: Option<String>,
    /// How many rows go into one transaction.
    pub(crate) batch: usize,
}

impl Import {
    /// What it is known by: no file is imported into a table twice.
    pub(crate) fn key(&self) -> String {
        format!("{} {}", self.table, self.hash)
    }

    /// Fails when the file is no longer what it was when the import began.
    async fn check_file(&self) -> anyhow::Result<()> {
        let path = self.path.clone();
        let hash = blocking(move || source::hash(&path)).await?;
        if hash != self.hash {
            return for_good(Err(anyhow!(
                "{} has changed since its import began, which is undone: import it anew",
                self.path.display()
            )));
        }
        Ok(())
    }
}

/// An import. What fails does so for good: the next run of the program says why, and tries again.
pub(crate) struct ImportFile;

#[async_trait]
impl Task for ImportFile {
    const NAME: &'static str = "import-file";
    type Params = Import;
    type Output = Imported;

    async fn run(import: Import, ctx: TaskContext) -> TaskResult<Imported> {
        let (database, progress) = (ctx.state::<Database>()?, ctx.state::<Progress>()?);
        let (key, path) = (import.key(), import.path.clone());
        let (columns, count) = ctx.step("look", || blocking(move || source::look(&path))).await?;
        ctx.transaction("prepare", {
            let (import, columns) = (import.clone(), columns.clone());
            move |tx| {
                for_good(table::prepare(tx, &import.table, &columns, import.create.as_deref()))
            }
        })
        .await?;

        let leftover = ctx.cleanup(FORGET_ROWS, &key).await?;
        // A worker that goes on after a crash makes sure first that the rows are the same.
        let checked = OnceCell::new();
        ctx.items("rows", Rows::new(&import.path, count))
            .on_progress(|counts| progress.show(&key, counts))
            .each_batch(import.batch, |rows| async {
                checked.get_or_try_init(|| import.check_file()).await?;
                let (database, key, count) = (database.clone(), key.clone(), rows.len());
                blocking(move || table::stage(&mut locked(&database), &key, &rows)).await?;
                Ok(vec![(); count])
            })
            .await?;
        let imported = ctx
            .transaction("publish", move |tx| {
                for_good(table::publish(tx, &key, &import.table, &columns))
            })
            .await?;
        ctx.discard(&leftover).await?;
        Ok(imported)
    }
}

/// The cleanup: removes the rows of an import that failed.
pub(crate) async fn forget_rows(database: Database, import: String) -> anyhow::Result<()> {
    spawn_blocking(move || table::forget(&locked(&database), &import)).await?
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    for_good(spawn_blocking(work).await?)
}

fn for_good<T>(result: anyhow::Result<T>) -> anyhow::Result<T> {
    result.map_err(|error| TaskError::permanent(error).into())
}

fn locked(database: &Database) -> std::sync::MutexGuard<'_, Connection> {
    database.lock().unwrap_or_else(PoisonError::into_inner)
}
