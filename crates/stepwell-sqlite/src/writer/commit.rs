//! The application of a batch in one transaction.
//!
//! A batch that changes nothing (an idle worker's claim) writes no page, and so its COMMIT syncs
//! nothing.

use std::cell::Cell;

use stepwell_core::store::{Batch, Committed, News};
use stepwell_core::{Room, StoreError, TaskId, Timestamp, guard};

use crate::base::error::{Fault, is_of_a_row};
use crate::base::rows::Statements as _;
use crate::state::ends::Ends;
use crate::state::liveness::Liveness;
use crate::state::prepared::Prepared;
use crate::writer::Writer;

/// A batch that is being applied. The methods are in the files that are named after the items.
pub(crate) struct Applying<'a, 'c> {
    pub(crate) conn: &'a Prepared<'c>,
    pub(crate) writer: &'a Writer,
    pub(crate) liveness: &'a mut Liveness,
    pub(crate) ends: &'a mut Ends,
    pub(crate) now: Timestamp,
    pub(crate) news: News,
    /// The cancelled tasks whose children are not cancelled yet.
    pub(crate) doomed: Vec<TaskId>,
    /// `true` if any queue has settings; `None` until the database was read.
    pub(crate) any_queue: Cell<Option<bool>>,
    /// The room in the answer for facts of runs, and for journals.
    pub(crate) room: Room,
}

/// Applies the whole batch, or nothing of it.
pub(crate) fn commit(
    conn: &Prepared<'_>,
    writer: &Writer,
    liveness: &mut Liveness,
    ends: &mut Ends,
    batch: &Batch,
) -> Result<Committed, Fault> {
    let signals = !batch.workers.is_empty();
    conn.run("BEGIN IMMEDIATE", [])?;
    ends.begin(conn);
    // The time is read after the lock was taken, so that it is later than the times of earlier
    // commits.
    let now = writer.runtime.now();
    let applying = Applying {
        conn,
        writer,
        liveness: &mut *liveness,
        ends: &mut *ends,
        now,
        news: News::default(),
        doomed: Vec::new(),
        any_queue: Cell::new(None),
        room: Room::default(),
    };
    let applied = guard(|| applying.apply(batch)).unwrap_or_else(|panic| {
        Err(StoreError::Backend(format!("the batch panicked: {panic}")).into())
    });
    let applied = applied.and_then(|committed| {
        // The files are checked before and after the commit. A refused batch must not be applied
        // later, when the file comes back.
        writer.check_files()?;
        conn.run("COMMIT", [])?;
        Ok(committed)
    });
    match &applied {
        Ok(_) => liveness.committed(conn, signals),
        Err(_) => {
            liveness.rolled_back();
            ends.rolled_back();
            // Some failures end the transaction themselves.
            if !conn.is_autocommit() {
                conn.run("ROLLBACK", [])?;
            }
        }
    }
    applied
}

impl Applying<'_, '_> {
    /// Changes a task that no item of the batch names. A task whose rows do not allow the change
    /// stays as it is, and the batch continues.
    pub(crate) fn apart(
        &mut self,
        task_id: TaskId,
        change: impl FnOnce(&mut Self) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        let News { ready, poked, finished } = &self.news;
        let told = (ready.len(), poked.len(), finished.len());
        let doomed = self.doomed.len();
        self.conn.run("SAVEPOINT stepwell_apart", [])?;
        if let Err(error) = change(self) {
            if self.conn.is_autocommit() || !is_of_a_row(&error) {
                return Err(error);
            }
            tracing::error!(%task_id, %error, "a task cannot be changed, and is left as it is: \
                                               mend its rows");
            self.conn.run("ROLLBACK TO stepwell_apart", [])?;
            self.doomed.truncate(doomed);
            self.news.ready.truncate(told.0);
            self.news.poked.truncate(told.1);
            self.news.finished.truncate(told.2);
        }
        self.conn.run("RELEASE stepwell_apart", []).map(drop)
    }

    fn apply(mut self, batch: &Batch) -> Result<Committed, Fault> {
        fn each<T, R, E: Into<Fault>>(
            items: &[T],
            apply: impl FnMut(&T) -> Result<R, E>,
        ) -> Result<Vec<R>, Fault> {
            items.iter().map(apply).collect::<Result<_, _>>().map_err(Into::into)
        }
        Ok(Committed {
            transitions: self.transitions(&batch.transitions)?,
            commands: each(&batch.commands, |command| self.command(*command))?,
            events: each(&batch.events, |event| self.emit(event))?,
            messages: each(&batch.messages, |message| self.send(message))?,
            spawns: each(&batch.spawns, |task| self.spawn(task))?,
            schedules: each(&batch.schedules, |change| self.change_schedule(change))?,
            // Queues come between schedules and signals, as in the batch: the fields are evaluated
            // in their order.
            workers: {
                batch.queues.iter().try_for_each(|change| self.change_queue(change))?;
                each(&batch.workers, |signal| self.signal(signal))?
            },
            claims: each(&batch.claims, |claim| self.claim(claim))?,
            news: self.news,
        })
    }
}
