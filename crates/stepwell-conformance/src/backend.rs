//! The access of the suite to a store.

use std::future::Future;
use std::sync::Arc;

use stepwell_core::Store;

use crate::clock::Clock;

/// The access of the suite to a store. The methods may be written as `async fn`.
pub trait Backend: Send + Sync + 'static {
    /// An empty database. The database is removed when this value is dropped, which comes after its
    /// handles are dropped.
    type Database: Send + Sync;

    /// Creates an empty database.
    fn create(&self) -> impl Future<Output = Self::Database> + Send;

    /// Returns a handle on the database, like the one of a separate process. The handle uses this
    /// clock. All handles on one database receive the same clock.
    fn connect(
        &self,
        database: &Self::Database,
        clock: Arc<Clock>,
    ) -> impl Future<Output = Arc<dyn Store>> + Send;

    /// Returns whether several handles may share a database. Otherwise [`connect`](Self::connect)
    /// is called once for each database, and one handle does what several handles would do at the
    /// same time.
    fn is_shared(&self) -> bool {
        true
    }

    /// Returns whether the store itself refuses a batch with a task's id, or a place in a journal,
    /// that is taken. The engine never sends such a batch, so a store for tests may accept it.
    fn refuses_duplicates(&self) -> bool {
        true
    }
}
