//! The reports of a task while it runs: log lines and progress.
//!
//! The journal keeps them beside the deliveries, and a replay does not write them again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::base::journal::{Entry, Kind, Outcome};
use crate::base::time::Timestamp;

/// The level of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// Information for the search for a fault.
    Debug,
    /// Information about normal operation.
    Info,
    /// A warning of a possible problem.
    Warn,
    /// An error.
    Error,
}

impl LogLevel {
    /// Returns the word for the level.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// A line of a task's log.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct LogLine {
    /// The time of the line, by the store's clock.
    pub at: Timestamp,
    /// The attempt that wrote the line.
    pub attempt: u32,
    /// The level of the line.
    pub level: LogLevel,
    /// The text of the line.
    pub message: String,
    /// The fields of the line, by name.
    pub fields: BTreeMap<String, Value>,
}

/// The progress of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct Progress {
    /// The amount of work that is done.
    pub current: u64,
    /// The total amount of work, if it is known.
    pub total: Option<u64>,
    /// A description of the current work.
    pub message: Option<String>,
}

/// A log line in the form of a journal entry.
#[derive(Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) level: LogLevel,
    pub(crate) message: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) fields: BTreeMap<String, Value>,
}

impl LogLine {
    /// Returns the log lines in a journal, or in a part of one.
    pub fn all(journal: &[Entry]) -> Vec<Self> {
        let line = |entry: &Entry| match &entry.outcome {
            Outcome::Done(line) if entry.key.kind == Kind::Log => {
                let Line { level, message, fields } = line.decode().ok()?;
                Some(Self { at: entry.at, attempt: entry.key.ordinal, level, message, fields })
            }
            _ => None,
        };
        journal.iter().filter_map(line).collect()
    }
}

impl Progress {
    /// Returns the latest progress in a journal.
    pub fn latest(journal: &[Entry]) -> Option<Self> {
        let latest = journal.iter().rev().find(|entry| entry.key.kind == Kind::Progress)?;
        match &latest.outcome {
            Outcome::Done(progress) => progress.decode().ok(),
            _ => None,
        }
    }
}
