//! The settings of the store's transactions, which replace the defaults of the database, the role
//! or a pooler.
//!
//! A session belongs to the store only without a pooler in transaction mode, and the store cannot
//! see such a pooler. Therefore nothing is set for a session. The functions in the database carry
//! their settings (`SET` in their definitions), and transactions that the store begins set their
//! own. A batch is one call without an explicit transaction, and two settings cannot be changed
//! within a call: the isolation level and the time limit of a statement. When one of them does not
//! allow the call, the database refuses it ([`Fault::Unfit`](crate::connection::error::Fault)).
//! Calls over that connection run in transactions from then on.

/// Begins a transaction with the common settings. The last parameter limits the silence of a client
/// within it.
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

/// Removes the time limit for transactions, a setting that PostgreSQL has since version 17.
macro_rules! without_limit {
    () => {
        "; SELECT pg_catalog.set_config('transaction_timeout', '0', true)
        WHERE pg_catalog.current_setting('transaction_timeout', true) IS NOT NULL"
    };
}

/// The statements that begin a transaction that reads. A client that stops within it blocks others
/// for at most a minute.
pub(crate) const BEGIN_READING: &str = concat!(settings!("", "'1min'"), without_limit!());
/// The statements that begin a transaction of the store that writes. The commit is durable, even
/// when the role's default is an asynchronous commit.
pub(crate) const BEGIN: &str = concat!(
    settings!("READ WRITE", "'1min'"),
    without_limit!(),
    "; SELECT pg_catalog.set_config('synchronous_commit', 'on', true)
    WHERE pg_catalog.current_setting('synchronous_commit') = 'off'"
);
/// The statements that begin a transaction for a step's closure, which may take long. The marker
/// shows whether the closure has ended the transaction. No query precedes the closure's first
/// statement, which may therefore set another isolation level.
pub(crate) const BEGIN_WORK: &str =
    concat!(settings!("READ WRITE", "0"), "; SET LOCAL stepwell.work = 'open'");
/// The statements that remove all settings that a step's closure may have left in its session.
/// Statements stay prepared.
pub(crate) const FORGET: &str =
    "SET SESSION AUTHORIZATION DEFAULT; RESET ALL; CLOSE ALL; UNLISTEN *;
    SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP";
