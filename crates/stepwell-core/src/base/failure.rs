//! Failures, as they are kept and shown.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::text::cut_off;

/// The longest text of a failure, in bytes.
const MAX_TEXT: usize = 16 << 10;

/// The most bytes that the causes of a failure have together.
const MAX_CAUSES: usize = 32 << 10;

/// Why a step, an attempt or a task failed: what is left of an error when it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct Failure {
    /// What sort of failure it is.
    pub kind: FailureKind,
    /// The error's message. At most 16 KiB are kept.
    pub message: String,
    /// The messages of the errors that caused it, outermost first. At most 32 KiB are kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// Where the error was made: the backtrace of an [`anyhow::Error`], which has one where
    /// `RUST_BACKTRACE` or `RUST_LIB_BACKTRACE` is 1. At most 16 KiB are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backtrace: Option<Box<str>>,
    /// Whether the error asked to be retried.
    #[serde(default, skip_serializing_if = "Retry::is_by_strategy")]
    pub retry: Retry,
    /// Compensations of the failed task that failed themselves, in the order in which they were
    /// tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compensation_errors: Vec<CompensationError>,
    /// The sequence numbers of the journal's entries that the failure comes from. A failure that a
    /// context's call gives has the number of its own entry, and an attempt's failure has the
    /// numbers of the entries that the next attempt tries again.
    #[serde(default, skip_serializing_if = "Sources::is_empty")]
    pub sources: Sources,
}

/// Sequence numbers of entries of a task's journal. None take no more room than a pointer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schemas", schemars(with = "Vec<u64>"))]
#[serde(from = "Vec<u64>", into = "Vec<u64>")]
pub struct Sources(Option<Box<Seqs>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Seqs(Vec<u64>);

impl Sources {
    /// The numbers.
    pub fn as_slice(&self) -> &[u64] {
        self.0.as_ref().map_or(&[], |seqs| &seqs.0)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl From<Vec<u64>> for Sources {
    fn from(seqs: Vec<u64>) -> Self {
        Self((!seqs.is_empty()).then(|| Box::new(Seqs(seqs))))
    }
}

impl From<Sources> for Vec<u64> {
    fn from(sources: Sources) -> Self {
        sources.0.map_or_else(Self::new, |seqs| seqs.0)
    }
}

/// A compensation that failed, for good. The others ran all the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct CompensationError {
    /// The step that it was to undo, or the name of the cleanup.
    pub name: String,
    /// Why it failed.
    pub failure: Failure,
}

/// What sort of failure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The user's code returned an error.
    Error,
    /// The user's code panicked.
    Panic,
    /// A time limit passed.
    Timeout,
    /// A payload could not be written or read.
    Payload,
    /// A child task failed or was cancelled.
    Child,
    /// The code asked for something else than its journal holds.
    Diverged,
    /// The context was used in a way that it cannot work.
    Misuse,
    /// A join would have waited for ever.
    Blocked,
    /// The run showed no sign of life for its `claim_timeout`.
    Stuck,
    /// The worker that ran the task died.
    Crashed,
    /// The task was cancelled.
    Cancelled,
}

/// Whether a failure may be tried again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Retry {
    /// As the retry strategy says. The default.
    #[default]
    ByStrategy,
    /// After this long, as long as attempts are left.
    After(Duration),
    /// Never.
    Never,
}

impl Retry {
    fn is_by_strategy(&self) -> bool {
        *self == Self::ByStrategy
    }
}

/// Cuts off a text that is too long, and says so in it.
fn cut(text: &mut String) {
    let bytes = text.len();
    if bytes > MAX_TEXT {
        cut_off(text, MAX_TEXT - 64);
        text.push_str(&format!("… (cut off: it has {bytes} bytes)"));
    }
}

fn within(mut text: String) -> String {
    cut(&mut text);
    text
}

impl Failure {
    /// A failure without causes, to be retried as the strategy says.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: within(message.into()),
            causes: Vec::new(),
            backtrace: None,
            retry: Retry::ByStrategy,
            compensation_errors: Vec::new(),
            sources: Sources::default(),
        }
    }

    /// The failure with these causes, outermost first. Those that would make it too long are left
    /// out, and said to be.
    pub(crate) fn caused_by(mut self, causes: impl Iterator<Item = String>) -> Self {
        let mut room = MAX_CAUSES;
        let mut left_out = 0;
        for cause in causes.map(within) {
            match room.checked_sub(cause.len() + 1) {
                Some(rest) if left_out == 0 => {
                    room = rest;
                    self.causes.push(cause);
                }
                _ => left_out += 1,
            }
        }
        if left_out > 0 {
            self.causes.push(format!("({left_out} further causes are left out)"));
        }
        self
    }

    /// Makes one that came from elsewhere as short as one that was made here.
    pub(crate) fn bound(&mut self) {
        cut(&mut self.message);
        let causes = std::mem::take(&mut self.causes);
        self.causes = Self::new(self.kind, "").caused_by(causes.into_iter()).causes;
        if let Some(backtrace) = &mut self.backtrace {
            *backtrace = within(backtrace.to_string()).into();
        }
        self.compensation_errors.iter_mut().for_each(|error| error.failure.bound());
    }

    /// A failure as a store keeps it. In the place of one that cannot be read stands one that says
    /// so.
    pub fn stored(json: &str) -> Self {
        serde_json::from_str(json).unwrap_or_else(|error| {
            Self::new(
                FailureKind::Payload,
                format!("the failure that is kept cannot be read: {error}"),
            )
        })
    }

    /// The failure of a task whose compensation came to an end before everything was undone.
    pub fn without_the_rest(mut self, why: Self) -> Self {
        self.compensation_errors
            .push(CompensationError { name: "what is left to undo".into(), failure: why });
        self
    }

    /// The failure, never to be retried.
    pub fn permanent(mut self) -> Self {
        self.retry = Retry::Never;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.causes.iter().try_for_each(|cause| write!(f, ": {cause}"))?;
        self.compensation_errors.iter().try_for_each(|error| {
            write!(f, "; and its compensation \"{}\" failed: {}", error.name, error.failure)
        })
    }
}

impl std::error::Error for Failure {}
