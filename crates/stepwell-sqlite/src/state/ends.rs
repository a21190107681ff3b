//! The ends of running tasks' journals, as this connection has written them.
//!
//! Each transition says which entry it follows. A journal that was set back (a backup was restored
//! beneath the program) is therefore noticed before an entry is written after the gap. Reading a
//! journal's end from the database takes as long as adding an entry. While no other connection
//! commits, a journal ends where this connection has left it, and no read is needed.

use hashbrown::HashMap;
use stepwell_core::RunId;

use crate::base::rows::Statements;

/// The maximum number of runs that are remembered.
const MOST: usize = 100_000;

/// The numbers of the last entries of runs.
#[derive(Default)]
pub(crate) struct Ends {
    /// The version of the database, which other connections' commits change, when the ends were
    /// valid.
    version: Option<i64>,
    of: HashMap<RunId, u64>,
}

impl Ends {
    /// Forgets all ends if another connection has committed since. The caller has begun the
    /// transaction.
    pub(crate) fn begin(&mut self, conn: &impl Statements) {
        let version = data_version(conn);
        if version.is_none() || version != self.version || self.of.len() > MOST {
            self.of.clear();
        }
        self.version = version;
    }

    /// Returns whether the run's journal is known to end with the entry.
    pub(crate) fn is(&self, run_id: RunId, seq: u64) -> bool {
        self.of.get(&run_id) == Some(&seq)
    }

    /// Records that the run's journal ends with the entry.
    pub(crate) fn set(&mut self, run_id: RunId, seq: u64) {
        self.of.insert(run_id, seq);
    }

    /// Forgets the end of a run that has ended, or has changed its journal in another way.
    pub(crate) fn forget(&mut self, run_id: RunId) {
        self.of.remove(&run_id);
    }

    /// Forgets all ends, because the transaction was rolled back.
    pub(crate) fn rolled_back(&mut self) {
        self.of.clear();
    }
}

/// Returns a number that changes when another connection commits, or `None` when it cannot be read.
pub(crate) fn data_version(conn: &impl Statements) -> Option<i64> {
    conn.one("PRAGMA data_version", [], |row| row.get(0)).ok().flatten()
}
