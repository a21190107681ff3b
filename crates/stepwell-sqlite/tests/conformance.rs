//! The store keeps the contract that every store keeps, in memory and on a file.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use stepwell_conformance::{Backend, Clock};
use stepwell_core::Store;
use stepwell_sqlite::{Location, SqliteStore};
use tempfile::TempDir;

async fn open(location: Location, clock: Arc<Clock>) -> Arc<dyn Store> {
    Arc::new(SqliteStore::open(location, clock).await.unwrap())
}

/// Each database has but one handle.
struct InMemory;

impl Backend for InMemory {
    type Database = ();

    async fn create(&self) {}

    async fn connect(&self, (): &(), clock: Arc<Clock>) -> Arc<dyn Store> {
        open(Location::Memory, clock).await
    }

    fn is_shared(&self) -> bool {
        false
    }
}

struct OnAFile;

impl Backend for OnAFile {
    type Database = TempDir;

    async fn create(&self) -> TempDir {
        tempfile::tempdir().unwrap()
    }

    async fn connect(&self, folder: &TempDir, clock: Arc<Clock>) -> Arc<dyn Store> {
        open(Location::File(folder.path().join("stepwell.db")), clock).await
    }
}

mod in_memory {
    stepwell_conformance::suite!(super::InMemory);
}

mod on_a_file {
    stepwell_conformance::suite!(super::OnAFile);
}
