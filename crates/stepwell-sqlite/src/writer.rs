//! The thread that owns the writing connection.
//!
//! ```text
//!   callers ──▶ orders ──▶ writer thread ──▶ one transaction a batch ──▶ answers (oneshot)
//!                               │
//!                               └─ idle, and a caller waits in `changed()`: every 20 ms, has
//!                                  another connection committed (`PRAGMA data_version`)?
//! ```

pub(crate) mod commit;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use stepwell_core::store::{Batch, Committed};
use stepwell_core::{StoreError, discard};
use tokio::sync::oneshot;

use crate::base::threads::survive;
use crate::file::checkpoint::Checkpoints;
use crate::state::Writer;
use crate::state::ends::{Ends, data_version};
use crate::state::liveness::Liveness;
use crate::state::prepared::Prepared;
use crate::writer::commit::commit;

/// The interval at which the idle writer looks for commits of others.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Work on a connection.
pub(crate) type Job = Box<dyn FnOnce(&Connection) + Send>;

/// An order to the writer.
pub(crate) enum Order {
    Commit(Arc<Batch>, oneshot::Sender<Result<Committed, StoreError>>),
    Job(Job),
    /// A caller waits for changes now.
    Look,
}

impl Writer {
    /// Executes orders until all senders are gone. `version` is the version of the database when
    /// the store was opened.
    pub(crate) fn run(
        self,
        conn: &Connection,
        version: Option<i64>,
        liveness: Liveness,
        checkpoints: Checkpoints,
        orders: &Receiver<Order>,
    ) {
        self.follow(&Prepared::of_writer(conn), version, liveness, checkpoints, orders);
        // The last connection to close deletes the log by its path, even if that log is another
        // database's by now.
        if self.identity.as_ref().is_some_and(|identity| identity.has_heirs()) {
            let leave = conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
            if let Err(error) = leave {
                tracing::warn!(%error, "cannot leave the files alone that are in the place of the \
                                        database's");
            }
        }
    }

    fn follow(
        &self,
        conn: &Prepared<'_>,
        mut version: Option<i64>,
        mut liveness: Liveness,
        mut checkpoints: Checkpoints,
        orders: &Receiver<Order>,
    ) {
        let mut ends = Ends::default();
        loop {
            let order = if self.changes.are_watched() {
                match orders.recv_timeout(LOOK_EVERY) {
                    Ok(order) => order,
                    Err(RecvTimeoutError::Timeout) => Order::Look,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            } else {
                match orders.recv() {
                    Ok(order) => order,
                    Err(_) => return,
                }
            };
            match order {
                Order::Commit(batch, answer) => {
                    let committed = commit(conn, self, &mut liveness, &mut ends, &batch);
                    // The batch may hold closures of the application, and this may be the last
                    // reference to it.
                    discard(batch);
                    // A commit to a file that is gone does not count as accepted.
                    let committed = match committed {
                        Ok(committed) => self.check_files().map(|()| committed),
                        Err(fault) => Err(fault.at(&self.location)),
                    };
                    // After an error, the files may be those of another database.
                    let are_ours = committed.is_ok();
                    // The caller may be gone; the commit counts all the same.
                    survive(|| drop(answer.send(committed)));
                    if are_ours {
                        checkpoints.look(conn);
                    }
                }
                Order::Job(job) => survive(|| job(conn)),
                Order::Look => {}
            }
            if self.changes.are_watched() {
                let found = data_version(conn);
                if found.is_some() && found != version {
                    version = found;
                    self.changes.tell();
                }
            }
        }
    }
}
