//! The sending of batches, each until its outcome is known.

use std::sync::Arc;
use std::time::Duration;

use sqlx::error::BoxDynError;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection as _, Row as _};
use stepwell_core::StoreError;
use stepwell_core::store::{Batch, Committed, NewTask, Spawned};
use tokio::time::timeout;
use uuid::Uuid;

use crate::Shared;
use crate::batch::answer;
use crate::batch::arguments::{self, Envelope, Number};
use crate::batch::classify::{Function, Sorted};
use crate::connection::call::{Call, Query};
use crate::connection::error::Fault;
use crate::connection::link::Line;
use crate::connection::session;
use crate::values::columns::Moment;

/// The number of times that a batch gives way to other transactions, before it fails.
pub(crate) const WAYS_GIVEN: u32 = 50;

impl Shared {
    pub(crate) async fn commit(&self, batch: Arc<Batch>) -> Result<Committed, StoreError> {
        if batch.transitions.iter().any(|transition| transition.transaction.is_some()) {
            let reason = "a transition with a user's transaction goes by itself \
                          (`Store::transact`), not in a batch";
            return Err(StoreError::Backend(reason.into()));
        }
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
        let (mut lost, mut gave_way, mut settled) = (0, 0, false);
        // `true` if an earlier sending may have been applied. A batch that is sent again goes to
        // the same function.
        let mut in_doubt = false;
        (sorted.timeline, sorted.doubts) = self.timeline.of(&sorted.batch.transitions);
        loop {
            let mut conn = match line.take(&self.options).await {
                Ok(conn) => conn,
                Err(error) if lost == 0 => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "the database is gone while a batch was on its way; \
                                            trying again");
                    pause(lost).await;
                    lost += 1;
                    continue;
                }
            };
            let number = Number { process: self.process_id, line: line.number, batch: number };
            let timeline = sorted.timeline.clone();
            let envelope = Envelope { settled, timeline, ..self.envelope(Some(number), again) };
            let query = self.query(&envelope, &sorted, in_doubt)?;
            let patience = line.patience();
            let answer = timeout(patience, self.call(&mut conn, query, line.begins)).await;
            let fault = match answer {
                Ok(Ok(row)) => {
                    line.answered(conn);
                    if let Ok(Some(timeline)) = row.try_get::<Option<&str>, _>("moved") {
                        self.timeline.moved(timeline);
                        (sorted.timeline, sorted.doubts) =
                            self.timeline.of(&sorted.batch.transitions);
                        in_doubt = false;
                        continue;
                    }
                    if row.try_get("unsettled").unwrap_or(false) {
                        self.settle(line).await;
                        settled = true;
                        continue;
                    }
                    return Ok((sorted, row));
                }
                Ok(Err(error)) => Fault::of(error, &self.options),
                Err(_) => line.unanswered(),
            };
            match fault {
                // This sending was not applied, and there was no earlier one whose outcome is
                // unknown.
                fault @ Fault::Standby(_) if lost == 0 => {
                    return Err(fault.into_error(&self.options));
                }
                Fault::Lost(reason) | Fault::Standby(reason) => {
                    tracing::warn!(
                        reason,
                        "the connection broke while a batch was on its way; sending it again"
                    );
                    pause(lost).await;
                    lost += 1;
                    in_doubt = true;
                }
                Fault::GaveWay if gave_way < WAYS_GIVEN => {
                    line.conn = Some(conn);
                    gave_way += 1;
                }
                Fault::Unfit(reason) if !line.begins => {
                    self.say_unfit(&reason);
                    line.conn = Some(conn);
                    line.begins = true;
                }
                fault => {
                    line.conn = Some(conn);
                    return Err(fault.into_error(&self.options));
                }
            }
        }
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
                    return tracing::warn!(%error, "cannot ask for users' transactions to be settled");
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

    /// Logs, once, that a setting makes batches slower.
    pub(crate) fn say_unfit(&self, reason: &str) {
        self.unfit.call_once(|| {
            tracing::warn!(
                reason,
                "a default of the database or the role is in the way of batches: each sets it in a \
                 transaction of its own from now on, which takes two round trips more. See the \
                 documentation on settings"
            );
        });
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

    /// Runs a statement; with `begins`, in a transaction with its own settings.
    pub(crate) async fn fetch(
        &self,
        conn: &mut PgConnection,
        query: Query,
        begins: bool,
    ) -> sqlx::Result<Vec<PgRow>> {
        if self.options.prepares && !begins {
            return query.fetch_all(conn).await;
        }
        // A standby can be read, but does not allow a transaction that writes.
        let begin = if begins { session::BEGIN } else { session::BEGIN_READING };
        let mut tx = conn.begin_with(begin).await?;
        let rows = query.persistent(self.options.prepares).fetch_all(&mut *tx).await?;
        tx.commit().await?;
        Ok(rows)
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

    /// Returns the error of a statement in a user's transaction, which may be in another database.
    pub(crate) fn error_within(&self, error: sqlx::Error) -> StoreError {
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        match code.as_deref() {
            Some("42883" | "42P01" | "3F000") => StoreError::Backend(format!(
                "the transaction is in a database that lacks the schema of {}, or a part of it: \
                 begin it in the store's own database",
                self.options
            )),
            _ => self.error(error),
        }
    }

    /// Returns the error of arguments that cannot be encoded.
    pub(crate) fn unsendable(&self, error: BoxDynError) -> StoreError {
        self.error(sqlx::Error::Encode(error))
    }

    pub(crate) fn error(&self, error: sqlx::Error) -> StoreError {
        Fault::of(error, &self.options).into_error(&self.options)
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

/// Waits before another try: longer each time, at most half a second. Workers must reach the server
/// before their leases end.
pub(crate) async fn pause(times: u32) {
    tokio::time::sleep(Duration::from_millis(20 << times.min(5)).min(Duration::from_millis(500)))
        .await;
}
