//! Steps whose work runs in a transaction together with their journal entry.
//!
//! The work comes first. The fence comes after it, directly before the commit, so that no lock of
//! the engine is held while the user's code runs. When the run no longer owns its task by then, the
//! transaction is rolled back.

use std::sync::Arc;

use anyhow::anyhow;
use futures_util::future::BoxFuture;
use sqlx::postgres::{PgConnection, PgTransaction};
use sqlx::{AssertSqlSafe, Connection as _, Row as _};
use stepwell_core::store::{Applied, Batch, Next, Refused, Seal, Transition, UserTransaction};
use stepwell_core::{Entry, Guarded, Key, Outcome, Payload, RunId, StoreError, TaskId};

use crate::connection::error::Fault;
use crate::connection::statements::pause;
use crate::connection::{Shared, WORKS, session};
use crate::values::columns::{Moment, seq};

/// The type that a [`UserTransaction`]'s `work` must hold: an asynchronous closure over a
/// connection with an open transaction. The closure must leave the transaction open. When it fails
/// or panics, its writes are rolled back.
pub type Work =
    Box<dyn for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, anyhow::Result<Payload>> + Send>;

type Transacted = Result<Result<Applied, Refused>, StoreError>;

/// The owner of the work, and the place of its result.
struct Own {
    task_id: TaskId,
    run_id: RunId,
    key: Key,
    seq: u64,
    seal: Seal,
}

impl Shared {
    pub(crate) async fn transact(&self, mut transition: Transition) -> Transacted {
        let transaction = transition.transaction.take();
        let taken = transaction.as_ref().and_then(UserTransaction::take);
        let (Some(UserTransaction { key, seq, .. }), Some((work, seal))) = (transaction, taken)
        else {
            return self.alone(transition, None).await;
        };
        let Ok(work) = work.downcast::<Work>() else {
            let wrong = anyhow!(
                "the transaction {key} was made for another kind of store: this one is PostgreSQL, \
                 whose transactions are asynchronous closures over `&mut sqlx::PgConnection`"
            );
            return self.alone(transition, Some(wrong)).await;
        };
        let (task_id, run_id) = (transition.task_id, transition.run_id);
        // The other items of the transition go in a batch: they neither wait for the work nor
        // depend on its isolation level.
        let mut applied = Applied::default();
        if !(transition.only_journals() && transition.entries.is_empty()) {
            match self.alone(transition, None).await? {
                Ok(rest) => applied = rest,
                Err(Refused) => return Ok(Err(Refused)),
            }
        }
        // From here on, an error fails the step: otherwise the items above would be sent again.
        let own = Own { task_id, run_id, key, seq, seal };
        match self.work(own, *work).await {
            Ok(Some((payload, cancel_requested))) => {
                applied.cancel_requested |= cancel_requested;
                applied.transaction = Some(Ok(payload));
            }
            Ok(None) => return Ok(Err(Refused)),
            Err(error) => applied.transaction = Some(Err(error)),
        }
        Ok(Ok(applied))
    }

    /// Runs the work, and adds its entry to the journal. The result is `None` when the run does not
    /// own its task. Otherwise the result is the payload, and whether the task's cancellation is
    /// requested.
    async fn work(&self, own: Own, work: Work) -> anyhow::Result<Option<(Payload, bool)>> {
        let Own { task_id, run_id, key, seq, seal } = own;
        // The call waits for a permit without a limit. Only a closed semaphore returns an error,
        // and this one is never closed.
        let _permit = self.may_work.acquire().await?;
        let mut tx = self.begun().await?;
        let result = Guarded::new(work(&mut tx))
            .await
            .unwrap_or_else(|panic| Err(anyhow!("the transaction {key} panicked: {panic}")));
        let (kept, payload) = match result.and_then(|payload| Ok((seal.seal(&payload)?, payload))) {
            Ok(done) => done,
            Err(error) => {
                // The connection may be broken already.
                let _ = tx.rollback().await;
                return Err(error);
            }
        };
        let entry = Entry { seq, key, outcome: Outcome::Done(kept), at: self.clock.now() };
        let Some(cancel_requested) = self.seal(&mut tx, task_id, run_id, &entry).await? else {
            let _ = tx.rollback().await;
            // When the run still owns its task, the journal is not the one that it knows, and
            // another run continues from the stored one.
            let _ = self.alone(Transition::new(task_id, run_id, Next::Release), None).await?;
            return Ok(None);
        };
        if let Err(error) = tx.commit().await {
            match Fault::of(error, &self.options) {
                Fault::Lost(_) if self.is_journaled(task_id, &entry).await? => {}
                fault => return Err(self.not_serialized(fault).into()),
            }
        }
        Ok(Some((payload, cancel_requested)))
    }

    /// Adds the entry to the journal if the run owns its task. The result says whether the task's
    /// cancellation is requested, and is `None` for a run that is not the owner.
    async fn seal(
        &self,
        tx: &mut PgConnection,
        task_id: TaskId,
        run_id: RunId,
        entry: &Entry,
    ) -> Result<Option<bool>, StoreError> {
        let sql = format!(
            "SELECT * FROM {}.seal(p_open => pg_catalog.current_setting('stepwell.work', true),
                p_task => $1, p_run => $2, e_seq => $3, e_kind => $4, e_name => $5,
                e_ordinal => $6, e_outcome => $7, e_payload => $8, e_at => $9)",
            self.options.schema
        );
        let (outcome, payload) = entry.outcome.to_columns();
        let query = sqlx::query(AssertSqlSafe(sql)).persistent(self.options.prepares);
        let query = query.bind(*task_id.as_uuid()).bind(*run_id.as_uuid());
        let number = seq(entry.seq).map_err(|error| StoreError::Backend(error.to_string()))?;
        let query = query.bind(number);
        let query = query.bind(entry.key.kind.as_str()).bind(entry.key.name.as_str());
        let query = query.bind(i64::from(entry.key.ordinal)).bind(outcome);
        let query = query.bind(payload.as_str().to_owned()).bind(Moment(entry.at));
        let sealed = async {
            let row = query.fetch_one(tx).await?;
            let accepted: bool = row.try_get("accepted")?;
            Ok(if accepted { row.try_get("cancel_requested")? } else { None })
        };
        sealed.await.map_err(|error| self.not_serialized(Fault::of(error, &self.options)))
    }

    fn not_serialized(&self, fault: Fault) -> StoreError {
        match fault {
            Fault::GaveWay => StoreError::Backend(
                "the step's transaction cannot be serialized with others that have committed \
                 meanwhile: it is undone, and done again where the step has attempts left"
                    .into(),
            ),
            fault => fault.into_error(&self.options),
        }
    }

    /// Applies the rest of a transition whose work was not done, for the given reason.
    async fn alone(&self, transition: Transition, why: Option<anyhow::Error>) -> Transacted {
        let batch = Batch { transitions: vec![transition], ..Batch::default() };
        let mut committed = self.commit(Arc::new(batch)).await?;
        let mut applied = committed.transitions.pop().unwrap_or(Err(Refused));
        if let Ok(applied) = &mut applied {
            applied.transaction = why.map(Err);
        }
        Ok(applied)
    }

    /// Begins a transaction with a marker, which shows whether the user's code has ended it.
    async fn begun(&self) -> Result<PgTransaction<'static>, StoreError> {
        let mut tries = 0;
        loop {
            match self.works.begin_with(session::BEGIN_WORK).await {
                Ok(tx) => return Ok(tx),
                Err(error) => match Fault::of(error, &self.options) {
                    Fault::Lost(_) if tries < WORKS => tries += 1,
                    fault => return Err(fault.into_error(&self.options)),
                },
            }
        }
    }

    /// Returns whether a transaction whose answer to COMMIT was lost has committed. The call waits
    /// until the server has ended that transaction: while it is open, the insert of a probe in its
    /// place waits.
    async fn is_journaled(&self, task_id: TaskId, entry: &Entry) -> Result<bool, StoreError> {
        let sql = format!(
            "INSERT INTO {}.journal (task_id, seq, kind, name, ordinal, outcome, payload, at)
            VALUES ($1, $2, 'step', 'probe', 1, 'done', 'null', pg_catalog.now())
            ON CONFLICT DO NOTHING",
            self.options.schema
        );
        let mut tries = 0;
        loop {
            let probe = async {
                let mut conn = self.pool.acquire().await?;
                let mut tx = conn.begin_with(session::BEGIN).await?;
                let query = sqlx::query(AssertSqlSafe(sql.clone())).persistent(false);
                let number = seq(entry.seq).map_err(sqlx::Error::Encode)?;
                let inserted =
                    query.bind(*task_id.as_uuid()).bind(number).execute(&mut *tx).await?;
                tx.rollback().await?;
                Ok(inserted.rows_affected() == 0)
            };
            match probe.await {
                Ok(journaled) => return Ok(journaled),
                Err(error) => match Fault::of(error, &self.options) {
                    Fault::Lost(reason) | Fault::Standby(reason) => {
                        tracing::warn!(
                            reason,
                            "cannot see yet whether a step's transaction was committed; trying \
                             again"
                        );
                        pause(tries).await;
                        tries += 1;
                    }
                    fault => return Err(fault.into_error(&self.options)),
                },
            }
        }
    }
}
