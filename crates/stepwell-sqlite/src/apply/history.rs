//! The lifecycle events that the store keeps.

use rusqlite::{Connection, Result, Transaction, TransactionBehavior, params};
use stepwell_core::store::Happening;

use crate::base::rows::{Sql, Statements as _};

/// Adds lifecycle events to the history, in a transaction.
pub(crate) fn record(conn: &Connection, happenings: &[Happening]) -> Result<()> {
    let tx = Transaction::new_unchecked(conn, TransactionBehavior::Immediate)?;
    for Happening { task_id, at, name, event } in happenings {
        tx.run(
            "INSERT INTO stepwell_history (task_id, at, name, event) VALUES (?1, ?2, ?3, ?4)",
            params![Sql(task_id), Sql(at), Sql(name), Sql(event)],
        )?;
    }
    tx.commit()
}
