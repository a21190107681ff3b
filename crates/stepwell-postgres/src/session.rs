//! The settings that the store's transactions run with, whatever the database, the role or a pooler
//! has made their defaults.
//!
//! A session belongs to the store only where no pooler in transaction mode stands between, and
//! nobody can tell. So nothing is set for a session: the functions in the database carry their
//! settings (`SET` in their definitions), and transactions that the store begins set theirs. A
//! batch is one call without a transaction of its own, and two settings cannot be changed within a
//! call: the isolation level, and the time that a statement may take. Where one of them is in the
//! way, the database refuses the call ([`Fault::Unfit`](crate::error::Fault)), and calls over that
//! connection are put in transactions from then on.

/// The settings of all of them, but for how long a client may be silent within it.
macro_rules! settings {
    ($mode:literal, $silence:literal) => {
        concat!(
            "BEGIN ISOLATION LEVEL READ COMMITTED ",
            $mode,
            "; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; SET LOCAL \
             idle_in_transaction_session_timeout = ",
            $silence
        )
    };
}

/// A limit that PostgreSQL has from version 17 on.
macro_rules! without_limit {
    () => {
        "; SELECT pg_catalog.set_config('transaction_timeout', '0', true)
        WHERE pg_catalog.current_setting('transaction_timeout', true) IS NOT NULL"
    };
}

/// Begins a transaction that reads. A client that has stopped within it holds nothing up for more
/// than a minute.
pub(crate) const BEGIN_READING: &str = concat!(settings!("", "'1min'"), without_limit!());
/// Begins a transaction of the store's own that writes. It is durable when it has committed, where
/// the role's default is that it need not be.
pub(crate) const BEGIN: &str = concat!(
    settings!("READ WRITE", "'1min'"),
    without_limit!(),
    "; SELECT pg_catalog.set_config('synchronous_commit', 'on', true)
    WHERE pg_catalog.current_setting('synchronous_commit') = 'off'"
);
/// Begins a transaction for a step's closure, which may take its time, and may set another
/// isolation level. It is marked, so that its end by the closure is noticed. No query comes before
/// the closure's first, which may set that level.
pub(crate) const BEGIN_WORK: &str =
    concat!(settings!("READ WRITE", "0"), "; SET LOCAL stepwell.work = 'open'");
/// What a step's closure may have set for its session is forgotten, before the next one gets it.
/// Statements that are kept prepared stay.
pub(crate) const FORGET: &str =
    "SET SESSION AUTHORIZATION DEFAULT; RESET ALL; CLOSE ALL; UNLISTEN *;
    SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP";
