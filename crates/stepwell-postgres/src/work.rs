//! Steps whose work is done in a transaction of their own, together with their journal entry.
//!
//! The work comes first, and the fence after it, right before the commit: so that no lock of the engine's is held while
//! the user's code runs. When the run no longer owns its task by then, all is rolled back.

use anyhow::anyhow;
use futures_util::future::BoxFuture;
use sqlx::postgres::{PgConnection, PgTransaction};
use sqlx::{AssertSqlSafe, Connection as _};
use stepwell_core::store::{Applied, Batch, Refused, Transition, UserTransaction};
use stepwell_core::{Entry, Guarded, Outcome, Payload, StoreError, TaskId};

use crate::commit::pause;
use crate::error::Fault;
use crate::{POOL, Shared};

/// What a [`UserTransaction`]'s `work` must hold: an asynchronous closure over a connection on which a transaction has
/// begun. When it fails or panics, what it wrote is undone. It must leave the transaction open.
pub type Work =
    Box<dyn for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, anyhow::Result<Payload>> + Send>;

type Transacted = Result<Result<Applied, Refused>, StoreError>;

/// Where a transition with its work stands in the journal.
struct Place {
    task_id: TaskId,
    seq: i64,
}

impl Shared {
    pub(crate) async fn transact(&self, mut transition: Transition) -> Transacted {
        let Some(UserTransaction { key, seq, work, seal }) = transition.transaction.take() else {
            return self.alone(transition, None).await;
        };
        let Ok(work) = work.downcast::<Work>() else {
            let wrong = anyhow!(
                "the transaction {key} was made for another kind of store: this one is PostgreSQL, whose transactions are asynchronous closures over `&mut sqlx::PgConnection`"
            );
            return self.alone(transition, Some(wrong)).await;
        };
        let mut tx = self.begun().await?;
        let result = Guarded::new(work(&mut tx))
            .await
            .unwrap_or_else(|panic| Err(anyhow!("the transaction {key} panicked: {panic}")));
        let (kept, payload) = match result.and_then(|payload| Ok((seal.seal(&payload)?, payload))) {
            Ok(done) => done,
            Err(error) => {
                // It may be broken already.
                let _ = tx.rollback().await;
                return self.alone(transition, Some(error)).await;
            }
        };
        let place = Place { task_id: transition.task_id, seq: i64::try_from(seq).unwrap_or(i64::MAX) };
        let outcome = Outcome::Done(kept);
        transition.entries.push(Entry { seq, key, outcome, at: self.clock.now() });
        let batch = Batch { transitions: vec![transition], ..Batch::default() };
        let mut committed = self.apply_within(&mut tx, &self.sql.within_work, batch).await?;
        let mut applied = committed.transitions.pop().unwrap_or(Err(Refused));
        let Ok(accepted) = &mut applied else {
            let _ = tx.rollback().await;
            return Ok(applied);
        };
        accepted.transaction = Some(Ok(payload));
        if let Err(error) = tx.commit().await {
            match Fault::of(error, &self.options) {
                Fault::Lost(_) if self.is_journaled(&place).await? => {}
                fault => return Err(fault.into_error(&self.options)),
            }
        }
        Ok(applied)
    }

    /// Applies the rest of a transition, whose work was not done for that reason.
    async fn alone(&self, transition: Transition, why: Option<anyhow::Error>) -> Transacted {
        let batch = Batch { transitions: vec![transition], ..Batch::default() };
        let mut committed = self.commit(batch).await?;
        let mut applied = committed.transitions.pop().unwrap_or(Err(Refused));
        if let Ok(applied) = &mut applied {
            applied.transaction = why.map(Err);
        }
        Ok(applied)
    }

    /// A transaction, marked so that its end by the user's own code is noticed.
    async fn begun(&self) -> Result<PgTransaction<'static>, StoreError> {
        let mut tries = 0;
        loop {
            match self.pool.begin_with("BEGIN; SET LOCAL stepwell.work = 'open'").await {
                Ok(tx) => return Ok(tx),
                Err(error) => match Fault::of(error, &self.options) {
                    Fault::Lost(_) if tries < POOL => tries += 1,
                    fault => return Err(fault.into_error(&self.options)),
                },
            }
        }
    }

    /// Whether a transaction whose COMMIT was lost has committed. Waits until the server has ended it: as long as it is
    /// open, nobody else can add an entry in its place.
    async fn is_journaled(&self, place: &Place) -> Result<bool, StoreError> {
        let sql = format!(
            "INSERT INTO {}.journal (task_id, seq, kind, name, ordinal, outcome, payload, at)
            VALUES ($1, $2, 'step', 'probe', 1, 'done', 'null', now()) ON CONFLICT DO NOTHING",
            self.options.schema
        );
        let mut tries = 0;
        loop {
            let probe = async {
                let mut conn = self.pool.acquire().await?;
                let mut tx = conn.begin().await?;
                let query = sqlx::query(AssertSqlSafe(sql.clone())).persistent(false);
                let inserted = query.bind(*place.task_id.as_uuid()).bind(place.seq).execute(&mut *tx).await?;
                tx.rollback().await?;
                Ok(inserted.rows_affected() == 0)
            };
            match probe.await {
                Ok(journaled) => return Ok(journaled),
                Err(error) => match Fault::of(error, &self.options) {
                    Fault::Lost(reason) => {
                        tracing::warn!(
                            reason,
                            "cannot see yet whether a step's transaction was committed; trying again"
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
