//! Values of the database's rows as the engine's types, and what is done about values that cannot
//! be read.

use serde::de::DeserializeOwned;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use sqlx::types::Uuid;
use stepwell_core::store::{Finish, TaskState, Wait, WorkerState};
use stepwell_core::{
    Entry, Failure, Key, Kind, Name, OutOfRange, Outcome, Payload, Scope, TaskId, UnknownWord,
    Unreadable, deleted,
};

use crate::values::columns::Moment;

/// Returns an array, or an empty one when the column is NULL or the function has no such column.
pub(crate) fn list<'r, T>(row: &'r PgRow, column: &str) -> sqlx::Result<Vec<T>>
where
    Option<Vec<T>>: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    Ok(value::<Vec<T>>(row, column)?.unwrap_or_default())
}

pub(crate) fn value<'r, T>(row: &'r PgRow, column: &str) -> sqlx::Result<Option<T>>
where
    Option<T>: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    match row.try_get(column) {
        Err(sqlx::Error::ColumnNotFound(_)) => Ok(None),
        value => value,
    }
}

pub(crate) fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::Decode(error.into())
}

pub(crate) fn name(text: impl AsRef<str>) -> sqlx::Result<Name> {
    Name::new(text).map_err(broken)
}

pub(crate) fn scope(text: Option<&str>) -> sqlx::Result<Scope> {
    Scope::from_text(text.unwrap_or_default()).map_err(broken)
}

pub(crate) fn json<T: DeserializeOwned>(text: &str) -> sqlx::Result<T> {
    serde_json::from_str(text).map_err(broken)
}

pub(crate) fn worker_state(word: impl AsRef<str>) -> sqlx::Result<WorkerState> {
    let word = word.as_ref();
    WorkerState::parse(word).ok_or_else(|| broken(format!("{word:?} is no state of a worker")))
}

/// Returns a number of things; of a number out of range, the nearest in range. The function is for
/// limits, and for what a batch has changed, whose answer must not fail because of a row.
pub(crate) fn attempt(number: i64) -> u32 {
    u32::try_from(number.max(0)).unwrap_or(u32::MAX)
}

/// Returns a number of things. A number out of range cannot be read.
pub(crate) fn count(number: i64) -> sqlx::Result<u32> {
    u32::try_from(number).map_err(|_| broken(OutOfRange { number }))
}

/// Returns a part of a claimed task, or a default when the part cannot be read. A task with an
/// unreadable part is failed with the error, and the other tasks of the claim run.
pub(crate) fn of_task<T: Default>(
    hurt: &mut Option<Unreadable>,
    what: &str,
    read: sqlx::Result<T>,
) -> sqlx::Result<T> {
    read.or_else(|error| {
        *hurt = Some(unreadable(what, error)?);
        Ok(T::default())
    })
}

/// Returns a placeholder for a name that cannot be read.
pub(crate) fn unreadable_name() -> sqlx::Result<Name> {
    name("unreadable")
}

/// Returns the error of a row that cannot be read. Other errors mean that the database does not
/// answer, and are returned as they are.
pub(crate) fn unreadable(what: &str, error: sqlx::Error) -> sqlx::Result<Unreadable> {
    match &error {
        sqlx::Error::Decode(reason) | sqlx::Error::ColumnDecode { source: reason, .. } => {
            Ok(Unreadable::new(what, &**reason))
        }
        _ => Err(error),
    }
}

/// Returns journal entries from the arrays whose names have the prefix.
pub(crate) fn entries(
    row: &PgRow,
    prefix: &str,
) -> sqlx::Result<impl Iterator<Item = sqlx::Result<Entry>>> {
    let column = |column: &str| format!("{prefix}{column}");
    let seqs: Vec<i64> = list(row, &column("seq"))?;
    let kinds: Vec<String> = list(row, &column("kind"))?;
    let names: Vec<String> = list(row, &column("name"))?;
    let ordinals: Vec<i64> = list(row, &column("ordinal"))?;
    let outcomes: Vec<String> = list(row, &column("outcome"))?;
    let payloads: Vec<String> = list(row, &column("payload"))?;
    let times: Vec<Moment> = list(row, &column("at"))?;
    let keys = kinds.into_iter().zip(names).zip(ordinals);
    let rest = outcomes.into_iter().zip(payloads).zip(times);
    let all = seqs.into_iter().zip(keys.zip(rest));
    Ok(all.map(|(seq, (((kind, name), ordinal), ((word, payload), at)))| {
        entry(seq, key(&kind, &name, ordinal), &word, payload, at)
    }))
}

fn entry(
    seq: i64,
    key: sqlx::Result<Key>,
    word: &str,
    payload: String,
    at: Moment,
) -> sqlx::Result<Entry> {
    let outcome = Outcome::from_columns(word, Payload::from_json(payload)).map_err(broken)?;
    let number = u64::try_from(seq).map_err(|_| broken(OutOfRange { number: seq }))?;
    Ok(Entry { seq: number, key: key?, outcome, at: at.0 })
}

pub(crate) fn key(kind: &str, text: &str, ordinal: i64) -> sqlx::Result<Key> {
    let kind = Kind::parse(kind).ok_or_else(|| broken(UnknownWord(kind.to_owned())))?;
    Ok(Key { kind, name: name(text)?, ordinal: count(ordinal)? })
}

/// Checks a wait. The target of a wait for a child must be the child's id, because nothing would
/// end a wait without it.
pub(crate) fn awaited(wait: Wait) -> sqlx::Result<Wait> {
    if wait.key.kind == Kind::Child {
        let target = wait.target.as_ref().map(Name::as_str).unwrap_or_default();
        target.parse::<TaskId>().map_err(broken)?;
    }
    Ok(wait)
}

/// Returns how a task ended. A task without a state has been deleted.
pub(crate) fn finish(
    state: Option<&str>,
    output: Option<&str>,
    failure: Option<&str>,
) -> sqlx::Result<Finish> {
    let Some(word) = state else { return Ok(Finish::Failed(deleted())) };
    let state = TaskState::parse(word).ok_or_else(|| broken(UnknownWord(word.to_owned())))?;
    let finish = Finish::of(state, output.map(Payload::from_json), failure.map(Failure::stored));
    finish.ok_or_else(|| broken(format!("a task that has ended is {word}")))
}

/// Returns the task of a row with a column `task_id`.
pub(crate) fn id(row: &PgRow) -> sqlx::Result<TaskId> {
    row.try_get::<Uuid, _>("task_id").map(TaskId::from)
}
