//! Failures, as stores keep them and clients show them.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::text::cut_off;

/// The maximum length of a text of a failure, in bytes.
const MAX_TEXT: usize = 16 << 10;

/// The maximum length of all causes of a failure together, in bytes.
const MAX_CAUSES: usize = 32 << 10;

/// The failure of a step, an attempt or a task: the part of an error that is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct Failure {
    /// The kind of the failure.
    pub kind: FailureKind,
    /// The message of the error, of which at most 16 KiB are kept.
    pub message: String,
    /// The messages of the errors that caused it, outermost first; at most 32 KiB are kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// The backtrace of an [`anyhow::Error`], of which at most 16 KiB are kept.
    ///
    /// Such an error has a backtrace when `RUST_BACKTRACE` or `RUST_LIB_BACKTRACE` is 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backtrace: Option<Box<str>>,
    /// The retry that the error asked for.
    #[serde(default, skip_serializing_if = "Retry::is_by_strategy")]
    pub retry: Retry,
    /// The compensations of the failed task that failed themselves, in the order in which they were
    /// tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compensation_errors: Vec<CompensationError>,
    /// The sequence numbers of the journal's entries that the failure comes from.
    ///
    /// A failure that a call of the context returns has the number of its own entry. The failure of
    /// an attempt has the numbers of the entries that the next attempt tries again.
    #[serde(default, skip_serializing_if = "Sources::is_empty")]
    pub sources: Sources,
}

/// The sequence numbers of entries of a task's journal; an empty list takes no more room than a
/// pointer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schemas", schemars(with = "Vec<u64>"))]
#[serde(from = "Vec<u64>", into = "Vec<u64>")]
pub struct Sources(Option<Box<Seqs>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Seqs(Vec<u64>);

impl Sources {
    /// Returns the numbers.
    pub fn as_slice(&self) -> &[u64] {
        self.0.as_ref().map_or(&[], |seqs| &seqs.0)
    }

    /// Returns whether the list is empty.
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

/// A compensation that failed for good; the other compensations of the task ran all the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct CompensationError {
    /// The step that the compensation was to undo, or the name of the cleanup.
    pub name: String,
    /// The failure of the compensation.
    pub failure: Failure,
}

/// The kind of a failure.
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
    /// The code asked for something else than its journal holds: a divergence.
    Diverged,
    /// The context was used in a way that cannot work.
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

/// The rule by which a failure is tried again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Retry {
    /// The retry strategy decides, which is the default.
    #[default]
    ByStrategy,
    /// The next try follows after this delay, if attempts are left.
    After(Duration),
    /// No try follows.
    Never,
}

impl Retry {
    fn is_by_strategy(&self) -> bool {
        *self == Self::ByStrategy
    }
}

/// Cuts off a text that is too long, and adds a note that says so.
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
    /// Returns a failure without causes, which is tried again as the retry strategy says.
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

    /// Returns the failure with these causes, outermost first.
    ///
    /// Causes that would make the failure too long are left out, and a last cause gives their
    /// number.
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

    /// Shortens a failure from another program to the limits of this one.
    pub(crate) fn bound(&mut self) {
        cut(&mut self.message);
        let causes = std::mem::take(&mut self.causes);
        self.causes = Self::new(self.kind, "").caused_by(causes.into_iter()).causes;
        if let Some(backtrace) = &mut self.backtrace {
            *backtrace = within(backtrace.to_string()).into();
        }
        self.compensation_errors.iter_mut().for_each(|error| error.failure.bound());
    }

    /// Returns the failure that a store keeps as this JSON; for JSON that cannot be read, a failure
    /// that says so.
    pub fn stored(json: &str) -> Self {
        serde_json::from_str(json).unwrap_or_else(|error| {
            Self::new(
                FailureKind::Payload,
                format!("the failure that is kept cannot be read: {error}"),
            )
        })
    }

    /// Returns the failure of a task that has failed and whose row has no failure.
    pub fn missing() -> Self {
        let message = "the task has failed, and the column `failure` of its row is empty: correct \
                       that column, and see the task's journal for the cause";
        Self::new(FailureKind::Payload, message)
    }

    /// Returns the failure of a task whose compensation ended before everything was undone.
    pub fn without_the_rest(mut self, why: Self) -> Self {
        self.compensation_errors
            .push(CompensationError { name: "what is left to undo".into(), failure: why });
        self
    }

    /// Returns the failure with the rule that no try follows.
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
