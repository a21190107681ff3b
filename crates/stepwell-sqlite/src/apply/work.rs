//! Steps whose work runs within the batch's own transaction.

use std::sync::atomic::Ordering;

use anyhow::anyhow;
use rusqlite::Connection;
use stepwell_core::store::UserTransaction;
use stepwell_core::{Entry, Key, Outcome, Payload, StoreError, TaskId, guard};

use crate::apply::Applying;
use crate::base::error::Fault;
use crate::base::rows::Statements as _;

/// The type that a [`UserTransaction`]'s `work` must hold: a closure over the store's connection,
/// which writes in the store's transaction. When the closure fails or panics, its writes are rolled
/// back. The closure must leave the transaction open: a `COMMIT` or `ROLLBACK` in it fails the
/// whole batch, and nothing of the batch is applied.
pub type Work = Box<dyn FnOnce(&Connection) -> anyhow::Result<Payload> + Send>;

impl Applying<'_, '_> {
    pub(crate) fn work(
        &mut self,
        task_id: TaskId,
        transaction: &UserTransaction,
    ) -> Result<anyhow::Result<Payload>, Fault> {
        let UserTransaction { key, seq, .. } = transaction;
        let Some((work, seal)) = transaction.take() else {
            return Ok(Err(anyhow!("the transaction {key} has run already")));
        };
        let Ok(work) = work.downcast::<Work>() else {
            return Ok(Err(anyhow!(
                "the transaction {key} was made for another kind of store: this one is SQLite, \
                 whose transactions are closures over `&rusqlite::Connection`"
            )));
        };
        self.conn.run("SAVEPOINT stepwell_work", [])?;
        self.writer.user_works.store(true, Ordering::Relaxed);
        let result = guard(|| work(self.conn))
            .unwrap_or_else(|panic| Err(anyhow!("the transaction {key} panicked: {panic}")));
        self.writer.user_works.store(false, Ordering::Relaxed);
        let result = result.and_then(|value| Ok((seal.seal(&value)?, value)));
        if self.conn.is_autocommit() {
            return Err(match result.map_err(anyhow::Error::downcast::<rusqlite::Error>) {
                // A full disk, for example, ends the transaction by itself.
                Err(Ok(error)) if !says_refused_commit(&error) => error.into(),
                _ => ended(key).into(),
            });
        }
        if result.is_err() {
            self.conn.run("ROLLBACK TO stepwell_work", []).map_err(|_| ended(key))?;
        }
        // This fails when the closure ended the store's transaction and then began its own.
        self.conn.run("RELEASE stepwell_work", []).map_err(|_| ended(key))?;
        Ok(match result {
            Ok((kept, value)) => {
                let outcome = Outcome::Done(kept);
                self.add_entries(
                    task_id,
                    &[Entry { seq: *seq, key: key.clone(), outcome, at: self.now }],
                )?;
                Ok(value)
            }
            Err(error) => Err(error),
        })
    }
}

fn ended(key: &Key) -> StoreError {
    StoreError::Backend(format!(
        "the closure of the transaction {key} ended the store's transaction (COMMIT, END, ROLLBACK \
         or RELEASE): remove that, the store commits by itself"
    ))
}

fn says_refused_commit(error: &rusqlite::Error) -> bool {
    error
        .sqlite_error()
        .is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_CONSTRAINT_COMMITHOOK)
}
