//! The reports of task code about itself: lines of its log, and its progress.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::base::journal::{Kind, to_payload};
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::text::cut_off;
use crate::context::TaskContext;
use crate::observe::notes::{Line, LogLevel, Progress};

/// The size limit of a message, in bytes.
const MAX_MESSAGE: usize = 64 << 10;

impl TaskContext {
    /// Writes a line to the task's log, and reports it to all who
    /// [subscribe](crate::Client::subscribe).
    ///
    /// The log is kept with the task, and [`Client::logs`](crate::Client::logs) returns it. The
    /// function may be called anywhere, also in a step's closure. The line is durable with the next
    /// commit. A message of over 64 KiB is cut off, and fields that could not be a [`Payload`] are
    /// left out.
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
            self.run().engine.observer.log_written(self.task_id, line);
        }
    }

    /// Reports how far the task has come, in place of its earlier report.
    ///
    /// [`Client::snapshot`](crate::Client::snapshot) returns the report, and all who
    /// [subscribe](crate::Client::subscribe) receive it. The function may be called anywhere, also
    /// in a step's closure. A message of over 64 KiB is cut off.
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
            self.run().engine.observer.progressed(self.task_id, progress);
        }
    }

    /// Journals a note, and returns `false` when the journal has it already.
    fn note<T: Serialize>(&self, kind: Kind, name: Name, note: &T) -> bool {
        let run = self.run();
        let noted =
            run.state().note(kind, name, self.attempt, to_payload(note), run.engine.store.now());
        if noted {
            run.waker.wake_executor();
        }
        noted
    }
}
