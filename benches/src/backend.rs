//! Where a workload keeps its tasks: a new database file, a new schema, or memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::Serialize;
use stepwell::{Durable, MemoryStore, TokioRuntime};
use tempfile::TempDir;

use crate::server::Schema;
use crate::setup::Telemetry;
use crate::tasks::{self, Probe};

/// The store that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StoreKind {
    /// SQLite on a real file, with its default settings.
    Sqlite,
    /// PostgreSQL with its default settings.
    Postgres,
    /// The reference model in memory: the engine's own cost, without a disk.
    Memory,
}

/// An empty store, which clients can be opened on one after another. Gone with this value.
pub(crate) enum Backend {
    Sqlite(TempDir),
    Postgres(Schema),
    Memory(MemoryStore),
}

impl Backend {
    pub(crate) fn sqlite(dir: &Path) -> Result<Self> {
        Ok(Self::Sqlite(temp_folder(dir)?))
    }

    pub(crate) fn memory() -> Self {
        Self::Memory(MemoryStore::new(Arc::new(TokioRuntime::current())))
    }

    /// A new client, with the task types of this program.
    pub(crate) async fn open(&self, probe: &Arc<Probe>, telemetry: Telemetry) -> Result<Durable> {
        let mut builder = match self {
            Self::Sqlite(folder) => {
                Durable::builder().database_url(format!("sqlite://{}", file(folder).display()))
            }
            Self::Postgres(schema) => Durable::builder().store(Arc::new(schema.store().await?)),
            Self::Memory(store) => Durable::builder().store(Arc::new(store.connect())),
        };
        if telemetry.measure {
            builder = builder.measure();
        }
        if telemetry.keep_history {
            builder = builder.keep_history();
        }
        let client =
            builder.state(probe.clone()).build().await.context("could not open the store")?;
        tasks::register(&client).await?;
        Ok(client)
    }
}

fn file(folder: &TempDir) -> PathBuf {
    folder.path().join("bench.db")
}

/// A folder for one run's files, removed when it is dropped.
pub(crate) fn temp_folder(dir: &Path) -> Result<TempDir> {
    std::fs::create_dir_all(dir).with_context(|| format!("could not create {}", dir.display()))?;
    tempfile::Builder::new()
        .prefix("stepwell-bench-")
        .tempdir_in(dir)
        .with_context(|| format!("could not create a folder in {}", dir.display()))
}
