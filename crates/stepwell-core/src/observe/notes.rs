//! What a task says of itself while it runs: log lines and progress. They are kept in its journal,
//! beside what was delivered to it, and are not written again by a replay.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::base::journal::{Entry, Kind, Outcome};
use crate::base::time::Timestamp;

/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// For those who look for a fault.
    Debug,
    /// What happens.
    Info,
    /// What may become a problem.
    Warn,
    /// What went wrong.
    Error,
}

impl LogLevel {
    /// The level's word.
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
    /// When, by the store's clock.
    pub at: Timestamp,
    /// In which attempt.
    pub attempt: u32,
    /// How much it matters.
    pub level: LogLevel,
    /// What it says.
    pub message: String,
    /// What it is about.
    pub fields: BTreeMap<String, Value>,
}

/// How far a task has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct Progress {
    /// So many are done.
    pub current: u64,
    /// Of so many, if that is known.
    pub total: Option<u64>,
    /// What it is doing.
    pub message: Option<String>,
}

/// A line as the journal has it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) level: LogLevel,
    pub(crate) message: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) fields: BTreeMap<String, Value>,
}

impl LogLine {
    /// The lines in a journal, or in a part of one.
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
    /// The latest in a journal.
    pub fn latest(journal: &[Entry]) -> Option<Self> {
        let latest = journal.iter().rev().find(|entry| entry.key.kind == Kind::Progress)?;
        match &latest.outcome {
            Outcome::Done(progress) => progress.decode().ok(),
            _ => None,
        }
    }
}
