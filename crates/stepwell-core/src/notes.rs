//! What a task says of itself while it runs: log lines and progress. They are kept in its journal, beside what was delivered to it,
//! and are not written again by a replay.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::context::TaskContext;
use crate::journal::{Entry, Kind, Outcome, to_payload};
use crate::lifecycle::Lifecycle;
use crate::name::Name;
use crate::payload::Payload;
use crate::time::Timestamp;

/// The longest message that is kept, in bytes.
const MAX_MESSAGE: usize = 64 << 10;

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

/// Leaves at most so many bytes of a text.
pub(crate) fn cut_off(text: &mut String, limit: usize) {
    let end = (0..=limit.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or_default());
}

#[derive(Serialize, Deserialize)]
struct Line {
    level: LogLevel,
    message: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    fields: BTreeMap<String, Value>,
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

impl TaskContext {
    /// Writes a line to the task's log, which is kept with the task ([`Client::logs`](crate::Client::logs)), and tells those who
    /// [subscribe](crate::Client::subscribe). It may be used anywhere, also in a step's closure. It is durable with the next
    /// commit. A message of over 64 KiB is cut off, and fields that could not be a [`Payload`] are left out.
    ///
    /// ```
    /// # use stepwell_core::{LogLevel, TaskContext, TaskResult};
    /// async fn import(rows: Vec<u64>, ctx: TaskContext) -> TaskResult<()> {
    ///     ctx.log(LogLevel::Info, "the import begins", [("rows", rows.len().into())]);
    ///     for (n, row) in (1..).zip(&rows) {
    ///         ctx.step(("row", row), || async { Ok(()) }).await?;
    ///         ctx.progress(n, rows.len() as u64, "importing");
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub fn log<'a>(
        &self,
        level: LogLevel,
        message: impl Into<String>,
        fields: impl IntoIterator<Item = (&'a str, Value)>,
    ) {
        let mut message = message.into();
        cut_off(&mut message, MAX_MESSAGE);
        let fields: BTreeMap<_, _> =
            fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let mut line = Line { level, message, fields };
        if !line.fields.is_empty()
            && let Err(error) = Payload::encode(&line, self.max_payload_bytes())
        {
            line.fields = BTreeMap::from([("left out".to_owned(), error.to_string().into())]);
        }
        if self.note(Kind::Log, Name::known("log"), &line) {
            let (task_id, Line { level, message, fields }) = (self.task_id, line);
            let written = || Some(Lifecycle::LogWritten { task_id, level, message, fields });
            self.run().engine.lifecycle.tell(written);
        }
    }

    /// Says how far the task has come, in the place of what it said before: for [`Client::find`](crate::Client::find), and for
    /// those who [subscribe](crate::Client::subscribe). It may be used anywhere, also in a step's closure. A message of over 64 KiB is cut
    /// off.
    pub fn progress<'a>(
        &self,
        current: u64,
        total: impl Into<Option<u64>>,
        message: impl Into<Option<&'a str>>,
    ) {
        let mut message = message.into().map(str::to_owned);
        message.iter_mut().for_each(|message| cut_off(message, MAX_MESSAGE));
        let progress = Progress { current, total: total.into(), message };
        if self.note(Kind::Progress, Name::known("progress"), &progress) {
            let task_id = self.task_id;
            self.run().engine.lifecycle.tell(|| Some(Lifecycle::TaskProgressed { task_id, progress }));
        }
    }

    /// `false` when it is in the journal already.
    fn note<T: Serialize>(&self, kind: Kind, name: Name, note: &T) -> bool {
        let run = self.run();
        let noted = run.operations().note(kind, name, self.attempt, to_payload(note), run.engine.store.now());
        if noted {
            run.waker.wake_executor();
        }
        noted
    }
}
