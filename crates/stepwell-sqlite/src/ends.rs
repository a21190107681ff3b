//! Where the journals of running tasks end, as far as this connection has written them.
//!
//! Each entry's transition says which entry it follows on, so that a journal that was set back (a
//! backup was restored beneath the program) is noticed before anything is written behind the gap.
//! Asking the database for a journal's end takes as long as adding an entry. While no other
//! connection has committed, a journal ends where this one has left it, and nothing need be asked.

use hashbrown::HashMap;
use stepwell_core::RunId;

use crate::rows::Statements;

/// How many runs are known at most.
const MOST: usize = 100_000;

/// The last entries of runs.
#[derive(Default)]
pub(crate) struct Ends {
    /// The commits of others that were seen: what is known goes by them.
    version: Option<i64>,
    of: HashMap<RunId, u64>,
}

impl Ends {
    /// Forgets everything if another connection has committed meanwhile. The transaction has begun.
    pub(crate) fn begin(&mut self, conn: &impl Statements) {
        let version = data_version(conn);
        if version.is_none() || version != self.version || self.of.len() > MOST {
            self.of.clear();
        }
        self.version = version;
    }

    /// Whether the run's journal is known to end with that entry.
    pub(crate) fn is(&self, run_id: RunId, seq: u64) -> bool {
        self.of.get(&run_id) == Some(&seq)
    }

    /// The run has written up to that entry.
    pub(crate) fn set(&mut self, run_id: RunId, seq: u64) {
        self.of.insert(run_id, seq);
    }

    /// The run has changed its journal in another way, or has ended.
    pub(crate) fn forget(&mut self, run_id: RunId) {
        self.of.remove(&run_id);
    }

    /// What was written is undone.
    pub(crate) fn rolled_back(&mut self) {
        self.of.clear();
    }
}

/// A number that changes when another connection commits; `None` when it cannot be read just now.
pub(crate) fn data_version(conn: &impl Statements) -> Option<i64> {
    conn.one("PRAGMA data_version", [], |row| row.get(0)).ok().flatten()
}
