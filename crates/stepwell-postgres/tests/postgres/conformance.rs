//! The suite that every store passes.

use std::sync::Arc;

use stepwell_conformance::{Backend, Clock};
use stepwell_core::Store;

use crate::database::Database;

struct Postgres;

impl Backend for Postgres {
    type Database = Database;

    async fn create(&self) -> Database {
        Database::new()
    }

    async fn connect(&self, database: &Database, clock: Arc<Clock>) -> Arc<dyn Store> {
        Arc::new(database.open_at(clock).await)
    }
}

stepwell_conformance::suite!(Postgres);
