//! Sends batches, each until its outcome is known.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Connection as _, Row as _};
use stepwell_core::StoreError;
use stepwell_core::store::{Batch, Committed};

use crate::Shared;
use crate::answer;
use crate::args::{self, Envelope, Number};
use crate::batch::{Function, Sorted};
use crate::columns::Moment;
use crate::error::Fault;
use crate::link::Line;
use crate::query::Query;

/// How long an answer may take before the connection is taken for lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a batch gives way to other transactions before that is an error.
const WAYS_GIVEN: u32 = 50;

/// The statements that name the schema.
pub(crate) struct Sql {
    pub(crate) commit: Arc<str>,
    /// The same, to be refused unless the transaction of a step's work is still open.
    pub(crate) within_work: Arc<str>,
    plain: Arc<str>,
    one: Arc<str>,
}

impl Sql {
    pub(crate) fn new(schema: &str) -> Self {
        let places = |count| (1..=count).map(|n| format!("${n}")).collect::<Vec<_>>();
        let call = |function: &str, places: &[String]| {
            format!("SELECT * FROM {schema}.{function}({})", places.join(", ")).into()
        };
        let one = call("commit_one", &places(args::ONE_COUNT));
        let plain = call("commit_plain", &places(args::PLAIN_COUNT));
        let mut places = places(args::COUNT);
        for json in places.iter_mut().rev().take(2) {
            json.push_str("::jsonb");
        }
        let commit = call("commit", &places);
        if let Some(channel) = places.get_mut(3) {
            *channel = "CASE current_setting('stepwell.work', true) WHEN 'open' THEN $4 END".into();
        }
        Self { commit, plain, one, within_work: call("commit", &places) }
    }
}

impl Shared {
    pub(crate) async fn commit(&self, batch: Batch) -> Result<Committed, StoreError> {
        if batch.transitions.iter().any(|transition| transition.transaction.is_some()) {
            let reason =
                "a transition with a user's transaction goes by itself (`Store::transact`), not in a batch";
            return Err(StoreError::Backend(reason.into()));
        }
        let sorted = Sorted::new(batch);
        if sorted.repeats() {
            return Err(StoreError::Backend("the batch holds two transitions of one run".into()));
        }
        let mut line = self.link.free_line(&self.options).await;
        let number = self.link.next_batch();
        let (sorted, row) = self.send(&mut line, sorted, number, None).await?;
        let repeated = row.try_get("repeated").map_err(|error| self.error(error))?;
        if repeated {
            return self.recover(&mut line, sorted, number).await;
        }
        self.answer(&mut line, sorted, row).await
    }

    /// Sends the batch until it has an answer, or certainly was not applied.
    ///
    /// Once it has been on its way, only the database knows what became of it; so from then on, a server that is gone is
    /// waited for, however long it takes.
    pub(crate) async fn send(
        &self,
        line: &mut Line,
        sorted: Sorted,
        number: i64,
        again: Option<i64>,
    ) -> Result<(Sorted, PgRow), StoreError> {
        let (mut lost, mut gave_way) = (0, 0);
        loop {
            let mut conn = match line.take(&self.options).await {
                Ok(conn) => conn,
                Err(error) if lost == 0 => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "the database is gone while a batch was on its way; trying again");
                    pause(lost).await;
                    lost += 1;
                    continue;
                }
            };
            let query = self.query(
                Number { process: self.process_id, line: line.number, batch: number },
                again,
                &sorted,
                lost > 0,
            )?;
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, self.call(&mut conn, query)).await;
            let fault = match answer {
                Ok(Ok(row)) => {
                    line.conn = Some(conn);
                    return Ok((sorted, row));
                }
                Ok(Err(error)) => Fault::of(error, &self.options),
                Err(_) => Fault::Lost(format!("no answer within {ANSWER_TIMEOUT:?}")),
            };
            match fault {
                Fault::Lost(reason) => {
                    tracing::warn!(
                        reason,
                        "the connection broke while a batch was on its way; sending it again"
                    );
                    pause(lost).await;
                    lost += 1;
                }
                Fault::GaveWay if gave_way < WAYS_GIVEN => {
                    line.conn = Some(conn);
                    gave_way += 1;
                }
                fault => {
                    line.conn = Some(conn);
                    return Err(fault.into_error(&self.options));
                }
            }
        }
    }

    fn envelope(&self, number: Option<Number>, again: Option<i64>) -> Envelope<'_> {
        Envelope { number, channel: &self.options.schema, now: self.clock.given(), again }
    }

    /// Applies a batch within a transaction of the user's, by that statement: it has no number, and is not sent again.
    pub(crate) async fn apply_within(
        &self,
        tx: &mut PgConnection,
        sql: &Arc<str>,
        batch: Batch,
    ) -> Result<Committed, StoreError> {
        let sorted = Sorted::new(batch);
        let args = args::arguments(&self.envelope(None, None), &sorted)
            .map_err(|error| self.error(sqlx::Error::Encode(error)))?;
        let query = sqlx::query_with(AssertSqlSafe(sql.clone()), args).persistent(self.options.prepares);
        let row = query.fetch_one(tx).await.map_err(|error| self.error(error))?;
        let (committed, _) = answer::read(&sorted, &row).map_err(|error| self.error(error))?;
        Ok(committed)
    }

    /// The call of the function that can do the batch.
    fn query(
        &self,
        number: Number,
        again: Option<i64>,
        sorted: &Sorted,
        was_sent: bool,
    ) -> Result<Query, StoreError> {
        let envelope = self.envelope(Some(number), again);
        let (sql, args) = match sorted.function {
            Function::One if !was_sent => (&self.sql.one, args::one(&envelope, sorted)),
            Function::One | Function::Plain => (&self.sql.plain, args::plain(&envelope, sorted, was_sent)),
            Function::Any => (&self.sql.commit, args::arguments(&envelope, sorted)),
        };
        let args = args.map_err(|error| self.error(sqlx::Error::Encode(error)))?;
        Ok(sqlx::query_with(AssertSqlSafe(sql.clone()), args))
    }

    /// One round trip, unless statements cannot be kept prepared.
    async fn call(&self, conn: &mut PgConnection, query: Query) -> sqlx::Result<PgRow> {
        let row = if self.options.prepares {
            query.fetch_one(conn).await?
        } else {
            let mut tx = conn.begin().await?;
            let row = query.persistent(false).fetch_one(&mut *tx).await?;
            tx.commit().await?;
            row
        };
        self.clock.hear(row.try_get::<Moment, _>("r_now")?.0);
        Ok(row)
    }

    async fn answer(&self, line: &mut Line, sorted: Sorted, row: PgRow) -> Result<Committed, StoreError> {
        let (mut committed, others) = answer::read(&sorted, &row).map_err(|error| self.error(error))?;
        if !others.is_empty() {
            let mut ends = self.other_ends(line, others).await;
            committed.news.finished.append(&mut ends);
        }
        Ok(committed)
    }

    pub(crate) fn error(&self, error: sqlx::Error) -> StoreError {
        Fault::of(error, &self.options).into_error(&self.options)
    }
}

/// Longer each time, to half a second: workers must be heard of before their leases end.
pub(crate) async fn pause(times: u32) {
    tokio::time::sleep(Duration::from_millis(20 << times.min(5)).min(Duration::from_millis(500))).await;
}
