//! The engine's types as values of columns.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{
    PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueFormat, PgValueRef, Postgres,
};
use sqlx::{Decode, Encode, Type};
use std::time::Duration;
use stepwell_core::{Scope, Timestamp, from_micros};

/// A time as `timestamptz`, which the server sends as microseconds since 2000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment(pub(crate) Timestamp);

const TIMESTAMPTZ: PgTypeInfo = PgTypeInfo::with_oid(Oid(1184));
const TIMESTAMPTZ_ARRAY: PgTypeInfo = PgTypeInfo::with_oid(Oid(1185));
/// The time of 1 January 2000, in microseconds since 1970.
const EPOCH: i64 = 946_684_800_000_000;
/// The earliest time that PostgreSQL can store, in the year 4714 BC, in microseconds since 1970.
const FIRST: i64 = EPOCH - 211_813_488_000_000_000;

impl Type<Postgres> for Moment {
    fn type_info() -> PgTypeInfo {
        TIMESTAMPTZ
    }
}

impl PgHasArrayType for Moment {
    fn array_type_info() -> PgTypeInfo {
        TIMESTAMPTZ_ARRAY
    }
}

impl Encode<'_, Postgres> for Moment {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        // An earlier time is stored as the earliest time of PostgreSQL.
        let micros = self.0.as_microsecond().max(FIRST) - EPOCH;
        buffer.extend_from_slice(&micros.to_be_bytes());
        Ok(IsNull::No)
    }
}

impl Decode<'_, Postgres> for Moment {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        if value.format() == PgValueFormat::Text {
            return Err("a time came as text, and not as binary".into());
        }
        let micros = i64::from_be_bytes(value.as_bytes()?.try_into()?).saturating_add(EPOCH);
        Ok(Self(calendar(micros)))
    }
}

/// Returns the time of a stored number of microseconds since 1970. The calendar's last time is not
/// a whole microsecond, so its number returns the last time itself.
pub(crate) fn calendar(micros: i64) -> Timestamp {
    if micros >= Timestamp::MAX.as_microsecond() { Timestamp::MAX } else { from_micros(micros) }
}

/// Returns a number of the engine as a `bigint`; of a number out of range, the nearest in range.
/// The function is for numbers that have been checked, and for those after which nothing comes.
pub(crate) fn bigint(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Returns a duration of a number of microseconds; of a negative number, no time.
pub(crate) fn duration(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// Returns the number of a journal entry as a column holds it.
pub(crate) fn seq(seq: u64) -> Result<i64, BoxDynError> {
    i64::try_from(seq).map_err(|_| {
        let most = i64::MAX;
        format!("{seq} is too large for the number of a journal entry: at most {most}").into()
    })
}

/// Returns a duration in microseconds, as the database adds it to times. A longer duration than the
/// calendar is shortened to 10,000 years.
pub(crate) fn micros(duration: Duration) -> i64 {
    const TEN_THOUSAND_YEARS: i64 = 10_000 * 366 * 86_400 * 1_000_000;
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX).min(TEN_THOUSAND_YEARS)
}

/// Returns whether a task of the scope has the label by its scope, and not only by a header that
/// its spawner set.
pub(crate) fn is_own(scope: &Scope, name: &str, value: &str) -> bool {
    scope.is_all() || scope.labels().get(name).is_some_and(|own| own == value)
}

/// Returns the stored form of a scope; NULL when the scope has no limits.
pub(crate) fn scope_text(scope: &Scope) -> Option<String> {
    (!scope.is_all()).then(|| scope.to_text())
}
