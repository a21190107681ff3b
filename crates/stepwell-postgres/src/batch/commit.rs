//! The sending of batches, each until its outcome is known.

use std::sync::Arc;

use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};
use stepwell_core::StoreError;
use stepwell_core::store::{Batch, Committed, NewTask, Spawned};
use tokio::time::timeout;
use uuid::Uuid;

use crate::batch::answer;
use crate::batch::arguments::{self, Envelope, Number};
use crate::batch::classify::{Function, Sorted};
use crate::connection::Shared;
use crate::connection::call::{Call, Query};
use crate::connection::error::Fault;
use crate::connection::link::Line;
use crate::connection::statements::{WAYS_GIVEN, pause};
use crate::values::columns::{Moment, seq};

/// The tries of a batch that is being sent.
#[derive(Default)]
struct Tries {
    /// The number of connections that were lost.
    lost: u32,
    gave_way: u32,
    /// `true` if the outbox was settled for this batch.
    settled: bool,
    /// `true` if an earlier sending may have been applied. A batch that is sent again goes to the
    /// same function.
    in_doubt: bool,
}

/// Refuses a batch with the number of a journal entry that a column cannot hold.
fn check_numbers(batch: &Batch) -> Result<(), StoreError> {
    for transition in &batch.transitions {
        let keyed = transition.keyed.iter().map(|keyed| keyed.entry.seq);
        let entries = transition.entries.iter().map(|entry| entry.seq).chain(keyed);
        for number in entries.chain(transition.superseded.iter().copied()) {
            seq(number).map_err(|error| StoreError::Backend(error.to_string()))?;
        }
    }
    Ok(())
}

impl Shared {
    pub(crate) async fn commit(&self, batch: Arc<Batch>) -> Result<Committed, StoreError> {
        if batch.transitions.iter().any(|transition| transition.transaction.is_some()) {
            let reason = "a transition with a user's transaction goes by itself \
                          (`Store::transact`), not in a batch";
            return Err(StoreError::Backend(reason.into()));
        }
        check_numbers(&batch)?;
        let sorted = Sorted::new(batch);
        if sorted.repeats() {
            return Err(StoreError::Backend("the batch holds two transitions of one run".into()));
        }
        let mut line = self.link.free_line(&self.options).await;
        let number = self.link.next_batch();
        let (sorted, row) = self.send(&mut line, sorted, number, None).await?;
        let repeated = row.try_get("repeated").map_err(|error| applied(self.error(error)))?;
        let committed = if repeated {
            self.recover(&mut line, sorted, number).await
        } else {
            self.answer(&mut line, sorted, row).await
        };
        committed.map_err(applied)
    }

    /// Sends the batch until it has an answer, or until it certainly was not applied.
    ///
    /// Once the batch has been sent, only the database knows its outcome. From then on, this call
    /// waits for a server that is unavailable, without a limit.
    pub(crate) async fn send(
        &self,
        line: &mut Line,
        mut sorted: Sorted,
        number: i64,
        again: Option<i64>,
    ) -> Result<(Sorted, PgRow), StoreError> {
        let mut tries = Tries::default();
        (sorted.timeline, sorted.doubts) = self.timeline.of(&sorted.batch.transitions);
        loop {
            let mut conn = match line.take(&self.options).await {
                Ok(conn) => conn,
                Err(error) if tries.lost == 0 => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "the database is gone while a batch was on its way; \
                                            trying again");
                    pause(tries.lost).await;
                    tries.lost += 1;
                    continue;
                }
            };
            let number = Number { process: self.process_id, line: line.number, batch: number };
            let (settled, timeline) = (tries.settled, sorted.timeline.clone());
            let envelope = Envelope { settled, timeline, ..self.envelope(Some(number), again) };
            let query = self.query(&envelope, &sorted, tries.in_doubt)?;
            let patience = line.patience();
            let answer = timeout(patience, self.call(&mut conn, query, line.begins)).await;
            let fault = match answer {
                Ok(Ok(row)) => {
                    line.answered(conn);
                    if let Ok(Some(timeline)) = row.try_get::<Option<&str>, _>("moved") {
                        self.timeline.moved(timeline);
                        (sorted.timeline, sorted.doubts) =
                            self.timeline.of(&sorted.batch.transitions);
                        tries.in_doubt = false;
                        continue;
                    }
                    if row.try_get("unsettled").unwrap_or(false) {
                        self.settle(line).await;
                        tries.settled = true;
                        continue;
                    }
                    return Ok((sorted, row));
                }
                Ok(Err(error)) => Fault::of(error, &self.options),
                Err(_) => line.unanswered(),
            };
            self.try_again(fault, &mut tries, line, conn).await?;
        }
    }

    /// Prepares another try of a batch after a fault, or returns the fault's error when the batch
    /// certainly was not applied.
    async fn try_again(
        &self,
        fault: Fault,
        tries: &mut Tries,
        line: &mut Line,
        conn: PgConnection,
    ) -> Result<(), StoreError> {
        match fault {
            // This sending was not applied, and there was no earlier one whose outcome is unknown.
            fault @ Fault::Standby(_) if tries.lost == 0 => {
                return Err(fault.into_error(&self.options));
            }
            Fault::Lost(reason) | Fault::Standby(reason) => {
                tracing::warn!(
                    reason,
                    "the connection broke while a batch was on its way; sending it again"
                );
                pause(tries.lost).await;
                tries.lost += 1;
                tries.in_doubt = true;
                return Ok(());
            }
            Fault::GaveWay if tries.gave_way < WAYS_GIVEN => tries.gave_way += 1,
            Fault::Unfit(reason) if !line.begins => {
                self.say_unfit(&reason);
                line.begins = true;
            }
            fault => {
                line.conn = Some(conn);
                return Err(fault.into_error(&self.options));
            }
        }
        line.conn = Some(conn);
        Ok(())
    }

    /// Applies the effects of users' transactions. Effects that cannot be applied now are applied
    /// before another batch.
    async fn settle(&self, line: &mut Line) {
        let (mut one_by_one, mut gave_way) = (false, 0);
        loop {
            let Ok(mut conn) = line.take(&self.options).await else { return };
            let query = match self.settling(one_by_one) {
                Ok(query) => query,
                Err(error) => {
                    return tracing::warn!(%error, "cannot settle users' transactions");
                }
            };
            let settled = self.fetch(&mut conn, query, line.begins);
            let fault = match timeout(line.patience(), settled).await {
                Ok(Ok(rows)) => {
                    line.answered(conn);
                    let refused =
                        rows.first().map(|row| row.try_get::<Option<Vec<String>>, _>("refused"));
                    for refused in refused.and_then(Result::ok).flatten().into_iter().flatten() {
                        tracing::error!(
                            refused,
                            "something that a user's transaction has asked for is refused by the \
                             database, and put aside in `outbox_refused`"
                        );
                    }
                    // This call notifies the clients of this process, and the database notifies the
                    // others.
                    return self.changes.tell_anything();
                }
                Ok(Err(error)) => Fault::of(error, &self.options),
                Err(_) => line.unanswered(),
            };
            if !matches!(fault, Fault::Lost(_) | Fault::Standby(_)) {
                line.conn = Some(conn);
            }
            match fault {
                Fault::GaveWay if gave_way < WAYS_GIVEN => gave_way += 1,
                Fault::Unfit(reason) if !line.begins => {
                    self.say_unfit(&reason);
                    line.begins = true;
                }
                Fault::Failed(error) if error.is_of_an_item() && !one_by_one => one_by_one = true,
                fault => {
                    let error = fault.into_error(&self.options);
                    tracing::warn!(
                        %error,
                        "cannot do what users' transactions have asked for; trying again with a \
                         later batch"
                    );
                    return;
                }
            }
        }
    }

    fn envelope(&self, number: Option<Number>, again: Option<i64>) -> Envelope<'_> {
        Envelope {
            number,
            channel: &self.options.schema,
            now: self.clock.given(),
            again,
            settled: false,
            timeline: None,
        }
    }

    /// Spawns within a transaction of the user. The call has no number, and is not sent again.
    pub(crate) async fn spawn_within(
        &self,
        tx: &mut PgConnection,
        task: NewTask,
    ) -> Result<Option<Spawned>, StoreError> {
        let sorted = Sorted::new(Arc::new(Batch { spawns: vec![task], ..Batch::default() }));
        let envelope = Envelope { settled: true, ..self.envelope(None, None) };
        let call = arguments::any(&self.options, &envelope, &sorted);
        let call = call.map_err(|error| self.unsendable(error))?;
        let query = call.query().persistent(self.options.prepares);
        let row = query.fetch_one(tx).await.map_err(|error| self.error_within(error))?;
        let (mut committed, _) = answer::read(&sorted, &row).map_err(|error| self.error(error))?;
        Ok(committed.spawns.pop())
    }

    /// Returns the call of the function that can apply the batch.
    fn query(
        &self,
        envelope: &Envelope<'_>,
        sorted: &Sorted,
        was_sent: bool,
    ) -> Result<Query, StoreError> {
        let options = &self.options;
        // Only `commit` compares the ends of journals.
        let function = if sorted.doubts { Function::Any } else { sorted.function };
        let call = match function {
            Function::One if !was_sent => arguments::one(options, envelope, sorted),
            Function::One | Function::Plain => {
                arguments::plain(options, envelope, sorted, was_sent)
            }
            Function::Any => arguments::any(options, envelope, sorted),
        };
        Ok(call.map_err(|error| self.unsendable(error))?.query())
    }

    /// Returns the call that applies the effects of users' transactions.
    fn settling(&self, one_by_one: bool) -> Result<Query, StoreError> {
        let call = || {
            let mut call = Call::of("settle", &self.options);
            call.add("p_process", Some(self.process_id))?;
            call.add("p_channel", Some(self.options.schema.as_str()))?;
            call.add("p_now", self.clock.given().map(Moment))?;
            call.add("p_one_by_one", Some(one_by_one))?;
            Ok(call.query())
        };
        call().map_err(|error| self.unsendable(error))
    }

    /// Calls a function in one round trip. The call takes more round trips when statements cannot
    /// stay prepared, or when the session's settings do not allow it.
    async fn call(
        &self,
        conn: &mut PgConnection,
        query: Query,
        begins: bool,
    ) -> sqlx::Result<PgRow> {
        let rows = self.fetch(conn, query, begins).await?;
        let row = rows.into_iter().next().ok_or(sqlx::Error::RowNotFound)?;
        self.clock.hear(row.try_get::<Moment, _>("r_now")?.0);
        Ok(row)
    }

    async fn answer(
        &self,
        line: &mut Line,
        sorted: Sorted,
        row: PgRow,
    ) -> Result<Committed, StoreError> {
        let (mut committed, others) =
            answer::read(&sorted, &row).map_err(|error| self.error(error))?;
        self.timeline.learn(sorted.timeline.as_deref(), sorted.doubts, &sorted.batch, &committed);
        self.fill_apart(line, &row, &mut committed).await?;
        if !others.is_empty() {
            let mut ends = self.other_ends(line, others).await;
            committed.news.finished.append(&mut ends);
        }
        Ok(committed)
    }

    /// Reads the values that an answer omitted because of their length.
    pub(crate) async fn fill_apart(
        &self,
        line: &mut Line,
        row: &PgRow,
        committed: &mut Committed,
    ) -> Result<(), StoreError> {
        match row.try_get::<Option<Vec<Uuid>>, _>("cl_apart") {
            Ok(Some(apart)) => self.fill(line, &apart, &mut committed.claims).await,
            _ => Ok(()),
        }
    }
}

/// Returns the error of a batch that was applied. Invariant: it is not an error of an item, because
/// then the batch would be sent again in parts, and some of its items applied twice.
fn applied(error: StoreError) -> StoreError {
    if !error.is_of_an_item() {
        return error;
    }
    StoreError::Unavailable(format!(
        "what was asked for was done, but the answer cannot be read: {error}"
    ))
}
