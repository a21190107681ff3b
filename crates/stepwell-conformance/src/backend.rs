//! How the suite gets at a store.

use std::future::Future;
use std::sync::Arc;

use stepwell_core::Store;

use crate::clock::Clock;

/// How the suite gets at a store. Its methods may be written as `async fn`.
pub trait Backend: Send + Sync + 'static {
    /// An empty database. It is gone when it is dropped, which comes after its handles are.
    type Database: Send + Sync;

    /// Makes an empty database.
    fn create(&self) -> impl Future<Output = Self::Database> + Send;

    /// A handle on the database, as a process of its own has, which goes by this clock. All handles
    /// on one database are given the same clock.
    fn connect(
        &self,
        database: &Self::Database,
        clock: Arc<Clock>,
    ) -> impl Future<Output = Arc<dyn Store>> + Send;

    /// Whether several handles may share a database. Otherwise [`connect`](Self::connect) is called
    /// once for each, and what several handles would do at the same time is done through one.
    fn is_shared(&self) -> bool {
        true
    }

    /// Whether the store sees by itself that a task's id, or a place in a journal, is taken, and
    /// refuses such a batch. The engine never sends one, so that a store for tests may do
    /// without.
    fn refuses_duplicates(&self) -> bool {
        true
    }
}
