//! The application of a batch's items, and of the operations that change the database without a
//! batch.

pub(crate) mod circles;
pub(crate) mod claim;
pub(crate) mod history;
pub(crate) mod import;
pub(crate) mod intake;
pub(crate) mod labels;
pub(crate) mod limits;
pub(crate) mod purge;
pub(crate) mod schedules;
pub(crate) mod states;
pub(crate) mod task_types;
pub(crate) mod transition;
pub(crate) mod waits;
pub(crate) mod work;
pub(crate) mod workers;

use std::cell::Cell;

use stepwell_core::store::{Batch, Committed, News};
use stepwell_core::{Room, TaskId, Timestamp};

use crate::base::error::{Fault, is_of_a_row};
use crate::base::rows::Statements as _;
use crate::state::Writer;
use crate::state::ends::Ends;
use crate::state::liveness::Liveness;
use crate::state::prepared::Prepared;

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

    /// Applies the items of a batch, in the order that [`Batch`] gives.
    pub(crate) fn apply(mut self, batch: &Batch) -> Result<Committed, Fault> {
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
