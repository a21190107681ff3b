//! The errors of the database, in texts that say what to do.

use sqlx::postgres::PgDatabaseError;
use stepwell_core::StoreError;

use crate::connection::options::PostgresOptions;
use crate::connection::{ACQUIRE_TIMEOUT, POOL};
use crate::values::rows::unreadable;

/// The meaning of a database error for the caller.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The connection is lost: the call may have been applied.
    Lost(String),
    /// The server is a standby, which does not write: the call was not applied.
    Standby(String),
    /// The call gave way to another transaction: the call was not applied, and may be tried again
    /// at once.
    GaveWay,
    /// A setting of the session does not allow the call: the call was not applied, and may be tried
    /// again in a transaction that [sets its own](crate::connection::session).
    Unfit(String),
    /// The call was not applied.
    Failed(StoreError),
}

impl Fault {
    pub(crate) fn of(error: sqlx::Error, options: &PostgresOptions) -> Self {
        let Some(database) = error.as_database_error() else {
            return match error {
                sqlx::Error::Configuration(_) => {
                    Self::Failed(StoreError::Backend(error.to_string()))
                }
                sqlx::Error::PoolTimedOut => Self::Lost(format!(
                    "no connection for {ACQUIRE_TIMEOUT:?}: all {POOL} of this process are in use, \
                     or the server accepts none"
                )),
                error => match unreadable(&format!("a row in {options}"), error) {
                    Ok(unreadable) => Self::Failed(unreadable.into()),
                    Err(error) => Self::Lost(error.to_string()),
                },
            };
        };
        let message = describe(database.downcast_ref());
        match database.code().as_deref().unwrap_or_default() {
            // The codes mean: a termination by an administrator, a crash, a server that starts up
            // or shuts down, a session that was idle for too long, too many connections.
            "57P01" | "57P02" | "57P03" | "57P05" | "53300" => Self::Lost(message),
            // A standby refuses a transaction that writes, and has no insert position of the log.
            "0A000" | "55000" if is_about_recovery(database.downcast_ref()) => {
                Self::Standby(message)
            }
            code if code.starts_with("08") => Self::Lost(message),
            "40001" | "40P01" => Self::GaveWay,
            // The codes mean: another isolation level, a transaction that only reads, a time limit
            // for the statement, for locks, and for the transaction (which ends the session as
            // well).
            "SW001" | "25006" | "57014" | "55P03" | "25P04" => Self::Unfit(message),
            // The client was silent for too long within a transaction, and its session was ended.
            "25P03" => Self::Lost(message),
            "53100" => Self::Failed(StoreError::Full(message)),
            "XX001" | "XX002" => Self::Failed(StoreError::Corrupt(message)),
            "42501" => Self::Failed(StoreError::Unavailable(format!(
                "{message}. The user of {options} lacks a privilege: see the documentation on \
                 privileges"
            ))),
            "42883" | "42P01" | "3F000" => Self::Failed(StoreError::Unavailable(format!(
                "{message}. Something of the schema in {options} is gone: restore it from a \
                 backup, or let a new start of the program create an empty one"
            ))),
            code if is_of_the_server(code) => Self::Failed(StoreError::Unavailable(message)),
            _ => Self::Failed(StoreError::Backend(message)),
        }
    }

    pub(crate) fn into_error(self, options: &PostgresOptions) -> StoreError {
        match self {
            Self::Lost(reason) => unreachable_server(reason, options),
            Self::GaveWay => {
                StoreError::Unavailable("another transaction was in the way, several times".into())
            }
            Self::Standby(reason) => StoreError::Open {
                location: options.to_string(),
                reason: format!("the server is a standby, and cannot be written to ({reason})"),
                advice:
                    "Let the URL lead to the primary. After a failover the engine goes on by itself"
                        .into(),
            },
            Self::Unfit(reason) => StoreError::Unavailable(format!(
                "{reason}. A setting of the session, the role or the database in {options} is in \
                 the way, or somebody cancelled the statement: see the documentation on settings"
            )),
            Self::Failed(error) => error,
        }
    }
}

/// Returns whether the cause of an error is the server, whatever the statement: conflicts of
/// transactions, exhausted resources, objects in use, an operator's intervention, a failing device.
/// All other errors (an invalid value, a constraint, a limit of one statement) are caused by the
/// statement.
fn is_of_the_server(code: &str) -> bool {
    ["25", "40", "53", "55", "57", "58"].iter().any(|class| code.starts_with(class))
}

/// Returns whether the error says that the server is a standby, in any language.
fn is_about_recovery(error: &PgDatabaseError) -> bool {
    let routine = error.routine().unwrap_or_default();
    routine == "call_bool_check_hook"
        || routine.starts_with("pg_walfile_name")
        || routine.starts_with("pg_current_wal")
}

fn describe(error: &PgDatabaseError) -> String {
    let detail = error.detail().map(|detail| format!(" ({detail})")).unwrap_or_default();
    format!("{}{detail}, SQLSTATE {}", error.message(), error.code())
}

/// Returns the error for a server that cannot be reached, or refuses the connection.
pub(crate) fn cannot_connect(error: sqlx::Error, options: &PostgresOptions) -> StoreError {
    let (reason, advice) = match error.as_database_error() {
        Some(database) => {
            let advice = match database.code().as_deref().unwrap_or_default() {
                "28P01" | "28000" => {
                    "Check the user and the password in the URL, and the server's `pg_hba.conf`"
                }
                "3D000" => "Create the database, or check its name in the URL",
                "53300" => "Close some connections, or raise the server's `max_connections`",
                "42501" => "Grant the user what the documentation on privileges lists",
                "08P01" => {
                    "When there is a PgBouncer in between, set its `ignore_startup_parameters = \
                     extra_float_digits`"
                }
                _ => "The server's log says more",
            };
            (describe(database.downcast_ref()), advice)
        }
        None => (error.to_string(), "Check that the server runs, and the host and port in the URL"),
    };
    StoreError::Open { location: options.to_string(), reason, advice: advice.into() }
}

fn unreachable_server(reason: String, options: &PostgresOptions) -> StoreError {
    StoreError::Open {
        location: options.to_string(),
        reason,
        advice: "The engine goes on by itself when the server is back".into(),
    }
}
