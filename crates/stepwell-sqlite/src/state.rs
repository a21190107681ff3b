//! The writer's memory between batches: its statements, the ends of journals, and its lock file.

pub(crate) mod changes;
pub(crate) mod ends;
pub(crate) mod liveness;
pub(crate) mod prepared;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use stepwell_core::{Runtime, StoreError};

use crate::base::location::Location;
use crate::file::identity::Identity;
use crate::state::changes::Changes;

/// The data that the writer needs beside its connection.
pub(crate) struct Writer {
    pub(crate) location: Location,
    pub(crate) runtime: Arc<dyn Runtime>,
    /// `true` while the user's code has the connection, which cannot commit then.
    pub(crate) user_works: Arc<AtomicBool>,
    pub(crate) changes: Arc<Changes>,
    /// The identity of the files; `None` for a database in memory, and within a user's transaction.
    pub(crate) identity: Option<Arc<Identity>>,
}

impl Writer {
    /// Checks that the files are the ones that were opened.
    pub(crate) fn check_files(&self) -> Result<(), StoreError> {
        self.identity.as_ref().map_or(Ok(()), |identity| identity.check())
    }
}
