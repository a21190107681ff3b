//! How the suite gets at the store in memory.

use std::sync::{Arc, OnceLock};

use stepwell_conformance::{Backend, Clock};
use stepwell_core::{MemoryStore, Store};

/// The store in memory.
pub(crate) struct Memory;

impl Backend for Memory {
    type Database = OnceLock<MemoryStore>;

    async fn create(&self) -> Self::Database {
        OnceLock::new()
    }

    async fn connect(&self, database: &Self::Database, clock: Arc<Clock>) -> Arc<dyn Store> {
        Arc::new(database.get_or_init(|| MemoryStore::new(clock)).connect())
    }

    fn refuses_duplicates(&self) -> bool {
        false
    }
}
