//! The engine's types as values of columns, and the shapes of statements.

use std::time::Duration;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, Value, ValueRef};
use rusqlite::{Connection, OptionalExtension, Params, Row, Rows, Statement};
use stepwell_core::store::{Headers, TaskState, WorkerState};
use stepwell_core::{
    Entry, Failure, Key, Kind, Listed, Name, OutOfRange, Outcome, Page, Payload, RetryStrategy,
    Room, RunId, ScheduleVersion, Scope, TaskId, Timestamp, UnknownWord, Unreadable, WorkerId,
    from_micros,
};

/// A value of the engine that is read from or written to a column.
pub(crate) struct Sql<T>(pub(crate) T);

/// A type that has a stored form in a column.
pub(crate) trait Column: Sized {
    fn read(value: ValueRef<'_>) -> FromSqlResult<Self>;
    fn write(&self) -> rusqlite::Result<ToSqlOutput<'_>>;
}

impl<T: Column> FromSql for Sql<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        T::read(value).map(Sql)
    }
}

impl<T: Column> ToSql for Sql<&T> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        self.0.write()
    }
}

fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> FromSqlError {
    FromSqlError::Other(error.into())
}

fn borrowed(text: &str) -> rusqlite::Result<ToSqlOutput<'_>> {
    Ok(ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())))
}

macro_rules! id_column {
    ($($id:ty),*) => {$(
        impl Column for $id {
            fn read(value: ValueRef<'_>) -> FromSqlResult<Self> {
                value.as_str()?.parse().map_err(other)
            }
            fn write(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(ToSqlOutput::Owned(Value::Text(self.as_uuid().hyphenated().to_string())))
            }
        }
    )*};
}
id_column!(TaskId, RunId, WorkerId, ScheduleVersion);

macro_rules! word_column {
    ($($word:ty),*) => {$(
        impl Column for $word {
            fn read(value: ValueRef<'_>) -> FromSqlResult<Self> {
                let word = value.as_str()?;
                Self::parse(word).ok_or_else(|| other(UnknownWord(word.to_owned())))
            }
            fn write(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                borrowed(self.as_str())
            }
        }
    )*};
}
word_column!(TaskState, Kind, WorkerState);

macro_rules! json_column {
    ($($json:ty),*) => {$(
        impl Column for $json {
            fn read(value: ValueRef<'_>) -> FromSqlResult<Self> {
                serde_json::from_str(value.as_str()?).map_err(other)
            }
            fn write(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                let json = serde_json::to_string(self)
                    .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
                Ok(ToSqlOutput::Owned(Value::Text(json)))
            }
        }
    )*};
}
json_column!(RetryStrategy, Headers);

impl Column for Failure {
    fn read(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_str().map(Self::stored)
    }
    fn write(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let json = serde_json::to_string(self)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
        Ok(ToSqlOutput::Owned(Value::Text(json)))
    }
}

impl Column for Name {
    fn read(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Self::new(value.as_str()?).map_err(other)
    }
    fn write(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        borrowed(self.as_str())
    }
}

impl Column for Scope {
    fn read(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Self::from_text(value.as_str()?).map_err(other)
    }
    fn write(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Owned(Value::Text(self.to_text())))
    }
}

impl Column for Payload {
    fn read(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_str().map(Self::from_json)
    }
    fn write(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        borrowed(self.as_str())
    }
}

impl Column for Timestamp {
    fn read(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let micros = value.as_i64()?;
        // The calendar's last time is not a whole microsecond.
        Ok(if micros >= Self::MAX.as_microsecond() { Self::MAX } else { from_micros(micros) })
    }
    fn write(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.as_microsecond().into())
    }
}

/// A duration in microseconds. A negative number cannot be read.
impl Column for Duration {
    fn read(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let number = value.as_i64()?;
        let micros = u64::try_from(number).map_err(|_| other(OutOfRange { number }))?;
        Ok(Self::from_micros(micros))
    }
    fn write(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        // No clock reaches the end of a duration that is longer than a column can hold, and that is
        // shortened to 292,000 years.
        Ok(i64::try_from(self.as_micros()).unwrap_or(i64::MAX).into())
    }
}

/// Returns the column's value.
pub(crate) fn get<T: Column>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    row.get::<_, Sql<T>>(column).map(|value| value.0)
}

/// Returns the column's value, or `None` for NULL.
pub(crate) fn opt<T: Column>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>> {
    Ok(row.get::<_, Option<Sql<T>>>(column)?.map(|value| value.0))
}

/// Returns the column's value, or `None` when it cannot be read. The function is for values whose
/// absence does not affect other rows.
pub(crate) fn known<T: Column>(row: &Row<'_>, column: usize) -> Option<T> {
    get(row, column).ok()
}

/// Returns a number of things. A number out of range cannot be read.
pub(crate) fn count(row: &Row<'_>, column: usize) -> rusqlite::Result<u32> {
    let number: i64 = row.get(column)?;
    u32::try_from(number).map_err(|_| out_of_range(column, number))
}

/// Returns a number of things; of a number out of range, the nearest in range.
///
/// The function is for changes of tasks that no item of the batch names, and for limits: they must
/// not fail because of a row, and the number is not shown.
pub(crate) fn nearest(row: &Row<'_>, column: usize) -> rusqlite::Result<u32> {
    Ok(u32::try_from(row.get::<_, i64>(column)?.max(0)).unwrap_or(u32::MAX))
}

/// Returns a duration of a number of microseconds; of a negative number, no time.
pub(crate) fn duration(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// Returns the error of a number that is out of the range of its meaning.
fn out_of_range(column: usize, number: i64) -> rusqlite::Error {
    let error = OutOfRange { number }.into();
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Integer, error)
}

/// Returns the number of a journal entry as a column holds it.
pub(crate) fn seq(seq: u64) -> rusqlite::Result<i64> {
    i64::try_from(seq).map_err(|_| {
        let most = i64::MAX;
        let error = format!("{seq} is too large for the number of a journal entry: at most {most}");
        rusqlite::Error::ToSqlConversionFailure(error.into())
    })
}

/// Returns the error of a row that cannot be read. Other errors mean that the database does not
/// answer, and are returned as they are.
pub(crate) fn unreadable(what: &str, error: rusqlite::Error) -> rusqlite::Result<Unreadable> {
    match &error {
        rusqlite::Error::FromSqlConversionFailure(_, _, reason) => {
            Ok(Unreadable::new(what, &**reason))
        }
        rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::Utf8Error(..) => Ok(Unreadable::new(what, &error)),
        _ => Err(error),
    }
}

/// The shapes of statements that the store uses. Each statement is prepared once.
pub(crate) trait Statements {
    /// Calls a function with the prepared statement of a text.
    fn with<R>(
        &self,
        sql: &'static str,
        work: impl FnOnce(&mut Statement<'_>) -> rusqlite::Result<R>,
    ) -> rusqlite::Result<R>;

    /// Runs a statement, and returns the number of changed rows.
    fn run(&self, sql: &'static str, params: impl Params) -> rusqlite::Result<usize> {
        self.with(sql, |statement| statement.execute(params))
    }

    /// Returns the first row, if there is one.
    fn one<T>(
        &self,
        sql: &'static str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Option<T>> {
        self.with(sql, |statement| statement.query_row(params, read).optional())
    }

    /// Returns all rows that can be read.
    fn readable<T>(
        &self,
        what: &str,
        sql: &'static str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Vec<T>> {
        self.first(usize::MAX, what, sql, params, read)
    }

    /// Returns the first rows that can be read, at most `limit`. If the result has fewer, no more
    /// rows exist. Rows that cannot be read are logged, and do not hide the others. The statement
    /// has no limit of its own.
    fn first<T>(
        &self,
        limit: usize,
        what: &str,
        sql: &'static str,
        params: impl Params,
        mut read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Vec<T>> {
        self.with(sql, |statement| {
            let mut rows = Readable::new(what, statement.query(params)?);
            let mut found = Vec::new();
            while found.len() < limit
                && let Some(row) = rows.next(&mut read)?
            {
                found.push(row);
            }
            Ok(found)
        })
    }

    /// Returns a page of the rows that can be read, under the rules of [`Statements::first`].
    fn page<T: Listed>(
        &self,
        limit: usize,
        what: &str,
        sql: &'static str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Page<T>> {
        self.with(sql, |statement| page(statement, limit, what, params, read))
    }

    /// Returns a page of the rows for which there is room. A row that cannot be read is an error.
    fn part<T: Listed>(
        &self,
        room: &mut Room,
        limit: usize,
        sql: &'static str,
        params: impl Params,
        mut read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Page<T>> {
        self.with(sql, |statement| {
            let mut rows = statement.query(params)?;
            Page::fill(room, limit, || rows.next()?.map(&mut read).transpose())
        })
    }

    /// Returns all rows, for a value that consists of several rows. A row that cannot be read is an
    /// error.
    fn all<T>(
        &self,
        sql: &'static str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Vec<T>> {
        self.with(sql, |statement| statement.query_map(params, read)?.collect())
    }
}

impl Statements for Connection {
    fn with<R>(
        &self,
        sql: &'static str,
        work: impl FnOnce(&mut Statement<'_>) -> rusqlite::Result<R>,
    ) -> rusqlite::Result<R> {
        work(&mut *self.prepare_cached(sql)?)
    }
}

/// Returns a page of a statement's rows that can be read. The statement has no limit of its own.
pub(crate) fn page<T: Listed>(
    statement: &mut Statement<'_>,
    limit: usize,
    what: &str,
    params: impl Params,
    mut read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Page<T>> {
    let mut rows = Readable::new(what, statement.query(params)?);
    Page::fill(&mut Room::default(), limit, || rows.next(&mut read))
}

/// The rows of a statement that can be read. The rows that were left out are logged when this value
/// is dropped.
pub(crate) struct Readable<'a> {
    what: &'a str,
    rows: Rows<'a>,
    left_out: usize,
    reason: Option<Unreadable>,
}

impl<'a> Readable<'a> {
    pub(crate) fn new(what: &'a str, rows: Rows<'a>) -> Self {
        Self { what, rows, left_out: 0, reason: None }
    }

    pub(crate) fn next<T>(
        &mut self,
        mut read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Option<T>> {
        while let Some(row) = self.rows.next()? {
            match read(row) {
                Ok(row) => return Ok(Some(row)),
                Err(error) => {
                    let error = unreadable(self.what, error)?;
                    self.left_out += 1;
                    self.reason.get_or_insert(error);
                }
            }
        }
        Ok(None)
    }
}

impl Drop for Readable<'_> {
    fn drop(&mut self) {
        if let Some(error) = &self.reason {
            let left_out = self.left_out;
            tracing::error!(left_out, %error, "rows that cannot be read are left out of a list");
        }
    }
}

/// Reads a key from three columns.
pub(crate) fn key(row: &Row<'_>, first: usize) -> rusqlite::Result<Key> {
    Ok(Key { kind: get(row, first)?, name: get(row, first + 1)?, ordinal: row.get(first + 2)? })
}

/// Reads the columns `seq, kind, name, ordinal, outcome, payload, at`.
pub(crate) fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let word: String = row.get(4)?;
    let outcome = Outcome::from_columns(&word, get(row, 5)?).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(4, rusqlite::types::Type::Text, error)
    })?;
    let number: i64 = row.get(0)?;
    let seq = u64::try_from(number).map_err(|_| out_of_range(0, number))?;
    Ok(Entry { seq, key: key(row, 1)?, outcome, at: get(row, 6)? })
}
